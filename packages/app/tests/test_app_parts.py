"""Learning-rate schedule, bigram yardstick, run directory, escapes of the command line."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from codellama_app.bigram import Bigram
from codellama_app.config import ScheduleConfig
from codellama_app.predict import _unescaped
from codellama_app.run_directory import start
from codellama_app.schedule import learning_rate


def test_the_rate_rises_linearly_then_falls_as_a_cosine_to_its_end():
    schedule = ScheduleConfig(type="cosine", warmup_ratio=0.1, lr_end_ratio=0.2)
    rates = [learning_rate(step, 100, 2.0, schedule) for step in range(1, 101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 0.2)
    assert rates[54] == pytest.approx(2.0 * (0.2 + 0.8 * 0.5))  # half way down
    assert rates[-1] == pytest.approx(0.4)
    assert all(a >= b for a, b in pairwise(rates[9:]))


@pytest.mark.parametrize(("kind", "last"), [("linear", 0.0), ("constant", 1.0)])
def test_linear_and_constant_end_where_they_say(kind, last):
    schedule = ScheduleConfig(type=kind, warmup_ratio=0.0)
    assert learning_rate(50, 50, 1.0, schedule) == pytest.approx(last)
    assert learning_rate(1, 50, 1.0, schedule) == pytest.approx(1.0 if kind == "constant" else 0.98)


ROWS = np.array([[0, 1, 2, 0, 1], [1, 2, 1, 0, 1], [2, 2, 2, 0, 1]], np.int32)


def test_the_bigram_probabilities_of_every_context_sum_to_one():
    bigram = Bigram([ROWS[:2], ROWS[2:]], vocab_size=5)
    for first in range(5):  # 3 and 4 were never seen
        pairs = [np.array([[first, second]], np.int32) for second in range(5)]
        assert sum(math.exp(-bigram.mean_loss([pair])) for pair in pairs) == pytest.approx(1)


def test_the_bigram_loss_equals_kneser_ney_by_hand():
    bigram = Bigram([ROWS], vocab_size=3)
    # pairs: 01 x3, 12 x2, 20 x2, 21 x1, 10 x1, 22 x2; two occur once, three twice: discount 2 / (2 + 2 * 3)
    discount = 0.25
    # before an id stand so many different ids: 0: {2, 1}, 1: {0, 2}, 2: {1, 2}; one is added to each
    unigram = 3 / 9
    expected = (1 - discount) / 5 + discount * 3 / 5 * unigram  # 21, of five pairs that begin with 2
    assert bigram.mean_loss([np.array([[2, 1]], np.int32)]) == pytest.approx(-math.log(expected))


def test_a_new_run_moves_an_earlier_one_aside_and_loses_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    start(run)
    for attempt in range(2):
        (run / "checkpoints").mkdir()
        (run / "metrics.jsonl").write_text(str(attempt))
        (run / "notes.txt").write_text("the user's own")
        start(run)
        assert (run / "previous" / str(attempt + 1) / "metrics.jsonl").read_text() == str(attempt)
        assert "earlier run" in capsys.readouterr().out
    assert {path.name for path in run.iterdir()} == {"previous", "notes.txt"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(r"a:\n\tb", "a:\n\tb"), (r"\\n", r"\n"), (r"re.sub('\d')", r"re.sub('\d')"), ("tail\\", "tail\\")],
)
def test_escapes_are_read_as_a_shell_user_means_them(typed, meant):
    assert _unescaped(typed) == meant
