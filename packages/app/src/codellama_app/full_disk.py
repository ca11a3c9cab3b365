"""Printing where the output is a file on a full disk: what has no room is left out, which is no reason to end a run."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}  # of an OSError


@contextlib.contextmanager
def printing_goes_on() -> Iterator[None]:
    """Within, what `sys.stdout` and `sys.stderr` have no room for is left out, on all threads."""
    output, errors = (cast(TextIO, _Sparing(stream)) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield


class _Sparing:
    """A stream that has no errors for want of room."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream's."""
        return int(self._spared(lambda: self._stream.write(text)) or 0)

    def flush(self) -> None:
        """As the stream's."""
        self._spared(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @staticmethod
    def _spared(call: Callable[[], int | None]) -> int | None:
        try:
            return call()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            return None
