"""The SVM of graph-level protocols: its minimum, its folds, and what it must not see."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from gen_core.evaluation import probe, svm_folds
from gen_core.evaluation.probe import _squared_hinge

GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def blobs(n, seed, d=6, classes=3, noise=1.0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[y] + noise * torch.randn(n, d, generator=g), y


def standard(x, fitted_on):
    mean, deviation = fitted_on.mean(0), fitted_on.std(0)
    return (x - mean) / np.where(deviation > 0, deviation, 1)


# ---------------------------------------------------------------------------------------------------------- one SVM


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
def test_newton_ends_at_the_minimum(c):
    """Against another optimiser on the same objective; from zero and from far away."""
    z, y = blobs(60, 0, d=5, classes=2, noise=2.0)
    x, sign = torch.cat([z, torch.ones(60, 1)], 1).double(), (2 * y - 1).double()
    a, s = x.numpy(), sign.numpy()

    def objective(w):
        short = np.maximum(0, 1 - s * (a @ w))
        return w @ w / 2 + c * short @ short, w - 2 * c * (short * s) @ a

    best = minimize(objective, np.zeros(6), jac=True, method="BFGS", options={"gtol": 1e-9 * max(c, 1)})
    far = 30 * torch.randn(6, generator=torch.Generator().manual_seed(3)).double()
    for start in (torch.zeros(6).double(), far):
        w = _squared_hinge(x, sign, c, start)
        np.testing.assert_allclose(w.numpy(), best.x, rtol=0, atol=1e-5 * abs(best.x).max())
        assert abs(objective(w.numpy())[1]).max() < 1e-9 * max(c, 1)


def test_the_svm_is_sklearns():
    z, y = blobs(80, 1, classes=2, noise=2.0)
    x, sign = z.double(), (2 * y - 1).double()
    for c in (1e-2, 1.0):
        theirs = LinearSVC(C=c, dual=False, tol=1e-10, max_iter=10_000).fit(x.numpy(), sign.numpy())
        ours = _squared_hinge(torch.cat([x, torch.ones(80, 1)], 1), sign, c, torch.zeros(7).double())
        np.testing.assert_allclose(ours, np.append(theirs.coef_, theirs.intercept_), rtol=0, atol=1e-6)


def test_collinear_columns_and_the_largest_c_converge():
    """Sums over nodes are nearly collinear: 40 columns of rank 3 and noise of 1e-4, columns scaled over 6 decades."""
    g = torch.Generator().manual_seed(0)
    low = torch.randn(120, 3, generator=g)
    z = low @ torch.randn(3, 40, generator=g) + 1e-4 * torch.randn(120, 40, generator=g)
    y = (low[:, 0] + 0.5 * torch.randn(120, generator=g) > 0).long()
    found = svm_folds(z * torch.logspace(-3, 3, 40), y, folds=4, inner=3, grid=(1e-3, 1e3, 1e6))
    assert found.mean() > 70


# ------------------------------------------------------------------------------------------------------- the protocol


def independent(z, y, folds, grid, inner, seed):
    """The same protocol with LinearSVC in plain loops."""
    z, y, found = z.double().numpy(), y.numpy(), []

    def accuracy(a, b, c, rows):
        x, new = standard(rows[a], rows[a]), standard(rows[b], rows[a])
        svm = LinearSVC(C=c, dual=False, tol=1e-9, max_iter=20_000).fit(x, labels[a])
        return (svm.predict(new) == labels[b]).mean()

    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(z, y):
        rows, labels = z[train], y[train]
        cut = list(StratifiedKFold(inner, shuffle=True, random_state=seed).split(rows, labels))
        means = [np.mean([accuracy(a, b, c, rows) for a, b in cut]) for c in grid]
        best = grid[int(np.argmax(means))]
        rows, labels = np.concatenate([rows, z[test]]), np.concatenate([labels, y[test]])
        places = np.arange(len(rows))
        found.append(100 * accuracy(places[: len(train)], places[len(train) :], best, rows))
    return found


@pytest.mark.parametrize("classes", [2, 3])
def test_equals_an_independent_loop(classes):
    z, y = blobs(66, 3, classes=classes, noise=2.5)
    own = {"folds": 4, "grid": GRID[:5], "inner": 3, "seed": 5}
    found = svm_folds(z * torch.logspace(-2, 2, 6) + 7, y, **own)
    assert found.dtype == torch.float64
    expected = independent(z * torch.logspace(-2, 2, 6) + 7, y, **own)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert 100 / classes + 5 < found.mean() < 99
    assert len(set(expected)) > 1


def test_ten_folds_cover_every_row_once():
    """With two rows a fold, of both classes, an accuracy is 0, 50 or 100; one flipped label costs one row of 20."""
    y = torch.arange(20) % 2
    z = torch.stack([y * 2.0 - 1, torch.linspace(0, 0.1, 20)], 1)
    flipped = y.clone()
    flipped[[3, 8]] = flipped[[8, 3]]
    assert svm_folds(z, y, inner=2).tolist() == [100.0] * 10
    found = svm_folds(z, flipped, inner=2)
    assert found.shape == (10,)
    assert set(found.tolist()) <= {0.0, 50.0, 100.0}
    assert found.mean() == 90


def test_folds_do_not_depend_on_the_embedding_and_nothing_is_random():
    z, y = blobs(60, 5, noise=2.0)
    found = svm_folds(z, y, folds=5)
    assert torch.equal(found, svm_folds(z.clone(), y, folds=5))
    assert torch.equal(found, svm_folds(z.numpy(), y.numpy(), folds=5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        np.random.seed(1)
        assert torch.equal(found, svm_folds(z, y, folds=5))
    assert not torch.equal(found, svm_folds(z, y, folds=5, seed=1))
    # a copy of z in other units has the same folds, and standardising undoes the units
    assert torch.equal(found, svm_folds(z.double() * 1024 - 3, y, folds=5))


def test_of_equal_candidates_the_smallest_c_is_taken(monkeypatch):
    z, y = blobs(40, 5, classes=2, noise=0.1)  # any C separates the classes
    grids, plain = [], probe._svm_accuracies
    monkeypatch.setattr(probe, "_svm_accuracies", lambda *given: grids.append(given[4]) or plain(*given))
    assert svm_folds(z, y, folds=2, inner=2, grid=(10.0, 0.1, 1.0)).tolist() == [100.0, 100.0]
    assert grids == 2 * [[0.1, 1.0, 10.0], [0.1, 1.0, 10.0], [0.1]]


def test_takes_half_precision_constant_columns_and_classes_with_gaps():
    z, y = blobs(60, 6, noise=0.3)
    z[:, 2] = 3
    found = svm_folds(z, y, folds=3)
    assert found.mean() > 95
    assert torch.equal(found, svm_folds(z, torch.tensor([4, 0, 9])[y], folds=3))
    assert svm_folds(z.bfloat16(), y, folds=3).mean() > 95


# ------------------------------------------------------------------------------------------------------------ leakage


def test_labels_of_noise_are_not_learnt():
    """120 columns of noise for 100 rows: a C or a scaler that saw the test rows would do better than chance."""
    g = torch.Generator().manual_seed(0)
    values = [
        float(svm_folds(torch.randn(100, 120, generator=g), torch.arange(100) % 2, folds=5, inner=3).mean())
        for _ in range(6)
    ]
    assert 42 < np.mean(values) < 58


def test_the_scaler_and_c_see_the_training_part_only(monkeypatch):
    """Every row that a scaler or an SVM is fitted on is from the training part of its fold."""
    from sklearn.preprocessing import StandardScaler

    z, y = blobs(48, 7, noise=2.0)
    z[:, 0] = torch.arange(48.0)  # a row's name
    cut = StratifiedKFold(4, shuffle=True, random_state=0).split(z.numpy(), y.numpy())
    allowed = [set(train.tolist()) for train, _ in cut]
    seen, fit = [], StandardScaler.fit
    monkeypatch.setattr(StandardScaler, "fit", lambda self, x: seen.append(set(x[:, 0].astype(int))) or fit(self, x))
    svm_folds(z, y, folds=4, inner=3)
    assert len(seen) == 4 * (3 + 1)
    for fold in range(4):
        inner, whole = seen[4 * fold : 4 * fold + 3], seen[4 * fold + 3]
        assert whole == allowed[fold]
        assert all(part < whole for part in inner)
        assert all(len(whole - part) == 12 for part in inner)


def test_a_change_of_the_test_rows_moves_no_other_guess():
    """The last fold's test rows, shifted: its own accuracy falls, no earlier statistic of that fold can undo it."""
    z, y = blobs(60, 8, noise=0.5)
    _, test = list(StratifiedKFold(5, shuffle=True, random_state=0).split(z.numpy(), y.numpy()))[-1]
    moved = z.clone()
    moved[test] += 40
    assert svm_folds(z, y, folds=5)[-1] > 90
    assert svm_folds(moved, y, folds=5)[-1] < 50


# ------------------------------------------------------------------------------------------------------------- errors


def test_bad_input():
    z, y = blobs(60, 9)
    with pytest.raises(ValueError, match="z must be finite"):
        svm_folds(z * float("nan"), y)
    with pytest.raises(ValueError, match="z must be floating"):
        svm_folds(z.long(), y)
    with pytest.raises(ValueError, match="y must have one label a row of z, 60"):
        svm_folds(z, y[:-1])
    with pytest.raises(ValueError, match="y must be 0 or above, got -1"):
        svm_folds(z, y - 1)
    with pytest.raises(ValueError, match="y must hold at least 2 classes, got only class 4"):
        svm_folds(z, torch.full((60,), 4))
    for name in ("folds", "inner"):
        with pytest.raises(ValueError, match=f"{name} must be at least 2, got 1"):
            svm_folds(z, y, **{name: 1})
    for grid in ((), (0.0, 1.0), (-1.0,), (float("inf"),), (float("nan"),)):
        with pytest.raises(ValueError, match="grid must hold finite numbers above 0"):
            svm_folds(z, y, grid=grid)


@pytest.mark.parametrize(("rows", "folds", "inner"), [(9, 10, 5), (10, 10, 10), (6, 2, 4)])
def test_a_class_too_small_for_the_folds_is_named(rows, folds, inner):
    y = torch.cat([torch.zeros(40, dtype=torch.long), torch.full((rows,), 2)])
    z = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=rf"class 2 has {rows} rows; with folds={folds} and inner={inner}"):
        svm_folds(z, y, folds=folds, inner=inner)
    y, z = torch.cat([y, torch.full((2,), 2)]), torch.cat([z, z[:2]])
    assert svm_folds(z, y, folds=folds, inner=inner).shape == (folds,)  # two rows more are enough
