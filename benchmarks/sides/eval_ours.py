"""The project's side of the scoring benchmark.

python eval_ours.py SAMPLES N_WORKERS [strict]
"""

import sys

from codellama_eval import score_file
from eval_measure import serve


def main() -> None:
    samples, n_workers, *strict = sys.argv[1:]

    def score() -> tuple[int, int]:
        report = score_file(samples, (1,), n_workers=int(n_workers), strict=bool(strict))
        return report.samples, report.statuses.get("passed", 0)

    serve(score)


if __name__ == "__main__":
    main()
