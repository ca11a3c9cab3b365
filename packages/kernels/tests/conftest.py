"""Makes the tests' own modules importable, and skips everything where the library could not be compiled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    from codellama_kernels import available, reason

    if not available():
        pytest.skip(reason())
