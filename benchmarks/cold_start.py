"""The start of `codellama-predict` at 135 M parameters: seconds from the command to its first token on the terminal.

    hatch run bench:cold_start [--rounds 7] [--weights fp16]
    hatch run bench:cold_start --forget          the checkpoint and the installed packages out of the page cache first

Then, in as many processes, what the start consists of. Pages that another process has mapped can not be taken out of
the page cache. The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "sides"))
from ckpt_files import forget
from codellama_data import standard_library
from codellama_tokenizer import train_tokenizer
from sentencepiece import sentencepiece_model_pb2
from sides import contest
from sides.hardware import hardware
from sides.idle import wait_until_idle

SIDES = Path(__file__).parent / "sides"
PROMPT = "def read_lines(path):"


def main() -> None:
    parser = contest.arguments(__doc__.splitlines()[0], weights="fp16")
    parser.add_argument("--forget", action="store_true", help="start from the disk")
    flags = parser.parse_args()
    with contest.models_folder(flags.models) as models:
        checkpoint, tokenizer = contest.checkpoint(flags, models), models / "tokenizer" / "tokenizer.model"
        if not tokenizer.exists():
            make_tokenizer(tokenizer, json.loads((checkpoint / "config.json").read_text())["vocab_size"])
        program = Path(sys.executable).with_name("codellama-predict")
        command = [str(program), "--config", "codellama_tiny", "--load_checkpoint", str(checkpoint)]
        command += ["--tokenizer", str(tokenizer), "--weight_dtype", flags.weights, "--prompt", PROMPT]
        stages = [sys.executable, str(SIDES / "cold_stages.py"), str(checkpoint), "--weights", flags.weights]
        seconds, shares, busy = [], [], 0
        for number in range(1, flags.rounds + 1):
            busy += prepare(flags, checkpoint)
            seconds.append(first_token(flags, [*command, "--max_new_tokens", "1"]))
            busy += prepare(flags, checkpoint)
            shares.append(measured_stages(flags, stages))
            parts = ", ".join(f"{name} {value:.2f}" for name, value in shares[-1].items())
            print(f"round {number}: {seconds[-1]:.2f} s to the first token; alone: {parts}", flush=True)
    cache = "cold" if flags.forget else "warm"
    result = {
        "work": f"codellama-predict, 135 M, weights {flags.weights}, page cache {cache}: seconds to the first token",
        "ours": statistics.median(seconds),
        "peers": {},
        "ratio": {},
        "stages": {name: statistics.median(one[name] for one in shares) for name in shares[0]},
        "hardware": hardware(),
        "rounds": flags.rounds,
        "not_idle": busy,
    }
    print(json.dumps(result))


def prepare(flags: argparse.Namespace, checkpoint: Path) -> bool:
    """Empties the page cache where that is asked, waits for an idle machine, says whether it was not."""
    if flags.forget:
        for path in (checkpoint, Path(sysconfig.get_path("purelib"))):
            forget(path)
    return wait_until_idle(contest.PATIENCE) > 0


def first_token(flags: argparse.Namespace, command: list[str]) -> float:
    """Seconds until a command has written more than its prompt."""
    start, shown = time.perf_counter(), b""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=contest.environment(flags), bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while len(shown) <= len(PROMPT):
            more = process.stdout.read(1 << 10)
            if not more:
                sys.exit(f"codellama-predict ended early: {process.stderr.read().decode()}")
            shown += more
        seconds = time.perf_counter() - start
        process.communicate()
    return seconds


def measured_stages(flags: argparse.Namespace, command: list[str]) -> dict[str, float]:
    """Seconds by stage, and of the whole process."""
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=contest.environment(flags))
    whole = time.perf_counter() - start
    return {**json.loads(done.stdout.splitlines()[-1]), "whole process": whole}


def make_tokenizer(path: Path, pieces: int) -> None:
    """A tokenizer of the network's vocabulary: some hundred pieces that were trained, then numbered ones."""
    path.parent.mkdir(exist_ok=True)
    train_tokenizer([document.text for document in list(standard_library().documents())[:40]], path, 512)
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    lowest = min(piece.score for piece in model.pieces)
    for number in range(len(model.pieces), pieces):
        model.pieces.add(piece=f"\u2581piece{number}", score=lowest - number)
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
