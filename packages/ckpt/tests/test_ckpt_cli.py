"""The command `codellama-ckpt` as its users run it: outputs, exit codes, one line on stderr for a mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from codellama_ckpt import open_checkpoint, save_sharded, training_name
from codellama_ckpt.cli import main

GOLDEN = Path(__file__).parent / "golden/meta_as_hf"


@pytest.fixture(autouse=True)
def _signals() -> object:
    """`main` takes over SIGTERM; the test runner gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that succeeds; its output. Nothing may be on stderr, which is no terminal here."""

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        output, errors = capsys.readouterr()
        assert errors == ""
        return output

    return run


def layout_file(path: Path, ranks: int = 2) -> Path:
    """Matrices by rows over the ranks, the rest copied."""
    checkpoint = open_checkpoint(GOLDEN)
    parameters = {}
    for name in checkpoint:
        shape = checkpoint.shape(name)
        slices = {}
        for rank in range(ranks):
            box = [[0, size] for size in shape]
            if len(shape) == 2:
                box[0] = [rank * shape[0] // ranks, (rank + 1) * shape[0] // ranks]
            slices[str(rank)] = box
        parameters[name] = {"shape": shape, "slices": slices}
    content = {"format": "codellama-layout", "version": 1, "world_size": ranks, "parameters": parameters}
    path.write_text(json.dumps(content))
    return path


def same(a: Path, b: Path) -> bool:
    one, other = open_checkpoint(a), open_checkpoint(b)
    return set(one) == set(other) and all(
        np.array_equal(one.read(name, dtype="stored"), other.read(name, dtype="stored")) for name in one
    )


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("format", ["sharded", "mindformers"])
def test_the_whole_way_round(tmp_path: Path, run: Callable[..., str], suffix: str, format: str) -> None:
    full, merged = tmp_path / f"full.{suffix}", tmp_path / f"merged.{suffix}"
    assert "21 tensors, 14 KB" in run("convert", "--input_path", GOLDEN, "--output_path", full)
    layout = layout_file(tmp_path / "layout.json")
    run("shard", "--input_path", full, "--output_path", tmp_path / "d", "--layout", layout, "--format", format)
    run("merge", "--input_path", tmp_path / "d", "--output_path", merged)
    run("convert", "--reversed", "--input_path", merged, "--output_path", tmp_path / "hf", "--max_shard_size", "8KB")
    for path in (full, tmp_path / "d", merged, tmp_path / "hf"):
        assert same(path, GOLDEN)
        assert "agree with their checksums" in run("verify", path)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", full.name, "hf", "layout.json", merged.name]


def test_inspect_says_which_rank_holds_what(tmp_path: Path, run: Callable[..., str]) -> None:
    layout = layout_file(tmp_path / "layout.json")
    run("shard", "--input_path", GOLDEN, "--output_path", tmp_path / "d", "--layout", layout)
    lines = run("inspect", tmp_path / "d").splitlines()
    assert re.fullmatch(
        r"lm_head\.weight +\[24, 16\] +bfloat16 +768 bytes +rank 0 \[0:12, 0:16\], rank 1 \[12:24, 0:16\]",
        next(line for line in lines if line.startswith("lm_head")),
    )
    assert lines[-1] == f"{tmp_path}/d: sharded, 21 tensors, 6,992 parameters, 14 KB in 2 files"


def test_inspect_shows_training_state(tmp_path: Path, run: Callable[..., str]) -> None:
    tree = {"w": np.zeros(3, np.float32), training_name("exp_avg", "w"): np.zeros(3)}
    save_sharded(tree, tmp_path / "c", state={"step": 7})
    output = run("inspect", tmp_path / "c")
    assert "training/exp_avg/w" in output
    assert "1 arrays of training state\nstate step: 7\n" in output


def test_merge_counts_the_training_state_that_it_leaves(tmp_path: Path, run: Callable[..., str]) -> None:
    source = open_checkpoint(GOLDEN)
    tree = {name: source.read(name) for name in source}
    tree |= {training_name(kind, name): array for kind in ("exp_avg", "exp_avg_sq") for name, array in tree.items()}
    save_sharded(tree, tmp_path / "c")
    output = run("merge", "--input_path", tmp_path / "c", "--output_path", tmp_path / "whole.safetensors")
    assert f"not taken over: the training state ({2 * len(list(source))} arrays)\n" in output
    assert set(open_checkpoint(tmp_path / "whole.safetensors")) == set(source)


def test_verify_of_files_without_checksums_says_so(run: Callable[..., str]) -> None:
    assert "sound in structure; it carries no checksums to compare with" in run("verify", GOLDEN)


def test_dtype(tmp_path: Path, run: Callable[..., str]) -> None:
    run("convert", "--input_path", GOLDEN, "--output_path", tmp_path / "x.ckpt", "--dtype", "fp32")
    assert {open_checkpoint(tmp_path / "x.ckpt").dtype(name) for name in open_checkpoint(GOLDEN)} == {"float32"}


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


MISTAKES: dict[str, tuple[list[object], int, str]] = {
    "no command": ([], 2, "the following arguments are required"),
    "no such command": (["transmogrify"], 2, "invalid choice"),
    "no output": (["convert", "--input_path", GOLDEN], 2, "required: --output_path"),
    "dtype": (["convert", "--input_path", GOLDEN, "--output_path", "x.ckpt", "--dtype", "fp8"], 2, "invalid choice"),
    "no input": (["convert", "--input_path", "none", "--output_path", "x.ckpt"], 1, "none does not exist"),
    "no folder": (["convert", "--input_path", GOLDEN, "--output_path", "no/x.ckpt"], 1, "directory no does not exist"),
    "suffix": (["convert", "--input_path", GOLDEN, "--output_path", "x"], 1, "ends in .safetensors or .ckpt"),
    "a directory": (["convert", "--input_path", GOLDEN, "--output_path", "d.ckpt"], 1, "is a directory; name a file"),
    "size": (
        ["convert", "--reversed", "--input_path", GOLDEN, "--output_path", "hf", "--max_shard_size", "big"],
        1,
        "a size is a number of bytes, or such as 5GB",
    ),
    "size alone": (
        ["convert", "--input_path", GOLDEN, "--output_path", "x.ckpt", "--max_shard_size", "1GB"],
        1,
        "--max_shard_size belongs to --reversed",
    ),
    "in the way": (
        ["convert", "--reversed", "--input_path", GOLDEN, "--output_path", "full"],
        1,
        "not an empty directory",
    ),
    "no layout": (["shard", "--input_path", GOLDEN, "--output_path", "s", "--layout", "none"], 1, "cannot read none"),
    "no shards": (
        ["merge", "--input_path", GOLDEN, "--output_path", "x.ckpt"],
        1,
        "is no sharded checkpoint but a hugging",
    ),
    "no checkpoint": (["inspect", "full"], 1, "holds no checkpoint of a known kind"),
    "a folder of nothing": (["verify", "d.ckpt"], 1, "holds no checkpoint of a known kind"),
}
FULL_DISK = "a full disk"  # the same as what works, where nothing can be written
MISTAKES[FULL_DISK] = (["convert", "--input_path", GOLDEN, "--output_path", "x.ckpt"], 1, "No space left on device")


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, code, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    Path("d.ckpt").mkdir()
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    if case == FULL_DISK:
        monkeypatch.setattr(os, "write", full_disk)
    try:
        found = main([str(argument) for argument in arguments])
    except SystemExit as exit:  # argparse's way
        found = exit.code  # type: ignore[assignment]
    output, errors = capsys.readouterr()
    assert found == code
    assert output == ""
    assert errors.startswith("codellama-ckpt") and errors.endswith("\n") and errors.count("\n") == 1
    assert message in errors
    assert sorted(str(path) for path in Path().rglob("*")) == ["d.ckpt", "full", "full/mine"]


SLOWLY = """
import sys, time
from codellama_ckpt import Checkpoint
from codellama_ckpt.cli import main

real = Checkpoint.blocks
def blocks(self, *arguments, **options):
    print("reading", flush=True)
    time.sleep(0.2)
    yield from real(self, *arguments, **options)
Checkpoint.blocks = blocks
sys.exit(main())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_output_does_not_appear(tmp_path: Path, number: int, code: int) -> None:
    """Of a kill -9 a hidden temporary file stays, of anything else nothing."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOWLY,
            "convert",
            "--input_path",
            GOLDEN,
            "--output_path",
            tmp_path / "full.safetensors",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "reading\n"
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    left = [path.name for path in tmp_path.iterdir()]
    assert errors == ("codellama-ckpt: interrupted, nothing was written\n" if number == signal.SIGINT else "")
    assert len(left) == (1 if number == signal.SIGKILL else 0)
    assert all(name.startswith(".") for name in left)


def test_a_bar_with_its_speed_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal tqdm shows bytes and bytes a second."""
    import fcntl
    import pty
    import struct
    import termios

    terminal, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    os.set_blocking(terminal, False)
    command = ["convert", "--input_path", str(GOLDEN), "--output_path", str(tmp_path / "x.ckpt")]
    code = f"import sys; from codellama_ckpt.cli import main; sys.exit(main({command!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", code]
    subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=other, check=True)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(other)
    os.close(terminal)
    assert "converting" in shown and re.search(r"B/s", shown)
