"""What a process around the operators does: threads, forks, other callers, other instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"


def run(*command: str, timeout: float = 120, **environment: str) -> str:
    """A Python process with this package on its path; its standard output."""
    path = os.pathsep.join([str(SOURCES), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("threads", ["1", "2", "3", "4"])
@pytest.mark.parametrize("what", ["fork", "callers"])
def test_process(what: str, threads: str) -> None:
    run(str(HERE / "kernels_child.py"), what, CODELLAMA_NUM_THREADS=threads)


@pytest.mark.parametrize("what", ["idle", "one_core"])
def test_threads_are_good_neighbours(what: str) -> None:
    run(str(HERE / "kernels_child.py"), what, CODELLAMA_NUM_THREADS="4")


def test_a_neighbour_that_takes_a_core_does_not_bring_the_team_to_a_crawl() -> None:
    """Two threads, one of them without a core, against one thread: waiting for whole time slices would be 50 times."""
    alone, team = (run(str(HERE / "kernels_child.py"), "neighbour", CODELLAMA_NUM_THREADS=n).strip() for n in "12")
    if "skip" in team:
        pytest.skip(team)
    assert float(team) < 3 * float(alone)


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, 2),
        ({"MS_WORKER_NUM": "3"}, 3),
        ({"MS_WORKER_NUM": "16", "LOCAL_WORLD_SIZE": "1"}, 1),
        ({"MS_WORKER_NUM": "3", "MSRUN_CPU_LIST": "[0, 1]"}, 1),  # bound to cores of its own already
    ],
)
def test_ranks_on_one_machine_share_its_cores(environment: dict[str, str], ranks: int) -> None:
    child = str(HERE / "kernels_child.py")
    whole = int(run(child, "size", CODELLAMA_NUM_THREADS=""))
    assert int(run(child, "size", CODELLAMA_NUM_THREADS="", **environment)) == max(1, whole // ranks)
    assert int(run(child, "size", CODELLAMA_NUM_THREADS="5", **environment)) == 5


def test_the_team_is_no_larger_than_the_affinity() -> None:
    code = "import os, runpy, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += f"sys.argv = ['', 'size']; runpy.run_path({str(HERE / 'kernels_child.py')!r}, run_name='__main__')"
    assert run("-c", code, CODELLAMA_NUM_THREADS="").strip() == "1"


@pytest.mark.parametrize("name", ["generic", "avx2", "avx512", "amx"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_every_instruction_set_agrees_with_the_oracle(name: str, threads: str) -> None:
    environment = {"CODELLAMA_KERNELS_ISA": name, "CODELLAMA_NUM_THREADS": threads}
    asked = "from codellama_kernels import instruction_set; print(instruction_set())"
    if run("-c", asked, **environment).strip() != name:
        pytest.skip(f"this processor has no {name}")
    tests = [str(HERE / f"test_kernels_{part}.py") for part in ("layer", "head")]
    run(
        "-m",
        "pytest",
        "-q",
        "-x",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        *tests,
        **environment,
        timeout=600,
    )
