"""The filters of sampling against their definitions, and draws against their probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from codellama_model.sampling import Sampling, draw, probabilities

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32))[[3, 0, 4, 1, 2]]
CHI_SQUARE_LIMIT = 18.5  # 99.9 % point of 4 degrees of freedom


def test_without_filters_it_is_the_softmax():
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(do_sample=True)), [0.1, 0.5, 0.05, 0.2, 0.15], rtol=1e-6)


def test_temperature_sharpens_before_the_filters():
    expected = np.array([0.1, 0.5, 0.05, 0.2, 0.15]) ** 2
    result = probabilities(LOGITS, Sampling(do_sample=True, temperature=0.5))
    np.testing.assert_allclose(result, expected / expected.sum(), rtol=1e-6)


def test_top_k_keeps_the_k_likeliest():
    result = probabilities(LOGITS, Sampling(do_sample=True, top_k=2))
    np.testing.assert_allclose(result, [0, 0.5 / 0.7, 0, 0.2 / 0.7, 0], rtol=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.69, 2), (0.71, 3), (0.999, 5), (1e-9, 1)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p, kept):
    result = probabilities(LOGITS, Sampling(do_sample=True, top_p=top_p))
    assert (result > 0).sum() == kept
    assert result.sum() == pytest.approx(1)


def test_top_p_looks_at_the_whole_vocabulary():
    logits = np.zeros(1000, np.float32)  # MindFormers looks at the 200 likeliest only
    assert (probabilities(logits, Sampling(do_sample=True, top_p=0.9)) > 0).sum() == pytest.approx(900, abs=1)


def test_draws_follow_the_probabilities():
    sampling = Sampling(do_sample=True, seed=1)
    generator, count = sampling.generator(0), 20000
    counts = np.bincount([draw(LOGITS, sampling, generator) for _ in range(count)], minlength=5)
    expected = probabilities(LOGITS, sampling) * count
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE_LIMIT


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"temperature": 0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_values_are_named(keys, name):
    with pytest.raises(ValueError, match=name):
        Sampling(do_sample=True, **keys)
