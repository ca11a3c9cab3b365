"""Worker processes of a benchmark: each side runs in an interpreter of its own and answers requests with JSON lines."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


class Worker:
    """One side. Its program prints one JSON line when it is ready, then one for each line on its stdin."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = self._read()

    def measure(self) -> dict[str, Any]:
        """Asks for one measurement and waits for it."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args} ended early")
        return json.loads(line)


@functools.cache
def environment_python(name: str) -> str:
    """The interpreter of one of the workspace's hatch environments, which is made if need be."""
    if shutil.which("hatch") is None:
        sys.exit("hatch is not on PATH, and the peers' environments are hatch's; or name an interpreter")
    subprocess.run(["hatch", "env", "create", name], check=False, capture_output=True)
    done = subprocess.run(["hatch", "env", "find", name], check=True, capture_output=True, text=True)
    return str(Path(done.stdout.strip()) / "bin" / "python")


@functools.cache
def existing_environment_python(name: str) -> str | None:
    """The interpreter of one of the workspace's hatch environments, None where that has not been made."""
    done = subprocess.run(["hatch", "env", "find", name], check=False, capture_output=True, text=True)
    python = Path(done.stdout.strip()) / "bin" / "python"
    return str(python) if done.returncode == 0 and python.is_file() else None
