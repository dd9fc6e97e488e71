"""MINE: worked gradients, the moving average in plain Python, its state."""

import copy
import math

import pytest
import torch

from gen_core.estimators.bounds import Match, Pairs, dv
from gen_core.estimators.mutual_information import MINE


def worked(dtype=torch.float64):
    i = torch.arange(4, dtype=dtype)
    return torch.sin(0.37 * (4 * i[:, None] + i)) + 1.5 * torch.eye(4, dtype=dtype)


def slope(bound, f=None):
    """d bound(theta f) / d theta at theta = 1."""
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(bound(theta * (worked() if f is None else f)), theta)[0].item()


def scores(seed, n=5, m=5, scale=2.0):
    return scale * torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def forms(f):
    """Every way to say what is positive, on scores (5, 5): (scores, positives, positive pairs, negative pairs)."""
    n, m = f.shape
    cells = [(i, j) for i in range(n) for j in range(m)]

    def split(positive):
        return [f[i, j].item() for i, j in cells if positive(i, j)], [
            f[i, j].item() for i, j in cells if not positive(i, j)
        ]

    column = torch.tensor([2, 0, 1, 4, 4])
    mask = torch.tensor([[(i + j) % 3 == 0 for j in range(m)] for i in range(n)])
    labels = torch.tensor([0, 1, 0, 2, 1])
    skipped = [
        [f[i, j].item() for i, j in cells if i != j and (labels[i] == labels[j]) == same] for same in (True, False)
    ]
    pairs = Pairs(f[0], f[1:].flatten())
    return {
        "diagonal": (f, None, *split(lambda i, j: i == j)),
        "index": (f, column, *split(lambda i, j: column[i] == j)),
        "mask": (f, mask, *split(lambda i, j: mask[i, j])),
        "match": (f, Match(labels, skip=0), *skipped),
        "pairs": (pairs, None, f[0].tolist(), f[1:].flatten().tolist()),
    }


def test_worked_gradients():
    assert slope(dv) == pytest.approx(0.944580, abs=1e-6)
    assert slope(MINE()) == pytest.approx(0.944580, abs=1e-6)  # the first batch is its own average
    mine = MINE(decay=0.99)
    mine.log_mean.fill_(math.log(2))
    assert slope(mine) == pytest.approx(1.106774, abs=1e-6)
    assert mine.log_mean.exp().item() == pytest.approx(1.993415, abs=1e-5)


def test_mine_f_is_another_gradient():
    """M = e for ever would be NWJ's gradient: 1.195780 in place of 1.106774."""
    mine = MINE(decay=1 - 1e-12)
    mine.log_mean.fill_(1.0)
    assert slope(mine) == pytest.approx(1.195780, abs=1e-6)


@pytest.mark.parametrize("form", ["diagonal", "index", "mask", "match", "pairs"])
@pytest.mark.parametrize("decay", [0.0, 0.7, 0.99])
def test_value_and_gradient_over_batches_by_plain_loops(form, decay):
    mine, average = MINE(decay), None
    for seed in range(4):
        f = scores(seed).requires_grad_()
        given, positives, pos, neg = forms(f)[form]
        value = mine(given, positives)
        batch = sum(math.exp(t) for t in neg) / len(neg)
        average = batch if average is None else decay * average + (1 - decay) * batch
        assert value.item() == pytest.approx(sum(pos) / len(pos) - math.log(batch), abs=1e-12)
        assert value.item() == pytest.approx(dv(given, positives).item(), abs=1e-12)
        assert mine.log_mean.item() == pytest.approx(math.log(average), abs=1e-6)
        (gradient,) = torch.autograd.grad(value, f)
        found = sorted(gradient[gradient != 0].tolist())
        expected = sorted([1 / len(pos)] * len(pos) + [-math.exp(t) / len(neg) / average for t in neg])
        assert found == pytest.approx(expected, abs=1e-6)


def test_eval_mode_is_dv_and_leaves_the_average():
    mine = MINE()
    mine(scores(0))
    before = mine.log_mean.clone()
    mine.eval()
    assert torch.autograd.gradcheck(mine, (scores(1).requires_grad_(),))
    f = scores(1)
    assert slope(mine, f) == pytest.approx(slope(dv, f), abs=1e-12)
    assert torch.equal(mine.log_mean, before)
    mine.train()
    mine(scores(1))
    assert not torch.equal(mine.log_mean, before)


def test_state_is_saved():
    one, two = MINE(), MINE()
    one(scores(0))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert list(one.state_dict()) == ["log_mean"]
    assert slope(one, scores(1)) == slope(two, scores(1))
    assert slope(MINE(), scores(1)) != slope(one, scores(1))


def test_a_common_shift_changes_neither_value_nor_gradient():
    plain, shifted = MINE(0.8), MINE(0.8)
    for seed in range(3):
        f = scores(seed)
        a, b = f.clone().requires_grad_(), f.clone().requires_grad_()
        value, moved = plain(a), shifted(b + 700)  # e^700 is inf in float32
        assert moved.item() == pytest.approx(value.item(), abs=1e-9)
        gradients = torch.autograd.grad(value, a)[0], torch.autograd.grad(moved, b)[0]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)  # log M is float32: 700 to 6e-5


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_pairs_does_not_matter(seed):
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    f = scores(seed)
    assert MINE()(f[order][:, order]).item() == pytest.approx(MINE()(f).item(), abs=1e-12)


def test_extremes():
    mine = MINE()
    for f in (torch.full((3, 3), 1e4), torch.full((3, 3), -1e4), 300 * torch.eye(4), -300 * torch.eye(4)):
        f = f.requires_grad_()
        value = mine(f)
        value.backward()
        assert math.isfinite(value.item()) and bool(torch.isfinite(f.grad).all())
    assert math.isfinite(mine.log_mean.item())
    half = MINE()(worked(torch.float32).half())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(1.146746, abs=2e-3)
    assert MINE()(worked(torch.float32)).item() == pytest.approx(1.146746, abs=1e-4)


def test_bad_input():
    for decay in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="decay must be in \\[0, 1\\)"):
            MINE(decay)
    mine = MINE()
    mine(scores(0))
    before = mine.log_mean.clone()
    for bad in (math.nan, math.inf):
        f = scores(1)
        f[0, 1] = bad
        with pytest.raises(ValueError, match="scores must be finite"):
            mine(f)
        assert torch.equal(mine.log_mean, before)
    with pytest.raises(ValueError, match="scores must be square"):
        mine(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="have no negatives"):
        mine(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="scores must have a floating dtype"):
        mine(torch.zeros(3, 3, dtype=torch.long))
