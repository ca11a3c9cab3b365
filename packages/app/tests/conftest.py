"""What the app's tests share: rows in MindRecord files, and one small network whose step is compiled once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "goldens"))
VOCAB, LENGTH, ROWS = 61, 12, 40

WriteRows = Callable[..., Path]


@pytest.fixture(scope="session")
def write_rows() -> WriteRows:
    """Writes columns int32 [rows, L] as a MindRecord file."""
    from codellama_data.spool import Spool
    from codellama_data.writing import write_partitions

    def write(path: Path, **columns: np.ndarray) -> Path:
        length = next(iter(columns.values())).shape[1]
        spool_path = path.with_name(f"{path.name}.spool")
        with Spool(spool_path, tuple(columns), length, np.int32) as spool:
            spool.append(np.stack(list(columns.values()), axis=1).reshape(-1))
            write_partitions(spool, path.parent, path, 1)
        spool_path.unlink()
        return path

    return write


@pytest.fixture(scope="session")
def train_rows(write_rows: WriteRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a language that can be learnt: each id follows from the one before it."""
    rng = np.random.default_rng(1)
    ids = np.empty((ROWS, LENGTH + 1), np.int32)
    ids[:, 0] = rng.integers(3, VOCAB, ROWS)
    for at in range(1, LENGTH + 1):
        ids[:, at] = 3 + (ids[:, at - 1] * 7 + 1) % (VOCAB - 3)
    return write_rows(tmp_path_factory.mktemp("rows") / "train.mindrecord", input_ids=ids)


@dataclass
class Kit:
    """A network with its training step, which every test brings back to the same start."""

    step: Any
    state: Any
    start: dict[str, np.ndarray]

    def reset(self) -> None:
        from mindspore import Tensor

        for name, value in self.state.tree().items():
            self.state.arrays[name].parameter.set_data(Tensor(self.start.get(name, np.zeros(value.shape, np.float32))))

    def arrays(self) -> dict[str, bytes]:
        return {name: value.load().tobytes() for name, value in self.state.tree().items()}


@pytest.fixture(scope="session")
def compiled() -> Kit:
    import mindspore as ms
    from codellama_app.state import TrainingState, arrays_of
    from codellama_app.training_step import TrainingStep
    from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            n_kv_heads=1,
            intermediate_size=24,
            max_position_embedding=32,
        )
    )
    optimizer = AdamW(network.trainable_params(), weight_decay=0.1)
    start = {p.name: p.asnumpy().copy() for p in network.get_parameters()}
    return Kit(
        TrainingStep(CausalLMLoss(network), optimizer, 1.0, skip_overflows=True),
        TrainingState(arrays_of(optimizer)),
        start,
    )


@pytest.fixture
def kit(compiled: Kit) -> Kit:
    compiled.reset()
    return compiled
