"""What narrow weights cost a trained network: its held-out loss with float32, float16 and int8 weights.

    hatch run train                                            makes output/codellama_tiny
    hatch run bench:weight_dtypes [--run output/codellama_tiny]

The rows are those of the run's own held-out loss. The last line is one JSON object; `ours` is the loss with int8
weights, the peers are the others.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
from codellama_app import CodeLlama, load_config
from codellama_app.run_data import find_data
from codellama_data import batches, open_rows
from codellama_model.quantization import WEIGHT_DTYPES
from numpy.typing import NDArray
from sides.hardware import hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("output/codellama_tiny"), help="directory of a training run")
    flags = parser.parse_args()
    config = load_config(str(flags.run / "config.yaml"))
    path = find_data(config).eval_rows
    if path is None:
        parser.error(f"{flags.run} has no held-out rows: train with dataset.eval_dataset_dir")
    size = config.dataset.batch_size
    count = max(1, min(config.dataset.eval_rows, len(open_rows(path))) // size)
    rows = [batch["input_ids"] for batch in islice(batches(path, size, seed=0, epochs=1), count)]
    losses = {}
    for kind in WEIGHT_DTYPES:
        lm = CodeLlama.from_pretrained(flags.run, weight_dtype=kind)
        losses[kind] = float(np.mean([loss(lm.logits(ids[:, :-1]), ids[:, 1:]) for ids in rows]))
        print(f"{kind}: {losses[kind]:.5f} nats per token, {losses[kind] / losses['fp32'] - 1:+.3%}", flush=True)
    ours = losses.pop("int8")
    tokens = sum(ids[:, 1:].size for ids in rows)
    result = {
        "work": f"held-out loss of {flags.run.name}, {tokens:,} tokens: nats per token with int8 weights",
        "ours": ours,
        "peers": losses,
        "ratio": {kind: ours / other for kind, other in losses.items()},
        "hardware": hardware(),
    }
    print(json.dumps(result))


def loss(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Mean over the tokens of logits float32 [B, S, V] and labels int32 [B, S], in nats."""
    scores = logits.astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    chosen = np.take_along_axis(scores, labels[..., None].astype(np.int64), -1)[..., 0]
    return float((np.log(np.exp(scores).sum(-1)) - chosen).mean())


if __name__ == "__main__":
    main()
