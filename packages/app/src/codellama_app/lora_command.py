"""`codellama-lora`: low-rank adapters merged into their base, exported to PEFT's format, looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from codellama_app.adapters import Adapters, merge_adapters, open_adapters, write_peft
from codellama_app.command import Parser, UserError, run

PROGRAM = "codellama-lora"


def main() -> NoReturn:
    """The console script."""
    run(PROGRAM, _main)


def _main(arguments: Sequence[str]) -> None:
    parser = Parser(prog=PROGRAM, description="Low-rank adapters of a finetuning.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("merge", "add adapters to the weights that they were trained on: one checkpoint, which needs no adapters"),
        ("export", "write adapters as a PEFT directory"),
        ("inspect", "say what adapters are"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument(
            "--adapter_path", required=True, type=Path, help="a LoRA run, one of its checkpoints, or a PEFT directory"
        )
        if name == "merge":
            command.add_argument(
                "--load_checkpoint", type=Path, help="the base; by default the one that the adapters name"
            )
        if name != "inspect":
            command.add_argument("--output_path", required=True, type=Path, help=_OUTPUTS[name])
    known = parser.parse_args(arguments)
    adapters = open_adapters(known.adapter_path)
    if known.command == "inspect":
        print(_described(adapters))
    elif known.command == "export":
        write_peft(adapters, known.output_path)
        print(f"{known.output_path}: {_described(adapters)}")
    else:
        base = known.load_checkpoint or (Path(adapters.config.base) if adapters.config.base else None)
        if base is None:
            raise UserError(f"{known.adapter_path} does not name the weights it was trained on: give --load_checkpoint")
        merge_adapters(base, adapters, known.output_path)
        print(f"{known.output_path}: {base} with {_described(adapters)}")


_OUTPUTS = {"merge": "a .safetensors file to write", "export": "a new directory"}


def _described(adapters: Adapters) -> str:
    config = adapters.config
    return (
        f"{len(adapters.shapes) // 2} adapters of rank {config.rank}, alpha {config.alpha:g},"
        f" on {', '.join(config.targets)}"
        f"{f', trained on {config.base}' if config.base else ''}"
    )
