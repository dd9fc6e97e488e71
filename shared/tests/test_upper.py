"""CLUB and L1Out against worked numbers, brute force, closed forms with the true conditional, and a fitted one."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from gen_core.estimators.bounds import BOUNDS, Pairs
from gen_core.estimators.upper import GaussianConditional, club, l1out

N = torch.arange(5, dtype=torch.float64)
X, Y = torch.sin(N + 1), torch.cos(2 * N + 1)


def scores(dtype=torch.float64):
    """log q(y_j | x_i) of q = N(0.5 x, e^-0.4) at the five points of the worked table."""
    f = norm.logpdf(Y.numpy()[None, :], loc=0.5 * X.numpy()[:, None], scale=math.exp(-0.2))
    return torch.from_numpy(f).to(dtype)


def random_scores(n, m, seed=0):
    return 2 * torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_scores(x, y, rho):
    """log p(y_j | x_i) summed over d independent pairs of correlation rho, each N(rho x, 1 - rho^2)."""
    return torch.from_numpy(norm.logpdf(y[None], loc=rho * x[:, None], scale=math.sqrt(1 - rho**2)).sum(-1))


def gaussian(n, d, rho, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.standard_normal((n, d))


# --- worked values and brute force


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_worked_values(dtype, tolerance):
    f = scores(dtype)
    assert f.diagonal().mean().item() == pytest.approx(-1.258255, abs=tolerance)
    assert club(f).item() == pytest.approx(-0.013573, abs=tolerance)
    assert club(f, negatives="others").item() == pytest.approx(-0.016966, abs=tolerance)
    permuted = Pairs(f.diagonal(), f[torch.arange(5), [1, 2, 3, 4, 0]])
    assert club(permuted).item() == pytest.approx(0.029079, abs=tolerance)
    assert l1out(f).item() == pytest.approx(-0.094091, abs=tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed):
    f = random_scores(4, 7, seed)
    column = [6, 0, 3, 3]
    rows, positives = f.tolist(), torch.tensor(column)
    pos = sum(rows[i][j] for i, j in enumerate(column)) / 4
    every = [v for row in rows for v in row]
    others = [rows[i][j] for i in range(4) for j in range(7) if j != column[i]]
    assert club(f, positives).item() == pytest.approx(pos - sum(every) / 28, abs=1e-12)
    assert club(f, positives.int(), negatives="others").item() == pytest.approx(pos - sum(others) / 24, abs=1e-12)
    square = random_scores(4, 4, seed).tolist()
    terms = [
        square[i][i] - math.log(sum(math.exp(square[j][i]) for j in range(4) if j != i) / 3) for i in range(4)
    ]  # the other x's of column i
    assert l1out(torch.tensor(square, dtype=torch.float64)).item() == pytest.approx(sum(terms) / 4, abs=1e-12)


@pytest.mark.parametrize("value", [club, lambda f: club(f, negatives="others"), l1out])
def test_invariances(value):
    f = random_scores(6, 6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    expected = pytest.approx(value(f).item(), abs=1e-12)
    assert value(f[order][:, order]).item() == expected  # rows in another order
    assert value(f + 3).item() == expected  # constants of log q
    assert value(f + random_scores(1, 6, 2)).item() == expected  # what depends on y alone
    assert value(torch.zeros(6, 6)).item() == 0


def test_all_pairs_shrink_the_value_by_one_over_n_and_the_two_take_the_given_diagonal():
    f = random_scores(8, 8)
    assert club(f).item() == pytest.approx(club(f, negatives="others").item() * 7 / 8, abs=1e-12)
    assert club(f, torch.arange(8)).item() == club(f).item()


@pytest.mark.parametrize("value", [club, lambda f: club(f, torch.tensor([2, 0, 1]), negatives="others"), l1out])
def test_gradients(value):
    assert torch.autograd.gradcheck(value, random_scores(3, 3).requires_grad_())
    assert torch.autograd.gradgradcheck(value, random_scores(3, 3).requires_grad_())


def test_extremes():
    big = 1e4 * random_scores(5, 5)
    for value in (club, l1out):
        assert value(big).isfinite()
        assert value(big.half().clamp(-6e4, 6e4)).dtype == torch.float32
        f = big.clone().requires_grad_()
        value(f).backward()
        assert f.grad.isfinite().all()
    assert l1out(torch.tensor([[0.0, -3e4], [-3e4, 0.0]])).item() == 3e4  # a mask of -20 in place of -inf would give 20


# --- closed forms: the true conditional


@pytest.mark.parametrize(("rho", "value"), [(0.1, 0.010101), (0.5, 0.333333), (0.75, 1.285714), (0.9, 4.263158)])
def test_club_with_the_true_conditional(rho, value):
    assert rho**2 / (1 - rho**2) == pytest.approx(value, abs=1e-6)
    n, reps = 64, 200
    f = [gaussian_scores(*gaussian(n, 1, rho, seed), rho) for seed in range(reps)]
    for negatives, expected in (("all", (1 - 1 / n) * value), ("others", value)):
        draws = np.array([club(g, negatives=negatives).item() for g in f])
        assert abs(draws.mean() - expected) < 3 * draws.std(ddof=1) / math.sqrt(reps)
    sampled = np.array([club(Pairs(g.diagonal(), g.roll(1, 1).diagonal())).item() for g in f])
    assert abs(sampled.mean() - value) < 3 * sampled.std(ddof=1) / math.sqrt(reps)


def test_club_and_l1out_in_more_dimensions_lie_above_the_information():
    d, rho, n, reps = 5, 0.5, 256, 60
    information = -d / 2 * math.log(1 - rho**2)  # 0.719205
    f = [gaussian_scores(*gaussian(n, d, rho, seed), rho) for seed in range(reps)]
    upper = np.array([club(g, negatives="others").item() for g in f])
    assert abs(upper.mean() - d * rho**2 / (1 - rho**2)) < 3 * upper.std(ddof=1) / math.sqrt(reps)
    tight = np.array([l1out(g).item() for g in f])
    assert (
        information - 3 * tight.std(ddof=1) / math.sqrt(reps) < tight.mean() < information + 0.05
    )  # measured -0.006, s.e. 0.009
    assert upper.mean() > tight.mean() + 0.8  # 1.667 against 0.72


# --- the learnt conditional


def test_log_densities_against_scipy():
    q = GaussianConditional(3, 2, hidden=8).double()
    x, y = random_scores(5, 3), random_scores(7, 2, 1) + 3
    with torch.no_grad():
        mean, log_var = q.mean(x).numpy(), q.log_variance(x).numpy()
        matrix, rows = q.log_prob_matrix(x, y).numpy(), q.log_prob(x, y[:5]).numpy()
        called, loss = q(x, y[:5]).numpy(), q.loss(x, y[:5]).item()
    assert (np.abs(log_var) <= 1).all()
    expected = norm.logpdf(y.numpy()[None], loc=mean[:, None], scale=np.exp(log_var / 2)[:, None]).sum(-1)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)
    np.testing.assert_allclose(rows, expected.diagonal(), atol=1e-12)
    np.testing.assert_array_equal(rows, called)
    assert loss == pytest.approx(-expected.diagonal().mean(), abs=1e-12)


def test_the_expanded_square_keeps_its_digits_far_from_zero():
    q = GaussianConditional(3, 4, hidden=8)
    x, y = random_scores(20, 3).float(), random_scores(20, 4, 1).float() + 1000
    with torch.no_grad():
        q.mean[2].bias += 1000
        gap = q.log_prob_matrix(x, y).diagonal() - q.log_prob(x, y)
        assert gap.abs().max() < 2e-4  # 4e-6; without the shift to the centre 0.3


def test_gradients_of_the_matrix():
    q = GaussianConditional(2, 2, hidden=4).double()
    x, y = random_scores(3, 2).requires_grad_(), random_scores(4, 2, 1).requires_grad_()
    assert torch.autograd.gradcheck(q.log_prob_matrix, (x, y))
    assert torch.autograd.gradcheck(q.log_prob, (x, y[:3].detach().requires_grad_()))


def test_the_step_of_q_moves_no_encoder_and_the_bound_reaches_it():
    encoder, q = torch.nn.Linear(3, 2), GaussianConditional(2, 2, hidden=4)
    x = random_scores(6, 3).float()
    a, b = encoder(x), encoder(x + 1)
    q.loss(a, b).backward()
    assert encoder.weight.grad is None
    assert all(p.grad is not None for p in q.parameters())
    club(q.log_prob_matrix(a, b)).backward()
    assert encoder.weight.grad.abs().max() > 0


def test_half_precision_and_autocast():
    q = GaussianConditional(3, 2, hidden=4)
    x, y = random_scores(4, 3).float(), random_scores(4, 2, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert q.log_prob_matrix(x, y).dtype == q.loss(x, y).dtype == torch.float32


def test_fitted_conditional_reaches_the_true_one():
    rho = 0.5
    torch.manual_seed(0)
    q = GaussianConditional(1, 1, hidden=32)
    optimizer = torch.optim.Adam(q.parameters(), 3e-3)
    x, y = (torch.from_numpy(v).float() for v in gaussian(20_000, 1, rho, seed=0))
    for step in range(300):
        rows = slice(step % 20 * 1000, step % 20 * 1000 + 1000)
        optimizer.zero_grad()
        q.loss(x[rows], y[rows]).backward()
        optimizer.step()
    x, y = gaussian(3000, 1, rho, seed=10)
    true = gaussian_scores(x, y, rho)
    with torch.no_grad():
        f = q.log_prob_matrix(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    assert club(f).item() == pytest.approx(club(true).item(), abs=0.03)  # five seeds: at most 0.010 away
    assert l1out(f).item() == pytest.approx(l1out(true).item(), abs=0.005)  # 0.001
    assert club(f).item() == pytest.approx(1 / 3, abs=0.1)
    assert l1out(f).item() == pytest.approx(0.143841, abs=0.05)


def test_minimising_club_makes_the_code_independent():
    """The code starts as a copy of the sensitive column; refitting q before each step, CLUB drives the copy out."""
    torch.manual_seed(0)
    s = torch.randn(4000, 2)  # the first column is what the code must not tell
    mix = torch.nn.Parameter(torch.tensor([[1.0, 0.6]]))
    q = GaussianConditional(1, 1, hidden=16)
    step_q, step_mix = torch.optim.Adam(q.parameters(), 1e-2), torch.optim.Adam([mix], 1e-2)
    for step in range(150):
        rows = s[step % 20 * 200 : step % 20 * 200 + 200]
        code = torch.nn.functional.normalize(mix) @ rows.T
        for _ in range(5):
            step_q.zero_grad()
            q.loss(rows[:, :1], code.T).backward()
            step_q.step()
        step_mix.zero_grad()
        club(q.log_prob_matrix(rows[:, :1], code.T)).backward()
        step_mix.step()
    assert (
        abs(torch.nn.functional.normalize(mix)[0, 0].item()) < 0.2
    )  # 0.86 at the start, three seeds end below 0.07; without refits none


# --- wrong use


def test_upper_bounds_are_not_among_those_to_maximise():
    assert not {"club", "l1out"} & set(BOUNDS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: club(torch.zeros(3, 4)), r"square"),
        (lambda: club(torch.zeros(1, 1)), r"at least 2 columns"),
        (lambda: club(torch.zeros(3)), r"2 dimension"),
        (lambda: club(torch.zeros(3, 3).long()), r"floating"),
        (lambda: club(torch.full((3, 3), math.nan)), r"scores must be finite"),
        (lambda: club(torch.zeros(3, 3), negatives="none"), r"negatives must be 'all' or 'others', got 'none'"),
        (lambda: club(torch.zeros(3, 4), torch.tensor([0, 1, 4])), r"\[0, 3\], got 0 to 4"),
        (lambda: club(torch.zeros(3, 4), torch.tensor([0, -1, 2])), r"\[0, 3\], got -1 to 2"),
        (lambda: club(torch.zeros(3, 4), torch.tensor([0, 1])), r"positives must be integers of shape \(3,\)"),
        (lambda: club(torch.zeros(3, 3), torch.eye(3).bool()), r"positives must be integers"),
        (lambda: club(Pairs(torch.zeros(3), torch.zeros(3)), torch.arange(3)), r"left out with Pairs"),
        (lambda: club(Pairs(torch.zeros(3), torch.zeros(3)), negatives="others"), r"left out with Pairs"),
        (lambda: club(Pairs(torch.zeros(3), torch.tensor([math.inf]))), r"neg must be finite"),
        (lambda: club(Pairs(torch.zeros(0), torch.zeros(3))), r"pos must not be empty"),
        (lambda: l1out(torch.zeros(3, 4)), r"square"),
        (lambda: l1out(torch.zeros(1, 1)), r"at least 2 columns"),
        (lambda: l1out(torch.tensor([[0.0, math.nan], [0.0, 0.0]])), r"scores must be finite"),
        (lambda: GaussianConditional(0, 2), r"in_x must be at least 1, got 0"),
        (lambda: GaussianConditional(2, 2, hidden=0), r"hidden must be at least 1"),
        (lambda: GaussianConditional(2, 3).log_prob_matrix(torch.zeros(4, 2), torch.zeros(4, 2)), r"y must have 3 col"),
        (lambda: GaussianConditional(2, 1).log_prob(torch.zeros(4, 2), torch.zeros(4, 2)), r"y must have 1 columns"),
        (lambda: GaussianConditional(2, 2).log_prob(torch.zeros(4, 2), torch.zeros(5, 2)), r"y must have 4 rows"),
        (
            lambda: GaussianConditional(2, 2).log_prob(torch.full((4, 2), math.nan), torch.zeros(4, 2)),
            r"x must be fini",
        ),
        (lambda: GaussianConditional(2, 2).loss(torch.zeros(4, 2), torch.zeros(4, 2).long()), r"y must have a float"),
    ],
)
def test_wrong_use(call, message):
    with pytest.raises(ValueError, match=message):
        call()
