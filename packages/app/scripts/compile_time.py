"""What compiling the training step costs, by the number of layers: the time of the first step less that of the second.

python packages/app/scripts/compile_time.py [--layers 8,32,48]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description="Compile time of the training step by layers.")
    parser.add_argument("--layers", default="8,32,48")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    print(f"{'layers':>6} {'s':>7} {'CPU s':>7} {'s a layer':>9}")
    for layers in map(int, arguments.layers.split(",")):
        command = [sys.executable, __file__, "--one", str(layers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, cpu = json.loads(done.stdout.splitlines()[-1])
        print(f"{layers:6} {seconds:7.1f} {cpu:7.1f} {cpu / layers:9.2f}", flush=True)


def measure(layers: int) -> tuple[float, float]:
    """Seconds and CPU seconds of compiling; the sides of the matrices do not matter to it."""
    import mindspore as ms  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from codellama_app.training_step import TrainingStep  # noqa: PLC0415
    from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    ms.set_context(mode=ms.GRAPH_MODE)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        num_layers=layers,
        num_heads=4,
        n_kv_heads=2,
        intermediate_size=160,
        max_position_embedding=64,
    )
    network = LlamaForCausalLM(config)
    step = TrainingStep(CausalLMLoss(network), AdamW(network.trainable_params()), 1.0)
    batch = {"input_ids": np.random.default_rng(0).integers(3, 512, (2, 65)).astype(np.int32)}
    times = []
    for _ in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        step(1e-3, 1.0, batch)
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    return times[0][0] - times[1][0], times[0][1] - times[1][1]


if __name__ == "__main__":
    main()
