"""The one exception of this package."""

from __future__ import annotations


class DataError(Exception):
    """Something about the input, the output or the options is wrong. The message is one line and says what to do."""
