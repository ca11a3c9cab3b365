"""Puts MindSpore into graph mode, as every user of the network does, and makes the test's own modules importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "goldens")]


@pytest.fixture(scope="session", autouse=True)
def graph_mode() -> None:
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
