"""Sums over processes: exact, and ended in all of them when one does not come. `kernels_sum_child` is what they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"


def stderr_of(name: str, threads: str = "1") -> str:
    """What a group of processes that must end well says on stderr."""
    done = subprocess.run(
        [sys.executable, str(HERE / "kernels_sum_child.py"), name],
        env={**os.environ, "PYTHONPATH": f"{SOURCES}:{HERE}", "CODELLAMA_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize("threads", ["1", "3"])
def test_sums_are_those_in_the_order_of_ranks(threads: str) -> None:
    stderr_of("sums", threads)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ended", "a sum of 3 processes failed: number 1 has ended"),
        ("late", "a sum of 2 processes failed: number 1 did not come in time"),
        ("other", "a sum of 2 processes failed: number . is in another sum"),
    ],
)
def test_a_sum_that_can_not_be_made_fails_in_all_processes_and_says_why(name: str, why: str) -> None:
    said = re.findall("codellama-kernels: (.*)", stderr_of(name))
    assert all(re.match(why, line) for line in said)
    assert len(said) == (2 if name == "other" else 1)  # a line a group, and these are two groups


def test_who_waits_sleeps() -> None:
    assert "codellama-kernels" not in stderr_of("asleep")


def test_an_offer_of_another_machine_is_refused() -> None:
    assert "codellama-kernels" not in stderr_of("not_here")


def test_the_operator_in_a_graph() -> None:
    import mindspore as ms
    from codellama_kernels.shared_sum import Offer, SharedSum
    from mindspore import Tensor, nn

    ms.set_context(mode=ms.GRAPH_MODE)
    offer = Offer(1)
    alone = SharedSum(offer.numbers, 0, 1, 1.0)
    offer.close()

    class Sum(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.sum, self.labels = alone.operator(), alone.labels(0)

        def construct(self, x: Tensor) -> Tensor:
            return self.sum(x, self.labels)

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(Sum()(Tensor(x)).asnumpy(), x)
    with pytest.raises(ValueError, match="x must have an axis or more"):
        Sum()(Tensor(1.0, ms.float32))
    with pytest.raises(TypeError, match="x must be Float32, found Float16"):
        Sum()(Tensor(x, ms.float16))
