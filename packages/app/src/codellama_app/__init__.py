"""Code Llama on MindSpore: `CodeLlama`, and the programs `codellama-train` and `codellama-predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codellama_app.command import UserError
from codellama_app.config import RunConfig, load_config

if TYPE_CHECKING:
    from codellama_app.codellama import CodeLlama

__all__ = ["CodeLlama", "RunConfig", "UserError", "load_config"]


def __getattr__(name: str) -> object:
    if name != "CodeLlama":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from codellama_app.codellama import CodeLlama  # noqa: PLC0415  (loads MindSpore)

    return CodeLlama
