"""Launching: ranks get their environment, a failing rank ends the job and is named, nothing stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from codellama_model.config import ConfigError
from codellama_parallel.launch import Launch, _Follower, _kept, log_only, tell_launcher, threads_per_rank

# A rank that needs no MindSpore: msrun starts it all the same, as it does its scheduler.
RANK = """
import os, sys, time
if os.environ["MS_ROLE"] != "MS_WORKER":
    time.sleep(600 if {"fail", "die", "mistake", "hang"} & set(sys.argv) else 0)
    sys.exit(0)
rank = os.environ["RANK_ID"]
print(f"rank {rank} of {os.environ['MS_WORKER_NUM']}, {os.environ['OMP_NUM_THREADS']} threads", flush=True)
if "hang" in sys.argv:
    time.sleep(600)
if "mistake" in sys.argv:
    from codellama_parallel.launch import tell_launcher
    print("working", flush=True)
    assert tell_launcher(f"program: no such file (rank {rank})")
    sys.exit(1)
if "fail" in sys.argv or "die" in sys.argv:
    if rank == "1":
        time.sleep(1.5)
        print("something went wrong here", flush=True)
        if "die" in sys.argv:
            os.kill(os.getpid(), 9)
        sys.exit(3)
    time.sleep(600)
"""
LAUNCH = """
import sys
from pathlib import Path
from codellama_parallel.launch import Launch, launch
job = Launch(2, master_port=int(sys.argv[1]), log_dir=Path(sys.argv[2]))
sys.exit(launch(job, [sys.argv[3], *sys.argv[4:]], time_limit=5 if "hang" in sys.argv else None))
"""
LAUNCH_NODE = """
import sys
from pathlib import Path
from codellama_parallel.launch import Launch, launch
port, log_dir, node_rank, script = sys.argv[1:]
sys.exit(launch(Launch(2, 1, master_port=int(port), node_rank=int(node_rank), log_dir=Path(log_dir)), [script]))
"""
PATIENCE = 60  # seconds: what a user is promised


def start(folder: Path, port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-c", LAUNCH, str(port), str(folder / "log"), str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def left_behind(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder / "rank.py") in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_job_that_ends_well_shows_rank_0_and_keeps_a_log_of_each(tmp_path, port):
    job = start(tmp_path, port)
    threads = os.environ.get("OMP_NUM_THREADS", threads_per_rank(2))
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines() == [f"rank 0 of 2, {threads} threads"]
    assert "rank 1 of 2" in (tmp_path / "log" / "rank_1.log").read_text()
    assert not left_behind(tmp_path)


def test_two_launches_on_one_machine_are_one_job(tmp_path, port):
    """Both end well, and the scheduler runs in the first alone."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launches = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCH_NODE, str(port), str(tmp_path / f"log{node}"), str(node), str(script)]
        )
        for node in range(2)
    ]
    assert [one.wait(timeout=PATIENCE) for one in launches] == [0, 0]
    assert "rank 1 of 2" in (tmp_path / "log1" / "rank_1.log").read_text()
    assert (tmp_path / "log0" / "scheduler.log").exists() and not (tmp_path / "log1" / "scheduler.log").exists()
    assert not left_behind(tmp_path)


def test_what_mindspore_notes_is_cut_off_behind_a_progress_bar():
    note = "[WARNING] DISTRIBUTED(402,7fcc,python):2026-11-25 [mindspore/ccsrc/x.cc:1] Start] a note"
    assert _kept(f"3/9 steps |███ |\r{note}\n") == "3/9 steps |███ |\r"
    assert _kept(f"{note}\n") == ""
    assert _kept(log_only("of ours, for the log")) == ""
    assert _kept("a [WARNING] of ours\n") == "a [WARNING] of ours\n"


def test_a_note_that_comes_in_two_parts_is_cut_off_whole(tmp_path, capsys):
    log = tmp_path / "rank_0.log"
    follower = _Follower(log)
    with log.open("w") as file:
        for part in ("1/9 steps\r[WARNING] DISTRIBUTED(402,7fcc) [mindspore/x.cc:1] a no", "te\nours\n"):
            file.write(part)
            file.flush()
            follower.show()
    assert capsys.readouterr().out == "1/9 steps\rours\n"


@pytest.mark.parametrize(("how", "words"), [("fail", "ended with exit code 3"), ("die", "was killed by signal 9")])
def test_a_rank_that_fails_stops_the_job_and_is_named(tmp_path, port, how, words):
    begin = time.monotonic()
    job = start(tmp_path, port, how)
    assert job.returncode == 1
    assert f"rank 1 {words}" in job.stderr and "something went wrong here" in job.stderr
    assert time.monotonic() - begin < PATIENCE
    assert not left_behind(tmp_path)


def test_a_mistake_of_the_users_that_ranks_find_is_one_line(tmp_path, port):
    """Both ranks find it, and neither is called a rank that failed."""
    job = start(tmp_path, port, "mistake")
    assert job.returncode == 1
    assert job.stderr in {f"program: no such file (rank {rank})\n" for rank in range(2)}
    assert "no such file" not in job.stdout
    assert not left_behind(tmp_path)
    assert start(tmp_path, port).stderr == ""  # what an earlier job left is not this one's


def test_outside_of_a_job_nobody_is_told():
    assert not tell_launcher("program: no such file")


def test_a_job_that_hangs_ends_with_its_time_limit(tmp_path, port):
    job = start(tmp_path, port, "hang")
    assert job.returncode == 1
    assert "the job did not end within 5 s; it was stopped" in job.stderr and "rank 0 of 2" in job.stderr
    assert not left_behind(tmp_path)


def test_another_mindspore_is_answered_with_what_to_do(monkeypatch):
    from codellama_parallel import msrun_without_scheduler

    monkeypatch.setattr(msrun_without_scheduler, "_DECIDES", "_is_here")
    with pytest.raises(SystemExit, match=r"starts its scheduler otherwise than 2\.10\.0.*install mindspore==2\.10\.0"):
        msrun_without_scheduler.main()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"worker_num": 0}, "worker_num must be 1 or more"),
        ({"worker_num": 2, "local_worker_num": 3}, "local_worker_num must be 1 to worker_num 2"),
        ({"worker_num": 4, "local_worker_num": 2, "node_rank": 2}, "do not fit among the 4"),
        ({"worker_num": 1, "master_port": 80}, "master_port must be"),
    ],
)
def test_impossible_jobs_are_refused(values, reason):
    with pytest.raises(ConfigError, match=reason):
        Launch(**values)


def test_cores_are_shared_out():
    cores = len(os.sched_getaffinity(0))
    assert threads_per_rank(1) == cores
    assert threads_per_rank(10 * cores) == 1


def test_a_port_that_is_taken_is_refused(tmp_path, port):
    import socket

    from codellama_parallel.launch import launch

    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ConfigError, match="give another --master_port"):
            launch(Launch(2, master_port=port, log_dir=tmp_path / "log"), ["rank.py"])
    assert not (tmp_path / "log").exists()
