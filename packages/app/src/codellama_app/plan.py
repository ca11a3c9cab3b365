"""`codellama-plan`: what a configuration would need and how fast it would be, without MindSpore or a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from codellama_parallel.devices import DEVICES, device
from codellama_parallel.memory import Work
from codellama_parallel.plan import Plan
from codellama_parallel.report import estimate_lines, parse_size, search_lines, write_layout
from codellama_parallel.search import search

from codellama_app.command import Parser, positive, run
from codellama_app.config import config_names, load_config

PROGRAM = "codellama-plan"
# tokens/s per device that MindFormers' model card reports for its own runs of these configurations
_CARD = {
    ("finetune_codellama_34b_16p", "Atlas 900 A2 PoDc"): 669,
    ("finetune_codellama_34b_32p", "Atlas 800T A2"): 667,
    ("finetune_codellama_34b_32p", "Atlas 900 A2 PoDc"): 747,
}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point."""
    run(PROGRAM, _main, arguments)


def _main(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog=PROGRAM,
        description="Memory, traffic and speed of a training job on paper, or with run_mode predict the memory.",
        epilog="Any key of the configuration may be given as --SECTION.KEY VALUE.",
    )
    parser.add_argument("--config", required=True, help=f"a file, or one of {', '.join(config_names())}")
    parser.add_argument("--layout_file", type=Path, help="write which rank holds which slice of which parameter")
    parser.add_argument("--device", default=next(iter(DEVICES)), help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--device_memory", help="of one device, such as 64GB; the device's own by default")
    parser.add_argument("--search", action="store_true", help="rank the strategies that fit")
    parser.add_argument("--device_num", type=positive, help="devices to search for; the configuration's by default")
    known, overrides = parser.parse_with_overrides(arguments)
    config = load_config(known.config, overrides)
    on = device(known.device)
    memory = on.memory if known.device_memory is None else parse_size(known.device_memory)
    size = _BYTES[config.compute_dtype]
    plan = Plan(config.llama(), config.parallel_config)
    training = config.run_mode != "predict"
    rows = config.dataset.batch_size if training else config.generation.batch_size
    work = Work(rows, config.dataset.seq_length, size, size, training=training)
    config.parallel_config.check_batch(work.rows * config.parallel_config.micro_batch_num, work.seq_length)
    if known.search:
        devices = known.device_num or config.parallel_config.device_num
        found = search(config.llama(), config.parallel_config, work, on, devices, memory)
        print("\n".join(search_lines(found)))
    else:
        print("\n".join(estimate_lines(plan, work, on, memory)))
        for (name, machine), measured in _CARD.items():
            if name == known.config and not overrides:
                print(f"MindFormers' model card, measured on {machine}: {measured} tokens/s per device")
    if known.layout_file is not None:
        write_layout(plan, known.layout_file)
        print(f"layout of {plan.strategy.device_num} ranks written to {known.layout_file}")
