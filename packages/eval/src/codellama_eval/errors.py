"""The one exception of this package."""

from __future__ import annotations


class EvalError(Exception):
    """A mistake in the input or a fault of the surroundings. The message is one line that says what to do."""
