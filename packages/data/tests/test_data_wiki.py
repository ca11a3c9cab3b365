"""`wiki`: rows equal to an oracle written from MindFormers' rules, on real WikiText and on hostile text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from codellama_data import DataError, preprocess_wiki
from codellama_data.cleaning import clean_blocks, paragraphs
from codellama_tokenizer import CodeLlamaTokenizer
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

Read = Callable[[object], dict[str, npt.NDArray[np.int32]]]


def oracle_clean(text: str) -> str:
    """The rules in their order, each over the whole text."""
    text = text.replace("s '", "s'")
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for left, right in ("()", "[]", "{}", '""', "''"):
        inside = rf"{re.escape(left)}\s*([^{re.escape(right)}]*?)\s*{re.escape(right)}"
        text = re.sub(inside, lambda match: left + match[1] + right, text)  # noqa: B023
    for old, new in (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°")):
        text = text.replace(old, new)
    return text.replace(" \n", "\n").replace("\n ", "\n").replace(" N ", " 1 ").replace(" 's", "'s")


def oracle_rows(files: list[Path], model_file: Path, length: int) -> npt.NDArray[np.int32]:
    processor = SentencePieceProcessor(model_file=str(model_file))
    ids: list[int] = []
    for path in files:
        for paragraph in oracle_clean(path.read_text(encoding="utf-8")).split("\n\n"):
            if not paragraph or paragraph.strip().startswith("="):
                continue
            ids.append(1)
            for index, piece in enumerate(paragraph.split("<unk>")):
                ids += [0] * (index > 0) + processor.encode(piece)
            ids.append(2)
    rows = len(ids) // length
    return np.array(ids[: rows * length], dtype=np.int32).reshape(rows, length)


@given(text=st.text(st.sampled_from(" \n()[]{}\"'=@-,.:N°sa "), max_size=60), cuts=st.lists(st.integers(0, 60)))
def test_cleaning_in_blocks_is_cleaning_the_whole(text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    blocks = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    assert "".join(clean_blocks(blocks)) == oracle_clean(text)
    expected = [one for one in oracle_clean(text).split("\n\n") if one and not one.strip().startswith("=")]
    assert list(paragraphs(clean_blocks(blocks))) == expected


def test_an_unpaired_quote_shifts_all_later_pairs() -> None:
    text = 'a " b \n \n c " d " e \n'
    assert "".join(clean_blocks([text])) == 'a "b \n \n c" d " e\n'.replace(" \n", "\n").replace("\n ", "\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_equal_mindformers_on_wikitext2(
    test_data: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read, workers: int
) -> None:
    files = [test_data / "wikitext2" / f"wiki.{part}.tokens" for part in ("test", "valid")]  # sorted, as a glob is
    pattern = str(test_data / "wikitext2" / "wiki.*.tokens")
    options = {"seq_length": 512, "num_workers": workers, "file_partition": 2 * workers - 1, "progress": False}
    summary = preprocess_wiki(pattern, tokenizer, tmp_path / "o.mindrecord", **options)  # type: ignore[arg-type]
    expected = oracle_rows(files, tokenizer.model_file, 513)
    rows = read_all(tmp_path / "o.mindrecord")
    assert list(rows) == ["input_ids"]
    assert rows["input_ids"].dtype == np.int32
    assert rows["input_ids"].shape == expected.shape
    assert (rows["input_ids"] == expected).all()
    assert (expected == 0).any(), "the corpus holds <unk>, which must have become id 0"
    assert summary.rows == len(expected)


def test_line_ends_are_universal(tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read) -> None:
    for name, end in (("unix", "\n"), ("dos", "\r\n")):
        (tmp_path / name).write_bytes(end.join(["one " * 20, "", "two " * 20, ""]).encode())
        preprocess_wiki(str(tmp_path / name), tokenizer, tmp_path / f"{name}.out", seq_length=7, progress=False)
    first, second = (read_all(tmp_path / f"{name}.out")["input_ids"] for name in ("unix", "dos"))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "holds no paragraph"),
        (b" = Title = \n \n", "holds no paragraph"),
        (b"short", "fill no row of seq_length"),
        (b"\xff\xfe\x00 binary", "not UTF-8"),
        (b"a\0b", "NUL"),
    ],
)
def test_bad_input(tmp_path: Path, tokenizer: CodeLlamaTokenizer, raw: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(raw)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=message):
        preprocess_wiki(str(tmp_path / "x"), tokenizer, tmp_path / "out" / "o", seq_length=512, progress=False)
    assert list((tmp_path / "out").iterdir()) == []
