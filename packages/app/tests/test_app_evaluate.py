"""`codellama-evaluate`: a scripted model scores as scripted, runs go on, a real checkpoint works from end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from codellama_app import evaluate
from codellama_app.evaluate_generation import Plan, generate, read_journals, repair_journals
from codellama_eval import load_problems
from codellama_eval.files import read_rows, write_rows
from codellama_eval.problems import data_file
from codellama_model import Sampling, Token
from codellama_tokenizer import CodeLlamaTokenizer, train_tokenizer

TASKS = ["HumanEval/0", "HumanEval/33", "HumanEval/50", "HumanEval/53"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CodeLlamaTokenizer:
    texts = [problem.program(problem.canonical_solution) for problem in load_problems().values()]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 700)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    write_rows(path, (row for row in read_rows(data_file()) if row["task_id"] in TASKS))
    return path


@dataclasses.dataclass
class _Config:
    max_position_embedding: int


class Scripted:
    """Continues every prompt of HumanEval with the canonical solution, and goes on talking."""

    stop_ids = frozenset({2})

    def __init__(self, tokenizer: CodeLlamaTokenizer, context: int = 100_000) -> None:
        self.tokenizer: CodeLlamaTokenizer | None = tokenizer
        self.config = _Config(context)
        self.calls: list[tuple[list[list[int]], int]] = []
        problems = load_problems().values()
        self._answers = {
            tuple(tokenizer.encode(p.prompt)): f"{p.canonical_solution}\n\nprint({p.entry_point})\n" for p in problems
        }

    def tokens(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None,
        stop_ids: Any,
        stop: Sequence[str],
        batch_size: int,
    ) -> Iterator[Token]:
        assert self.tokenizer is not None and sampling is not None
        self.calls.append(([list(ids) for ids in prompts], sampling.seed))
        for row, ids in enumerate(prompts):
            answer = [*self.tokenizer.encode("\n" + self._answers[tuple(ids)], bos=False), 2]
            start = len(self.tokenizer.encode("\n", bos=False))
            for number, token_id in enumerate(answer[start:], start):
                yield Token(row, token_id, number == len(answer) - 1)


@pytest.fixture
def scripted(tokenizer: CodeLlamaTokenizer, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    model = Scripted(tokenizer)
    monkeypatch.setattr(evaluate, "_load", lambda *_: model)
    return model


def command(folder: Path, few: Path, *more: object) -> list[str]:
    fixed = ["--config", "codellama_tiny", "--load_checkpoint", str(few.parent), "--data_path", str(few)]
    return [*fixed, "--output_dir", str(folder), "--batch_size", "3", *map(str, more)]


def run(*arguments: str) -> None:
    evaluate._main(list(arguments))


def test_a_model_that_answers_canonically_scores_one(
    scripted: Scripted, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    run(*command(folder, few, "--n_samples", 2, "--k", "1,2", "--timeout", 10, "--model", "codellama_34b"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "{'pass@1': 1.0, 'pass@2': 1.0}"
    assert any("48.8 %" in line for line in lines)
    assert sorted(path.name for path in folder.iterdir()) == [
        "evaluate.json",
        "generations.jsonl",
        "prompts.jsonl",
        "report.json",
        "samples.jsonl",
        "samples.jsonl_results.jsonl",
    ]
    rows = list(read_rows(folder / "generations.jsonl"))
    assert [(row["task_id"], row["sample"]) for row in rows] == [(task, n) for task in TASKS for n in (0, 1)]
    assert [len(prompts) for prompts, _ in scripted.calls] == [3, 3, 2]
    settings = json.loads((folder / "evaluate.json").read_text())
    assert settings["settings"]["sampling"] == {"do_sample": False, "seed": 0}
    assert json.loads((folder / "report.json").read_text())["statuses"] == {"passed": 8}


def test_a_finished_run_is_scored_again_without_generating(scripted: Scripted, few: Path, tmp_path: Path) -> None:
    arguments = command(tmp_path / "out", few, "--timeout", 10)
    run(*arguments)
    calls = len(scripted.calls)
    run(*arguments)
    assert len(scripted.calls) == calls


def test_other_settings_do_not_mix(scripted: Scripted, few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(*command(folder, few, "--timeout", 10))
    with pytest.raises(evaluate.UserError, match=r"begun with another max_new_tokens: .*--overwrite"):
        run(*command(folder, few, "--timeout", 10, "--max_new_tokens", 7))
    run(*command(folder, few, "--timeout", 10, "--max_new_tokens", 7, "--overwrite"))


def plan(few: Path, **changes: Any) -> Plan:
    from codellama_eval import make_prompts

    fields: dict[str, Any] = {
        "rows": make_prompts("humaneval", few),
        "n_samples": 3,
        "chat": False,
        "sampling": {"do_sample": True, "seed": 5},
        "max_new_tokens": 10,
        "batch_size": 4,
        "stop": (),
    }
    return Plan(**fields | changes)


def test_an_interrupted_run_goes_on_with_the_same_batches(
    tokenizer: CodeLlamaTokenizer, few: Path, tmp_path: Path
) -> None:
    class Interrupted(Exception):
        pass

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    model = Scripted(tokenizer)
    generate(model, plan(few), whole, 0, 1, lambda: None)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        generate(Scripted(tokenizer), plan(few), broken, 0, 1, step)
    journal = broken / "generations.0.partial"
    journal.write_text(journal.read_text() + '{"task_id": "Hum')  # killed while it wrote
    assert len(read_journals(broken)) == 6
    repair_journals(broken)
    again = Scripted(tokenizer)
    generate(again, plan(few), broken, 0, 1, lambda: None)
    assert read_journals(broken) == read_journals(whole)
    assert again.calls == model.calls[1:]  # the batch that was begun is computed again, as it was


def test_workers_share_the_batches(tokenizer: CodeLlamaTokenizer, few: Path, tmp_path: Path) -> None:
    models = [Scripted(tokenizer) for _ in range(3)]
    for number, model in enumerate(models):
        generate(model, plan(few, batch_size=2), tmp_path, number, 3, lambda: None)
    alone = Scripted(tokenizer)
    (tmp_path / "alone").mkdir()
    generate(alone, plan(few, batch_size=2), tmp_path / "alone", 0, 1, lambda: None)
    assert read_journals(tmp_path) == read_journals(tmp_path / "alone")
    assert sorted(call for model in models for call in model.calls) == sorted(alone.calls)


def test_batches_have_seeds_of_their_own(tokenizer: CodeLlamaTokenizer, few: Path, tmp_path: Path) -> None:
    model = Scripted(tokenizer)
    generate(model, plan(few), tmp_path, 0, 1, lambda: None)
    assert len({seed for _, seed in model.calls}) == 3


def test_prompts_that_fill_the_context_are_counted_and_said(
    tokenizer: CodeLlamaTokenizer,
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    longest = max(len(tokenizer.encode(load_problems()[task].prompt)) for task in TASKS)
    monkeypatch.setattr(evaluate, "_load", lambda *_: Scripted(tokenizer, context=longest))
    run(*command(tmp_path / "out", few, "--timeout", 10))
    output = capsys.readouterr()
    assert "1 prompts fill the network's context" in output.err
    assert output.out.splitlines()[-1] == "{'pass@1': 0.75}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load_checkpoint", "none"], "no such file or directory"),
        (["--benchmark", "mbpp"], "give --data_path"),
        (["--do_sample", "--temperature", "0"], "--temperature must be"),
        (["--style", "instruct", "--benchmark", "infilling-single-line", "--data_path", "none"], "none"),
    ],
)
def test_mistakes_come_before_anything_is_made(tmp_path: Path, arguments: list[str], message: str) -> None:
    folder = tmp_path / "out"
    base = ["--config", "codellama_tiny", "--load_checkpoint", str(tmp_path), "--output_dir", str(folder)]
    with pytest.raises(evaluate.UserError, match=message):
        run(*base, *arguments)
    assert not folder.exists()


def _stories() -> Path:
    beside = next((one / "shared" / "data" for one in Path(__file__).parents if (one / "shared" / "data").is_dir()), "")
    return Path(os.environ.get("CODELLAMA_TEST_DATA", beside)) / "stories260k"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_real_checkpoint_end_to_end(workers: int, few: Path, tmp_path: Path) -> None:
    """A Llama that tells stories writes no Python: 0.0, with every outcome counted."""
    stories = _stories()
    if not stories.is_dir():
        pytest.skip("no test data: set CODELLAMA_TEST_DATA to a folder that holds stories260k")
    pieces = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = pieces.ModelProto()
    for number, (piece, score) in enumerate(json.loads((stories / "tok512_pieces.json").read_text())):
        kind = 2 if number == 0 else 3 if number in (1, 2) else 6 if piece.startswith("<0x") else 1
        model.pieces.add(piece=piece.strip() if kind == 3 else piece, score=score, type=kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    arguments = command(tmp_path / "out", few, "--max_new_tokens", 16, "--tokenizer", tmp_path / "tokenizer.model")
    arguments[arguments.index("--load_checkpoint") + 1] = str(stories)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from codellama_app.evaluate import main; main()",
            *arguments,
            "--worker_num",
            str(workers),
            "--timeout",
            "10",
        ],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
    )
    assert done.stdout.splitlines()[-1:] == ["{'pass@1': 0.0}"], done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sum(report["statuses"].values()) == len(TASKS)
