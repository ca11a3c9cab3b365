"""The network against transformers (goldens) and against a NumPy forward pass: logits, loss, every gradient."""

from __future__ import annotations

from pathlib import Path

import golden_cases as cases
import numpy as np
import numpy_llama
import pytest
from codellama_model import CausalLMLoss, LlamaConfig, LlamaForCausalLM, sequence_logits
from mindspore import ParameterTuple, Tensor, nn, ops
from model_helpers import network_of

GOLDENS = Path(__file__).parent / "goldens"
LOGITS_TOLERANCE = 1e-4  # absolute; logits here reach 10, float32 sums of some hundred terms round to about 1e-5
RELATIVE_TOLERANCE = 1e-4  # of loss, and of each gradient's largest entry


class Gradients(nn.Cell):
    """(mean loss, its gradients by parameter)."""

    def __init__(self, loss: CausalLMLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.parameters = ParameterTuple(loss.trainable_params())
        self.gradient = ops.value_and_grad(loss, None, self.parameters, has_aux=True)

    def construct(self, ids, labels):
        (total, tokens), gradients = self.gradient(ids, labels)
        scaled = ()
        for gradient in gradients:
            scaled += (gradient / tokens,)
        return total / tokens, scaled


@pytest.fixture(scope="module", params=sorted(cases.CASES))
def case(request: pytest.FixtureRequest) -> tuple[str, LlamaConfig, dict[str, np.ndarray], LlamaForCausalLM]:
    config = LlamaConfig(**cases.COMMON, **cases.CASES[request.param])
    tree = cases.weights(config.parameter_shapes())
    return request.param, config, tree, network_of(config, tree)


def test_logits_equal_those_of_transformers(case):
    name, _, _, network = case
    ids, _ = cases.batch()
    golden = np.load(GOLDENS / f"{name}.npz")["logits"]
    ours = sequence_logits(network, ids)
    for row, length in enumerate(cases.LENGTHS):  # what stands behind a row's end is padding
        np.testing.assert_allclose(ours[row, :length], golden[row, :length], atol=LOGITS_TOLERANCE, rtol=0)


def test_logits_equal_those_of_the_numpy_oracle(case):
    _, config, tree, network = case
    ids, _ = cases.batch()
    expected = numpy_llama.logits(config, tree, ids)
    np.testing.assert_allclose(sequence_logits(network, ids), expected, atol=LOGITS_TOLERANCE, rtol=0)


def test_loss_and_every_gradient_equal_those_of_transformers(case):
    name, _, tree, network = case
    golden = np.load(GOLDENS / f"{name}.npz")
    step = Gradients(CausalLMLoss(network))
    loss, gradients = step(*map(Tensor, cases.batch()))
    np.testing.assert_allclose(loss.asnumpy(), golden["loss"], rtol=RELATIVE_TOLERANCE)
    assert len(gradients) == len(tree)
    for parameter, gradient in zip(step.parameters, gradients, strict=True):
        expected = golden[f"grad:{parameter.name}"]
        difference = np.abs(gradient.asnumpy() - expected).max()
        assert difference <= RELATIVE_TOLERANCE * np.abs(expected).max(), parameter.name
