"""Compiles the C++ sources into one shared library when a wheel is built or the package is installed for editing.

Every instruction set is its own compilation of `isa.cpp`; the library chooses between them when it is loaded. Needs
nothing but a C++17 compiler (`CXX`, or c++, g++ or clang++ from the path). Where there is none, the package is
installed without the library and says so at run time; a compiler that fails is an error.

`python hatch_build.py` compiles in place.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCES = (
    "layers.cpp",
    "pass.cpp",
    "product.cpp",
    "prompt.cpp",
    "head.cpp",
    "gemm.cpp",
    "gemm_dispatch.cpp",
    "train_linear.cpp",
    "train_elementwise.cpp",
    "train_attention.cpp",
    "train_head.cpp",
    "train_documents.cpp",
    "train_adamw.cpp",
    "train_dispatch.cpp",
    "shared_sum.cpp",
    "about.cpp",
    "pool.cpp",
    "cpus.cpp",
    "dispatch.cpp",
)
SET_SOURCES = ("isa.cpp", "gemm_fma.cpp", "train_isa.cpp")  # compiled for every instruction set
AMX_SOURCE = "gemm_amx.cpp"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
)
# The library's threads sleep in its code, so it must never be unloaded.
LINK_FLAGS = ("-shared", "-pthread", "-Wl,-z,nodelete", "-Wl,-z,defs")
GENERIC: tuple[str, ...] = ()
X86_FLAGS = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
}
AMX_FLAGS = (*X86_FLAGS["avx512"], "-mavx512bf16", "-mamx-tile", "-mamx-bf16")  # GCC 11, Clang 12


class CompileError(RuntimeError):
    """The compiler refused the sources; the message is its own."""


def find_compiler() -> str | None:
    """The C++ compiler's command, None where there is none.

    Raises:
        CompileError: CXX names a compiler that is not there.
    """
    wanted = os.environ.get("CXX")
    if wanted and not shutil.which(wanted):
        raise CompileError(f"CXX names {wanted}, which is not on the path")
    return wanted or next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Name -> compiler flags of every instruction set that this kind of processor may have."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return {"generic": GENERIC, **(X86_FLAGS if x86 else {})}


def compile_library(target: Path, compiler: str, extra: tuple[str, ...] = ()) -> None:
    """Compiles the sources into the shared library `target`, which appears whole or not at all.

    Raises:
        CompileError: with the compiler's words.
    """
    sets = instruction_sets()
    amx = "avx512" in sets and _accepts(compiler, AMX_FLAGS)
    have = tuple(f"-DCODELLAMA_HAVE_{name.upper()}" for name in (*sets, *(["amx"] if amx else [])) if name != "generic")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        jobs = [(name, Path(folder) / f"{Path(name).stem}.o", have) for name in SOURCES]
        for name, flags in sets.items():
            for source in SET_SOURCES:
                target_file = Path(folder) / f"{Path(source).stem}_{name}.o"
                jobs.append((source, target_file, (*flags, f"-DCODELLAMA_ISA={name}")))
        if amx:
            jobs.append((AMX_SOURCE, Path(folder) / "gemm_amx.o", AMX_FLAGS))
        with ThreadPoolExecutor(os.cpu_count()) as executor:
            list(
                executor.map(
                    lambda job: _run(
                        [compiler, *FLAGS, *job[2], *extra, "-c", str(ROOT / "csrc" / job[0]), "-o", str(job[1])]
                    ),
                    jobs,
                )
            )
        library = Path(folder) / target.name
        _run([compiler, *extra, *(str(made) for _, made, _ in jobs), *LINK_FLAGS, "-o", str(library)])
        library.replace(target)


def _accepts(compiler: str, flags: tuple[str, ...]) -> bool:
    """Whether the compiler knows the flags."""
    command = [compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(command)} failed:\n{done.stderr}")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's entry: adds the library to the wheel, whose tag then names the platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; `version` is "standard" or "editable"."""
        target = ROOT / "src" / "codellama_kernels" / "libcodellama_kernels.so"
        compiler = find_compiler()
        if compiler is None:
            target.unlink(missing_ok=True)
            self.app.display_warning("codellama-kernels: no C++ compiler found; the fused operators are left out")
            return
        compile_library(target, compiler)
        build_data["pure_python"] = False
        # One library for every Python: only the platform matters.
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["artifacts"].append("src/codellama_kernels/libcodellama_kernels.so")


if __name__ == "__main__":
    found = find_compiler()
    if found is None:
        sys.exit("no C++ compiler found; install g++ or clang++, or name one in CXX")
    compile_library(ROOT / "src" / "codellama_kernels" / "libcodellama_kernels.so", found)
