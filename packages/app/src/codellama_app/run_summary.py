"""`summary.json`: what a finished run was, with everything that it depended on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    *(f"codellama-{part}" for part in ("app", "ckpt", "data", "kernels", "model", "parallel", "tokenizer")),
    "mindspore",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of what computes: the packages that are installed, and Python."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # kernels and parallel are optional
            continue
    return found


def write_summary(path: Path, values: Mapping[str, object]) -> None:
    """Writes the summary; the file appears whole."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)  # noqa: PTH105
