"""The training operators on every instruction set of this processor, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_kernels_process import run

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["generic", "avx2", "avx512"])
def test_every_instruction_set_agrees_with_the_oracle(name: str) -> None:
    """The one that the processor's own choice is (amx, for one) is what the other tests run on."""
    environment = {"CODELLAMA_KERNELS_ISA": name, "CODELLAMA_NUM_THREADS": "3"}
    asked = "from codellama_kernels import instruction_set; print(instruction_set())"
    if run("-c", asked, **environment).strip() != name:
        pytest.skip(f"this processor has no {name}")
    tests = [str(HERE / f"test_kernels_train_{part}.py") for part in ("products", "attention", "head")]
    options = ["-q", "-x", "--import-mode=importlib", "-p", "no:cacheprovider", "-k", "not 4097 and not chunks"]
    run("-m", "pytest", *options, *tests, **environment, timeout=600)
