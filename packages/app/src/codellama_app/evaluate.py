"""`codellama-evaluate`: prompts, batched generation, extraction and scoring of a benchmark in one go.

Everything is in one directory: `evaluate.json` (every setting that the figure depends on, and versions),
`prompts.jsonl`, `generations.jsonl`, `samples.jsonl`, `samples.jsonl_results.jsonl` and `report.json`. An interrupted
run goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from codellama_eval import (
    BENCHMARKS,
    EvalError,
    Report,
    extract_file,
    load_problems,
    make_prompts,
    paper_figures,
    score_file,
)
from codellama_eval.extraction import CUTS
from codellama_eval.files import write_json, write_rows
from codellama_eval.problems import INFILLING, data_digest, data_file
from codellama_eval.prompts import ORDERS, STYLES
from codellama_eval.scoring import RESULTS_SUFFIX
from codellama_model import GenerationError, Sampling
from tqdm import tqdm

from codellama_app.command import Parser, UserError, positive, run
from codellama_app.config import RunConfig, config_names, load_config
from codellama_app.evaluate_generation import (
    LanguageModel,
    Plan,
    generate,
    read_journals,
    remove_journals,
    repair_journals,
)

PROGRAM = "codellama-evaluate"
SETTINGS, PROMPTS, GENERATIONS = "evaluate.json", "prompts.jsonl", "generations.jsonl"
SAMPLES, REPORT = "samples.jsonl", "report.json"
# Where a base model has surely left the function. The cut itself is the extraction's: what it keeps may come later.
_STOP = {"humaneval": ("\nif __name__", "\nprint(", "\nassert "), "mbpp": ("[DONE]",)}
_STOP["humanevalplus"] = _STOP["humaneval"]
_POLL_SECONDS = 0.5
_PACKAGES = ("codellama-app", "codellama-eval", "codellama-model", "codellama-tokenizer", "mindspore", "numpy")


def main() -> NoReturn:
    """The console script."""
    run(PROGRAM, _main)


def _main(arguments: Sequence[str]) -> None:
    parser = _parser()
    flags, overrides = parser.parse_with_overrides(arguments)
    config = load_config(flags.config, overrides)
    try:
        report = _evaluate(flags, config, arguments)
    except EvalError as error:
        raise UserError(str(error)) from None
    except GenerationError as error:
        raise UserError(str(error)) from None
    if report is not None:
        print("\n".join(report.lines()))


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description="Score a Code Llama on a benchmark.", allow_abbrev=False)
    add = parser.add_argument
    add("--config", required=True, metavar="NAME|FILE", help=f"one of {', '.join(config_names())}, or a file")
    add("--load_checkpoint", metavar="P", help="any checkpoint; default: the run of the configuration")
    add("--tokenizer", metavar="FILE", help="tokenizer.model, where the checkpoint comes without one")
    add("--benchmark", default="humaneval", choices=BENCHMARKS, help="default: humaneval")
    add("--data_path", metavar="FILE", help="the benchmark's file; HumanEval needs none")
    add("--output_dir", metavar="D", help="default: evaluate_BENCHMARK in the configuration's output_dir")
    add("--overwrite", action="store_true", help="begin anew where D holds a run with other settings")
    add("--style", default="base", choices=STYLES, help="instruct: prompts are messages to a chat model")
    add("--order", default="psm", choices=ORDERS, help="infilling: prefix or suffix first")
    add("--stops", default="parser", choices=CUTS, help="where a completion is cut (default: parser)")
    add("--n_samples", type=positive, default=1, metavar="N", help="of each task; pass@k needs k (default: 1)")
    add("--max_new_tokens", type=positive, default=512, metavar="N", help="default: 512")
    add("--batch_size", type=positive, metavar="B", help="samples computed together")
    add("--do_sample", action="store_true", help="draw at random; else greedy")
    add("--temperature", type=float, default=0.8, metavar="T", help="with --do_sample (default: 0.8)")
    add("--top_p", type=float, default=0.95, metavar="P", help="with --do_sample (default: 0.95)")
    add("--top_k", type=int, default=0, metavar="K", help="with --do_sample; 0: the whole vocabulary")
    add("--seed", type=int, default=0, metavar="S")
    add("--worker_num", type=positive, default=1, metavar="N", help="processes that generate")
    add(
        "--model",
        metavar="NAME",
        help="a Code Llama, to print the paper's figures too (default: the checkpoint's name)",
    )
    add("--k", type=_numbers, default=[1, 10, 100], metavar="1,10,100", help="which pass@k")
    add("--timeout", type=float, metavar="S", help="seconds of processor time a sample (default: 3)")
    add("--n_workers", type=positive, metavar="N", help="samples scored at once")
    add("--strict", action="store_true", help="programs and tests in separate processes")
    add("--allow_unsandboxed", action="store_true", help="score where nothing keeps samples from writing your files")
    add("--worker_id", type=int, help=argparse.SUPPRESS)  # of a process that this program starts
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


_numbers.__name__ = "list of numbers"


def _evaluate(flags: argparse.Namespace, config: RunConfig, arguments: Sequence[str]) -> Report | None:
    load_problems(flags.benchmark, flags.data_path)  # its mistakes come before anything is made or loaded
    checkpoint = Path(flags.load_checkpoint or config.output_dir)
    if not checkpoint.exists():
        raise UserError(f"--load_checkpoint {checkpoint}: no such file or directory")
    prompts = make_prompts(flags.benchmark, flags.data_path, style=flags.style, order=flags.order)
    sampling = {"do_sample": flags.do_sample, "seed": flags.seed}
    if flags.do_sample:
        sampling |= {"temperature": flags.temperature, "top_p": flags.top_p, "top_k": flags.top_k}
    try:
        Sampling(**sampling)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    plan = Plan(
        rows=prompts,
        n_samples=flags.n_samples,
        chat=flags.style == "instruct",
        sampling=sampling,
        max_new_tokens=flags.max_new_tokens,
        batch_size=flags.batch_size or config.generation.batch_size,
        stop=() if flags.style == "instruct" else _STOP.get(flags.benchmark, ()),
    )
    folder = Path(flags.output_dir or Path(config.output_dir) / f"evaluate_{flags.benchmark}")
    settings = {
        "benchmark": flags.benchmark,
        "data_sha256": data_digest(data_file(flags.benchmark, flags.data_path)),
        "config": flags.config,
        "load_checkpoint": str(checkpoint.resolve()),
        "tokenizer": flags.tokenizer,
        "style": flags.style,
        "order": flags.order if flags.benchmark in INFILLING else None,
        "n_samples": plan.n_samples,
        "max_new_tokens": plan.max_new_tokens,
        "batch_size": plan.batch_size,
        "sampling": sampling,
        "stop": list(plan.stop),
    }
    if flags.worker_id is not None:
        generate(_load(flags, checkpoint, config), plan, folder, flags.worker_id, flags.worker_num, lambda: None)
        return None
    _begin(folder, settings, arguments, flags.overwrite)
    write_rows(folder / PROMPTS, prompts)
    if not (folder / GENERATIONS).exists():
        _generate_all(flags, config, plan, folder, checkpoint, arguments)
    return _score(flags, folder, checkpoint)


def _begin(folder: Path, settings: dict[str, Any], arguments: Sequence[str], overwrite: bool) -> None:
    """Makes the directory, or goes on in one that was begun with the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.exists() and not overwrite:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in settings.items() if before["settings"].get(name) != value]
        if changed:
            raise UserError(
                f"{folder} was begun with another {', '.join(changed)}: give another --output_dir, or --overwrite"
            )
        return
    for name in (GENERATIONS, SAMPLES, SAMPLES + RESULTS_SUFFIX, REPORT):
        (folder / name).unlink(missing_ok=True)
    remove_journals(folder)
    versions = {name: metadata.version(name) for name in _PACKAGES}
    write_json(path, {"settings": settings, "command": list(arguments), "versions": versions})


def _load(flags: argparse.Namespace, checkpoint: Path, config: RunConfig) -> LanguageModel:
    from codellama_app.codellama import CodeLlama  # noqa: PLC0415  (MindSpore: after everything cheap was checked)

    lm = CodeLlama.from_pretrained(checkpoint, tokenizer=flags.tokenizer, fallback_config=config.llama())
    if lm.tokenizer is None:
        raise UserError(f"{checkpoint} comes without tokenizer.model: give --tokenizer FILE")
    return lm


def _generate_all(
    flags: argparse.Namespace,
    config: RunConfig,
    plan: Plan,
    folder: Path,
    checkpoint: Path,
    arguments: Sequence[str],
) -> None:
    """Fills the journals, here or in several processes, and makes one file of them."""
    total = len(plan.rows) * plan.n_samples
    repair_journals(folder)
    found = len(read_journals(folder))
    with tqdm(total=total, initial=found, desc="generating", unit="sample", smoothing=0.1) as bar:
        if found == total:
            pass
        elif flags.worker_num == 1:
            generate(_load(flags, checkpoint, config), plan, folder, 0, 1, bar.update)
        else:
            _in_processes(arguments, flags.worker_num, lambda: bar.update(len(read_journals(folder)) - bar.n))
    texts = read_journals(folder)
    # in the benchmark's order, which is also that of samples.jsonl
    keys = [(row["task_id"], number) for row in plan.rows for number in range(plan.n_samples)]
    too_long = sum(texts[key] is None for key in keys)
    if too_long:
        print(f"{too_long} prompts fill the network's context: nothing was generated for them", file=sys.stderr)
    rows = ({"task_id": key[0], "sample": key[1], "generation": texts[key] or ""} for key in keys)
    write_rows(folder / GENERATIONS, rows)
    remove_journals(folder)


def _in_processes(arguments: Sequence[str], count: int, progress: Callable[[], object]) -> None:
    """Runs this program `count` times, each for its share of the batches. All end where one fails."""
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [sys.executable, "-c", "from codellama_app.evaluate import main; main()", *arguments]
    processes = [
        subprocess.Popen([*command, "--worker_id", str(number)], stderr=subprocess.PIPE, text=True, env=environment)
        for number in range(count)
    ]
    try:
        while any(process.poll() is None for process in processes):
            failed = next((one for one in processes if one.poll() not in (None, 0)), None)
            if failed is not None:
                break
            time.sleep(_POLL_SECONDS)
            progress()
        for process in processes:
            if process.poll() not in (None, 0):
                assert process.stderr is not None
                said = process.stderr.read().strip().splitlines() or [f"exit code {process.returncode}"]
                raise UserError(f"a generating process ended: {said[-1].removeprefix(f'{PROGRAM}: ')}")
        progress()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def _score(flags: argparse.Namespace, folder: Path, checkpoint: Path) -> Report:
    extract_file(
        folder / GENERATIONS,
        folder / SAMPLES,
        benchmark=flags.benchmark,
        data_path=flags.data_path,
        stops=flags.stops,
    )
    name = checkpoint.resolve().name
    report = score_file(
        folder / SAMPLES,
        flags.k,
        benchmark=flags.benchmark,
        data_path=flags.data_path,
        n_workers=flags.n_workers,
        timeout=flags.timeout,
        strict=flags.strict,
        allow_unsandboxed=flags.allow_unsandboxed,
        model=flags.model or (name if paper_figures(name, flags.benchmark) else None),
        progress=True,
    )
    write_json(folder / REPORT, {"stops": flags.stops, **report.to_dict()})
    return report
