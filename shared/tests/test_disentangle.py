"""Disentanglement scores: worked numbers on grids, the definitions in plain Python, noise, bad input."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import mutual_info_score

from gen_core.evaluation.disentangle import (
    beta_vae_score,
    dci,
    factor_vae_score,
    importance_scores,
    information_table,
    med,
    mig,
    sap,
    sap_svm,
)

QUICK = {"votes": 2000, "test_votes": 1000}
R = torch.tensor([[0.6, 0.0], [0.3, 0.2], [0.1, 0.8]], dtype=torch.float64)


def grid(*sizes):
    return torch.cartesian_prod(*(torch.arange(k) for k in sizes))


def unit_codes(v):
    return v.double() / v.max(0).values


def rotated(z):
    """The last two codes turned by 45 degrees."""
    a, b = z[:, -2] * math.sqrt(0.5), z[:, -1] * math.sqrt(0.5)
    return torch.cat([z[:, :-2], torch.stack([a - b, a + b], 1)], 1)


def sample(sizes, n, seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, k, n) for k in sizes], 1)


V = grid(3, 4, 5, 6)
Z = unit_codes(V)

# ------------------------------------------------------------------------------------------------ mutual information


def numpy_table(codes, factors):
    """numpy's histogram edges and scikit-learn's mutual information, one pair at a time."""
    table = np.zeros((codes.shape[1], factors.shape[1]))
    for i, code in enumerate(codes.T):
        bins = np.digitize(code, np.histogram(code, 20)[1][:-1])
        for j, factor in enumerate(factors.T):
            table[i, j] = mutual_info_score(factor, bins)
    return table


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_information_against_numpy_and_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    v = sample((3, 7, 40), 700, seed) * 3 - 5
    z = np.concatenate([v + 2.0 * rng.normal(size=v.shape), rng.standard_cauchy((700, 2)), v[:, :1]], 1)
    table = information_table(z, v)
    np.testing.assert_allclose(table, numpy_table(z, v), atol=1e-12)
    order = rng.permutation(700)
    np.testing.assert_allclose(information_table(z[order], v[order]), table, atol=1e-12)
    np.testing.assert_allclose(information_table(z[:, ::-1].copy(), v), table.flip(0), atol=1e-12)
    renamed = np.array([7, -2, 90])[v[:, :1] // 3 + 2]  # values are names only
    np.testing.assert_allclose(information_table(z, renamed)[:, 0], table[:, 0], atol=1e-12)


def test_information_by_counting():
    """One pair, plain Python: bins by comparison with the left edges."""
    rng = np.random.default_rng(4)
    code, factor = rng.normal(size=60), rng.integers(0, 3, 60)
    width = (code.max() - code.min()) / 20
    bins = [max(b for b in range(20) if code.min() + b * width <= c) for c in code]
    joint, one, other = Counter(zip(bins, factor, strict=True)), Counter(bins), Counter(factor)
    expected = sum(k / 60 * math.log(k * 60 / (one[b] * other[f])) for (b, f), k in joint.items())
    assert information_table(code[:, None], factor[:, None]).item() == pytest.approx(expected, abs=1e-12)


def test_information_of_independent_and_constant_codes_is_exactly_zero():
    table = information_table(torch.cat([Z, torch.full((360, 1), 0.3)], 1), V)
    for j, size in enumerate((3, 4, 5, 6)):
        assert table[j, j].item() == pytest.approx(math.log(size), abs=1e-12)
        table[j, j] = 0
    assert (table == 0).all()


def test_the_bias_of_plug_in_information():
    """Normal noise against factors with 3, 6, 40, 32, 32 values, 10,000 rows; 400 codes take several tiles."""
    z = np.random.default_rng(0).normal(size=(10_000, 400))
    found = information_table(z, sample((3, 6, 40, 32, 32), 10_000, 0)).mean(0)
    np.testing.assert_allclose(found, [0.0019, 0.0048, 0.035, 0.028, 0.028], rtol=0.1)


# ---------------------------------------------------------------------------------------------------------- MIG, SAP


@pytest.mark.parametrize(
    ("codes", "gap", "predictability"),
    [
        (Z, 1.0, 1.0),
        (rotated(Z), 0.508483, 0.5),
        (torch.cat([Z, torch.sin(0.37 * torch.arange(360.0, dtype=torch.float64))[:, None]], 1), 0.959166, 0.997262),
        (torch.cat([Z, Z[:, :1]], 1), 0.75, 0.75),
    ],
    ids=["identity", "rotated", "extra", "repeated"],
)
def test_worked_mig_and_sap(codes, gap, predictability):
    assert mig(codes, V) == pytest.approx(gap, abs=1e-6)
    assert sap(codes, V) == pytest.approx(predictability, abs=1e-6)
    table = numpy_table(codes.numpy(), V.numpy())
    table.sort(0)
    assert mig(codes, V) == pytest.approx(np.mean((table[-1] - table[-2]) / np.log([3, 4, 5, 6])), abs=1e-12)


def test_sap_against_numpys_correlation():
    rng = np.random.default_rng(0)
    v = sample((3, 6, 8), 200, 0)
    z = v @ rng.normal(size=(3, 5)) + rng.normal(size=(200, 5))
    squared = np.corrcoef(z, v, rowvar=False)[:5, 5:] ** 2
    squared.sort(0)
    assert sap(z, v) == pytest.approx((squared[-1] - squared[-2]).mean(), abs=1e-12)
    still = np.concatenate([z, np.full((200, 1), 0.1), 1e-8 * z], 1)  # constant, and below the threshold
    assert sap(still, v) == pytest.approx(sap(z, v), abs=1e-12)
    assert sap(np.full((200, 2), 0.1), v) == 0.0


def test_sap_svm_against_the_best_threshold():
    """Two values: a balanced support vector machine on one wide code cuts it between them."""
    v = grid(2, 2, 2).repeat(40, 1)
    rng = np.random.default_rng(0)
    flip = torch.as_tensor(rng.random(320) < 0.2)
    first = torch.where(flip, 1 - v[:, 0], v[:, 0])  # tells factor 0 in 80 %
    z = 20 * torch.stack([v[:, 0], first, v[:, 1], v[:, 2]], 1).double()
    right = 1 - flip.double().mean().item()
    expected = ((1 - right) + 2 * (1 - 0.5)) / 3
    assert sap_svm(z, v, z, v) == pytest.approx(expected, abs=0.02)
    # trained on one set, scored on the other
    assert sap_svm(z, v, z.flip(0), v) < 0.35


def test_sap_svm_solves_its_own_problem():
    """By another optimiser: (w^2 + b^2) / 2 + 0.01 sum n / (2 n_y) max(0, 1 - y (w x + b))^2."""
    rng = np.random.default_rng(3)
    v = (rng.random((300, 2)) < [0.3, 0.6]).astype(int)
    z = np.stack([3 + v[:, 0], 1 + 0.7 * v[:, 0] + v[:, 1], 2.0 * v[:, 1] - 5], 1) + 0.4 * rng.normal(size=(300, 3))
    gaps = []
    for factor in v.T:
        y, weight, found = 2 * factor - 1, 300 / (2 * np.bincount(factor)[factor]), []
        for x in z.T:

            def objective(p, x=x, y=y, weight=weight):
                return (p @ p) / 2 + 0.01 * (weight * np.maximum(0, 1 - y * (p[0] * x + p[1])) ** 2).sum()

            w, b = minimize(objective, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
            found.append((((w * x + b) > 0) == factor).mean())
        found.sort()
        gaps.append(found[-1] - found[-2])
    assert 0.05 < np.mean(gaps) < 0.5
    assert sap_svm(z, v, z, v) == pytest.approx(np.mean(gaps), abs=0.004)  # one row of 300


# ------------------------------------------------------------------------------------------------------- MED and DCI


def test_worked_importances():
    found = importance_scores(R)
    assert found.per_code.tolist() == pytest.approx([1.0, 0.029049, 0.496742], abs=1e-6)
    assert found.score == pytest.approx(0.530796, abs=1e-6)
    assert found.completeness == pytest.approx(0.363584, abs=1e-6)
    assert found.kept.tolist() == [0, 1, 2]
    best = importance_scores(R, top=1)
    assert best.kept.tolist() == [0, 2]
    assert best.score == pytest.approx(0.698045, abs=1e-6)


def plain_importances(r, top):
    """Row by row, column by column, in plain Python."""

    def keeps(values):
        total = sum(v + 1e-11 for v in values)
        shares = [(v + 1e-11) / total for v in values]
        return 1.0 if len(values) == 1 else 1 + sum(p * math.log(p) for p in shares) / math.log(len(values))

    d = [keeps(row) for row in r]
    taken, count = [], Counter()
    for i in sorted(range(len(r)), key=lambda i: -d[i]):
        factor = max(range(len(r[i])), key=lambda j: r[i][j])
        if top is None or count[factor] < top:
            count[factor] += 1
            taken.append(i)
    rows = [r[i] for i in sorted(taken)]
    total = sum(map(sum, rows))
    score = sum(sum(r[i]) / total * d[i] for i in taken)
    columns = list(zip(*rows, strict=True))
    return score, sum(sum(c) / total * keeps(c) for c in columns), sorted(taken)


@pytest.mark.parametrize("top", [None, 1, 2, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_importances_against_plain_python(top, seed):
    r = np.random.default_rng(seed).exponential(size=(9, 3)) ** 3
    found = importance_scores(torch.as_tensor(r), top)
    score, completeness, kept = plain_importances(r.tolist(), top)
    assert (found.score, found.completeness) == pytest.approx((score, completeness), abs=1e-12)
    assert found.kept.tolist() == kept


def test_importances_at_the_edges():
    nothing = importance_scores(torch.zeros(4, 3))
    assert (nothing.score, nothing.completeness) == pytest.approx((0.0, 0.0), abs=1e-9)
    one = importance_scores(torch.tensor([[0.5, 0.5]]))
    assert one.score == pytest.approx(0.0, abs=1e-9) and one.completeness == 1.0
    dead = importance_scores(torch.cat([R, torch.zeros(1, 2).double()]))
    assert dead.score == pytest.approx(importance_scores(R).score, abs=1e-9)
    assert importance_scores(torch.eye(3)).score == pytest.approx(1.0, abs=1e-8)
    assert importance_scores(torch.full((3, 3), 2.0)).per_code.tolist() == pytest.approx([0, 0, 0], abs=1e-9)


def test_med_on_a_full_grid():
    v = grid(3, 6, 8)
    z = v.double()
    found = med(z, v)
    assert (found.score, found.completeness, mig(z, v)) == pytest.approx((1.0, 1.0, 1.0), abs=1e-6)
    twice = torch.cat([z, z], 1)
    found = med(twice, v)
    assert found.score == pytest.approx(1.0, abs=1e-6) and mig(twice, v) == pytest.approx(0.0, abs=1e-12)
    assert found.completeness == pytest.approx(0.6131, abs=1e-4)
    best = med(twice, v, top=1)
    assert best.kept.tolist() == [0, 1, 2] and best.score == pytest.approx(1.0, abs=1e-6)
    for seed in range(3):  # a rotation of standardised codes: 0.08 to 0.20 measured
        turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
        assert med(((z - z.mean(0)) / z.std(0)).numpy() @ turn, v).score < 0.4


def test_med_is_the_formula_on_the_table():
    rng = np.random.default_rng(0)
    v = sample((3, 6, 8), 500, 0)
    z = v @ rng.normal(size=(3, 7)) + rng.normal(size=(500, 7))
    table = numpy_table(z, v)
    for top in (None, 2):
        score, completeness, kept = plain_importances((table / table.sum(0)).tolist(), top)
        found = med(z, v, top)
        assert (found.score, found.completeness) == pytest.approx((score, completeness), abs=1e-9)
        assert found.kept.tolist() == kept


def test_med_and_mig_under_affine_maps_and_permutations():
    v = sample((3, 6, 8), 800, 1)
    rng = np.random.default_rng(1)
    z = np.concatenate([v + 0.3 * rng.normal(size=v.shape), rng.normal(size=(800, 4))], 1)
    plain, gap, line = med(z, v), mig(z, v), sap(z, v)
    scaled = z * np.array([2.0, -3.0, 0.1, 1e4, -1e-4, 7.0, 1.0]) + 5
    # a turned sign makes right edges of the left ones, which no code of these lies on
    assert med(scaled, v).score == pytest.approx(plain.score, abs=1e-9)
    assert (mig(scaled, v), sap(scaled, v)) == pytest.approx((gap, line), abs=1e-9)
    order = rng.permutation(7)
    assert med(z[:, order], v)[:2] == pytest.approx(plain[:2], abs=1e-9)
    assert (mig(z[:, order], v), sap(z[:, order], v)) == pytest.approx((gap, line), abs=1e-9)
    half = med(torch.as_tensor(z).half(), torch.as_tensor(v))
    assert half.score == pytest.approx(plain.score, abs=0.02)


def test_med_of_samples_and_of_noise():
    v = sample((3, 6, 8), 2000, 0)
    noise = np.random.default_rng(0).normal(size=(2000, 500))
    perfect, wide = med(v.astype(float), v).score, np.concatenate([v, noise], 1)
    assert perfect == pytest.approx(0.966, abs=0.01)
    assert med(wide, v).score == pytest.approx(0.14, abs=0.01)
    assert med(wide, v, top=1).score == pytest.approx(perfect, abs=0.005)
    big = sample((3, 6, 40, 32, 32), 10_000, 0)
    assert med(big.astype(float), big).score == pytest.approx(0.934, abs=0.005)
    assert mig(big.astype(float), big) == pytest.approx(0.896, abs=0.005)
    alone = np.random.default_rng(1).normal(size=(10_000, 64))
    assert med(alone, big).score == pytest.approx(0.0035, abs=0.001)
    assert med(alone, big, top=1).score < 0.02


def test_dci():
    v = grid(3, 4, 2)
    z = unit_codes(v)
    found = dci(z, v, z, v)
    assert (found.disentanglement, found.completeness, found.informativeness) == pytest.approx((1.0, 1.0, 1.0))
    # learnt on the training rows, scored on the others: here the codes are those of other factors
    assert dci(z, v, z.flip(0), v).informativeness < 0.4
    mixed = rotated(z)
    blurred = dci(mixed, v, mixed, v)
    assert blurred.disentanglement < 0.9 and blurred.informativeness == 1.0
    assert blurred.importance.shape == (3, 3)
    torch.testing.assert_close(blurred.importance.sum(0), torch.ones(3).double())
    expected = plain_importances(blurred.importance.tolist(), None)
    assert (blurred.disentanglement, blurred.completeness) == pytest.approx(expected[:2], abs=1e-12)


# ------------------------------------------------------------------------------------------------- groups and pairs


@pytest.mark.parametrize("seed", [0, 1])
def test_worked_scores_of_groups_and_pairs(seed):
    constant = torch.cat([Z, torch.zeros(360, 1)], 1)
    assert factor_vae_score(Z, V, seed, **QUICK) == (1.0, 4)
    assert factor_vae_score(constant, V, seed, **QUICK) == (1.0, 4)
    assert 0.71 < factor_vae_score(rotated(Z), V, seed, **QUICK).score < 0.80  # 0.747 to 0.756 with all votes
    assert beta_vae_score(Z, V, seed, **QUICK) == 1.0
    assert 0.73 < beta_vae_score(rotated(Z), V, seed, **QUICK) < 0.82  # 0.776 to 0.782 with all votes
    assert beta_vae_score(torch.zeros(360, 2), V, seed, **QUICK) == pytest.approx(0.25, abs=0.06)


def test_active_codes():
    v, z = V, Z
    assert factor_vae_score(0.01 * z, v) == (0.0, 0)
    assert factor_vae_score(torch.full((360, 3), 0.1), v) == (0.0, 0)
    small = z.clone()
    small[:, 3] *= 0.049 / z[:, 3].std()
    found = factor_vae_score(small, v, **QUICK)
    assert found.active == 3 and found.score < 0.9  # factor 3 has lost its code: about 3/4 and what chance adds
    small[:, 3] *= 0.0501 / 0.049
    assert factor_vae_score(small, v, **QUICK) == (1.0, 4)


def test_a_vote_goes_to_the_code_that_varies_least_relative_to_its_spread():
    """A wide code for factor 0 and a narrow one of noise: without the division the narrow one would always win."""
    v = torch.as_tensor(sample((4, 4), 2000, 0))
    z = torch.stack([100.0 * v[:, 0], 0.1 * v[:, 1]], 1).double()
    assert factor_vae_score(z, v, **QUICK).score == 1.0
    # independent of the factors: the votes tell nothing
    noise = torch.as_tensor(np.random.default_rng(0).normal(size=(2000, 5)))
    assert factor_vae_score(noise, v, **QUICK).score == pytest.approx(0.5, abs=0.07)
    assert beta_vae_score(noise, v, **QUICK) == pytest.approx(0.5, abs=0.07)


def test_factor_vae_score_against_a_plain_loop():
    """The same protocol with numpy's generator, one vote at a time, on codes that are entangled by noise."""
    v = sample((3, 4, 5), 3000, 0)
    z = np.random.default_rng(1).normal(size=(3000, 3)) * 2.5 + v @ np.array([[1, 0.3, 0], [0, 1, 0.6], [0, 0, 1]])
    rng, spread = np.random.default_rng(2), z.var(0, ddof=1)

    def vote(k):
        value = v[rng.integers(3000), k]
        rows = rng.choice(np.flatnonzero(v[:, k] == value), 64)
        return np.argmin(z[rows].var(0, ddof=1) / spread)

    factor = rng.integers(0, 3, 9000)
    chosen = np.array([vote(k) for k in factor])
    table = np.zeros((3, 3), int)
    np.add.at(table, (chosen[:6000], factor[:6000]), 1)
    expected = (table.argmax(1)[chosen[6000:]] == factor[6000:]).mean()
    found = factor_vae_score(z, v, votes=6000, test_votes=3000).score
    assert 0.4 < expected < 0.8
    assert found == pytest.approx(expected, abs=0.035)  # 3 deviations of each


def test_pairs_share_the_factor_each_for_itself():
    """Differences in a shared factor are 0 in every pair, whatever its value in the others."""
    assert beta_vae_score(Z[:, :3], V, **QUICK) == 1.0  # K - 1 codes: the known weakness
    assert factor_vae_score(Z[:, :3], V, **QUICK).score < 0.9


def test_the_accuracy_is_that_of_fresh_votes():
    """Noise and few training votes: the votes that were learnt by heart would be right in three of four cases."""
    v, noise = sample((4, 4), 2000, 0), np.random.default_rng(0).normal(size=(2000, 50))
    assert factor_vae_score(noise, v, votes=80, test_votes=2000).score == pytest.approx(0.5, abs=0.06)
    assert beta_vae_score(noise, v, votes=80, test_votes=2000) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("score", [factor_vae_score, beta_vae_score])
def test_draws_depend_on_the_seed_alone(score):
    z = rotated(Z)
    state = torch.get_rng_state()
    assert score(z, V, 3, **QUICK) == score(z.numpy(), V.numpy(), 3, **QUICK)
    assert torch.equal(state, torch.get_rng_state())
    assert len({score(z, V, seed, **QUICK) for seed in range(4)}) > 1


def test_many_codes_take_several_tiles():
    v = sample((3, 4), 500, 0)
    z = np.concatenate([v, 0.5 * np.random.default_rng(0).normal(size=(500, 400)), np.zeros((500, 3))], 1)
    found = factor_vae_score(z, v, votes=300, test_votes=200)
    assert found == (1.0, 402)
    assert beta_vae_score(z, v, votes=300, test_votes=200) == 1.0


# ---------------------------------------------------------------------------------------------------------- bad input


def with_test(score):
    return lambda z, v: score(z, v, z, v)


@pytest.mark.parametrize(
    "score",
    [information_table, mig, med, sap, with_test(sap_svm), with_test(dci), factor_vae_score, beta_vae_score],
)
def test_bad_sets(score):
    constant = V.clone()
    constant[:, 2] = 7
    with pytest.raises(ValueError, match=r"factors must vary, but factor 2 \(from 0\) is 7 in all 360 rows"):
        score(Z, constant)
    with pytest.raises(ValueError, match="codes must be finite"):
        score(Z * math.nan, V)
    with pytest.raises(ValueError, match="codes must be floating"):
        score(V, V)
    with pytest.raises(ValueError, match=r"factors must be integers \(n, K\)"):
        score(Z, Z)
    with pytest.raises(ValueError, match=r"factors must be integers \(n, K\)"):
        score(Z, V[:, 0])
    with pytest.raises(ValueError, match="factors must have 360 rows, as codes have, got 359"):
        score(Z, V[:-1])


def test_bad_options():
    for score in (med, with_test(dci), factor_vae_score, beta_vae_score):
        with pytest.raises(ValueError, match="factors must have at least 2 columns, got 1"):
            score(Z, V[:, :1])
    for score in (mig, sap, with_test(sap_svm)):
        with pytest.raises(ValueError, match="codes must have at least 2 columns, got 1"):
            score(Z[:, :1], V)
    for top in (0, -1):
        with pytest.raises(ValueError, match="top must be at least 1 or None"):
            med(Z, V, top)
    for r in (torch.ones(3, 1), -torch.ones(3, 2)):
        with pytest.raises(ValueError, match="importance must be"):
            importance_scores(r)
    with pytest.raises(ValueError, match="group must be at least 2, got 1"):
        factor_vae_score(Z, V, group=1)
    with pytest.raises(ValueError, match="pairs must be at least 1, got 0"):
        beta_vae_score(Z, V, pairs=0)
    for score in (factor_vae_score, beta_vae_score):
        for name in ("votes", "test_votes"):
            with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
                score(Z, V, **{name: 0})
        lonely = V.clone()
        lonely[17, 1] = 99
        with pytest.raises(
            ValueError, match="factors must have each value in 2 rows or more, got 99 of factor 1 in one"
        ):
            score(Z, lonely)
    for score in (sap_svm, dci):
        with pytest.raises(ValueError, match="codes_test must have 4 columns, as codes have, got 3"):
            score(Z, V, Z[:, :3], V)
        with pytest.raises(ValueError, match="factors_test must have 4 columns, as factors have, got 3"):
            score(Z, V, Z, V[:, :3])
        with pytest.raises(ValueError, match="factors_test must have 360 rows, as codes_test have, got 5"):
            score(Z, V, Z, V[:5])
