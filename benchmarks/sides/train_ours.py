"""The project's side of the training benchmark: the step that `codellama-train` takes, on random tokens."""

import mindspore as ms
import numpy as np
import train_protocol as protocol
from codellama_app.training_step import TrainingStep
from codellama_model import AdamW, CausalLMLoss, LlamaConfig, LlamaForCausalLM


def make(size: dict[str, int]) -> tuple[protocol.Step, str]:
    ms.set_context(mode=ms.GRAPH_MODE)
    network = LlamaForCausalLM(LlamaConfig(**protocol.llama_keys(size)))
    optimizer = AdamW(network.trainable_params(), weight_decay=protocol.WEIGHT_DECAY)
    step = TrainingStep(CausalLMLoss(network), optimizer, protocol.MAX_GRAD_NORM, size["micro_batches"])

    def run(ids: np.ndarray) -> float:
        return step(protocol.LEARNING_RATE, 1.0, {"input_ids": ids}).loss

    return run, f"mindspore {ms.__version__}"


if __name__ == "__main__":
    protocol.run(make)
