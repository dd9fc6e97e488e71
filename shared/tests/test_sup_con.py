"""sup_con, pair_mse and kl_standard_normal: worked numbers, plain loops in float64, invariances, degenerate input."""

import math

import pytest
import torch

from gen_core.losses import kl_standard_normal, nt_xent, pair_mse, sup_con


def wave(n, d, rate=0.37, shift=0.0, wave=torch.sin):
    return wave(rate * torch.arange(n * d, dtype=torch.float64).view(n, d) + shift)


A, B = wave(4, 3, 0.37, 0.1), wave(4, 3, 0.53, 0.2, torch.cos)


@pytest.mark.parametrize(
    ("labels", "tau", "value"),
    [
        ([0, 0, 1, 1, 2, 2, 3, 3], 0.1, 4.906438287),
        ([0, 0, 1, 1, 2, 2, 3, 3], 0.5, 1.703715305),
        ([0, 0, 1, 1, 1, 2, 3, 4], 0.1, 7.723986106),
        ([0, 0, 1, 1, 1, 2, 3, 4], 0.5, 2.282405383),
    ],
)
def test_worked_on_waves(labels, tau, value):
    assert sup_con(wave(8, 4), torch.tensor(labels), tau).item() == pytest.approx(value, abs=2e-9)


def test_worked_on_two_views_and_on_one():
    y = torch.tensor([0, 1, 0, 1])
    both = torch.cat([A, B])
    assert sup_con(both, y.repeat(2), 0.5).item() == pytest.approx(3.201397, abs=1e-6)
    assert sup_con(both, y.repeat(2), 0.07).item() == pytest.approx(16.723282, abs=1e-6)
    assert sup_con(A, y, 0.5).item() == pytest.approx(2.008843, abs=1e-6)


def plain(z, y, tau):
    """Equation 2 word for word: per anchor, None where it has no positive."""
    z = z / z.norm(dim=1, keepdim=True)
    terms = []
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        same = [p for p in others if y[p] == y[i]]
        total = sum(math.exp(float(z[i] @ z[k]) / tau) for k in others)
        logs = [math.log(math.exp(float(z[i] @ z[p]) / tau) / total) for p in same]
        terms.append(-sum(logs) / len(logs) if logs else None)
    return terms


@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_loop_and_its_reductions(seed):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(11, 5, dtype=torch.float64, generator=draw)
    y = torch.randint(0, 5, (11,), generator=draw) - 2  # labels may be negative
    y[0] = 77  # a singleton
    terms = plain(z, y, 0.3)
    found = [t for t in terms if t is not None]
    assert len(found) < len(terms)
    each = sup_con(z, y, 0.3, reduction="none").tolist()
    assert each == pytest.approx([t or 0.0 for t in terms])
    assert sup_con(z, y, 0.3).item() == pytest.approx(sum(found) / len(found))
    assert sup_con(z, y, 0.3, reduction="sum").item() == pytest.approx(sum(found))
    assert sup_con(z, y, 0.3, empty="zero").item() == pytest.approx(sum(found) / len(terms))


def test_two_views_labelled_by_image_are_nt_xent():
    loss = sup_con(torch.cat([A, B]), torch.arange(4).repeat(2), 0.5)
    assert loss.item() == pytest.approx(nt_xent(A, B, 0.5).item(), abs=1e-12)


def test_batch_order_class_names_and_row_scale_do_not_matter():
    y, order = torch.tensor([0, 1, 1, 0]), torch.tensor([2, 0, 3, 1])
    value = sup_con(A, y, 0.2).item()
    scale = torch.tensor([[1.0], [7.0], [0.1], [3.0]], dtype=torch.float64)
    assert sup_con((A * scale)[order], (9 - y)[order], 0.2).item() == pytest.approx(value, abs=1e-12)
    assert sup_con(A * scale, y, 0.2, normalize=False).item() != pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("rows", [1, 5])
def test_without_any_positive_it_is_zero_and_connected(rows):
    z = torch.randn(rows, 3, requires_grad=True)
    loss = sup_con(z, torch.arange(rows))
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None and torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize):
    z = wave(6, 3).requires_grad_()
    y = torch.tensor([0, 0, 1, 1, 1, 2])
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: sup_con(z, y, t, normalize=normalize), (z, tau))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_finite(dtype):
    z = (1e3 * torch.randn(8, 4)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sup_con(z, torch.tensor([0, 0, 1, 1, 2, 2, 3, 4]), 1e-3)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite() and z.grad.isfinite().all()


def test_all_equal_rows_cost_log_of_the_others():
    assert sup_con(torch.ones(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])).item() == pytest.approx(math.log(5), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels must be 4 integers"),
        ({"labels": torch.zeros(4)}, "labels must be 4 integers"),
        ({"features": torch.full((4, 3), math.nan)}, "features must be finite"),
        ({"features": torch.ones(4)}, "features must have 2 dimension"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"empty": "drop"}, "empty must be 'skip' or 'zero', got 'drop'"),
        ({"reduction": "all"}, "reduction must be"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        sup_con(**({"features": A, "labels": torch.zeros(4, dtype=torch.long)} | change))


def test_pair_mse_worked_and_its_mirror():
    i = torch.arange(6, dtype=torch.float64)
    pos, neg = (0.37 * i).sin().sigmoid(), (0.53 * i).cos().sigmoid()
    assert pair_mse(pos, neg).item() == pytest.approx(0.675119, abs=1e-6)
    assert pair_mse(neg, pos).item() == pytest.approx(0.441451, abs=1e-6)
    assert pair_mse(1 - neg, 1 - pos).item() == pytest.approx(pair_mse(pos, neg).item(), abs=1e-12)
    assert pair_mse(torch.zeros(2), torch.ones(5)).item() == 0


def test_pair_mse_checks():
    pos = torch.rand(5, dtype=torch.float64, requires_grad=True)
    neg = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pair_mse, (pos, neg))
    with pytest.raises(ValueError, match=r"neg must be in \[0, 1\], got -2 to 3"):
        pair_mse(torch.rand(2), torch.tensor([3.0, -2.0]))
    with pytest.raises(ValueError, match="pos must not be empty"):
        pair_mse(torch.rand(0), torch.rand(2))


def test_kl_worked_against_torch_and_its_reductions():
    assert kl_standard_normal(A, B).item() == pytest.approx(1.086391, abs=1e-6)
    assert kl_standard_normal(A, B, "sum").item() == pytest.approx(4.345565, abs=1e-6)
    normal, prior = torch.distributions.Normal(A, (B / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    wanted = torch.distributions.kl_divergence(normal, prior).sum(1)
    assert torch.allclose(kl_standard_normal(A, B, "none"), wanted, atol=1e-12)
    assert kl_standard_normal(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3), "none").shape == (2, 5)


def test_kl_keeps_small_values_in_float32_and_refuses_what_does_not_fit():
    small = kl_standard_normal(torch.zeros(1, 1), torch.full((1, 1), 1e-3))
    assert small.item() == pytest.approx(2.5e-7, rel=1e-2)  # lv^2 / 4
    assert torch.autograd.gradcheck(kl_standard_normal, (A.clone().requires_grad_(), B.clone().requires_grad_()))
    with pytest.raises(ValueError, match="log_variance must have the shape of mean"):
        kl_standard_normal(A, B[:2])
    with pytest.raises(ValueError, match="reduction must be"):
        kl_standard_normal(A, B, "all")  # pyright: ignore
