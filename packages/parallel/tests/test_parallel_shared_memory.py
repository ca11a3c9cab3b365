"""Ranks agree on where they add up, and get the same from either place."""

from __future__ import annotations

import json
import subprocess
import sys

from codellama_parallel.shared_memory import SWITCH, _package

RANK = """
import json, os
import mindspore as ms
import numpy as np
from codellama_parallel.collectives import AllGather, AllReduce, Exchange, Receive, ReduceScatter, Send, group
from codellama_parallel.shared_memory import SWITCH
from mindspore import Tensor
from mindspore.communication import get_rank, init

ms.set_context(mode=ms.GRAPH_MODE)
init()
rank = get_rank()
x = np.random.default_rng(rank).standard_normal((6, 5)).astype(np.float32)


def results(members):
    pair = Exchange(members, (6, 5)), Send(members), Receive(members, (6, 5))
    yield AllReduce(members)(Tensor(x))
    yield AllReduce(members)(Tensor(float(rank + 1), ms.float32))
    yield AllReduce(members)(Tensor(x, ms.float16))
    yield AllGather(members)(Tensor(x))
    yield ReduceScatter(members)(Tensor(x))
    yield pair[0](Tensor(x))
    yield pair[1](Tensor(x)) if rank == 0 else pair[2]()


os.environ[SWITCH] = str(1 - rank)  # one rank does not want to
places = [group("model", (0, 1), 2)]
os.environ[SWITCH] = "1"
places.append(group("data", (0, 1), 2))
plain, shared = ([one.asnumpy().astype(float).tolist() for one in results(place)] for place in places)
assert plain == shared, (plain, shared)
told = [place.shared is not None for place in places]
with open(f"{os.environ['OUT']}/{rank}.json", "w") as file:
    json.dump({"shared": told, "results": shared}, file)
"""
LAUNCH = """
import sys
from pathlib import Path
from codellama_parallel.launch import Launch, launch
sys.exit(launch(Launch(2, master_port=int(sys.argv[1]), log_dir=Path("log")), [sys.argv[2]], time_limit=100))
"""


def test_ranks_agree_on_shared_memory_and_get_the_same_without(tmp_path, port, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv(SWITCH, raising=False)
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-c", LAUNCH, str(port), str(script)]
    job = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["shared"] == second["shared"] == [False, _package() is not None]
    for one, other in zip(first["results"][:4], second["results"][:4], strict=True):
        assert one == other  # the same on all ranks, to the last bit
