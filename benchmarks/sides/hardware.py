"""What a benchmark ran on, in one line."""

import os
import platform
from pathlib import Path


def hardware() -> str:
    """Processor, cores this process may use, kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}"
