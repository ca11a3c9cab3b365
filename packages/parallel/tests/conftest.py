"""Makes the scripts of the longer runs importable, and puts MindSpore into graph mode where a test uses it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))


@pytest.fixture
def graph_mode() -> None:
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture
def port() -> int:
    """A port that is free now; msrun takes none by itself."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
