"""Adversarial losses and penalties: worked numbers, plain loops, closed forms, second derivatives, degenerate input."""

import math

import pytest
import torch
from torch import nn

from gen_core.losses.adversarial import (
    consistency,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    least_squares_discriminator,
    least_squares_generator,
    logistic_discriminator,
    non_saturating_generator,
    r1_penalty,
    relativistic_discriminator,
    saturating_generator,
    wasserstein_critic,
    wasserstein_generator,
)

I = torch.arange(5, dtype=torch.float64)  # noqa: E741
REAL_SCORES, FAKE_SCORES = torch.sin(0.7 * I + 0.3), torch.cos(0.9 * I + 0.1)
K = torch.arange(12, dtype=torch.float64).view(4, 3)
A, B = torch.sin(0.37 * K + 0.1), torch.cos(0.53 * K + 0.2)
EPS = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
M = torch.cos(0.41 * torch.arange(9, dtype=torch.float64)).view(3, 3)
V = torch.sin(torch.arange(1, 4, dtype=torch.float64))


def wave(step, shift, n):
    """2 sin(step i + shift), i = 0..n - 1: the scores of the methods' own tables."""
    return 2 * torch.sin(step * torch.arange(n, dtype=torch.float64) + shift)


def quadratic(x):
    return 0.5 * ((x @ M) * x).sum(1) + x @ V


def slope(x):
    return x @ (0.5 * (M + M.T)) + V


def least_squares_signed(real, fake):
    return least_squares_discriminator(real, fake, real_target=1, fake_target=-1)


def mean(values):
    return math.fsum(values) / len(values)


def sp(u):
    return max(u, 0) + math.log1p(math.exp(-abs(u)))


# name: (loss, the same in plain Python on lists, worked number)
TWO_SIDED = {
    "logistic": (logistic_discriminator, lambda r, f: mean([sp(-v) for v in r]) + mean([sp(v) for v in f]), 1.170642),
    "hinge": (
        hinge_discriminator,
        lambda r, f: mean([max(0, 1 - v) for v in r]) + mean([max(0, 1 + v) for v in f]),
        1.315199,
    ),
    "least squares": (
        least_squares_discriminator,
        lambda r, f: (mean([(v - 1) ** 2 for v in r]) + mean([v**2 for v in f])) / 2,
        0.453892,
    ),
    "least squares, targets -1 and 1": (
        least_squares_signed,
        lambda r, f: (mean([(v - 1) ** 2 for v in r]) + mean([(v + 1) ** 2 for v in f])) / 2,
        0.838231,
    ),
    "relativistic": (
        relativistic_discriminator,
        lambda r, f: mean([sp(mean(f) - v) for v in r]) + mean([sp(v - mean(r)) for v in f]),
        0.895528,
    ),
    "wasserstein": (wasserstein_critic, lambda r, f: mean(f) - mean(r), -0.684801),
}
ONE_SIDED = {
    "non-saturating": (non_saturating_generator, lambda f: mean([sp(-v) for v in f]), 0.823469),
    "saturating": (saturating_generator, lambda f: -mean([sp(v) for v in f]), -0.707808),
    "hinge": (hinge_generator, lambda f: -mean(f), 0.115661),
    "least squares": (least_squares_generator, lambda f: mean([(v - 1) ** 2 for v in f]) / 2, 0.915014),
    "wasserstein": (wasserstein_generator, lambda f: -mean(f), 0.115661),
}
CASES = [(name, *case, (REAL_SCORES, FAKE_SCORES)) for name, case in TWO_SIDED.items()] + [
    (name, *case, (FAKE_SCORES,)) for name, case in ONE_SIDED.items()
]
EACH = pytest.mark.parametrize(("name", "loss", "plain", "worked", "scores"), CASES)


# --- losses of scores


@EACH
def test_worked_scores(name, loss, plain, worked, scores):
    assert loss(*scores).item() == pytest.approx(worked, abs=1e-6)
    single = loss(*(v.float() for v in scores))
    assert single.dtype == torch.float32 and single.item() == pytest.approx(worked, abs=1e-5)


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_against_plain_loops_on_batches_of_unequal_size(name, loss, plain, worked, scores, seed):
    g = torch.Generator().manual_seed(seed)
    drawn = [3 * torch.randn(n, generator=g, dtype=torch.float64) for n in (7, 4)[: len(scores)]]
    expected = plain(*(v.tolist() for v in drawn))
    assert loss(*drawn).item() == pytest.approx(expected, rel=1e-12)
    assert loss(*(v[:, None] for v in drawn)).item() == pytest.approx(expected, rel=1e-12)  # (N, 1) does not broadcast
    assert loss(*(v.flip(0) for v in drawn)).item() == pytest.approx(expected, rel=1e-12)


@EACH
def test_gradcheck_of_scores(name, loss, plain, worked, scores):
    assert torch.autograd.gradcheck(loss, [v.clone().requires_grad_() for v in scores])


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores(name, loss, plain, worked, scores, dtype):
    low = loss(*(v.to(dtype) for v in scores))
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(plain(*(v.to(dtype).tolist() for v in scores)), abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(*(v.float() for v in scores)).item() == pytest.approx(worked, abs=1e-5)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_scores_are_finite_with_their_gradient(name, loss, plain, worked, scores, dtype):
    for sign in (1, -1):
        drawn = [torch.tensor([sign * 6e4, -sign * 6e4, 0.0], dtype=dtype).requires_grad_() for _ in scores]
        value = loss(*drawn)
        value.backward()
        assert value.item() == pytest.approx(plain(*(v.tolist() for v in drawn)), rel=1e-2)
        assert all(v.grad.isfinite().all() for v in drawn)


@EACH
def test_one_sample(name, loss, plain, worked, scores):
    assert loss(*(v[:1] for v in scores)).item() == pytest.approx(plain(*(v[:1].tolist() for v in scores)), abs=1e-12)


@EACH
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([1.0, math.nan]), "must be finite, got NaN"),
        (torch.tensor([math.nan]), "must be finite, got NaN"),
        (torch.tensor([1]), "must have a floating dtype, got torch.int64"),
        (torch.empty(0), "must not be empty"),
        ([1.0], "must be a torch.Tensor, got list"),
    ],
)
def test_bad_scores(name, loss, plain, worked, scores, wrong, message):
    names = ("real", "fake") if len(scores) == 2 else ("fake",)
    for place, argument in enumerate(names):
        given = [torch.ones(2) for _ in names]
        given[place] = wrong
        with pytest.raises(ValueError, match=f"{argument} {message}"):
            loss(*given)


def test_infinite_scores_that_show():
    for loss, *_ in TWO_SIDED.values():
        with pytest.raises(ValueError, match="fake must be finite"):
            loss(torch.ones(2), torch.tensor([math.inf, 0.0]))


@pytest.mark.parametrize("target", [math.nan, math.inf])
def test_bad_targets(target):
    with pytest.raises(ValueError, match="real_target must be a finite number, got"):
        least_squares_discriminator(REAL_SCORES, FAKE_SCORES, real_target=target)
    with pytest.raises(ValueError, match="fake_target must be a finite number, got"):
        least_squares_discriminator(REAL_SCORES, FAKE_SCORES, fake_target=target)
    with pytest.raises(ValueError, match="target must be a finite number, got"):
        least_squares_generator(FAKE_SCORES, target=target)


def test_numbers_of_methods():
    real, fake = wave(0.9, 0, 8), wave(1.1, 0.1, 8)  # SS-GAN
    assert hinge_discriminator(real, fake).item() == pytest.approx(2.668512786638226, abs=1e-12)
    assert hinge_generator(fake).item() == pytest.approx(-0.3291582808044319, abs=1e-12)
    assert logistic_discriminator(real, fake).item() == pytest.approx(1.9697397481802055, abs=1e-12)
    assert non_saturating_generator(fake).item() == pytest.approx(0.7526143555118404, abs=1e-12)
    # BigBiGAN: one hinge for each of three scores
    real = [wave(0.9, 0, 5), wave(0.7, 0.2, 5), wave(0.5, 0.4, 5)]
    fake = [wave(1.1, 0.1, 5), wave(1.3, 0.3, 5), wave(1.5, 0.5, 5)]
    found = sum(hinge_discriminator(r, f).item() for r, f in zip(real, fake, strict=True))
    assert found == pytest.approx(4.838148943762517, abs=1e-12)
    assert hinge_discriminator(sum(real), sum(fake)).item() == pytest.approx(2.3903191384526803, abs=1e-12)
    assert wasserstein_critic(sum(real), sum(fake)).item() == pytest.approx(-3.0378073216447268, abs=1e-12)
    # RFGAN: logits linear in a joint feature
    row = lambda step, shift, d: torch.sin(step * torch.arange(4 * d, dtype=torch.float64) + shift).view(4, d)  # noqa: E731
    w = torch.sin(0.71 * torch.arange(5, dtype=torch.float64) + 0.2)
    real = torch.cat([row(0.37, 0, 3), row(0.53, 0.1, 2)], 1) @ w
    fake = torch.cat([row(0.41, 0.3, 3), row(0.59, 0.4, 2)], 1) @ w
    assert logistic_discriminator(real, fake).item() == pytest.approx(1.863036868783035, abs=1e-12)
    assert non_saturating_generator(fake).item() == pytest.approx(0.8945186007192772, abs=1e-12)


def test_the_generators_gradients_at_a_sure_discriminator():
    fake = torch.tensor([-50.0], requires_grad=True)
    (strong,) = torch.autograd.grad(non_saturating_generator(fake), fake)
    (weak,) = torch.autograd.grad(saturating_generator(fake), fake)
    assert strong.item() == pytest.approx(-1) and -1e-20 < weak.item() < 0


def test_relativistic_sees_differences_only():
    value = relativistic_discriminator(REAL_SCORES, FAKE_SCORES)
    torch.testing.assert_close(relativistic_discriminator(REAL_SCORES + 7, FAKE_SCORES + 7), value, rtol=0, atol=1e-12)
    generator = relativistic_discriminator(FAKE_SCORES, REAL_SCORES)  # of the exchanged roles, and of the other sign
    torch.testing.assert_close(relativistic_discriminator(-REAL_SCORES, -FAKE_SCORES), generator, rtol=0, atol=1e-12)
    real = REAL_SCORES.clone().requires_grad_()
    relativistic_discriminator(FAKE_SCORES, real).backward()
    assert real.grad.abs().max() > 1e-2


def test_wasserstein_takes_other_numbers_and_shapes_and_its_gradient_is_constant():
    real = torch.tensor([[1.0], [3.0]], requires_grad=True)
    fake = torch.tensor([0.5, 0.5, 2.0], requires_grad=True)
    wasserstein_critic(real, fake).backward()
    assert real.grad.flatten().tolist() == [-0.5, -0.5]
    assert fake.grad.tolist() == pytest.approx([1 / 3] * 3)
    assert wasserstein_critic(real.half(), fake.half()).dtype == torch.float32


# --- consistency


def test_worked_consistency():
    real, real_aug = wave(0.9, 0, 6), wave(0.9, 0.3, 6)
    fake, fake_aug = wave(1.1, 0.1, 6), wave(1.1, 0.5, 6)
    assert consistency(real, real_aug).item() == pytest.approx(0.1760838328591695, abs=1e-12)
    assert consistency(fake, fake_aug).item() == pytest.approx(0.3338448110096868, abs=1e-12)
    adversarial = hinge_discriminator(real, fake)
    assert adversarial.item() == pytest.approx(2.1715690978300204, abs=1e-12)
    assert hinge_discriminator(real_aug, fake_aug).item() == pytest.approx(2.29141802565974, abs=1e-12)
    total = adversarial + 10 * consistency(real, real_aug) + 10 * consistency(fake, fake_aug)
    assert total.item() == pytest.approx(7.270855536518583, abs=1e-12)


def test_consistency_is_a_mean_over_samples_and_has_both_gradients():
    pairs = zip(A.tolist(), B.tolist(), strict=True)
    expected = mean([sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) for a, b in pairs])
    assert consistency(A, B).item() == pytest.approx(expected, abs=1e-12)
    assert consistency(A.view(4, 3, 1), B.view(4, 3, 1)).item() == pytest.approx(expected, abs=1e-12)
    assert consistency(A[:, :1], B[:, :1]) == consistency(A[:, 0], B[:, 0])
    x, y = A.clone().requires_grad_(), B.clone().requires_grad_()
    assert torch.autograd.gradcheck(consistency, (x, y))
    consistency(x, y).backward()
    torch.testing.assert_close(x.grad, -y.grad)
    assert consistency(A, A).item() == 0
    assert consistency(A.half(), B.half()).item() == pytest.approx(expected, rel=1e-2)


def test_bad_consistency():
    with pytest.raises(ValueError, match=r"one shape \(N, ...\), got \(4, 3\) and \(4,\)"):
        consistency(A, B[:, 0])
    with pytest.raises(ValueError, match="one shape"):
        consistency(A[:, :1], B[:, 0])
    with pytest.raises(ValueError, match="one shape"):
        consistency(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match="augmented must be finite"):
        consistency(A, B / 0)


# --- the penalties


@pytest.mark.parametrize(
    ("mix", "options", "value"),
    [
        (EPS, {}, 9.965743),
        (1 - EPS, {}, 5.008919),
        (1 - EPS, {"target": 0.0}, 27.045815),
        (1 - EPS, {"one_sided": True}, 5.007675),
    ],
)
def test_worked_penalty(mix, options, value):
    found = gradient_penalty(quadratic, A, B, mix=mix, **options)
    assert found.item() == pytest.approx(value, abs=2e-6)


def test_worked_r1():
    assert r1_penalty(quadratic, A, weight=2).item() == pytest.approx(5.021360, abs=1e-6)
    assert r1_penalty(quadratic, A).item() == pytest.approx(25.106799, abs=1e-6)
    expected = 3.5 / 2 * mean([sum(g**2 for g in row) for row in slope(A).tolist()])
    assert r1_penalty(quadratic, A, weight=3.5).item() == pytest.approx(expected, abs=1e-12)
    assert r1_penalty(quadratic, A, weight=0.0).item() == 0


def test_a_penalty_on_the_root_mean_square():
    linear = lambda x: 3 * x[:, 0] + 4 * x[:, 1]  # noqa: E731
    x, y = A[:, :2], B[:, :2]
    found = gradient_penalty(linear, x, y, target=2**0.5, weight=1 / 2)
    assert found.item() == pytest.approx(6.428932188134525, abs=1e-9)  # (sqrt(25 / 2) - 1)^2, GAAN
    assert gradient_penalty(linear, x, y, weight=1).item() == pytest.approx(16, abs=1e-9)


def test_one_sided_charges_steep_rows_only():
    steep = lambda x: x[:, 0] * torch.tensor([0.25, 1.0, 3.0, 5.0]).double()  # noqa: E731
    found = gradient_penalty(steep, A, B, one_sided=True, weight=1.0)
    assert found.item() == pytest.approx((0 + 0 + 2**2 + 4**2) / 4, abs=1e-9)
    assert gradient_penalty(lambda x: 0.5 * x[:, 0], A, B, one_sided=True).item() == 0


def test_slopes_by_finite_differences():
    torch.manual_seed(1)
    net, c = Net().double(), torch.randn(4, 2, dtype=torch.float64)
    at = EPS[:, None] * A + (1 - EPS[:, None]) * B

    def squares(x, h=1e-5):
        rows = []
        for i in range(4):
            steps = [h * torch.eye(3, dtype=torch.float64)[k] for k in range(3)]
            ends = [[net((x[i] + s * step)[None], c[i][None]).item() for s in (1, -1)] for step in steps]
            rows.append(sum(((up - down) / (2 * h)) ** 2 for up, down in ends))
        return rows

    expected = 10 * mean([(math.sqrt(square) - 1) ** 2 for square in squares(at)])
    assert gradient_penalty(net, A, B, c, mix=EPS).item() == pytest.approx(expected, rel=1e-7)
    assert r1_penalty(net, A, c, weight=4.0).item() == pytest.approx(2 * mean(squares(A)), rel=1e-7)


def test_against_the_closed_form_and_the_weight():
    norm = slope(EPS[:, None] * A + (1 - EPS[:, None]) * B).norm(dim=1)
    expected = 2.5 * ((norm - 1.5) ** 2).mean()
    found = gradient_penalty(quadratic, A, B, weight=2.5, target=1.5, mix=EPS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert gradient_penalty(quadratic, A, B, weight=0.0).item() == 0


def test_one_number_a_row_over_all_other_dimensions():
    weight = torch.arange(1.0, 13).view(3, 4)
    x, y = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    found = gradient_penalty(lambda x: (x * weight).sum((1, 2)), x, y)
    assert found.item() == pytest.approx(10 * (weight.norm().item() - 1) ** 2, rel=1e-5)
    seen = []
    gradient_penalty(lambda x: (seen.append(x.detach()), x.sum((1, 2)))[1], torch.ones_like(x), torch.zeros_like(x))
    assert (seen[0] == seen[0][:, :1, :1]).all() and len(seen[0][:, 0, 0].unique()) == 5  # x^ is u itself


def test_the_mix_is_drawn_from_the_global_generator():
    torch.manual_seed(3)
    u = torch.rand(4, dtype=torch.float64)
    torch.manual_seed(3)
    assert gradient_penalty(quadratic, A, B) == gradient_penalty(quadratic, A, B, mix=u)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 1)

    def forward(self, x, c):
        return self.last(torch.tanh(self.first(torch.cat([x, c], 1))))[:, 0]


def test_second_derivatives_reach_the_critic_and_nothing_else():
    torch.manual_seed(0)
    net = Net().double()
    c = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    real, fake = A.clone().requires_grad_(), B.clone().requires_grad_()

    def with_weights(penalty, weights):
        named = dict(zip([name for name, _ in net.named_parameters()], weights, strict=True))
        # + 0 * the last bias: no slope depends on it, and gradcheck wants each input in the graph
        return penalty(lambda x, c: torch.func.functional_call(net, named, (x, c))) + 0 * weights[3].sum()

    start = [p.detach().clone().requires_grad_() for p in net.parameters()]
    for penalty in (
        lambda critic: gradient_penalty(critic, real, fake, c, mix=EPS),
        lambda critic: gradient_penalty(critic, real, fake, c, mix=EPS, target=0.1, one_sided=True),
        lambda critic: r1_penalty(critic, real, c),
    ):
        assert torch.autograd.gradcheck(lambda *w, penalty=penalty: with_weights(penalty, w), start)
    gradient_penalty(net, real, fake, c, mix=EPS).backward()
    assert net.first.weight.grad.abs().max() > 1e-3
    net.zero_grad()
    r1_penalty(net, real, c).backward()
    assert net.first.weight.grad.abs().max() > 1e-3
    assert real.grad is None and fake.grad is None and c.grad is None  # samples and condition are constants


def test_the_condition_changes_the_value_but_not_the_norm():
    x, y = torch.zeros(2, 1), torch.ones(2, 1)
    c = torch.tensor([[2.0], [3.0]])
    critic = lambda x, c: (x * c)[:, 0] + 100 * c[:, 0]  # noqa: E731
    assert gradient_penalty(critic, x, y, c).item() == pytest.approx(10 * (1 + 4) / 2)
    assert r1_penalty(critic, x, c).item() == pytest.approx(10 / 2 * (4 + 9) / 2)
    labels = torch.tensor([0, 1])
    assert r1_penalty(lambda x, k: (x * c[k])[:, 0], x, labels).item() == pytest.approx(10 / 2 * (4 + 9) / 2)


def test_a_flat_critic_has_a_finite_value_and_gradient():
    net = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    loss = gradient_penalty(net, A, B)
    loss.backward()
    assert loss.item() == pytest.approx(10, rel=1e-5)
    assert net.weight.grad.isfinite().all()
    net.zero_grad()
    loss = r1_penalty(net, A)
    loss.backward()
    assert loss.item() == 0 and (net.weight.grad == 0).all()


def test_float32_under_autocast():
    net = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    x, y = A.float(), B.float()
    exact = gradient_penalty(net, x, y, mix=EPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gradient_penalty(net, x.bfloat16(), y.bfloat16(), mix=EPS).dtype == torch.float32
        assert gradient_penalty(net, x, y, mix=EPS) == exact
        assert r1_penalty(net, x.half()).dtype == torch.float32
    plain = r1_penalty(net, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert r1_penalty(net, x) == plain


def test_slopes_of_ten_thousand_are_finite():
    x = A.half()
    assert r1_penalty(lambda x: 1e4 * x[:, 0], x).item() == pytest.approx(5e8, rel=1e-6)
    assert gradient_penalty(lambda x: 1e4 * x[:, 0], x, B.half()).item() == pytest.approx(10 * 9999**2, rel=1e-5)


def test_gradient_is_on_inside_no_grad():
    with torch.no_grad():
        assert gradient_penalty(quadratic, A, B, mix=EPS).item() == pytest.approx(9.965743, abs=2e-6)
        assert r1_penalty(quadratic, A).item() == pytest.approx(25.106799, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fake": B[:2]}, "one shape"),
        ({"real": A[:, 0], "fake": B[:, 0]}, "one shape"),
        ({"weight": -1.0}, "weight"),
        ({"target": float("nan")}, "target"),
        ({"mix": EPS[:2]}, "mix"),
        ({"mix": EPS / 0}, "mix must be finite"),
        ({"real": A * float("nan")}, "real must be finite"),
        ({"fake": (B * 0).long()}, "floating"),
    ],
)
def test_bad_input(change, match):
    given = {"real": A, "fake": B} | change
    with pytest.raises(ValueError, match=match):
        gradient_penalty(quadratic, **given)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"real": A[:, 0]}, r"real must have shape \(N, ...\), got \(4,\)"),
        ({"real": A.long()}, "real must have a floating dtype"),
        ({"real": A[:0]}, "real must not be empty"),
        ({"real": A / 0}, "real must be finite"),
        ({"weight": -1.0}, "weight must be a finite number of at least 0, got -1.0"),
        ({"weight": math.inf}, "weight must be a finite number"),
    ],
)
def test_bad_input_of_r1(change, match):
    given = {"real": A} | change
    with pytest.raises(ValueError, match=match):
        r1_penalty(quadratic, **given)


def test_a_bad_condition_is_named():
    c = torch.ones(4, 1).double()
    critic = lambda x, c, d: (x * c * d).sum(1)  # noqa: E731
    for call in (
        lambda: r1_penalty(critic, A, c, c / 0),
        lambda: gradient_penalty(critic, A, B, c, c / 0),
    ):
        with pytest.raises(ValueError, match="condition 1 must be finite"):
            call()
