"""The one exception of this package."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint can not be read or written. The message is one line and names the file and the tensor at fault.

    Names come from files, so whatever is not printable in them is escaped: a message never spans two lines.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))
