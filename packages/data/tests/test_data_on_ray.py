"""All shards as Ray tasks: together they hold what one run holds, and a failing shard is one line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from codellama_data.on_ray import shard_path
from codellama_tokenizer import CodeLlamaTokenizer

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Read = Callable[[object], dict[str, npt.NDArray[np.int32]]]


def test_names_of_shards() -> None:
    assert shard_path(Path("a/corpus.mindrecord"), 1, 4) == Path("a/corpus.1of4.mindrecord")


@pytest.mark.slow  # Ray takes 20 seconds to start and stop twice
def test_shards_on_ray_are_the_whole(
    tmp_path: Path, tokenizer: CodeLlamaTokenizer, run_cli: Cli, read_all: Read
) -> None:
    pytest.importorskip("ray", reason="Ray is an extra")
    talks = [[{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}] for n in range(9)]
    lines = [json.dumps({"conversations": talk}) for talk in talks]
    source = tmp_path / "c.jsonl"
    source.write_text("\n".join(lines))
    settings = ("--seq_length", 200, "--num_workers", 1)
    common = ("preprocess", "--dataset_type", "qa", "--input_glob", source, "--model_file", tokenizer.model_file)
    done = run_cli(*common, *settings, "--output_file", tmp_path / "o.mindrecord", "--num_shards", 2, "--ray")
    assert done.returncode == 0, done.stderr
    assert "shard 0 of 2" in done.stdout
    assert "shard 1 of 2" in done.stdout
    assert run_cli(*common, *settings, "--output_file", tmp_path / "w.mindrecord").returncode == 0
    whole = read_all(tmp_path / "w.mindrecord")["input_ids"]
    for shard in range(2):
        assert (read_all(tmp_path / f"o.{shard}of2.mindrecord")["input_ids"] == whole[shard::2]).all()
    again = run_cli(*common, *settings, "--output_file", tmp_path / "o.mindrecord", "--num_shards", 2, "--ray")
    assert again.returncode == 1
    assert "exists already" in again.stderr.splitlines()[-1]
