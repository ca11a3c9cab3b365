"""What a checkpoint costs the training: the time in which it stands still, and all that steps take longer beside it.

    python packages/app/scripts/saving.py [--hidden 512] [--layers 8] [--vocabulary 8000] [--rows 2] [--rounds 5]

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
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--rows", type=int, default=2, help="of a step, each of 256 tokens")
    parser.add_argument("--folder", help="where its checkpoints go; default: the system's temporary folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each half of a round")
    arguments = parser.parse_args()

    import mindspore as ms  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from codellama_app.saving import BackgroundSaver  # noqa: PLC0415
    from codellama_app.state import TrainingState, arrays_of  # noqa: PLC0415
    from codellama_app.training_step import TrainingStep  # noqa: PLC0415
    from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    ms.set_context(mode=ms.GRAPH_MODE)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
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
    ids = np.random.default_rng(0).integers(3, arguments.vocabulary, (arguments.rows, 257))
    batch = {"input_ids": ids.astype(np.int32)}
    size = sum(4 * math.prod(value.shape) for value in state.tree().values())

    def timed() -> list[float]:
        times = []
        for _ in range(arguments.steps):
            start = time.perf_counter()
            step(1e-4, 1.0, batch)
            times.append(time.perf_counter() - start)
        return times

    timed()
    saver = BackgroundSaver()
    step.before_update = saver.wait_until_read
    still, single, more = [], [], []
    with tempfile.TemporaryDirectory(prefix="saving_", dir=arguments.folder) as name:
        for number in range(arguments.rounds):
            without = timed()
            start = time.perf_counter()
            saver.save(Path(name) / f"step_{number:06d}", state.tree(), metadata={}, state={})
            timed()
            more.append(time.perf_counter() - start - sum(without))
            still.append(saver.waited)
            saver.wait()
            single.append(statistics.median(without))
    cost, one = statistics.median(more), statistics.median(single)
    print(
        f"{size / 1e6:.0f} MB of state, {arguments.rounds} rounds; steps of {one:.2f} s\n"
        f"training stands still for {statistics.median(still):.2f} s a save\n"
        f"with all that the steps beside it take longer a save costs {cost:.2f} s"
        f" ({', '.join(f'{value:.2f}' for value in more)}): 5 % of {cost / one / 0.05:.0f} steps"
    )


if __name__ == "__main__":
    main()
