"""The build hook: a wheel with the library for this platform, and one without it where there is no compiler."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = (
    "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_wheel; print(build_wheel(sys.argv[2]))"
)
ASK = "import codellama_kernels as k; k.operations(); print(k.available(), sorted(k.operations())); print(k.reason())"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's sources alone, so that a build touches nothing here."""
    pytest.importorskip("hatchling", reason="hatchling builds the package and is not installed here")
    target = tmp_path / "kernels"
    for source in ("csrc", "src", "README.md", "pyproject.toml", "hatch_build.py"):
        for file in [ROOT / source] if (ROOT / source).is_file() else (ROOT / source).rglob("*"):
            if file.is_file() and file.suffix not in (".so", ".pyc"):
                place = target / file.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read_bytes())
    return target


def build(copy: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BUILD, str(copy), str(copy.parent)]
    inherited = {name: value for name, value in os.environ.items() if name != "CXX"}
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, check=False)


def installed(copy: Path, built: subprocess.CompletedProcess[str]) -> tuple[str, list[str], str]:
    """(name of the wheel, its files, what the package in it says about itself)."""
    assert built.returncode == 0, built.stderr
    name = built.stdout.splitlines()[-1]
    folder = copy.parent / "site"
    with zipfile.ZipFile(copy.parent / name) as wheel:
        wheel.extractall(folder)
        files = wheel.namelist()
    told = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return name, files, told.stdout + told.stderr


def test_wheel_holds_the_library_for_this_platform(copy: Path) -> None:
    name, files, told = installed(copy, build(copy))
    assert name.startswith("codellama_kernels-0.1.0-py3-none-linux_")
    assert "codellama_kernels/libcodellama_kernels.so" in files
    assert told.startswith("True [") and "'cached_layers'" in told


def test_without_a_compiler_the_package_installs_and_says_why_once(copy: Path, tmp_path: Path) -> None:
    built = build(copy, PATH=str(tmp_path))  # a path without programs
    name, files, told = installed(copy, built)
    assert name == "codellama_kernels-0.1.0-py3-none-any.whl"
    assert not [file for file in files if file.endswith(".so")]
    assert told.startswith("False []\n")
    assert told.count("computing without fused operators") == 1
    assert "install g++" in told


def test_a_compiler_that_is_not_there_or_fails_is_an_error(copy: Path) -> None:
    missing = build(copy, CXX="no-such-compiler")
    assert missing.returncode != 0
    assert "CXX names no-such-compiler, which is not on the path" in missing.stderr
    (copy / "csrc" / "about.cpp").write_text("int main( {")
    broken = build(copy)
    assert broken.returncode != 0
    assert "about.cpp" in broken.stderr
