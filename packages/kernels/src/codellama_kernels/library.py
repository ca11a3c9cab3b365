"""Finds the shared library of this package and says whether it can be used.

Plain Python: asking needs no MindSpore.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

LIBRARY = Path(__file__).parent / "libcodellama_kernels.so"


@lru_cache(maxsize=1)
def reason() -> str:
    """Why the operators can not be used; empty where they can."""
    if not LIBRARY.exists():
        return (
            "codellama-kernels was installed without its compiled library (no C++ compiler was found);"
            " install g++ and reinstall the package"
        )
    try:
        _library()
    except OSError as error:
        return f"the compiled library of codellama-kernels does not load ({error}); reinstall the package"
    return ""


def available() -> bool:
    """Whether the operators can be used in this process. Where not, `reason` says why."""
    return not reason()


def instruction_set() -> str:
    """What this process computes with: "amx" (AVX-512 with a matrix unit for products), "avx512", "avx2" or "generic".

    Chosen by the processor, or by the environment variable CODELLAMA_KERNELS_ISA where the processor has it.

    Raises:
        OSError: the library is not available.
    """
    return str(_library().codellama_isa().decode())


def threads() -> int:
    """Threads that an operator runs on, the calling one included.

    CODELLAMA_NUM_THREADS where it is set when the first operator runs, otherwise as many as the process's affinity and
    control group allow.

    Raises:
        OSError: the library is not available.
    """
    return int(_library().codellama_threads())


def has_bfloat16_products() -> bool:
    """Whether prompts can be computed in bfloat16 here: on a processor with a matrix unit (Intel AMX).

    Raises:
        OSError: the library is not available.
    """
    return bool(_library().codellama_bfloat16())


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    library.codellama_isa.restype = ctypes.c_char_p
    library.codellama_threads.restype = ctypes.c_int
    library.codellama_bfloat16.restype = ctypes.c_int
    return library
