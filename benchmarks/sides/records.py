"""docs/performance.json: what was measured, by the command that measured it, and the curves over length."""

import json
import os
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PATH = DOCS / "performance.json"


def load() -> dict[str, Any]:
    """`commands`: a benchmark's last line by its command; `lengths`: points of `lengths.py`; `machine`: its rates."""
    empty: dict[str, Any] = {"commands": {}, "lengths": [], "machine": None}
    return empty | (json.loads(PATH.read_text()) if PATH.exists() else {})


def save(records: dict[str, Any]) -> None:
    """Replaces the file at once."""
    beside = PATH.with_name(f".{PATH.name}.{os.getpid()}")
    beside.write_text(json.dumps(records, indent=1) + "\n")
    beside.replace(PATH)
