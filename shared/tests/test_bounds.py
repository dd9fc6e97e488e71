"""Bounds against worked numbers and a brute-force reference that knows only pairs, in plain Python floats."""

import math

import pytest
import torch

from gen_core.estimators import BOUNDS, Match, Pairs, bilinear, nats_to_bits, separable
from gen_core.estimators.bounds import dv, infonce, interpolated, jsd, nce, nwj, smile, tuba
from gen_core.losses import binary_nce, nt_xent

POOLED = {"dv": dv, "nwj": nwj, "tuba": tuba, "jsd": jsd, "smile": smile, "nce": nce}
RANKING = {"infonce": infonce, "interpolated": interpolated}


def matrix(dtype=torch.float64):
    """f_ij = sin(.37 (4i + j)) + 1.5 [i = j]: the fixed test matrix of the worked tables."""
    return (torch.sin(0.37 * torch.arange(16, dtype=torch.float64).view(4, 4)) + 1.5 * torch.eye(4)).to(dtype)


def rect(n=5, m=9, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.7


# ---------------------------------------------------------------------------------------------- brute-force reference


def sp(u):
    return max(u, 0.0) + math.log1p(math.exp(-abs(u)))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def log_mean_exp(values):
    return math.log(mean(math.exp(v) for v in values))


def brute(name, f, pos, neg, log_a=None, clip=5.0, nu=1.0, alpha=0.01):
    """`f` a list of rows; `pos`, `neg` sets of (i, j); log_a one number a column."""
    n, m = len(f), len(f[0])
    log_a = [1.0] * m if log_a is None else log_a
    p, q = [f[i][j] for i, j in pos], [f[i][j] for i, j in neg]
    if name == "dv":
        return mean(p) - log_mean_exp(q)
    if name == "smile":
        return mean(p) - log_mean_exp([min(max(v, -clip), clip) for v in q])
    if name in ("tuba", "nwj"):
        return 1 + mean(f[i][j] - log_a[j] for i, j in pos) - mean(math.exp(f[i][j] - log_a[j]) for i, j in neg)
    if name in ("jsd", "nce"):
        return -mean(sp(math.log(nu) - v) for v in p) - nu * mean(sp(v - math.log(nu)) for v in q)
    if name == "infonce":
        rows = []
        for i in range(n):
            ps, ns = [f[a][b] for a, b in pos if a == i], [f[a][b] for a, b in neg if a == i]
            if ps:
                rows.append(mean(v - log_mean_exp([v, *ns]) for v in ps))
        return mean(rows)
    if name == "interpolated":
        joint, product = [], []
        for j in range(m):
            ps, ns = [f[a][b] for a, b in pos if b == j], [f[a][b] for a, b in neg if b == j]
            if ps:
                q_j = math.exp(log_a[j])
                for_x = [alpha * mean(math.exp(u) for u in [v, *ns]) + (1 - alpha) * q_j for v in ps]
                joint.append(mean(v - math.log(w) for v, w in zip(ps, for_x, strict=True)))
                m_neg = mean(math.exp(u) for u in ns)
                product.append(m_neg / (alpha * m_neg + (1 - alpha) * q_j))
        return 1 + mean(joint) - mean(product)
    raise AssertionError(name)


def pairs_of(mask):
    return [(i, j) for i, row in enumerate(mask.tolist()) for j, v in enumerate(row) if v]


# ------------------------------------------------------------------------------------------------------ worked values


@pytest.mark.parametrize(
    ("bound", "own", "value"),
    [
        (dv, {}, 1.146746),
        (nwj, {}, 0.947032),
        (tuba, {"log_baseline": torch.tensor([0.5, 1.0, 1.5, 2.0]).double().log()}, 0.959060),
        (tuba, {"log_baseline": 1.0}, 0.947032),
        (infonce, {}, 0.797874),
        (jsd, {}, -1.027076),
        (smile, {"clip": 0.5}, 1.276979),
        (smile, {"clip": 1.0}, 1.146746),
        (smile, {"clip": 5.0}, 1.146746),
        (smile, {}, 1.146746),
        (interpolated, {"alpha": 0.0}, 0.947032),
        (interpolated, {"alpha": 0.01}, 0.946063),
        (interpolated, {}, 0.946063),
        (interpolated, {"alpha": 0.5}, 0.870996),
        (interpolated, {"alpha": 0.99}, 0.649837),
        (interpolated, {"alpha": 1.0}, 0.641309),
        (nce, {"nu": 3}, -1.638407),
        (nce, {}, -1.027076),
    ],
)
def test_worked_values(bound, own, value):
    assert bound(matrix(), **own).item() == pytest.approx(value, abs=1e-6)
    if own.get("clip") != 1.0:  # at clip 1 an entry stands within rounding of the edge
        assert bound(matrix(torch.float32), **own).item() == pytest.approx(value, abs=1e-4)


def test_worked_values_by_way_of_other_arguments():
    f = matrix()
    assert infonce(f.T).item() == pytest.approx(0.641309, abs=1e-6)
    assert ((infonce(f) + infonce(f.T)) / 2).item() == pytest.approx(0.719592, abs=1e-6)
    assert (math.log(4) - infonce(f)).item() == pytest.approx(0.588420, abs=1e-6)  # ranking NCE
    assert nwj(1 + f).item() == pytest.approx(1.099029, abs=1e-6)  # read-out of a critic trained on jsd
    assert (jsd(f) + 2 * math.log(2)).item() == pytest.approx(0.359218, abs=1e-6)  # DIM's shift
    shifted = Pairs(f.diagonal(), f[torch.arange(4), [1, 2, 3, 0]])
    assert dv(shifted).item() == pytest.approx(1.326266, abs=1e-6)  # one shuffled partner, MINE's way
    a = torch.tensor([0.5, 1.0, 1.5, 2.0]).double().log()
    assert tuba(f.T, log_baseline=a).item() == pytest.approx(0.627538, abs=1e-6)  # the baseline on the other side
    assert nats_to_bits(dv(f)).item() == pytest.approx(1.146746 / math.log(2), abs=1e-6)


def test_bilinear_scores_worked():
    """a W b^T of the losses' tables: DGI's BCE with a shifted negative, DIM's loss, CURL's cross-entropy."""
    t = torch.arange(12, dtype=torch.float64).view(4, 3)
    a, b = torch.sin(0.37 * t + 0.1), torch.cos(0.53 * t + 0.2)
    s = bilinear(a, b, torch.cos(0.29 * torch.arange(9, dtype=torch.float64).view(3, 3)))
    shifted = s[torch.arange(4), [1, 2, 3, 0]]
    assert binary_nce(s.diagonal(), shifted).item() == pytest.approx(0.970116, abs=1e-6)
    assert (-nce(Pairs(s.diagonal(), shifted)) / 2).item() == pytest.approx(0.970116, abs=1e-6)
    assert (-jsd(s) - 2 * math.log(2)).item() == pytest.approx(0.768253, abs=1e-6)
    assert (math.log(4) - infonce(s)).item() == pytest.approx(2.631548, abs=1e-6)
    assert (math.log(4) - infonce(0.1 * s)).item() == pytest.approx(1.464093, abs=1e-6)


def test_dgi_loss_is_half_of_minus_nce():
    pairs = Pairs(torch.tensor([1, -0.5, 2]).double(), torch.tensor([-1, 0.3, 0]).double())
    assert (-nce(pairs) / 2).item() == pytest.approx(0.545838, abs=1e-6)
    assert torch.equal(-nce(pairs), binary_nce(pairs.pos, pairs.neg, reduction="sum-of-means"))


def test_nt_xent_through_infonce():
    t = torch.arange(128, dtype=torch.float64).view(8, 16)
    a, b = torch.sin(0.37 * t), torch.sin(0.37 * t + 0.5)
    z, ids = torch.cat([a, b]), torch.arange(8).repeat(2)
    scores = separable(z, z, temperature=0.5, normalize=True)
    loss = math.log(15) - infonce(scores, Match(ids, skip=0))
    assert loss.item() == pytest.approx(2.157757, abs=1e-6)
    torch.testing.assert_close(loss, nt_xent(a, b, temperature=0.5), rtol=0, atol=1e-12)
    # one rank's rows against all columns, its own column at i + offset
    parts = [infonce(scores[o : o + 4], Match(ids[o : o + 4], ids, skip=o)) for o in (0, 4, 8, 12)]
    torch.testing.assert_close(torch.stack(parts).mean(), infonce(scores, Match(ids, skip=0)), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- brute force


def case(name):
    if name == "diagonal":
        pos = torch.eye(4, dtype=torch.bool)
        return matrix(), None, pos, ~pos
    if name == "columns":
        f, column = rect(4, 4, 1), torch.tensor([2, 0, 3, 1])
        pos = torch.nn.functional.one_hot(column, 4).bool()
        return f, column, pos, ~pos
    if name == "mask":  # rows and columns of several positives, one row without any
        pos = torch.zeros(5, 9, dtype=torch.bool)
        pos[0, :3] = pos[1, 2] = pos[3, [0, 7]] = pos[4, 4:8] = True
        return rect(), pos, pos, ~pos
    if name == "node-to-graph":
        graph = torch.tensor([0, 0, 1, 2, 2, 2])
        pos = graph[:, None] == torch.arange(3)
        return rect(6, 3), Match(graph, torch.arange(3)), pos, ~pos
    if name == "labels":  # SupCon-like: several positives, own column skipped
        y = torch.tensor([0, 1, 0, 1, 0, 2])
        pos, eye = y[:, None] == y, torch.eye(6, dtype=torch.bool)
        return rect(6, 6), Match(y, skip=0), pos & ~eye, ~pos
    if name == "unmatched":  # a column labelled -1 is negative for all, also for a row labelled -1
        rows, columns = torch.tensor([0, 1, -1]), torch.tensor([0, -1, 1, 0, -1])
        pos = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
        return rect(3, 5), Match(rows, columns), pos, ~pos
    raise AssertionError(name)


NAMES = ["diagonal", "columns", "mask", "node-to-graph", "labels", "unmatched"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_against_brute_force(name, bound):
    f, positives, pos, neg = case(name)
    expected = brute(bound, f.tolist(), pairs_of(pos), pairs_of(neg))
    assert BOUNDS[bound](f, positives).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_against_brute_force_with_their_own_arguments(name):
    f, positives, pos, neg = case(name)
    log_a = torch.linspace(-0.5, 1.5, f.shape[1], dtype=torch.float64)
    args = f.tolist(), pairs_of(pos), pairs_of(neg)
    assert tuba(f, positives, log_baseline=log_a).item() == pytest.approx(brute("tuba", *args, log_a.tolist()))
    assert smile(f, positives, clip=0.6).item() == pytest.approx(brute("smile", *args, clip=0.6))
    assert nce(f, positives, nu=4).item() == pytest.approx(brute("nce", *args, nu=4))
    for alpha in (0.0, 0.3, 1.0):
        value = interpolated(f, positives, alpha=alpha, log_baseline=log_a).item()
        assert value == pytest.approx(brute("interpolated", *args, log_a.tolist(), alpha=alpha), abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bound", sorted(POOLED))
def test_pooled_bounds_read_pairs_as_they_read_a_matrix(name, bound):
    f, positives, pos, neg = case(name)
    torch.testing.assert_close(BOUNDS[bound](Pairs(f[pos], f[neg])), BOUNDS[bound](f, positives), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_ways_to_say_the_diagonal_agree(bound):
    f, i = matrix(), torch.arange(4)
    value = BOUNDS[bound](f)
    for positives in (i, i.int(), torch.eye(4, dtype=torch.bool), Match(i), Match(i + 7, i + 7)):
        torch.testing.assert_close(BOUNDS[bound](f, positives), value, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_ways_to_say_a_column_agree(bound):
    f, column = rect(4, 6), torch.tensor([1, 0, 5, 3])
    value = BOUNDS[bound](f, column)
    ref = torch.full((6,), -1)
    ref[column] = torch.arange(4)
    assert torch.equal(BOUNDS[bound](f, torch.nn.functional.one_hot(column, 6).bool()), value)
    assert torch.equal(BOUNDS[bound](f, Match(torch.arange(4), ref)), value)


def test_extra_negatives_lower_infonce_by_their_weight():
    f = rect(3, 7)
    expected = mean(v[i] - log_mean_exp(v) for i, v in enumerate(f.tolist()))
    assert infonce(f, torch.arange(3)).item() == pytest.approx(expected, abs=1e-12)


# ------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("name", NAMES)
def test_adding_a_constant(name):
    f, positives, _, _ = case(name)
    for bound in (dv, infonce):
        torch.testing.assert_close(bound(f + 3.7, positives), bound(f, positives), rtol=0, atol=1e-12)
    for bound in (nwj, tuba, jsd, nce):
        assert not torch.isclose(bound(f + 3.7, positives), bound(f, positives), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_order_between_bounds(name):
    f, positives, _, neg = case(name)
    assert dv(f, positives) >= nwj(f, positives)
    assert torch.equal(smile(f, positives, clip=math.inf), dv(f, positives))
    assert torch.equal(jsd(f, positives), nce(f, positives, nu=1))
    loud = 100 * f
    assert infonce(loud, positives) <= math.log(1 + int(neg.sum(1).max())) + 1e-12


def test_infonce_reaches_its_ceiling():
    f = 500 * torch.eye(6)
    assert infonce(f).item() == pytest.approx(math.log(6), abs=1e-6)
    assert infonce(f[:2], torch.arange(2)).item() == pytest.approx(math.log(6), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_gradcheck(name, bound):
    f, positives, _, _ = case(name)
    own = {"clip": 0.9} if bound == "smile" else {}
    assert torch.autograd.gradcheck(lambda u: BOUNDS[bound](u, positives, **own), (f.clone().requires_grad_(),))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_gradcheck_of_baselines(alpha):
    f = rect(5, 5).requires_grad_()
    log_a = torch.linspace(0, 1, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, a: interpolated(u, alpha=alpha, log_baseline=a), (f, log_a))
    assert torch.autograd.gradcheck(lambda u, a: tuba(u, log_baseline=a), (f, log_a))


# -------------------------------------------------------------------------------------------- precision and extremes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_half_precision(dtype, bound):
    low = BOUNDS[bound](matrix(dtype))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(BOUNDS[bound](matrix()).item(), abs=1e-2)


@pytest.mark.parametrize("bound", ["dv", "infonce", "jsd", "smile", "interpolated", "nce"])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_scores_are_finite(bound, scale):
    f = (scale * matrix(torch.float32)).requires_grad_()
    value = BOUNDS[bound](f)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(f.grad).all()


@pytest.mark.parametrize("bound", [nwj, tuba])
def test_overflow_of_the_exponential_is_minus_infinity(bound):
    assert bound(torch.full((3, 3), 1e4)) == -math.inf
    assert torch.isfinite(bound(torch.full((3, 3), -1e4)))


@pytest.mark.parametrize("bound", [infonce, interpolated])
def test_rows_without_a_positive_get_no_gradient(bound):
    f = rect(3, 3).requires_grad_()
    mask = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 0]]).bool()
    bound(f, mask).backward()
    used = f.grad[0] if bound is infonce else f.grad[:, 0]
    assert torch.isfinite(f.grad).all()
    assert used.abs().min() > 0
    assert f.grad.abs().sum() == used.abs().sum()


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_bad_scores(bound):
    f = BOUNDS[bound]
    bad = matrix()
    bad[0, 1] = math.nan
    with pytest.raises(ValueError, match="scores must be finite"):
        f(bad)
    with pytest.raises(ValueError, match="scores must be finite"):
        f(matrix() / 0)
    with pytest.raises(ValueError, match="scores must be square when positives is None"):
        f(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="scores of shape \\(1, 1\\) have no negatives"):
        f(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="scores must have a floating dtype"):
        f(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="scores must have 2 dimension"):
        f(torch.zeros(3))
    with pytest.raises(ValueError, match="scores must not be empty"):
        f(torch.zeros(0, 0))


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_bad_positives(bound):
    f, scores = BOUNDS[bound], torch.zeros(3, 4)
    with pytest.raises(ValueError, match="positives must be columns of scores, in \\[0, 3\\], got 0 to 4"):
        f(scores, torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="positives must be integers"):
        f(scores, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="positives must be integers"):
        f(scores, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="positives must have the shape of scores"):
        f(scores, torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="positives match \\(3, 3\\) pairs"):
        f(scores, Match(torch.arange(3)))
    with pytest.raises(ValueError, match="positives must be None, a LongTensor"):
        f(scores, [0, 1, 2])
    with pytest.raises(ValueError, match="no negatives"):
        f(scores, torch.ones(3, 4, dtype=torch.bool))


@pytest.mark.parametrize("bound", sorted(BOUNDS))
@pytest.mark.parametrize("positives", [torch.zeros(3, 4, dtype=torch.bool), Match(torch.arange(3), torch.arange(5, 9))])
def test_a_batch_without_a_positive_pair_is_worth_nothing(bound, positives):
    scores = torch.randn(3, 4, requires_grad=True)
    value = BOUNDS[bound](scores, positives)
    value.backward()
    assert value.item() == 0
    assert scores.grad is not None and not scores.grad.any()


@pytest.mark.parametrize("bound", sorted(BOUNDS))
def test_function_transforms(bound):
    f, batch = BOUNDS[bound], torch.randn(3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if bound == "interpolated":
        return  # it reads a mask always
    torch.testing.assert_close(torch.func.vmap(f)(batch), torch.stack([f(b) for b in batch]), rtol=0, atol=1e-12)
    leaf = batch[0].clone().requires_grad_()
    f(leaf).backward()
    torch.testing.assert_close(torch.func.grad(f)(batch[0]), leaf.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bound", sorted(RANKING))
def test_ranking_bounds_refuse_pairs(bound):
    with pytest.raises(ValueError, match=f"scores must be a matrix for {bound}"):
        BOUNDS[bound](Pairs(torch.zeros(2), torch.zeros(2)))


def test_ranking_bounds_refuse_a_positive_without_negatives():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    with pytest.raises(ValueError, match="no negatives for a positive of its row: infonce"):
        infonce(torch.zeros(2, 3), mask)
    with pytest.raises(ValueError, match=r"no negatives for a positive of its column .*: interpolated"):
        interpolated(torch.zeros(3, 2), mask.T)
    with pytest.raises(ValueError, match="transpose"):  # a bank's scores: the first column holds positives alone
        interpolated(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("bound", sorted(POOLED))
def test_bad_pairs(bound):
    f, ok = BOUNDS[bound], torch.zeros(2)
    with pytest.raises(ValueError, match="positives must be None with Pairs"):
        f(Pairs(ok, ok), torch.arange(2))
    with pytest.raises(ValueError, match="neg must not be empty"):
        f(Pairs(ok, ok[:0]))
    with pytest.raises(ValueError, match="pos must be finite"):
        f(Pairs(ok / 0, ok))
    with pytest.raises(ValueError, match="pos must have 1 dimension"):
        f(Pairs(ok[None], ok))


def test_bad_own_arguments():
    f = matrix()
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="alpha must be in"):
            interpolated(f, alpha=alpha)
    for clip in (0, -1, math.nan):
        with pytest.raises(ValueError, match="clip must be above 0"):
            smile(f, clip=clip)
    for nu in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="nu must be a finite number above 0"):
            nce(f, nu=nu)
    for bound in (tuba, interpolated):
        with pytest.raises(ValueError, match=r"log_baseline must be one number or of shape \(4,\)"):
            bound(f, log_baseline=torch.zeros(3))
        with pytest.raises(ValueError, match="log_baseline must be"):
            bound(f, log_baseline=torch.zeros(4, 1))
        with pytest.raises(ValueError, match="log_baseline must be finite"):
            bound(f, log_baseline=math.nan)
    with pytest.raises(ValueError, match="log_baseline must be one number, got"):
        tuba(Pairs(f[0], f[1]), log_baseline=torch.zeros(4))


def test_bad_match():
    i = torch.arange(3)
    with pytest.raises(ValueError, match="labels of Match must be a one-dimensional tensor of integers"):
        Match(torch.zeros(3))
    with pytest.raises(ValueError, match="labels of Match"):
        Match(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="ref_labels of Match"):
        Match(i, i[None])
    with pytest.raises(ValueError, match="labels of Match"):
        Match(None)
    with pytest.raises(ValueError, match=r"skip of Match must be an integer or None, got 0\.5"):
        Match(i, skip=0.5)
