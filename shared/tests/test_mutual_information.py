"""MutualInformation on problems with known answers, its pieces against plain numpy; the Concat critic."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from gen_core.estimators import mutual_information
from gen_core.estimators.critics import Concat
from gen_core.estimators.mutual_information import Estimate, MutualInformation, _Normal

BOUNDS = ("infonce", "dv", "mine", "nwj", "tuba", "smile", "interpolated", "jsd")


def normal_pair(n, rho, d=1, seed=0):
    g = np.random.default_rng(seed)
    x = g.normal(size=(n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * g.normal(size=(n, d))


class Product(nn.Module):
    """scale * x . y, plus an offset a row, which infonce and no other bound leaves out."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x, y):
        return self.scale * x.flatten(1) @ y.flatten(1).T + x.flatten(1)[:, :1]


def frozen(scale, bound="infonce", **options):
    """A critic that is known: its one step goes nowhere."""
    return MutualInformation(bound, Product(scale), preprocess=None, steps=1, lr=1e-12, **options)


def held_out_rows(n, seed=0, share=0.3):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: round(share * n)].numpy()


# ------------------------------------------------------------------------------------------------------------- Concat


@pytest.mark.parametrize(("d", "e", "hidden"), [(3, 2, (8,)), (1, 4, (16, 8)), (5, 5, (4, 4, 4))])
def test_concat_is_the_perceptron_on_concatenated_pairs(d, e, hidden):
    torch.manual_seed(0)
    critic = Concat(d, e, hidden).double()
    x, y = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((6, d), (4, e)))
    pairs = torch.cat([x.repeat_interleave(4, 0), y.repeat(6, 1)], 1)
    naive = critic.rest(critic.first(pairs)).view(6, 4)
    scores = critic(x, y)
    torch.testing.assert_close(scores, naive, rtol=0, atol=1e-12)
    weights = [x, y, *critic.parameters()]
    for a, b in zip(
        torch.autograd.grad(scores.sin().sum(), weights), torch.autograd.grad(naive.sin().sum(), weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    one_by_one = [[critic(x[i : i + 1], y[j : j + 1]).item() for j in range(4)] for i in range(6)]
    torch.testing.assert_close(scores, torch.tensor(one_by_one, dtype=torch.float64), rtol=0, atol=1e-12)


def test_concat_layers_and_half_precision():
    critic = Concat(3, 2, (8, 4))
    assert [tuple(p.shape) for p in critic.parameters()] == [(8, 5), (8,), (4, 8), (4,), (1, 4), (1,)]
    x, y = torch.randn(3, 3), torch.randn(5, 2)
    assert critic(x.half(), y.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(critic(x, y), critic(x, y).float())
        assert critic(x, y).dtype == torch.float32


def test_concat_bad_input():
    with pytest.raises(ValueError, match="hidden must name at least one layer"):
        Concat(2, 2, ())
    critic = Concat(3, 2)
    with pytest.raises(ValueError, match="x must have 3 columns, got shape \\(4, 2\\)"):
        critic(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="y must have 2 columns"):
        critic(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="x must have 2 dimensions"):
        critic(torch.zeros(3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="x must have a floating dtype"):
        critic(torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, 2))


# -------------------------------------------------------------------------------------------------- known information


def test_two_lines():
    x, y = normal_pair(2000, 0.9)
    found = MutualInformation(steps=100).fit(x[:, 0], y[:, 0]).estimate(x[:, 0], y[:, 0])
    assert isinstance(found, Estimate) and found.reliable
    assert found.value == pytest.approx(0.830366, abs=0.08)
    assert found.low < found.value < found.high
    assert found.low < 0.830366
    assert 0.02 < found.high - found.low < 0.3
    assert found.n == 600 and found.ceiling == pytest.approx(math.log(600))
    assert str(found).startswith(f"{found.value:.3f} nats [")


@pytest.mark.parametrize(("bound", "critic"), [(bound, "separable") for bound in BOUNDS] + [("infonce", "concat")])
def test_every_bound_is_near_the_truth_and_not_above(bound, critic):
    x, y = normal_pair(1000, 0.9, seed=1)
    steps = 300 if critic == "concat" else 50
    found = MutualInformation(bound, critic, steps=steps, hidden=(32, 32)).fit(x, y).estimate()
    error = (found.high - found.low) / 4
    assert found.value == pytest.approx(0.830366, abs=0.15)
    assert found.value < 0.830366 + 2.5 * error


def test_ten_dimensions():
    rho = math.sqrt(1 - math.exp(-2 * 2.0 / 10))
    found = MutualInformation(critic="separable", steps=100).fit(*normal_pair(3000, rho, d=10)).estimate()
    assert found.value == pytest.approx(2.0, abs=0.3)
    assert found.value < 2.0 + (found.high - found.low) / 2


@pytest.mark.parametrize("critic", ["separable", "concat"])
def test_what_is_not_linear(critic):
    """y = |x| + noise: correlation 0, information by a sum over a grid."""
    g = np.random.default_rng(0)
    x = g.normal(size=2000)
    y = np.abs(x) + 0.2 * g.normal(size=2000)
    t, u = np.linspace(-6, 6, 601), np.linspace(-3, 7, 1001)
    p_x = stats.norm.pdf(t)[:, None]
    joint = p_x * stats.norm.pdf(u[None], np.abs(t)[:, None], 0.2)
    p_y = joint.sum(0) * (t[1] - t[0])
    log_ratio = np.log(joint + 1e-300) - np.log(p_x) - np.log(p_y + 1e-300)
    truth = (joint * log_ratio).sum() * (t[1] - t[0]) * (u[1] - u[0])
    found = MutualInformation(critic=critic, steps=250).fit(x, y).estimate()
    assert found.value == pytest.approx(truth, abs=0.2)
    assert found.low < truth


def test_independent_arrays_give_nothing():
    g = np.random.default_rng(0)
    found = MutualInformation(steps=100).fit(g.normal(size=(1000, 5)), g.normal(size=(1000, 3))).estimate()
    assert found.value == pytest.approx(0, abs=0.02)
    assert found.reliable


def test_monotone_maps_of_the_columns_change_nothing():
    x, y = normal_pair(500, 0.8, d=2)
    plain = MutualInformation(critic="separable", steps=50).fit(x, y).estimate()
    mapped = MutualInformation(critic="separable", steps=50).fit(np.arcsinh(x), y**3).estimate()
    assert mapped.value == plain.value and mapped.low == plain.low
    other = MutualInformation(critic="separable", steps=50, preprocess="standardize").fit(x, y**3).estimate()
    assert other.value != plain.value


def test_standardize_ignores_scale_and_shift():
    x, y = normal_pair(500, 0.8)
    one = MutualInformation(critic="concat", steps=50, preprocess="standardize").fit(x, y).estimate()
    two = (
        MutualInformation(critic="concat", steps=50, preprocess="standardize").fit(1000 * x + 5, y / 64 - 3).estimate()
    )
    assert two.value == pytest.approx(one.value, abs=1e-3)


def test_discrete_columns():
    """y = x with probability .9 else the other of two values: log 2 - H(.1)."""
    g = np.random.default_rng(0)
    x = g.integers(0, 2, 2000)
    y = np.where(g.random(2000) < 0.9, x, 1 - x)
    truth = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    found = MutualInformation(critic="separable", steps=200).fit(x, y.astype(bool)).estimate()
    assert found.value == pytest.approx(truth, abs=0.07)


# ------------------------------------------------------------------------------- which rows are read, and what of them


def test_the_held_out_rows_alone_are_read():
    x, y = normal_pair(500, 0.8)
    model = frozen(0.7).fit(x, y)
    rows = held_out_rows(500)
    by_hand = model.estimate(x[rows], y[rows])
    for found in (model.estimate(), model.estimate(x, y), model.estimate(x.copy(), torch.tensor(y))):
        assert found.n == 150
        assert found.value == pytest.approx(by_hand.value, abs=1e-6)
    new = normal_pair(300, 0.8, seed=9)
    assert model.estimate(*new).n == 300
    assert model.estimate(x[1:], y[1:]).n == 499  # not the fitted arrays: the caller answers for them
    assert frozen(0.7, held_out=0.5).fit(x, y).estimate().n == 250


def test_value_interval_and_ess_by_numpy():
    x, y = normal_pair(500, 0.8)
    rows = held_out_rows(500)
    a, b = x[rows, 0], y[rows, 0]
    f = (0.7 * a[:, None] * b + a[:, None]).astype(np.float32).astype(np.float64)

    def bound(keep):
        total = 0.0
        for i in keep:
            total += f[i, i] - math.log(sum(math.exp(f[i, j]) for j in keep) / len(keep))
        return total / len(keep)

    found = frozen(0.7).fit(x, y).estimate()
    assert found.value == pytest.approx(bound(range(150)), abs=1e-5)
    left_out = [bound([i for i in range(150) if i % 20 != g]) for g in range(20)]
    error = math.sqrt(19 / 20 * sum((v - np.mean(left_out)) ** 2 for v in left_out))
    half = stats.t.ppf(0.975, 19) * error
    assert found.low == pytest.approx(found.value - half, abs=1e-4)
    assert found.high == pytest.approx(found.value + half, abs=1e-4)
    weights = np.exp(f - np.diag([math.inf] * 150))
    weights /= weights.sum(1, keepdims=True)
    assert found.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum() / 150, rel=1e-4)


def test_large_arrays_are_read_in_blocks(monkeypatch):
    x, y = normal_pair(1000, 0.8)
    whole = frozen(0.7).fit(x, y).estimate()
    monkeypatch.setattr(mutual_information, "BLOCK", 100)
    blocks = frozen(0.7).fit(x, y).estimate()
    assert blocks.n == 300 and blocks.ceiling == pytest.approx(math.log(100))
    assert blocks.value == pytest.approx(whole.value, abs=0.03)
    assert 0.5 < (blocks.high - blocks.low) / (whole.high - whole.low) < 2
    order = np.argsort(x[:, 0])  # sorted arrays are no samples block by block
    assert frozen(0.7).fit(x, y).estimate(x[order], y[order]).value == pytest.approx(whole.value, abs=0.1)


def test_the_interval_covers():
    """A known critic on 40 samples: its value on far more pairs lies inside about 95 % of the intervals."""
    model = frozen(0.7).fit(*normal_pair(200, 0.8))
    population = np.mean([model.estimate(*normal_pair(1500, 0.8, seed=s)).value for s in (1000, 1001, 1002)])
    found = [model.estimate(*normal_pair(150, 0.8, seed=100 + s)) for s in range(40)]
    assert sum(f.low < population < f.high for f in found) >= 35


@pytest.mark.parametrize("bound", ["nwj", "jsd", "dv", "smile"])
def test_read_out_by_numpy(bound):
    x, y = normal_pair(300, 0.6)
    rows = held_out_rows(300)
    a, b = x[rows, 0], y[rows, 0]
    f = 0.3 * a[:, None] * b + a[:, None]
    f += 1 if bound == "nwj" else 0  # its bias starts at 1
    on, off = np.diag(f), f[~np.eye(90, dtype=bool)]
    expected = {
        "nwj": on.mean() - np.exp(off - 1).mean(),
        "jsd": 1 + on.mean() - np.exp(off).mean(),
        "dv": on.mean() - math.log(np.exp(off).mean()),
        "smile": on.mean() - math.log(np.exp(off.clip(-5, 5)).mean()),
    }[bound]
    assert frozen(0.3, bound).fit(x, y).estimate().value == pytest.approx(expected, abs=1e-4)


def test_training_value_is_not_reported():
    """Fifty dimensions of noise, which the critic learns by heart."""
    g = np.random.default_rng(0)
    x, y = g.normal(size=(300, 50)), g.normal(size=(300, 50))

    class Heart(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(50, 50))

        def forward(self, x, y):
            return x @ self.w @ y.T

    model = MutualInformation(critic=Heart(), steps=100, lr=0.01).fit(x, y)
    assert max(point.train for point in model.history[1:]) > 0.5
    assert model.estimate().value < 0.1


# ------------------------------------------------------------------------------------------------------------ the flag


def reasons(found):
    assert found.reliable == (not found.reasons)
    return " | ".join(found.reasons)


def test_flags():
    x, y = normal_pair(500, 0.8)
    assert reasons(frozen(0.7).fit(x, y).estimate()) == ""
    assert "below 0" in reasons(frozen(-1.0).fit(x, y).estimate())
    wild = frozen(200.0, "nwj").fit(x, y).estimate()
    assert "not finite" in reasons(wild) and (wild.low, wild.high) == (-math.inf, math.inf)
    assert "not reliable" in str(wild)
    same = MutualInformation(critic="separable", steps=50).fit(x, x + 1e-5 * y).estimate()
    assert "ceiling" in reasons(same)
    assert "of a row's negatives" in reasons(frozen(5.0).fit(x, y).estimate())
    gap = frozen(0.7).fit(x, y)
    gap._state = gap._state._replace(train=gap.estimate().value + 1)
    assert "1.00 nats lower" in reasons(gap.estimate())
    assert gap.estimate().gap == pytest.approx(1)


@pytest.mark.parametrize("seed", range(3))
def test_heavy_tails_are_flagged_and_others_are_not(seed):
    g = np.random.default_rng(seed)
    model = MutualInformation(critic="separable", steps=1)
    light = [g.normal(size=1000), g.uniform(size=1000), g.exponential(size=1000), g.integers(0, 2, 1000)]
    assert "heavy" not in reasons(model.fit(np.column_stack(light), g.laplace(size=1000)).estimate())
    scale = 1 / np.sqrt(g.chisquare(1, (1000, 1)))
    x, y = g.normal(size=(1000, 2)) * scale, g.normal(size=(1000, 1)) * scale
    found = model.fit(x, y).estimate()
    assert "heavy-tailed input" in reasons(found)
    assert sum("heavy" in reason for reason in found.reasons) == 2


# -------------------------------------------------------------------------------------------------------- as an object


def test_deterministic_and_leaves_torch_alone():
    x, y = normal_pair(400, 0.7)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = MutualInformation(steps=30, seed=3).fit(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    with torch.no_grad():
        two = MutualInformation(steps=30, seed=3).fit(torch.tensor(x), y.tolist())
    assert one.estimate() == two.estimate()
    assert one.history[1:] == two.history[1:]
    assert one.fit(x, y).estimate() == two.estimate()
    assert MutualInformation(steps=30, seed=4).fit(x, y).estimate() != one.estimate()


def test_auto_keeps_the_better_critic_on_validation():
    x, y = normal_pair(300, 0.7)
    model = MutualInformation(steps=100).fit(x, y)
    best = {name: max(p.validation for p in model.history if p.critic == name) for name in ("separable", "concat")}
    assert model.critic_name == max(best, key=best.get)
    alone = MutualInformation(critic=model.critic_name, steps=100).fit(x, y)
    assert alone.estimate() == model.estimate()
    assert [p for p in model.history if p.critic == model.critic_name][1:] == alone.history[1:]
    assert [p.step for p in alone.history] == [0, 50, 100]


def test_own_critic_is_copied_and_takes_images():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, 4, 4, generator=g)
    x[:, :, 0, 0] = 1.0  # a pixel that never changes
    y = x[:, 0, 1:2, 1:3].flatten(1) + 0.5 * torch.randn(400, 2, generator=g)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8))
            self.head = nn.Linear(2, 8)

        def forward(self, x, y):
            return self.body(x) @ self.head(y).T

    net = Net()
    start = copy.deepcopy(net.state_dict())
    model = MutualInformation("nwj", net, preprocess=None, steps=150, lr=0.03).fit(x, y)
    assert model.critic_name == "Net"
    assert all(torch.equal(value, start[name]) for name, value in net.state_dict().items())
    found = model.estimate(x, y)
    assert found.n == 120
    assert 0.5 < found.value < 1.609 + 0.3  # log 5
    with pytest.raises(ValueError, match="x must have shape \\(n,\\) or \\(n, d\\)"):
        MutualInformation(critic=net).fit(x, y)
    with pytest.raises(ValueError, match="x must have no constant columns, which carry no information, got all"):
        model.fit(torch.ones(400, 1, 4, 4), y)


def test_normal_start_is_the_log_ratio_of_the_fitted_normal():
    x, y = (torch.tensor(z) for z in normal_pair(2000, 0.7, d=2))
    y = y @ torch.tensor([[1.0, 0.4], [-0.3, 2.0]], dtype=torch.float64)
    start = _Normal(x, y)
    a, b = x - x.mean(0), y - y.mean(0)
    both = np.hstack([a, b])
    cov = both.T @ both / 2000
    p_xy, p_x, p_y = (stats.multivariate_normal(cov=c) for c in (cov, cov[:2, :2], cov[2:, 2:]))
    expected = p_xy.logpdf(both[:50]) - p_x.logpdf(both[:50, :2]) - p_y.logpdf(both[:50, 2:])
    scores = start(a[:50].float(), b[:50].float()).diagonal()
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_normal_start_drops_noise():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1000, 20, generator=g), torch.randn(1000, 20, generator=g)
    assert len(_Normal(x, y).r) == 0
    assert torch.equal(_Normal(x, y)(x[:3], y[:4]), torch.zeros(3, 4))
    y[:, 3] = 0.8 * x[:, 7] + 0.6 * y[:, 3]
    r = _Normal(x, y).r
    assert len(r) == 1 and r.item() == pytest.approx(0.8, abs=0.05)
    x[:, 8] = x[:, 7]  # two equal columns
    assert _Normal(x, y).r.tolist() == pytest.approx(r.tolist(), abs=0.02)
    assert len(_Normal(x[:30], y[:30]).r) == 0  # more columns than rows can tell


# -------------------------------------------------------------------------------------------------------------- errors


def test_bad_options():
    for name, value, message in (
        ("bound", "club", "bound must be one of infonce, dv, mine, nwj, tuba, smile, interpolated, jsd, got 'club'"),
        ("critic", "joint", "critic must be 'auto', 'separable', 'concat' or a torch.nn.Module"),
        ("preprocess", "rank", "preprocess must be 'uniformize', 'standardize' or None"),
        ("steps", 0, "steps must be at least 1"),
        ("lr", 0.0, "lr must be a finite number above 0"),
        ("lr", math.inf, "lr must be a finite number above 0"),
        ("batch_size", 1, "batch_size must be at least 2"),
        ("held_out", 0.9, "held_out must be in \\[0.1, 0.7\\]"),
        ("hidden", (), "hidden must name at least one layer"),
        ("hidden", (0,), "hidden must name at least one layer"),
    ):
        with pytest.raises(ValueError, match=message):
            MutualInformation(**{name: value})


def test_bad_arrays():
    x, y = normal_pair(120, 0.5, d=2)
    model = MutualInformation(steps=1)
    with pytest.raises(ValueError, match="call fit"):
        model.estimate(x, y)
    with pytest.raises(ValueError, match="y must have as many rows as x, 120, got 119"):
        model.fit(x, y[1:])
    with pytest.raises(ValueError, match="x and y must have at least 100 rows, got 99"):
        model.fit(x[:99], y[:99])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="y must be finite"):
            model.fit(x, np.where(y == y[3, 1], bad, y))
    with pytest.raises(ValueError, match="x must have no constant columns, which carry no information, got \\[1\\]"):
        model.fit(np.column_stack([x[:, 0], np.full(120, 3.0)]), y)
    with pytest.raises(ValueError, match="y must have no constant columns"):
        model.fit(x, np.zeros(120))
    with pytest.raises(ValueError, match="x must have shape"):
        model.fit(x[:, None], y)
    with pytest.raises(ValueError, match="x must have shape"):
        model.fit(x[:, :0], y)
    with pytest.raises(ValueError, match="x must be an array of numbers"):
        model.fit(["a"] * 120, y)
    with pytest.raises(ValueError, match="y must be real"):
        model.fit(x, y.astype(complex))
    model.fit(x, y)
    with pytest.raises(ValueError, match="x and y must both be given, or neither"):
        model.estimate(x)
    with pytest.raises(ValueError, match="y must have rows of shape \\(2,\\), as fitted, got \\(1,\\)"):
        model.estimate(x, y[:, 0])
    with pytest.raises(ValueError, match="y must have as many rows as x, 30, got 31"):
        model.estimate(x[:30], y[:31])
    with pytest.raises(ValueError, match="x and y must have at least 20 rows, got 19"):
        model.estimate(x[:19], y[:19])
    with pytest.raises(ValueError, match="x must be finite"):
        model.estimate(x * math.nan, y)

    class Wrong(nn.Linear):
        def forward(self, x, y):
            return super().forward(x)

    with pytest.raises(ValueError, match="critic must give scores of shape \\(24, 24\\), got \\(24, 3\\)"):
        MutualInformation(critic=Wrong(2, 3)).fit(x, y)
