"""Per-class accuracy and U, S, H: worked by hand, against scikit-learn, degenerate input."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from gen_core.evaluation.gzsl import gzsl_accuracy, per_class_accuracy


def test_worked_by_hand():
    truth = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3])
    guess = torch.tensor([0, 0, 0, 2, 0, 2, 3, 3])
    assert per_class_accuracy(guess, truth, [0, 1]) == pytest.approx(100 * (3 / 4 + 0) / 2)
    u, s, h = gzsl_accuracy(guess, truth, seen=[0, 1], unseen=torch.tensor([2, 3]))
    assert (u, s) == (pytest.approx(75.0), pytest.approx(37.5))
    assert h == pytest.approx(2 * 75 * 37.5 / 112.5)


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 6, 200)
    guess = np.where(draw.random(200) < 0.4, truth, draw.integers(0, 6, 200))
    expected = 100 * balanced_accuracy_score(truth, guess)
    assert per_class_accuracy(guess, truth, range(6)) == pytest.approx(expected, abs=1e-9)
    u, s, _ = gzsl_accuracy(guess, truth, range(4), range(4, 6))
    assert (4 * s + 2 * u) / 6 == pytest.approx(expected, abs=1e-9)


def test_classes_count_equally_and_other_rows_do_not():
    truth = torch.cat([torch.zeros(98), torch.ones(2)]).long()
    assert per_class_accuracy(torch.zeros(100).long(), truth, [0, 1]) == 50
    assert per_class_accuracy(torch.zeros(100).long(), truth, [0]) == 100


@pytest.mark.parametrize(("guess", "expected"), [([1, 0], (0, 0, 0)), ([0, 1], (100, 100, 100)), ([0, 0], (0, 100, 0))])
def test_h_is_zero_where_a_side_is_zero_and_nothing_warns(guess, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gzsl_accuracy(np.array(guess), np.array([0, 1]), [0], [1]) == expected


def test_a_class_without_a_test_row_is_named():
    y = torch.tensor([0, 0, 2])
    with pytest.raises(ValueError, match="no row of class 7"):
        gzsl_accuracy(y, y, [0, 7], [2])
    with pytest.raises(ValueError, match="no row of class 1"):
        per_class_accuracy(y, y, [0, 1])


@pytest.mark.parametrize(
    ("seen", "unseen", "match"),
    [
        ([0, 1], [1, 2], "class 1 is seen and unseen"),
        ([], [1], "seen must name"),
        ([0], [], "unseen must name"),
        ([0, 0], [1], "twice"),
    ],
)
def test_bad_classes(seen, unseen, match):
    y = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=match):
        gzsl_accuracy(y, y, seen, unseen)


@pytest.mark.parametrize(
    ("guess", "truth", "match"),
    [
        (torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), "predicted"),
        (torch.tensor([0, 1]), torch.tensor([[0, 1]]), "labels"),
        (torch.tensor([0]), torch.tensor([0, 1]), "2 entries"),
    ],
)
def test_bad_rows(guess, truth, match):
    with pytest.raises(ValueError, match=match):
        per_class_accuracy(guess, truth, [0])
