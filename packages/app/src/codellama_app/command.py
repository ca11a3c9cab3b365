"""What every command line of the app shares: one-line errors, overrides, the MindSpore runtime."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from codellama_ckpt import CheckpointError
from codellama_data import DataError
from codellama_model.config import ConfigError
from codellama_parallel.launch import tell_launcher
from codellama_tokenizer import TokenizerError

INTERRUPTED = 130  # the shell's exit code of a program that Ctrl-C ended
_BROKEN_PIPE = 141  # and of one whose reader went away


class UserError(Exception):
    """A mistake of the user's or a fault of the surroundings. The message is one line that says what to do."""


class InterruptedRunError(Exception):
    """The user ended the run; the message says what was kept."""


def run(program: str, body: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0, or 1 / 130 with exactly one line on stderr for what a user can cause."""
    # MindSpore's own warnings speak of its internals; errors stay. Its native code reads this at import.
    os.environ.setdefault("GLOG_v", "3")
    expected = (UserError, ConfigError, TokenizerError, DataError, CheckpointError)
    try:
        body(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail(program, "interrupted", INTERRUPTED)
    except InterruptedRunError as error:
        _fail(program, str(error), INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
        sys.exit(_BROKEN_PIPE)
    except expected as error:
        _fail(program, str(error), 1)
    except OSError as error:
        if error.filename is None and error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise  # no file of the user's: a fault of ours, which needs its traceback
        _fail(program, f"{error.strerror}: {error.filename or 'while writing'}", 1)
    sys.exit(0)


def positive(text: str) -> int:
    """An argument's type; argparse's message says its name."""
    if not text.isdigit() or int(text) < 1:
        raise ValueError(text)
    return int(text)


positive.__name__ = "whole number above 0"


def _fail(program: str, message: str, code: int) -> NoReturn:
    line = f"{program}: {' '.join(message.split())}"
    if not tell_launcher(line):  # of a rank, whoever has started it shows the line
        print(line, file=sys.stderr)
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line, and that knows `--SECTION.KEY VALUE`."""

    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        _fail(self.prog, f"{message} (see {self.prog} --help)", 2)

    def parse_with_overrides(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
        """The known arguments, and every `--SECTION.KEY VALUE` (or `=VALUE`) as a pair."""
        known, rest = self.parse_known_args(arguments)
        overrides, index = [], 0
        while index < len(rest):
            key, equals, value = rest[index].partition("=")
            if not (key.startswith("--") and "." in key):
                self.error(f"unrecognized argument {rest[index]}")
            if not equals:
                index += 1
                if index == len(rest):
                    self.error(f"argument {key}: expected one value")
                value = rest[index]
            overrides.append((key[2:], value))
            index += 1
        return known, overrides


def start_mindspore() -> None:
    """Puts MindSpore into graph mode, where the network is meant to run: PyNative decodes 20 times slower."""
    import mindspore as ms  # noqa: PLC0415  (seconds; after arguments and files have been looked at)

    ms.set_context(mode=ms.GRAPH_MODE)
