"""What `inspect` says about rows: counts by hand, masked spans marked, colours only when asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from codellama_data import DataError, QaOptions, open_rows, preprocess_qa
from codellama_data.inspection import decode_row, measure, render
from codellama_tokenizer import CodeLlamaTokenizer


def row_of(tokenizer: CodeLlamaTokenizer) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int32]]]:
    given, learned = tokenizer.encode("ask"), [*tokenizer.encode("x = 1", bos=False), tokenizer.eos_id]
    ids = np.array([*given, *learned, 0, 0, 0], dtype=np.int32)
    labels = np.array([-100] * len(given) + learned + [-100] * 3, dtype=np.int32)
    return {"input_ids": ids, "labels": labels}


def test_masked_spans_are_marked_and_padding_is_not_shown(tokenizer: CodeLlamaTokenizer) -> None:
    row = row_of(tokenizer)
    assert decode_row(row, tokenizer, colour=False) == "⟦<s> ask⟧ x = 1</s>"
    assert decode_row(row, tokenizer, colour=True) == "\x1b[2m<s> ask\x1b[0m\x1b[1;32m x = 1</s>\x1b[0m"
    del row["labels"]
    assert decode_row(row, tokenizer, colour=True) == "<s> ask x = 1</s><unk><unk><unk>"


def test_what_a_terminal_obeys_is_shown_instead(tokenizer: CodeLlamaTokenizer) -> None:
    text = "a\x1b[2J\r\x07\x9b1m\tb\n"
    row = {"input_ids": np.array(tokenizer.encode(text), dtype=np.int32)}
    assert decode_row(row, tokenizer, colour=True) == "<s>" + r" a\x1b[2J\x0d\x07\x9b1m" + "\tb\n"


def test_figures(tmp_path: Path, tokenizer: CodeLlamaTokenizer) -> None:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a b c"}]
    (tmp_path / "c.json").write_text(json.dumps([{"conversations": talk}] * 3))
    summary = preprocess_qa(str(tmp_path / "c.json"), tokenizer, tmp_path / "o", QaOptions(200), progress=False)
    rows = open_rows(tmp_path / "o")
    figures = measure(rows)
    assert (figures.rows, figures.shortest, figures.longest, figures.tokens) == (3, 201, 201, 603)
    assert figures.padding == summary.padding_tokens
    answer = len(tokenizer.encode("a b c", bos=False)) + 1
    assert figures.loss_tokens == summary.loss_tokens == 3 * answer
    lines = list(render(rows, tokenizer, samples=5, colour=False))
    assert [line for line in lines if line.startswith("---")] == ["--- row 0", "--- row 1", "--- row 2"]
    assert lines[-1].endswith("ASSISTANT:⟧ a b c</s>")


def test_a_tokenizer_that_does_not_fit_is_told(tokenizer: CodeLlamaTokenizer) -> None:
    row = {"input_ids": np.array([1, tokenizer.vocab_size], dtype=np.int32)}
    with pytest.raises(DataError, match="is this the tokenizer that the file was made with"):
        decode_row(row, tokenizer, colour=False)
