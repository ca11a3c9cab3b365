"""What a checkpoint costs the training: how long it stands still, and how much slower it is while the disk catches up.

    python packages/app/scripts/saving.py [--hidden 512] [--layers 8] [--rounds 5]

Alternates steps without and with a save running beside them, in one process.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description="Step time with and without a save.")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each half of a round")
    arguments = parser.parse_args()

    import mindspore as ms  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from codellama_app.saving import BackgroundSaver  # noqa: PLC0415
    from codellama_app.state import TrainingState, arrays_of  # noqa: PLC0415
    from codellama_app.training_step import TrainingStep  # noqa: PLC0415
    from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    ms.set_context(mode=ms.GRAPH_MODE)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=arguments.hidden,
        num_layers=arguments.layers,
        num_heads=8,
        n_kv_heads=4,
        intermediate_size=arguments.hidden * 8 // 3,
        max_position_embedding=256,
    )
    network = LlamaForCausalLM(config)
    optimizer = AdamW(network.trainable_params())
    step, state = TrainingStep(CausalLMLoss(network), optimizer, 1.0), TrainingState(arrays_of(optimizer))
    batch = {"input_ids": np.random.default_rng(0).integers(3, 8000, (2, 129)).astype(np.int32)}
    size = sum(4 * math.prod(value.shape) for value in state.tree().values())

    def timed() -> list[float]:
        times = []
        for _ in range(arguments.steps):
            start = time.perf_counter()
            step(1e-4, 1.0, batch)
            times.append(time.perf_counter() - start)
        return times

    timed()
    saver, pauses, whole, ratios = BackgroundSaver(), [], [], []
    with tempfile.TemporaryDirectory(prefix="saving_") as name:
        for number in range(arguments.rounds):
            without = timed()
            start = time.perf_counter()
            saver.save(Path(name) / f"step_{number:06d}", state.tree(), metadata={}, state={})
            pauses.append(saver.waited)
            beside = timed()
            saver.wait()
            whole.append(time.perf_counter() - start)
            ratios.append(statistics.median(beside) / statistics.median(without))
    pause = statistics.median(pauses)
    print(
        f"{size / 1e6:.0f} MB of state, {arguments.rounds} rounds; a save takes {statistics.median(whole):.2f} s\n"
        f"training stands still: {pause:.2f} s of it ({size / 1e6 / pause:,.0f} MB/s)\n"
        f"a step beside the save takes {statistics.median(ratios):.3f} of one without"
    )


if __name__ == "__main__":
    main()
