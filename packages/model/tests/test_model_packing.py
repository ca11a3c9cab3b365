"""Packed rows: documents do not see each other, positions restart, and the loss is that of the documents alone."""

from __future__ import annotations

import golden_cases as cases
import numpy as np
import pytest
from codellama_model import IGNORE_INDEX, CausalLMLoss, LlamaConfig
from codellama_model.llama import positions_within
from mindspore import Tensor, nn
from model_helpers import network_of

LOGITS_TOLERANCE = 1e-5  # absolute: the same sums, in matrices of other shapes
LENGTHS = ((5, 9, 4), (18,), (1, 12))  # documents of each row, of 18 + 1 tokens; the rest is padding


def packed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, labels (the first id of a document and the padding not under loss) and document_ids, [3, 19]."""
    rng = np.random.default_rng(2)
    ids, labels, documents = (np.zeros((len(LENGTHS), 19), np.int32) for _ in range(3))
    labels[:] = IGNORE_INDEX
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths, 1):
            part = slice(start, start + length)
            ids[row, part] = rng.integers(3, cases.COMMON["vocab_size"], length)
            labels[row, start + 1 : start + length] = ids[row, start + 1 : start + length]
            documents[row, part] = number
            start += length
    return ids, labels, documents


@pytest.fixture(scope="module")
def network():
    config = LlamaConfig(**cases.COMMON, **cases.CASES["grouped"])
    return network_of(config, cases.weights(config.parameter_shapes()))


def alone(ids: np.ndarray, documents: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, start, end) of every document."""
    found = []
    for row in range(len(ids)):
        for number in range(1, documents[row].max() + 1):
            places = np.flatnonzero(documents[row] == number)
            found.append((row, places[0], places[-1] + 1))
    return found


def test_logits_of_a_packed_document_are_those_of_the_document_alone(network):
    ids, _, documents = packed()
    together = network(Tensor(ids), Tensor(documents)).asnumpy().reshape(*ids.shape, -1)
    for row, start, end in alone(ids, documents):
        padded = np.zeros((1, ids.shape[1]), np.int32)  # one shape, one graph
        padded[0, : end - start] = ids[row, start:end]
        expected = network(Tensor(padded)).asnumpy()[: end - start]
        np.testing.assert_allclose(together[row, start:end], expected, atol=LOGITS_TOLERANCE, rtol=0)


def test_the_packed_loss_is_the_unpacked_one(network):
    ids, labels, documents = packed()
    loss = CausalLMLoss(network)
    pieces = alone(ids, documents)
    unpacked_ids = np.zeros((len(pieces), ids.shape[1]), np.int32)
    unpacked_labels = np.full_like(unpacked_ids, IGNORE_INDEX)
    for piece, (row, start, end) in enumerate(pieces):
        unpacked_ids[piece, : end - start] = ids[row, start:end]
        unpacked_labels[piece, : end - start] = labels[row, start:end]
    together, tokens = (float(value.asnumpy()) for value in loss(Tensor(ids), Tensor(labels), Tensor(documents)))
    apart, same_tokens = (float(value.asnumpy()) for value in loss(Tensor(unpacked_ids), Tensor(unpacked_labels)))
    assert tokens == same_tokens > 0
    assert together == pytest.approx(apart, rel=1e-5)
    assert abs(float(loss(Tensor(ids), Tensor(labels))[0].asnumpy()) - apart) > 1e-3  # the documents do matter


class Positions(nn.Cell):
    def construct(self, document_ids):
        return positions_within(document_ids)


def test_positions_restart_with_every_document():
    documents = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]], np.int32)
    assert Positions()(Tensor(documents)).asnumpy().tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]
