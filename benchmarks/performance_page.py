"""docs/performance.md from docs/performance.json: measures the commands of its table, and writes the table.

    hatch run bench:page                                    the table, from what is recorded
    hatch run bench:page --measure                          every command of the table first, one after the other
    hatch run bench:page --measure "decode" "train --loop"  some of them
    hatch run bench:page --measure "decode" --extra "--rounds 3"     with arguments that do not change what is measured

A command's last line, one JSON object, is recorded under the command. The table, the curves' figures (which
`hatch run bench:lengths` measures) and the stages of a cold start lie between marks of the page; the rest is written by
hand.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sides import records

HERE = Path(__file__).parent
PAGE = records.DOCS / "performance.md"
DECODE_8 = 'decode --batch 8 --peers "llama.cpp F16" "CTranslate2 float32"'
PREFILL_BFLOAT16 = 'prefill --compute_dtype bfloat16 --peers "OpenVINO F16"'
PREFILL_8192 = 'prefill --prompt_tokens 8192 --peers "transformers float32"'

WARM, COLD = "cold_start", "cold_start --forget"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        command: of `hatch run bench:...`.
        work: what it measures.
        asked: the ratio to reach.
        peer: against whom; None for a figure that is measured against a number.
        quantity: of a side, where the benchmark measures several.
        part: of the recorded object, where it holds a second comparison.
        at_most: whether `asked` is to be stayed below.
        form: of the figures.
        unit: behind them.
        scale: of the recorded figures.
        ratio_form: of the ratio.
    """

    command: str
    work: str
    asked: float
    peer: str | None = None
    quantity: str | None = None
    part: str | None = None
    at_most: bool = False
    form: str = ",.0f"
    unit: str = "tokens/s"
    scale: float = 1.0
    ratio_form: str = ".2f"

    def cells(self, result: dict[str, Any] | None) -> list[str]:
        """The line, for what its command recorded."""
        asked, command = f"{'at most ' if self.at_most else ''}{self.asked:g}", f"`bench:{self.command}`"
        if result is None:
            return [self.work, "not measured", "", "", asked, "", "", command]
        rounds = str(result.get("rounds", ""))
        ours, theirs, ratio = self._figures(result[self.part] if self.part else result)
        if self.peer and theirs is None:
            return [self.work, self._shown(ours), f"{self.peer}: not measured", "", asked, "", rounds, command]
        peer = "" if theirs is None else f"{self.peer} {self._shown(theirs)}"
        met = ratio <= self.asked if self.at_most else ratio >= self.asked
        verdict = "yes" if met else "**no**"
        return [self.work, self._shown(ours), peer, f"{ratio:{self.ratio_form}}", asked, verdict, rounds, command]

    def _figures(self, result: dict[str, Any]) -> tuple[float, float | None, float]:
        """Ours, the peer's, and the ratio."""

        def pick(value: Any) -> float:
            return value[self.quantity] if isinstance(value, dict) else value

        ours = pick(result["ours"])
        if self.peer is None:
            return ours, None, ours * self.scale
        if self.peer not in result["peers"]:
            return ours, None, float("nan")
        return ours, pick(result["peers"][self.peer]), pick(result["ratio"][self.peer])

    def _shown(self, value: float) -> str:
        return f"{value * self.scale:{self.form}} {self.unit}".strip()


def training(command: str, work: str, speed: float, memory: float, share: float | None) -> list[Row]:
    """The rows of a training size."""
    gigabytes = {"quantity": "peak_bytes", "at_most": True, "form": ".2f", "unit": "GB", "scale": 1e-9}
    rows = [
        Row(command, work, speed, "torch", "tokens_per_second"),
        Row(command, f"{work}: peak memory", memory, "torch", **gigabytes),  # type: ignore[arg-type]
    ]
    if share is not None:
        name = f"{work}: share of the sgemm peak"
        rows.append(Row(command, name, share, quantity="share_of_sgemm_peak", form=".2f", unit=""))
    return rows


ROWS = [
    Row("decode", "decode, float16 weights, after 512 tokens", 1.1, "llama.cpp F16", form=".1f"),
    Row("decode --weights int8", "decode, int8 weights, after 512 tokens", 1.2, "llama.cpp Q8_0", form=".1f"),
    Row("prefill", "prompt of 512, float16 weights, float32 arithmetic", 1.3, "llama.cpp F16"),
    Row("prefill", "", 1.1, "CTranslate2 float32"),
    Row("prefill", "", 1.1, "transformers float32"),
    Row("prefill", "", 1.1, "OpenVINO F16, float32 arithmetic"),
    Row(PREFILL_BFLOAT16, "prompt of 512, float16 weights, bfloat16 arithmetic", 1.1, "OpenVINO F16"),
    Row(PREFILL_8192, "prompt of 8192, float16 weights", 1.3, "transformers float32"),
    Row(DECODE_8, "decode, 8 rows, float16 weights", 1.0, "llama.cpp F16", form=".1f"),
    Row(DECODE_8, "", 1.0, "CTranslate2 float32", form=".1f"),
    *training("train --loop", "training step, 56 M, 4 x 256", 1.25, 0.8, 0.85),
    Row("train --loop", "`codellama-train`, whole loop, the same", 0.95, "bare step", "tokens_per_second", "loop"),
    *training("train --size long", "training step, hidden 768, 12 layers, 1 x 2048", 1.25, 1.0, None),
    Row(
        "weight_dtypes",
        "held-out loss of `codellama_tiny`, int8 weights",
        1.005,
        "fp32",
        at_most=True,
        form=".4f",
        unit="nats",
        ratio_form=".4f",
    ),
    Row(WARM, "cold start to the first token, page cache warm", 5, at_most=True, form=".1f", unit="s"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="*", metavar="COMMAND", help="of the table; without one, all of them")
    parser.add_argument("--extra", default="", metavar="ARGUMENTS", help="further arguments for these commands")
    flags = parser.parse_args()
    known = [*dict.fromkeys(row.command for row in ROWS), COLD]
    if flags.measure is not None:
        if strangers := [one for one in flags.measure if one not in known]:
            parser.error(f"{', '.join(strangers)}: the table has {'; '.join(known)}")
        for command in flags.measure or known:
            record(command, shlex.split(flags.extra))
    found = records.load()
    text = PAGE.read_text()
    text = replaced(text, "table", table(found))
    text = replaced(text, "lengths", lengths(found))
    PAGE.write_text(replaced(text, "cold", cold(found)))


def record(command: str, extra: list[str]) -> None:
    """Runs a benchmark, shows what it prints, and keeps its last line."""
    name, *arguments = shlex.split(command)
    print(f"bench:{command}", flush=True)
    start, last = time.perf_counter(), ""
    program = [sys.executable, str(HERE / f"{name}.py"), *arguments, *extra]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    if process.returncode:
        sys.exit(f"bench:{command} failed; what is recorded of it stays as it was")
    found = records.load()
    found["commands"][command] = json.loads(last)
    records.save(found)
    print(f"took {time.perf_counter() - start:.0f} s", flush=True)


def table(found: dict[str, Any]) -> str:
    """The rows, and on what they were measured."""
    head = ["work", "this project", "peer", "ratio", "asked", "met", "rounds", "`hatch run ...`"]
    lines = [head, ["---"] * len(head)]
    lines += [row.cells(found["commands"].get(row.command)) for row in ROWS]
    results = found["commands"].values()
    machines = sorted({one["hardware"] for one in results})
    busy = sum(bool(one.get("not_idle")) for one in results)
    said = f"Measured on: {'; '.join(machines) or 'nothing yet'}."
    if busy:
        said += f" In {busy} of the commands a measurement began though the machine was not idle."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{said}"


def lengths(found: dict[str, Any]) -> str:
    """The curves' figures: time and memory of every side at every length."""
    units = {"decode": "ms a token", "prefill": "ms a prompt", "train": "ms a step"}
    parts = []
    for work, unit in units.items():
        points = {(one["side"], one["length"]): one for one in found["lengths"] if one["work"] == work}
        columns = sorted({length for _, length in points})
        lines = [[f"{work}: {unit}, GB", *(f"{n:,}" for n in columns)], ["---"] * (len(columns) + 1)]
        for side in dict.fromkeys(side for side, _ in points):
            cells = [points.get((side, n)) for n in columns]
            lines.append(["this project" if side == "ours" else side, *map(_point, cells)])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if rates := found["machine"]:
        parts.append(
            f"The machine ({rates['hardware']}): {rates['read_rate'] / 1e9:.1f} GB/s read,"
            f" {rates['product_rate'] / 1e9:.0f} GFLOP/s in float32 products,"
            f" {rates['bfloat16_product_rate'] / 1e9:,.0f} in bfloat16."
        )
    return "\n\n".join(parts)


def cold(found: dict[str, Any]) -> str:
    """The stages of a start, with the page cache warm and cold."""
    starts = {
        name: found["commands"][command]
        for name, command in (("warm", WARM), ("cold", COLD))
        if command in found["commands"]
    }
    if not starts:
        return "not measured"
    lines = [["page cache", *starts], ["---"] * (len(starts) + 1)]
    lines.append(["**to the first token**", *(f"{one['ours']:.2f} s" for one in starts.values())])
    stages = next(iter(starts.values()))["stages"]
    lines += [[stage, *(f"{one['stages'][stage]:.2f} s" for one in starts.values())] for stage in stages]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _point(one: dict[str, Any] | None) -> str:
    if one is None:
        return ""
    milliseconds = one["seconds"] * 1e3
    digits = max(0, 3 - len(str(int(milliseconds))))
    return f"{milliseconds:,.{digits}f}, {one['peak_bytes'] / 1e9:.2f}"


def replaced(text: str, name: str, content: str) -> str:
    """The page with other content between a pair of marks."""
    begin, end = f"<!-- {name}: made by bench:page -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        sys.exit(f"{PAGE} lacks the marks {begin} and {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


if __name__ == "__main__":
    main()
