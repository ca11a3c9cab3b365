"""The command line: help at once, one line for a mistake, the summary at the end, and what `inspect` shows."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from codellama_data.cli import build_parser, main
from codellama_tokenizer import CodeLlamaTokenizer

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_help_and_wrong_arguments_do_not_load_what_is_slow(environment: dict[str, str]) -> None:
    script = (
        "import sys\n"
        "from codellama_data.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as done: print('code', done.code)\n"
        "print([name for name in ('mindspore', 'numpy', 'sentencepiece', 'fastchat') if name in sys.modules])\n"
    )
    for words, code in (("--help", 0), ("preprocess --help", 0), ("preprocess --bogus", 2), ("", 2)):
        arguments = words.split()
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith(f"code {code}\n[]\n")
        assert done.stderr.count("\n") == (code != 0)


def test_every_flag_of_the_contract_exists() -> None:
    given = (
        "preprocess --dataset_type code --input_glob G --model_file M --seq_length 8 --output_file O "
        "--file_partition 2 --num_workers 3 --overwrite --seed 1 --fim_rate 0.5 --fim_spm_rate 0.1 "
        "--eval_output_file E --eval_share 0.2 --shard_id 1 --num_shards 2 --resume --text_field t"
    )
    parsed = build_parser().parse_args(given.split())
    assert (parsed.seq_length, parsed.file_partition, parsed.num_workers, parsed.overwrite) == (8, 2, 3, True)
    build_parser().parse_args(["alpaca", "--data_path", "I", "--output_path", "O"])
    build_parser().parse_args(["inspect", "F", "--model_file", "M"])


def test_code_from_corpus_to_inspection(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, run_cli: Cli
) -> None:
    output = tmp_path / "o.mindrecord"
    common = ("--model_file", tokenizer.model_file, "--output_file", output, "--seq_length", 63)
    done = run_cli("preprocess", "--dataset_type", "code", "--input_glob", folder, *common, "--file_partition", 2)
    assert done.returncode == 0, done.stderr
    assert "rows" in done.stdout
    assert "infilled: " in done.stdout
    assert "documents/s" in done.stderr  # the progress bar
    again = run_cli("preprocess", "--dataset_type", "code", "--input_glob", folder, *common, "--file_partition", 2)
    assert (again.returncode, again.stdout, again.stderr.count("\n")) == (1, "", 1)
    assert "exists already, give --overwrite" in again.stderr
    seen = run_cli("inspect", output, "--model_file", tokenizer.model_file, "--samples", 2)
    assert seen.returncode == 0, seen.stderr
    lines = seen.stdout.splitlines()
    assert "rows of 64 ids, columns input_ids" in lines[0]
    assert "<PRE>" in seen.stdout
    assert "\x1b[" not in seen.stdout  # piped: no colours


def test_alpaca_to_qa_to_inspection(tmp_path: Path, tokenizer: CodeLlamaTokenizer, run_cli: Cli) -> None:
    records = [{"instruction": "add", "input": f"{n}", "output": f"answer {n}"} for n in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    assert run_cli("alpaca", "--data_path", tmp_path / "a.json", "--output_path", tmp_path / "c.json").returncode == 0
    output = tmp_path / "o.mindrecord"
    common = ("--input_glob", tmp_path / "c.json", "--model_file", tokenizer.model_file, "--seq_length", 300)
    done = run_cli("preprocess", "--dataset_type", "qa", *common, "--output_file", output, "--template", "llama-2")
    assert done.returncode == 0, done.stderr
    assert "under loss: " in done.stdout
    seen = run_cli("inspect", output, "--model_file", tokenizer.model_file).stdout
    assert "### Response: [/INST]⟧ answer 0 </s>" in seen
    assert "5 rows of 301 ids, columns input_ids, labels" in seen


def test_in_a_terminal_there_is_a_bar_and_colours(
    folder: Path, tmp_path: Path, tokenizer: CodeLlamaTokenizer, environment: dict[str, str]
) -> None:
    def in_terminal(*arguments: object) -> str:
        ours, theirs = pty.openpty()  # of size 0 x 0, as such terminals often are
        command = [sys.executable, "-m", "codellama_data", *map(str, arguments)]
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 1 << 16):
                shown += part
        os.close(ours)
        assert process.wait() == 0
        return shown.decode()

    output = tmp_path / "o.mindrecord"
    common = ("preprocess", "--model_file", tokenizer.model_file, "--output_file", output, "--seq_length", 300)
    bar = in_terminal(*common, "--dataset_type", "code", "--input_glob", folder)
    assert re.search(r"100%\|.*<00:00, .* documents/s, .* tokens/s\]", bar)
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "c.json").write_text(json.dumps([{"conversations": talk}]))
    in_terminal(*common, "--dataset_type", "qa", "--input_glob", tmp_path / "c.json", "--overwrite")
    shown = in_terminal("inspect", output, "--model_file", tokenizer.model_file)
    assert "\x1b[1;32m a</s>\x1b[0m" in shown
    assert "⟦" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere: no such MindRecord file"),
        (["alpaca", "--data_path", "nowhere", "--output_path", "o"], "nowhere: can not be read"),
        (["preprocess", "--template", "llama-2"], "--template belongs to --dataset_type qa, found --dataset_type wiki"),
        (["preprocess", "--dataset_type", "qa", "--fim_rate", "0"], "--fim_rate belongs to --dataset_type code"),
        (["preprocess"], "tokenizer.model"),
        (["preprocess", "--dataset_type", "qa", "--template", "x", "--model_file", "MODEL"], "template 'x' is unknown"),
        (["preprocess", "--model_file", "MODEL"], "nothing: no such file"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    tokenizer: CodeLlamaTokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "preprocess":
        defaults = {"--input_glob": "nothing", "--model_file": "tokenizer.model", "--output_file": "o"}
        arguments = arguments + [word for pair in defaults.items() if pair[0] not in arguments for word in pair]
    model_file = str(tokenizer.model_file)
    assert main([model_file if word == "MODEL" else word for word in arguments]) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert message in told.err
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_help_answers_within_a_blink(run_cli: Cli) -> None:
    before = os.times()
    assert run_cli("--help").returncode == 0
    after = os.times()
    # CPU seconds, which other work does not change: 0.04 measured; the import of MindSpore alone takes 1.5.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0
