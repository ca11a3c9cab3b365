"""The processes of a job: how a program starts them, how one of them joins, and what they agree on.

A program that is asked for several processes starts itself as each of them with msrun (`start`), or finds that msrun
has started it (`launched`). Each calls `join` before it reads or makes anything. MindSpore is loaded there, and not
before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from codellama_model.config import ConfigError
from codellama_parallel.launch import THREAD_VARIABLES, Launch, launch, launched, threads_per_rank

if TYPE_CHECKING:
    from codellama_parallel.collectives import AllReduce

_PORT = 8118  # msrun's; of jobs on several machines, which must agree on one
_STARTED_HERE = "CODELLAMA_JOB"  # set for the ranks that `start` starts
_WORD_BITS, _WORDS = 16, 4  # of a number that float32 carries exactly; of a job's name


def add_job_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say how many processes there are and where; msrun's names."""
    group = parser.add_argument_group("several processes")
    group.add_argument("--worker_num", type=int, metavar="N", help="processes of the job (default 1)")
    group.add_argument("--local_worker_num", type=int, metavar="N", help="of them on this machine (default all)")
    group.add_argument("--master_addr", default="127.0.0.1", metavar="A", help="address of the machine of rank 0")
    group.add_argument(
        "--master_port", type=int, metavar="P", help=f"default {_PORT}, or a free one where all are on this machine"
    )
    group.add_argument("--node_rank", type=int, default=0, metavar="R", help="number of this machine, from 0")
    group.add_argument("--log_dir", metavar="D", help="of rank_N.log; default: log in the output directory")


def job_of(flags: argparse.Namespace, default_log_dir: Path) -> Launch | None:
    """The job that flags of `add_job_flags` ask for; None for one process.

    Raises:
        ConfigError: impossible numbers.
    """
    count = 1 if flags.worker_num is None else flags.worker_num
    log_dir = Path(flags.log_dir) if flags.log_dir else default_log_dir
    alone = flags.local_worker_num in {None, count}
    port = flags.master_port or (_free_port(flags.master_addr) if alone and count > 1 else _PORT)
    job = Launch(count, flags.local_worker_num, flags.master_addr, port, flags.node_rank, log_dir)
    return None if count == 1 else job


def local_job(worker_num: int, log_dir: Path) -> Launch:
    """A job of so many processes, all on this machine.

    Raises:
        ConfigError: impossible numbers.
    """
    return Launch(worker_num, master_port=_free_port("127.0.0.1"), log_dir=log_dir)


def start(job: Launch, module: str, arguments: Sequence[str]) -> NoReturn:
    """Runs a module (`python -m`) as the ranks of a job, waits for them, and exits.

    Raises:
        ConfigError: the port is taken, or the log folder can not be made.
    """
    os.environ[_STARTED_HERE] = "1"
    sys.stdout.flush()
    sys.exit(launch(job, ["-m", module, *arguments]))


def started_here() -> bool:
    """Whether this process is a rank that `start` has started, so that a user has read already what that one said."""
    return launched() and _STARTED_HERE in os.environ


def join() -> Ranks:
    """This process's place in its job; alone where msrun has not started it. Puts MindSpore into graph mode.

    Must come before anything is made: msrun's scheduler, which runs the program too, stays in here until the job ends.
    """
    from codellama_app.command import start_mindspore  # noqa: PLC0415

    if not launched():
        start_mindspore()
        return Ranks()
    # Where msrun was called by the user, nobody has shared out the cores yet. It does not say how many of its ranks
    # are on this machine: all, for all that is known.
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, str(threads_per_rank(int(os.environ.get("MS_WORKER_NUM", "1")))))
    start_mindspore()
    from mindspore.communication import get_group_size, get_rank, init  # noqa: PLC0415

    init()
    return Ranks(int(get_rank()), int(get_group_size()))


@dataclass(frozen=True)
class Ranks:
    """The processes of a job as seen from one of them. What talks to the others, all must call, in the same order.

    Attributes:
        rank: this one's number.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes for all."""
        return self.rank == 0

    def require(self, size: int, what: str) -> None:
        """ConfigError where the job has another number of processes than `what` asks for."""
        if self.size != size:
            raise ConfigError(f"{what}, but the job has {self.size} processes; make them equal")

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum over all ranks of each number, in float32."""
        if self.size == 1:
            return list(values)
        from mindspore import Tensor  # noqa: PLC0415

        return [float(value) for value in self._all_reduce(Tensor(np.array(values, np.float32))).asnumpy()]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on some rank."""
        return [total > 0 for total in self.sums([float(flag) for flag in flags])]

    def which(self, flag: bool) -> list[int]:
        """The ranks on which the flag is set."""
        own = [float(flag and rank == self.rank) for rank in range(self.size)]
        return [rank for rank, total in enumerate(self.sums(own)) if total > 0]

    def barrier(self) -> None:
        """Returns when all ranks have come here."""
        self.sums([0.0])

    def token(self) -> str:
        """A name that nobody else has and all ranks know."""
        own = secrets.randbits(_WORD_BITS * _WORDS) if self.first else 0
        words = [own >> (_WORD_BITS * index) & ((1 << _WORD_BITS) - 1) for index in range(_WORDS)]
        return "".join(f"{int(word):04x}" for word in self.sums(words))

    @cached_property
    def _all_reduce(self) -> AllReduce:
        from codellama_parallel.collectives import AllReduce, group  # noqa: PLC0415

        return AllReduce(group("world", tuple(range(self.size)), self.size))


def _free_port(address: str) -> int:
    """A port that is free now: two jobs on one machine do not meet."""
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise ConfigError(f"master_addr {address}: {error.strerror}; give an address of this machine") from None
        return int(probe.getsockname()[1])
