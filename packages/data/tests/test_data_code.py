"""`code`: documents to rows; infilling at character level loses nothing; the number of workers changes nothing."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from codellama_data import Corpus, DataError, find_corpus, preprocess_code
from codellama_data.infilling import InfillingPlan, encode_document, is_for_evaluation, split_document
from codellama_tokenizer import CodeLlamaTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Read = Callable[[object], dict[str, npt.NDArray[np.int32]]]
SEQ_LENGTH = 31
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=80)


def documents_of(ids: list[int], tokenizer: CodeLlamaTokenizer) -> list[list[int]]:
    """Cut a stream of ids at its begin-of-sequence ids."""
    starts = [at for at, one in enumerate(ids) if one == tokenizer.bos_id]
    return [ids[start:stop] for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True)]


def reassemble(ids: list[int], tokenizer: CodeLlamaTokenizer) -> str:
    """The text of a document, infilled in either order or not."""
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    pre, suf, mid, eot = (tokenizer.prefix_id, tokenizer.suffix_id, tokenizer.middle_id, tokenizer.eot_id)
    if ids[1] != pre:
        return tokenizer.decode(ids[1:-1])
    assert ids[-2] == eot
    assert suf is not None
    assert mid is not None
    suffix_at, middle_at = ids.index(suf), ids.index(mid)
    suffix = tokenizer.decode_continuation(ids[suffix_at + 1 : middle_at])
    if suffix_at == 2:  # suffix first: prefix and middle follow as one text
        return tokenizer.decode(ids[middle_at + 1 : -2]) + suffix
    return tokenizer.decode(ids[2:suffix_at]) + tokenizer.decode_continuation(ids[middle_at + 1 : -2]) + suffix


def run(corpus: Corpus, tokenizer: CodeLlamaTokenizer, output: Path, **options: object) -> object:
    settings_ = {"seq_length": SEQ_LENGTH, "num_workers": 1, "progress": False, **options}
    return preprocess_code(corpus, tokenizer, output, **settings_)  # type: ignore[arg-type]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TEXT, name=st.text(max_size=5), rate=st.sampled_from([0.0, 0.5, 1.0]))
def test_infilled_documents_reassemble_to_the_original(
    tokenizer: CodeLlamaTokenizer, text: str, name: str, rate: float
) -> None:
    ids, infilled = encode_document(name, text, tokenizer, InfillingPlan(rate))
    assert reassemble(ids, tokenizer) == text
    assert infilled == (ids[1:2] == [tokenizer.prefix_id])


def test_cuts_are_uniform_over_the_characters() -> None:
    text, generator, draws = "é∑🐍xyzuvw", random.Random(0), 40_000
    lengths = np.array([[len(part) for part in split_document(text, generator)] for _ in range(draws)])
    assert (lengths.sum(axis=1) == len(text)).all()
    starts = np.bincount(lengths[:, 0], minlength=len(text) + 1) / draws
    expected = np.array([(2 * (len(text) - k) + 1) / (len(text) + 1) ** 2 for k in range(len(text) + 1)])
    assert np.abs(starts - expected).max() < 0.01  # four standard errors of the largest share, 0.19


def test_rates_of_infilling_and_of_its_two_orders(tokenizer: CodeLlamaTokenizer) -> None:
    encoded = [encode_document(f"d{n}", "a = 1\n" * 3, tokenizer, InfillingPlan(0.9, 0.5))[0] for n in range(2000)]
    infilled = [ids for ids in encoded if ids[1] == tokenizer.prefix_id]
    assert abs(len(infilled) / 2000 - 0.9) < 0.03  # four standard errors
    assert abs(sum(ids[2] == tokenizer.suffix_id for ids in infilled) / len(infilled) - 0.5) < 0.05


def test_rows_are_the_documents_one_after_the_other(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read
) -> None:
    corpus = find_corpus(str(folder))
    summary = preprocess_code(
        corpus, tokenizer, tmp_path / "o.mindrecord", seq_length=SEQ_LENGTH, num_workers=1, progress=False
    )
    rows = read_all(tmp_path / "o.mindrecord")
    assert list(rows) == ["input_ids"]
    assert rows["input_ids"].dtype == np.int32
    assert rows["input_ids"].shape == (summary.rows, SEQ_LENGTH + 1)
    whole = documents_of(rows["input_ids"].reshape(-1).tolist(), tokenizer)[:-1]  # the last one may be cut
    texts = [document.text for document in corpus.documents()]
    assert len(texts) - len(whole) <= 2
    assert [reassemble(ids, tokenizer) for ids in whole] == texts[: len(whole)]
    assert summary.documents == 40
    assert 0 <= summary.dropped_tokens <= SEQ_LENGTH
    everything = sum(
        len(encode_document(one.name, one.text, tokenizer, InfillingPlan())[0]) for one in corpus.documents()
    )
    assert summary.tokens + summary.dropped_tokens == everything


def test_neither_workers_nor_partitions_change_a_row(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codellama_data.job._CHUNK_BYTES", 2000)  # many tasks, so that workers really share them
    corpus = find_corpus(str(folder))
    for workers, parts in ((1, 1), (3, 3)):
        run(corpus, tokenizer, tmp_path / f"o{workers}.mindrecord", num_workers=workers, file_partition=parts)
    one, three = read_all(tmp_path / "o1.mindrecord"), read_all(tmp_path / "o3.mindrecord")
    assert (one["input_ids"] == three["input_ids"]).all()
    names = [f"o3.mindrecord{n}" for n in range(3)]
    assert sorted(path.name for path in tmp_path.glob("o3*")) == sorted(names + [f"{name}.db" for name in names])
    parts_ = [read_all([tmp_path / name])["input_ids"] for name in names]
    assert (np.concatenate(parts_) == one["input_ids"]).all()
    assert max(map(len, parts_)) - min(map(len, parts_)) <= 1
    assert (read_all(tmp_path / names[1])["input_ids"] == one["input_ids"]).all()  # one partition finds the others


def test_seed_changes_the_rows(folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read) -> None:
    corpus = find_corpus(str(folder))
    for name, seed in (("a", 0), ("c", 1)):
        run(corpus, tokenizer, tmp_path / name, seed=seed)
    a, c = (read_all(tmp_path / name)["input_ids"] for name in "ac")
    assert a.shape != c.shape or (a != c).any()


def test_evaluation_share_is_disjoint_complete_and_stable(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read
) -> None:
    corpus = find_corpus(str(folder))
    held_out = {name for name, _ in corpus.files if is_for_evaluation(name, 3, 0.3)}
    assert 4 <= len(held_out) <= 20
    summary = preprocess_code(
        corpus,
        tokenizer,
        tmp_path / "train",
        seq_length=SEQ_LENGTH,
        fim_rate=0,
        seed=3,
        eval_output_file=tmp_path / "eval",
        eval_share=0.3,
        num_workers=1,
        progress=False,
    )
    assert summary.eval is not None
    assert (summary.documents, summary.eval.documents) == (40 - len(held_out), len(held_out))
    texts = {one.text: one.name for one in corpus.documents()}
    for output, names in (("eval", held_out), ("train", {name for name, _ in corpus.files} - held_out)):
        ids = read_all(tmp_path / output)["input_ids"].reshape(-1).tolist()
        found = {texts[reassemble(one, tokenizer)] for one in documents_of(ids, tokenizer)[:-1]}
        assert found <= names
        assert len(names - found) <= 2


def test_duplicates_and_files_that_are_no_text_are_left_out_and_counted(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer
) -> None:
    shutil.copy(folder / "a" / "file01.py", folder / "z.py")
    shutil.copy(folder / "a" / "file03.py", folder / "y.py")
    (folder / "bin.py").write_bytes(b"\xff")
    summary = preprocess_code(
        find_corpus(str(folder)), tokenizer, tmp_path / "o", seq_length=SEQ_LENGTH, num_workers=2, progress=False
    )
    assert (summary.documents, summary.duplicates, summary.skipped) == (40, 2, 1)
    assert summary.names == (("bin.py", "not UTF-8 (byte 0)"),)
    with pytest.raises(DataError, match=r"no document is left \(bin\.py: not UTF-8"):
        run(find_corpus(str(folder / "bin.py")), tokenizer, tmp_path / "none")
    assert "2 duplicate documents, 1 documents that are no text" in summary.render()


def test_shards_are_a_partition_of_the_documents(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, read_all: Read
) -> None:
    corpus = find_corpus(str(folder))
    found: list[str] = []
    count, shards = 0, 3
    for shard in range(shards):
        output = tmp_path / f"o{shard}"
        summary = preprocess_code(
            corpus,
            tokenizer,
            output,
            seq_length=1,  # rows of two ids: at most one id is dropped, so every document shows
            num_workers=1,
            progress=False,
            shard_id=shard,
            num_shards=shards,
        )
        count += summary.documents
        ids = read_all(output)["input_ids"].reshape(-1).tolist()
        *whole, last = documents_of(ids, tokenizer)
        last = last if last[-1] == tokenizer.eos_id else [*last, tokenizer.eos_id]
        found += [reassemble(one, tokenizer) for one in (*whole, last)]
    assert count == 40
    assert sorted(found) == sorted(one.text for one in corpus.documents())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fim_rate": 1.5}, "fim_rate must be from 0 to 1, found 1.5"),
        ({"fim_spm_rate": -1}, "fim_spm_rate"),
        ({"seq_length": 0}, "seq_length must be at least 1"),
        ({"seq_length": 10**6}, "fill no row of seq_length"),
        ({"file_partition": 0}, "file_partition"),
        ({"file_partition": 999, "seq_length": 4000}, "not enough for file_partition 999"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"eval_output_file": "e", "eval_share": 1.0}, "eval_share"),
        ({"shard_id": 2, "num_shards": 2}, "shard_id must be in"),
    ],
)
def test_impossible_options(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, options: dict[str, object], message: str
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=message):
        run(find_corpus(str(folder)), tokenizer, tmp_path / "out" / "o", **options)
    assert list((tmp_path / "out").iterdir()) == []


def test_lone_surrogates_are_an_error_that_names_the_record(tmp_path: Path, tokenizer: CodeLlamaTokenizer) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:2: .*surrogate"):
        run(find_corpus(str(tmp_path / "x.jsonl")), tokenizer, tmp_path / "o")
