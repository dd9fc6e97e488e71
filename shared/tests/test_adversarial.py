"""The Wasserstein pair and the gradient penalty: worked numbers, closed form, second derivatives, degenerate input."""

import pytest
import torch
from torch import nn

from gen_core.losses.adversarial import gradient_penalty, wasserstein_critic, wasserstein_generator

I = torch.arange(5, dtype=torch.float64)  # noqa: E741
REAL_SCORES, FAKE_SCORES = torch.sin(0.7 * I + 0.3), torch.cos(0.9 * I + 0.1)
K = torch.arange(12, dtype=torch.float64).view(4, 3)
A, B = torch.sin(0.37 * K + 0.1), torch.cos(0.53 * K + 0.2)
EPS = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
M = torch.cos(0.41 * torch.arange(9, dtype=torch.float64)).view(3, 3)
V = torch.sin(torch.arange(1, 4, dtype=torch.float64))


def quadratic(x):
    return 0.5 * ((x @ M) * x).sum(1) + x @ V


def slope(x):
    return x @ (0.5 * (M + M.T)) + V


# --- the pair


def test_worked_scores():
    assert wasserstein_critic(REAL_SCORES, FAKE_SCORES).item() == pytest.approx(-0.684801, abs=1e-6)
    assert wasserstein_generator(FAKE_SCORES).item() == pytest.approx(0.115661, abs=1e-6)


def test_the_pair_takes_other_numbers_and_shapes_and_its_gradient_is_constant():
    real = torch.tensor([[1.0], [3.0]], requires_grad=True)
    fake = torch.tensor([0.5, 0.5, 2.0], requires_grad=True)
    wasserstein_critic(real, fake).backward()
    assert real.grad.flatten().tolist() == [-0.5, -0.5]
    assert fake.grad.tolist() == pytest.approx([1 / 3] * 3)
    assert wasserstein_critic(real.half(), fake.half()).dtype == torch.float32


@pytest.mark.parametrize("wrong", [torch.tensor([float("nan")]), torch.tensor([1]), torch.empty(0)])
def test_bad_scores(wrong):
    good = torch.ones(2)
    for call in (
        lambda: wasserstein_critic(wrong, good),
        lambda: wasserstein_critic(good, wrong),
        lambda: wasserstein_generator(wrong),
    ):
        with pytest.raises(ValueError, match=r"real|fake"):
            call()


# --- the penalty


@pytest.mark.parametrize(
    ("mix", "target", "value"), [(EPS, 1.0, 9.965743), (1 - EPS, 1.0, 5.008919), (1 - EPS, 0.0, 27.045815)]
)
def test_worked_penalty(mix, target, value):
    found = gradient_penalty(quadratic, A, B, target=target, mix=mix)
    assert found.item() == pytest.approx(value, abs=2e-6)


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

    def of(*weights):
        names = [name for name, _ in net.named_parameters()]
        call = lambda x, c: torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x, c))  # noqa: E731
        return gradient_penalty(call, real, fake, c, mix=EPS)

    start = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(lambda *w: of(*w) + 0 * w[3].sum(), start)
    gradient_penalty(net, real, fake, c, mix=EPS).backward()
    assert net.first.weight.grad.abs().max() > 1e-3
    assert real.grad is None and fake.grad is None and c.grad is None  # samples and condition are constants


def test_the_condition_changes_the_value_but_not_the_norm():
    x, y = torch.zeros(2, 1), torch.ones(2, 1)
    c = torch.tensor([[2.0], [3.0]])
    found = gradient_penalty(lambda x, c: (x * c)[:, 0] + 100 * c[:, 0], x, y, c)
    assert found.item() == pytest.approx(10 * (1 + 4) / 2)


def test_a_flat_critic_has_a_finite_value_and_gradient():
    net = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    loss = gradient_penalty(net, A, B)
    loss.backward()
    assert loss.item() == pytest.approx(10, rel=1e-5)
    assert net.weight.grad.isfinite().all()


def test_float32_under_autocast():
    net = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    x, y = A.float(), B.float()
    exact = gradient_penalty(net, x, y, mix=EPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gradient_penalty(net, x.bfloat16(), y.bfloat16(), mix=EPS).dtype == torch.float32
        assert gradient_penalty(net, x, y, mix=EPS) == exact


def test_gradient_is_on_inside_no_grad():
    with torch.no_grad():
        assert gradient_penalty(quadratic, A, B, mix=EPS).item() == pytest.approx(9.965743, abs=2e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fake": B[:2]}, "one shape"),
        ({"real": A[:, 0], "fake": B[:, 0]}, "one shape"),
        ({"weight": -1.0}, "weight"),
        ({"target": float("nan")}, "target"),
        ({"mix": EPS[:2]}, "mix"),
        ({"real": A * float("nan")}, "finite"),
        ({"fake": (B * 0).long()}, "floating"),
    ],
)
def test_bad_input(change, match):
    given = {"real": A, "fake": B} | change
    with pytest.raises(ValueError, match=match):
        gradient_penalty(quadratic, **given)
