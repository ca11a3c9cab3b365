"""`hatch run parallel:all`: every mesh and option trains as one process does. Takes tens of minutes on two cores.

At most four processes run at a time, apart from the one mesh of eight; each needs about 1 GB. Prints a line a case,
and ends with exit code 1 where a deviation is above the tolerance. Every rank of every case also checks that its
parameters, gradients, optimizer state and traffic are exactly those of the estimate.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import mindspore as ms
from parity import TOLERANCE, deviations, run
from parity_job import Case
from ports import free_port

CASES_PER_JOB = 5  # MindSpore keeps what it has compiled: some 150 MB a case, in every process
SEQUENCE, ZERO = {"use_seq_parallel": True}, {"optimizer_shard": True}
MESHES: dict[str, dict[str, object]] = {
    "tp2": {"model_parallel": 2},
    "dp2": {"data_parallel": 2},
    "pp2": {"pipeline_stage": 2, "micro_batch_num": 2},
    "tp2_dp2": {"model_parallel": 2, "data_parallel": 2},
    "tp2_pp2": {"model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 4},
    "dp2_pp2": {"data_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 2},
    "tp4": {"model_parallel": 4},
    "tp2_dp2_pp2": {"model_parallel": 2, "data_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 2},
}


def cases() -> list[Case]:
    """Each mesh plain, and with whatever option means something on it."""
    found = []
    for mesh, strategy in MESHES.items():
        kv_heads = 2 if mesh == "tp4" else 4

        def case(
            option: str,
            more: dict[str, object],
            *,
            mesh: str = mesh,
            strategy: dict[str, object] = strategy,
            kv_heads: int = kv_heads,
            tied: bool = False,
            packed: bool = False,
            generate: bool = False,
            operations: str = "composed",
            shared_memory: bool = True,
        ) -> Case:
            name = f"{mesh}.{option}"
            return Case(
                name,
                strategy | more,
                n_kv_heads=kv_heads,
                tied=tied,
                packed=packed,
                generate=generate,
                operations=operations,
                shared_memory=shared_memory,
            )

        found.append(case("plain", {}))
        found.append(case("sockets", {}, shared_memory=False))  # MindSpore's own sums
        found.append(case("tied", {}, tied=True))
        found.append(case("packed", {}, packed=True))
        found.append(case("kernels", {}, operations="cpu"))
        found.append(case("recompute_full", {"recompute": "full"}))
        found.append(case("recompute_selective", {"recompute": "selective"}))
        if "model_parallel" in strategy:
            found.append(case("sequence", SEQUENCE))
            found.append(case("sequence_tied", SEQUENCE, tied=True))
            found.append(case("whole_embedding", {"vocab_emb_dp": True}))
            found.append(case("sequence_whole_embedding", SEQUENCE | {"vocab_emb_dp": True}))
            found.append(case("sequence_recompute", SEQUENCE | {"recompute": "full"}))
            found.append(case("sequence_kernels", SEQUENCE, operations="cpu"))
            found.append(case("sequence_sockets", SEQUENCE, shared_memory=False))
        if mesh in {"tp2", "tp4"}:
            found.append(case("generate", {"vocab_emb_dp": True}, generate=True))
        if "data_parallel" in strategy:
            found.append(case("zero", ZERO))
            found.append(case("zero_kernels", ZERO, operations="cpu"))  # whose update the graph does not see
            found.append(case("zero_sockets", ZERO, shared_memory=False))
            found.append(case("one_bucket", {"gradient_aggregation_group": 1}))
        if "data_parallel" in strategy and "model_parallel" in strategy:
            found.append(case("sequence_zero", SEQUENCE | ZERO))
        rows = 8 // int(str(strategy.get("data_parallel", 1)))
        found += [case(f"micro_{number}", {"micro_batch_num": number}) for number in (1, 2, 4, 8) if number <= rows]
        if mesh == "pp2":
            found.append(case("offset", {"pipeline_offset": [-1, 1]}))
    return found


def main() -> None:
    """Runs the cases of each mesh, a few in each job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    chosen = [case for case in cases() if parser.parse_args().only in case.name]
    ms.set_context(mode=ms.GRAPH_MODE)
    failed = 0
    for mesh, strategy in MESHES.items():
        group = [case for case in chosen if case.name.split(".")[0] == mesh]
        if not group:
            continue
        begin = time.monotonic()
        sides = (strategy.get(key, 1) for key in ("data_parallel", "model_parallel", "pipeline_stage"))
        processes = math.prod(int(str(side)) for side in sides)
        for first in range(0, len(group), CASES_PER_JOB):
            failed += failures(group[first : first + CASES_PER_JOB], processes)
        print(f"{mesh}: {len(group)} cases, {processes} processes, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{len(chosen)} cases, {failed} above {TOLERANCE:.0e} or not ended")
    sys.exit(failed > 0)


def failures(group: list[Case], processes: int) -> int:
    """Runs the cases in one job and prints how far they are from one process; how many are too far, or did not end."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(group, processes, Path(folder), free_port())
        except AssertionError as error:  # the others are run all the same
            print(error, flush=True)
        for case in group:
            if not all((Path(folder) / f"{case.name}.{rank}.npz").exists() for rank in range(processes)):
                failed += 1
                print(f"{case.name:35} did not end", flush=True)
                continue
            worst = deviations(case, Path(folder))
            failed += max(worst.values()) >= TOLERANCE
            print(f"{case.name:35}", *(f"{what} {value:.1e}" for what, value in worst.items()), flush=True)
    return failed


if __name__ == "__main__":
    main()
