"""Probes: closed forms, an independent solution of the same problem, and one run at a time."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gen_core.evaluation import few_label, few_label_split, linear_probe, softmax_probe
from gen_core.evaluation.probe import _softmax_weights


def blobs(n, seed, d=6, classes=3, noise=1.0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[y] + noise * torch.randn(n, d, generator=g), y


# ------------------------------------------------------------------------------------------------------ linear_probe


@pytest.mark.parametrize("l2", [0.1, 1.0, 30.0])
def test_linear_probe_solves_the_problem_it_names(l2):
    """Minimise sum of cross-entropies + l2/2 |W|^2 on standardised features by another optimiser."""
    (x, y), (x_new, y_new) = blobs(60, 0, d=3), blobs(200, 1, d=3)
    x = x * torch.tensor([1.0, 50.0, 0.01]) + 5
    x_new = x_new * torch.tensor([1.0, 50.0, 0.01]) + 5
    a, b = x.double().numpy(), x_new.double().numpy()
    mu, sd = a.mean(0), a.std(0)
    a, b, onehot = (a - mu) / sd, (b - mu) / sd, np.eye(3)[y.numpy()]

    def objective(v):
        w, c = v[:9].reshape(3, 3), v[9:]
        s = a @ w + c
        return (np.log(np.exp(s).sum(1)) - (s * onehot).sum(1)).sum() + l2 / 2 * (w**2).sum()

    v = minimize(objective, np.zeros(12), method="BFGS", options={"gtol": 1e-6}).x
    scores = b @ v[:9].reshape(3, 3) + v[9:]
    expected = 100 * (scores.argmax(1) == y_new.numpy()).mean()
    assert linear_probe(x, y, x_new, y_new, l2=l2, seed=0) == pytest.approx(expected, abs=0.51)  # one row of 200
    assert 50 < expected < 99


def test_linear_probe_l2_pulls_towards_the_prior():
    x = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0]])
    y = torch.tensor([0, 0, 0, 1])
    assert linear_probe(x, y, x, y, l2=1e-3) == 100.0
    assert linear_probe(x, y, x, y, l2=1e6) == 75.0  # only the intercept is left


def test_linear_probe_standardises_by_the_training_rows_alone():
    (x, y), (x_new, y_new) = blobs(80, 2), blobs(300, 3)
    value = linear_probe(x, y, x_new, y_new)
    scale, shift = torch.logspace(-3, 3, 6), torch.linspace(-9, 9, 6)
    assert linear_probe(x * scale + shift, y, x_new * scale + shift, y_new) == pytest.approx(value, abs=0.4)
    # a shift of the test rows must show: a scaler fitted on them would undo it
    assert linear_probe(x, y, x_new + 20, y_new) < value - 20
    # and one row's guess does not depend on the others
    alone = [linear_probe(x, y, x_new[i : i + 1], y_new[i : i + 1]) for i in range(12)]
    assert np.mean(alone) == pytest.approx(linear_probe(x, y, x_new[:12], y_new[:12]))


def test_linear_probe_takes_arrays_half_precision_and_constant_columns():
    (x, y), (x_new, y_new) = blobs(60, 4), blobs(100, 5)
    x[:, 0] = x_new[:, 0] = 3
    value = linear_probe(x, y, x_new, y_new)
    assert linear_probe(x.numpy(), y.numpy(), x_new.numpy(), y_new.numpy()) == value
    assert linear_probe(x.bfloat16(), y, x_new.bfloat16(), y_new) == pytest.approx(value, abs=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it converges, and uses nothing deprecated
        assert linear_probe(x, y, x_new, y_new, seed=3) == value


# ----------------------------------------------------------------------------------------------------- softmax_probe


def one_run_at_a_time(x, y, classes, runs, steps, lr, weight_decay, seed):
    """Each run a torch.nn.Linear and its own Adam, from the starts that softmax_probe draws."""
    bound = (6 / (x.shape[1] + classes)) ** 0.5
    starts = torch.rand(runs, x.shape[1], classes, generator=torch.Generator().manual_seed(seed))
    layers = []
    for start in starts:
        layer = torch.nn.Linear(x.shape[1], classes).to(x.dtype)
        with torch.no_grad():
            layer.weight.copy_((start * 2 * bound - bound).T)
            layer.bias.zero_()
        optimizer = torch.optim.Adam(layer.parameters(), lr=lr, weight_decay=weight_decay)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x), y).backward()
            optimizer.step()
        layers.append(layer)
    return layers


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_softmax_probe_equals_one_run_at_a_time(weight_decay, dtype):
    (x, y), (x_new, y_new) = blobs(40, 0, noise=2.0), blobs(500, 1, noise=2.0)
    x, x_new = x.to(dtype), x_new.to(dtype)
    own = {"runs": 5, "steps": 60, "lr": 0.01, "weight_decay": weight_decay, "seed": 7}
    layers = one_run_at_a_time(x, y, 3, **own)
    weight, bias = _softmax_weights(x, y, 3, **own)
    for r, layer in enumerate(layers):
        torch.testing.assert_close(weight[r].T, layer.weight.data, rtol=0, atol=1e-5)
        torch.testing.assert_close(bias[r], layer.bias.data, rtol=0, atol=1e-5)
    accuracies = softmax_probe(x, y, x_new, y_new, **own)
    plain = [100 * float((layer(x_new).argmax(1) == y_new).double().mean()) for layer in layers]
    assert accuracies.shape == (5,)
    assert accuracies.tolist() == pytest.approx(plain, abs=1e-5)
    assert accuracies.std() > 0


def test_softmax_probe_defaults_are_the_papers():
    x, y = blobs(30, 0)
    defaults = softmax_probe(x, y, x, y)
    assert defaults.shape == (50,)
    same = softmax_probe(x, y, x, y, runs=50, steps=100, lr=0.01, weight_decay=0.0, seed=0)
    assert torch.equal(defaults, same)
    assert not torch.equal(defaults, softmax_probe(x, y, x, y, seed=1))


def test_softmax_probe_starts_are_xavier_and_nested():
    x, y = blobs(30, 0)
    few, _ = _softmax_weights(x, y, 3, 2, 1, 1e-9, 0.0, 0)
    many, _ = _softmax_weights(x, y, 3, 400, 1, 1e-9, 0.0, 0)
    torch.testing.assert_close(many[:2], few)
    bound = (6 / (6 + 3)) ** 0.5
    assert many.abs().max() <= bound + 1e-6
    assert many.var().item() == pytest.approx(bound**2 / 3, rel=0.05)


def test_softmax_probe_works_without_grad_and_across_test_tiles():
    (x, y), (x_new, y_new) = blobs(30, 0), blobs(5000, 1)
    whole = softmax_probe(x, y, x_new, y_new, runs=3)
    with torch.no_grad():
        parts = [softmax_probe(x, y, x_new[i::2], y_new[i::2], runs=3) for i in (0, 1)]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


def test_softmax_probe_counts_an_unseen_class_as_wrong():
    x, y = torch.tensor([[-2.0], [2.0]]), torch.tensor([0, 1])
    assert (softmax_probe(x, y, x, torch.tensor([0, 2]), runs=4, steps=300) <= 50).all()


# --------------------------------------------------------------------------------------------------------- few labels


def test_few_label_split():
    labels = torch.tensor([2, 0, 1, 0, -1, 2, 1, 0, 2, 5, 5, -1])
    split = few_label_split(labels, per_class=2, seed=3)
    assert split.dtype == torch.int64
    assert labels[split].tolist() == [0, 0, 1, 1, 2, 2, 5, 5]
    assert len(set(split.tolist())) == 8
    assert torch.equal(split, few_label_split(labels.numpy(), 2, 3))
    assert len({tuple(few_label_split(labels, 1, s).tolist()) for s in range(20)}) > 5


def test_few_label_split_is_uniform_within_a_class():
    labels = torch.zeros(5, dtype=torch.long)
    counts = np.bincount([int(few_label_split(labels, 1, s)[0]) for s in range(2000)], minlength=5)
    assert counts.min() > 320
    assert counts.max() < 480


def test_few_label():
    (z, y), (z_new, y_new) = blobs(300, 0, noise=1.5), blobs(400, 1, noise=1.5)
    two = few_label(z, y, z_new, y_new, per_class=2, seed=0)
    twenty = few_label(z, y, z_new, y_new, per_class=20, seed=0)
    assert 34 < two < twenty < 100
    assert two == few_label(z.numpy(), y.numpy(), z_new, y_new, per_class=2, seed=0)
    assert two != few_label(z, y, z_new, y_new, per_class=2, seed=1)
    # all rows of each class: every episode is the same probe
    counts = torch.bincount(y)
    keep = torch.cat([(y == c).nonzero()[: counts.min(), 0] for c in range(3)])
    full = few_label(z[keep], y[keep], z_new, y_new, per_class=int(counts.min()), seed=0, episodes=2)
    assert full == pytest.approx(linear_probe(z[keep], y[keep], z_new, y_new), abs=0.26)  # up to one row, by rounding


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("probe", [linear_probe, softmax_probe])
def test_bad_sets(probe):
    (x, y), (x_new, y_new) = blobs(20, 0), blobs(20, 1)
    with pytest.raises(ValueError, match="x_test must be finite"):
        probe(x, y, x_new * float("nan"), y_new)
    with pytest.raises(ValueError, match="x_test must have 6 columns"):
        probe(x, y, x_new[:, :2], y_new)
    with pytest.raises(ValueError, match="y_train must have one label a row"):
        probe(x, y[:-1], x_new, y_new)
    with pytest.raises(ValueError, match="y_train must be a vector of integers"):
        probe(x, y.double(), x_new, y_new)
    with pytest.raises(ValueError, match="y_test must be 0 or above, got -1"):
        probe(x, y, x_new, y_new - 1)
    with pytest.raises(ValueError, match="x_train must be floating"):
        probe(x.long(), y, x_new, y_new)
    with pytest.raises(ValueError, match="y_train must have one label"):
        probe(x[:0], y[:0], x_new, y_new)


def test_bad_options():
    x, y = blobs(20, 0)
    for l2 in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="l2 must be"):
            linear_probe(x, y, x, y, l2=l2)
    with pytest.raises(ValueError, match="y_train must hold at least 2 classes, got only class 1"):
        linear_probe(x, torch.ones_like(y), x, y)
    for name in ("runs", "steps", "lr"):
        with pytest.raises(ValueError, match=f"{name} must be above 0"):
            softmax_probe(x, y, x, y, **{name: 0})
    with pytest.raises(ValueError, match="per_class must be at least 1"):
        few_label_split(y, 0, 0)
    with pytest.raises(ValueError, match="per_class must be at most 1, the rows of class 1, got 2"):
        few_label_split(torch.tensor([0, 0, 1]), 2, 0)
    with pytest.raises(ValueError, match="labels must hold at least one class"):
        few_label_split(torch.tensor([-1, -1]), 1, 0)
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        few_label(x, y, x, y, 1, 0, episodes=0)
    with pytest.raises(ValueError, match="y_train must have one label a row of z_train"):
        few_label(x, y[:-1], x, y, 1, 0)
