"""Critics against one pair at a time."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gen_core.estimators import Bilinear, Separable, bilinear, separable


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_separable():
    x, y = features(3, 4), features(5, 4, seed=1)
    plain = torch.tensor([[float(torch.dot(u, v)) / 0.3 for v in y] for u in x], dtype=torch.float64)
    torch.testing.assert_close(separable(x, y, temperature=0.3), plain, rtol=0, atol=1e-12)
    cosine = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=2)
    torch.testing.assert_close(separable(x, y, normalize=True), cosine, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(3, 5), (5, 3), (4, 1)])
@pytest.mark.parametrize("bias", [None, 0.7])
def test_bilinear(n, m, bias):
    x, y, w = features(n, 4), features(m, 6, seed=1), features(4, 6, seed=2)
    b = None if bias is None else torch.tensor(bias)
    plain = torch.tensor([[float(u @ w @ v) + (bias or 0) for v in y] for u in x], dtype=torch.float64)
    torch.testing.assert_close(bilinear(x, y, w, b), plain, rtol=0, atol=1e-7)
    torch.testing.assert_close(bilinear(x, y[0], w, b), plain[:, 0], rtol=0, atol=1e-7)
    expanded = torch.nn.functional.bilinear(x, y[0].expand(n, -1).contiguous(), w[None])[:, 0] + (bias or 0)
    torch.testing.assert_close(bilinear(x, y[0], w, b), expanded, rtol=0, atol=1e-7)


def test_one_summary_costs_one_product_with_each_row():
    n, d = 500, 32
    x, s, w = features(n, d), features(1, d), features(d, d)
    with FlopCounterMode(display=False) as counter:
        bilinear(x, s, w)
    assert counter.get_total_flops() == 2 * (n * d + d * d)


def test_gradcheck():
    x, y, w = (features(*shape, seed=i).requires_grad_() for i, shape in enumerate([(3, 4), (2, 5), (4, 5)]))
    b = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bilinear, (x, y, w, b))
    assert torch.autograd.gradcheck(lambda u, s, v, c: bilinear(u, s[0], v, c), (x, y, w, b))
    z = features(2, 4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, v: separable(u, v, 0.5, normalize=True), (x, z))


def test_modules_hold_what_they_learn():
    critic = Bilinear(4, 6).double()
    x, y = features(3, 4), features(6)
    assert {name: tuple(p.shape) for name, p in critic.named_parameters()} == {"weight": (4, 6), "bias": ()}
    assert critic.bias.item() == 0
    assert critic.weight.abs().max() <= math.sqrt(6 / 10)  # Xavier-uniform
    torch.testing.assert_close(critic(x, y), bilinear(x, y, critic.weight, critic.bias))
    assert "bias" not in dict(Bilinear(4, 6, bias=False).named_parameters())

    scaled = Separable(temperature=0.25).double()
    x, y = features(3, 4), features(2, 4, seed=1)
    torch.testing.assert_close(scaled(x, y), separable(x, y, 0.25, normalize=True), rtol=0, atol=1e-6)
    scaled(x, y).sum().backward()
    assert scaled.log_scale.grad is not None
    assert scaled.bias.grad.item() == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_give_float32(dtype):
    x, y, w = features(6, 4), features(5, 4, seed=1), features(4, 4, seed=2)
    for critic in (lambda u, v: separable(u, v, 0.5), lambda u, v: bilinear(u, v, w.to(u.dtype))):
        low = critic(x.to(dtype), y.to(dtype))
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), critic(x, y), rtol=5e-2, atol=1e-1)
        plain = critic(x.float(), y.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(critic(x.float(), y.float()), plain)


def test_bad_input():
    x, y, w = features(3, 4), features(5, 4, seed=1), features(4, 4)
    with pytest.raises(ValueError, match="y must have 4 columns"):
        separable(x, y[:, :2])
    with pytest.raises(ValueError, match="x must have 2 dimensions"):
        separable(x[0], y)
    with pytest.raises(ValueError, match="y must have a floating dtype"):
        separable(x, y.long())
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            separable(x, y, tau)
        with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
            Separable(tau)
    with pytest.raises(ValueError, match="weight must have shape \\(4, 4\\), got \\(3, 4\\)"):
        bilinear(x, y, w[:3])
    with pytest.raises(ValueError, match="y must have 1 or 2 dimensions"):
        bilinear(x, y[None], w)
