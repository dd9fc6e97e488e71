"""Losses against worked numbers, brute force in float64, invariances, precision and bad input."""

import doctest
import importlib
import math
import subprocess
import sys

import pytest
import torch

from gen_core.losses import binary_nce, info_nce, nt_xent

MODULES = [
    "gen_core",
    "gen_core.losses.pairwise",
    "gen_core.losses.contrastive",
    "gen_core._checks",
    "gen_core._tiled",
    "gen_core.distributed",
    "gen_core.state",
    "gen_core.losses.adversarial",
    "gen_core.losses.geometry",
    "gen_core.losses.margin",
    "gen_core.losses.negative_free",
    "gen_core.losses.semi_supervised",
    "gen_core.losses.variational",
    "gen_core.estimators.bounds",
    "gen_core.estimators.critics",
    "gen_core.estimators.density_ratio",
    "gen_core.estimators.mutual_information",
    "gen_core.estimators.upper",
    "gen_core.testing.mi_tasks",
    "gen_core.evaluation.probe",
    "gen_core.evaluation.cluster",
    "gen_core.evaluation.disentangle",
    "gen_core.evaluation.few_shot",
    "gen_core.evaluation.frechet",
    "gen_core.evaluation.latent",
    "gen_core.evaluation.ood",
    "gen_core.evaluation.gzsl",
    "gen_core.evaluation.ranking",
    "gen_core.evaluation.stats",
    "gen_core.lazy",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("name", ["gen_core.losses", "gen_core.estimators", "gen_core.evaluation"])
def test_every_public_function_shows_its_use(name):
    """Shapes, errors and an example; the example runs, since the module that holds it is in MODULES."""
    module = importlib.import_module(name)
    for public in module.__all__:
        what = getattr(module, public)
        if public == "Estimate" or (isinstance(what, type) and issubclass(what, tuple)):
            continue  # a result
        if callable(what):
            assert "Examples:" in (what.__doc__ or ""), public
            assert what.__module__ in MODULES, public
            assert isinstance(what, type) or "Args:" in what.__doc__ or public == "nats_to_bits", public


def test_imports_are_lazy():
    code = (
        "import sys, gen_core, gen_core.losses, gen_core.estimators, gen_core.evaluation, gen_core.evaluation.stats\n"
        "assert 'info_nce' in dir(gen_core.losses) and 'losses' in dir(gen_core)\n"
        "heavy = {'torch', 'sklearn', 'scipy.stats'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert gen_core.losses.info_nce.__name__ == 'info_nce' and 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["gen_core", "gen_core.losses", "gen_core.estimators", "gen_core.evaluation"])
def test_lazy_names_exist(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    for public in set(module.__all__) - {"harness"}:
        assert getattr(module, public) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing


def views(dtype=torch.float64):
    """a[i,k] = sin(.37 (3i+k) + .1), b[i,k] = cos(.53 (3i+k) + .2): the fixed inputs of the worked tables."""
    t = torch.arange(12, dtype=torch.float64).view(4, 3)
    return torch.sin(0.37 * t + 0.1).to(dtype), torch.cos(0.53 * t + 0.2).to(dtype)


def waves(n=8, d=16, dtype=torch.float64):
    t = torch.arange(n * d, dtype=torch.float64).view(n, d)
    return torch.sin(0.37 * t).to(dtype), torch.sin(0.37 * t + 0.5).to(dtype)


def brute_nt_xent(a, b, tau):
    """One anchor at a time, plain Python, from the definition: a list of 2N losses."""
    z = [row.tolist() for row in torch.cat([a, b]).double()]
    z = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in z]
    n, losses = len(a), []
    for i, anchor in enumerate(z):
        s = [sum(p * q for p, q in zip(anchor, other, strict=True)) / tau for other in z]
        top = max(s)
        others = top + math.log(sum(math.exp(s[k] - top) for k in range(2 * n) if k != i))
        losses.append(others - s[(i + n) % (2 * n)])
    return losses


# ------------------------------------------------------------------------------------------------------ worked values


def test_the_fixed_inputs():
    a, b = views()
    assert a[0].tolist() == pytest.approx([0.099833, 0.452886, 0.744643], abs=1e-6)
    assert b[0].tolist() == pytest.approx([0.980067, 0.745174, 0.305817], abs=1e-6)


@pytest.mark.parametrize(("tau", "forward", "backward"), [(0.5, 3.589663, 3.460150), (0.07, 22.241856, 21.447058)])
def test_info_nce_worked(tau, forward, backward):
    a, b = views()
    assert info_nce(a, b, temperature=tau).item() == pytest.approx(forward, abs=1e-6)
    assert info_nce(b, a, temperature=tau).item() == pytest.approx(backward, abs=1e-6)


@pytest.mark.parametrize(("tau", "clip"), [(0.5, 3.524906), (0.07, 21.844457)])
def test_clip_is_the_mean_of_both_directions(tau, clip):
    a, b = views()
    both = (info_nce(a, b, temperature=tau) + info_nce(b, a, temperature=tau)) / 2
    assert both.item() == pytest.approx(clip, abs=1e-6)


def test_info_nce_of_inner_products():
    a, b = views()
    assert info_nce(a, b, temperature=1.0, normalize=False).item() == pytest.approx(2.877425, abs=1e-6)


@pytest.mark.parametrize(("tau", "value"), [(0.5, 3.935550), (0.07, 21.967230)])
def test_nt_xent_worked(tau, value):
    a, b = views()
    assert nt_xent(a, b, temperature=tau).item() == pytest.approx(value, abs=1e-6)
    a, b = views(torch.float32)
    assert nt_xent(a, b, temperature=tau).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("tau", "value"), [(0.1, 2.2156891), (0.5, 2.1577568), (1.0, 2.3430022)])
def test_nt_xent_worked_on_waves(tau, value):
    a, b = waves()
    assert nt_xent(a, b, temperature=tau).item() == pytest.approx(value, abs=1e-6)
    assert nt_xent(b, a, temperature=tau).item() == pytest.approx(value, abs=1e-6)


def test_nt_xent_default_temperature_is_a_half():
    a, b = waves()
    assert torch.equal(nt_xent(a, b), nt_xent(a, b, temperature=0.5))


@pytest.mark.parametrize(("tau", "value"), [(1.0, 0.5514447), (0.5, 0.2395448), (0.1, 9.0796e-5)])
def test_nt_xent_on_two_unit_vectors(tau, value):
    z = torch.eye(2, dtype=torch.float64)
    loss = nt_xent(z, z, temperature=tau).item()
    assert loss == pytest.approx(math.log1p(2 * math.exp(-1 / tau)), rel=1e-12)
    assert loss == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("tau", [0.1, 0.07, 0.05])
def test_small_losses_stay_exact_in_float32(tau):
    z = torch.eye(2)
    exact = math.log1p(2 * math.exp(-1 / tau))  # down to 4e-9, where log(sum) - positive is 0 in float32
    assert nt_xent(z, z, temperature=tau).item() == pytest.approx(exact, rel=1e-5)
    assert info_nce(z, z, temperature=tau).item() == pytest.approx(math.log1p(math.exp(-1 / tau)), rel=1e-5)


@pytest.mark.parametrize(("n", "value"), [(4, 1.9459101), (256, 6.2363696)])
@pytest.mark.parametrize("tau", [0.05, 0.5, 3.0])
def test_collapse_costs_log_of_the_candidates(n, value, tau):
    z = torch.ones(n, 5, dtype=torch.float64)
    assert nt_xent(z, z, temperature=tau).item() == pytest.approx(value, abs=1e-6)
    assert info_nce(z, z, temperature=tau).item() == pytest.approx(math.log(n), abs=1e-9)


def test_binary_nce_worked():
    pos = torch.tensor([1, -0.5, 2], dtype=torch.float64)
    neg = torch.tensor([-1, 0.3, 0], dtype=torch.float64)
    assert binary_nce(pos, neg).item() == pytest.approx(0.545838, abs=1e-6)
    assert binary_nce(pos, neg, reduction="sum-of-means").item() == pytest.approx(1.091677, abs=1e-6)


def test_binary_nce_weighs_unequal_sides_as_said():
    pos, neg = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.5]).double()
    terms_pos, terms_neg = [math.log1p(math.exp(-v)) for v in (1, 2, 3)], [math.log1p(math.exp(0.5))]
    assert binary_nce(pos, neg).item() == pytest.approx((sum(terms_pos) + sum(terms_neg)) / 4, abs=1e-12)
    separate = sum(terms_pos) / 3 + terms_neg[0]
    assert binary_nce(pos, neg, reduction="sum-of-means").item() == pytest.approx(separate, abs=1e-12)


def test_binary_nce_does_not_saturate():
    pos = torch.tensor([-50.0], requires_grad=True)
    loss = binary_nce(pos, torch.tensor([-200.0])) * 2
    loss.backward()
    assert loss.item() == pytest.approx(50.0, abs=1e-5)
    assert pos.grad is not None
    assert pos.grad.item() == pytest.approx(-1.0, abs=1e-6)


# --------------------------------------------------------------------------------------- definition and invariances


@pytest.mark.parametrize(("n", "d", "tau"), [(2, 3, 0.2), (5, 4, 0.5), (7, 2, 1.3)])
def test_nt_xent_against_a_plain_loop(n, d, tau):
    g = torch.Generator().manual_seed(n)
    a, b = torch.randn(2, n, d, generator=g, dtype=torch.float64)
    expected = brute_nt_xent(a, b, tau)
    assert nt_xent(a, b, temperature=tau, reduction="none").tolist() == pytest.approx(expected, abs=1e-12)
    assert nt_xent(a, b, temperature=tau, reduction="sum").item() == pytest.approx(sum(expected), abs=1e-11)
    assert nt_xent(a, b, temperature=tau).item() == pytest.approx(sum(expected) / (2 * n), abs=1e-12)


def test_info_nce_reductions_are_over_anchors():
    a, b = views()
    logits = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T / 0.3
    expected = -logits.log_softmax(1).diagonal()
    torch.testing.assert_close(info_nce(a, b, temperature=0.3, reduction="none"), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(info_nce(a, b, temperature=0.3, reduction="sum"), expected.sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_invariant_to_batch_order_and_row_scale(loss):
    a, b = waves()
    value = loss(a, b, temperature=0.4)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    scale = torch.logspace(-4, 4, 8, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(a[order], b[order], temperature=0.4), value, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss(a * scale, b / scale, temperature=0.4), value, rtol=0, atol=1e-12)
    assert not torch.isclose(loss(a, b[order], temperature=0.4), value)


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(loss, normalize):
    a, b = (v.requires_grad_() for v in views())
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda x, y, t, r=reduction: loss(x, y, temperature=t, reduction=r, normalize=normalize), (a, b, tau)
        )


def test_gradcheck_binary_nce():
    pos, neg = (v[:, 0].clone().requires_grad_() for v in views())
    for reduction in ("mean", "sum-of-means"):
        assert torch.autograd.gradcheck(lambda p, n, r=reduction: binary_nce(p, n, reduction=r), (pos, neg))


def test_gradient_is_orthogonal_to_each_row():
    a, b = (v.requires_grad_() for v in waves())
    nt_xent(a, b).backward()
    for v in (a, b):
        assert (v.grad * v).sum(1).abs().max() < 1e-12
        assert v.grad.abs().max() > 1e-3


# -------------------------------------------------------------------------------------------- precision and extremes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tau", [0.5, 0.1])
def test_half_precision_is_computed_in_float32(dtype, tau):
    a, b = waves()
    low = nt_xent(a.to(dtype), b.to(dtype), temperature=tau)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(nt_xent(a, b, temperature=tau).item(), abs=1e-2)
    low = info_nce(a.to(dtype), b.to(dtype), temperature=tau)
    assert low.item() == pytest.approx(info_nce(a, b, temperature=tau).item(), abs=1e-2)
    pos, neg = a[:, 0], b[:, 0]
    assert binary_nce(pos.to(dtype), neg.to(dtype)).item() == pytest.approx(binary_nce(pos, neg).item(), abs=1e-2)


def test_autocast_does_not_reach_the_logits():
    a, b = waves(dtype=torch.float32)
    plain = nt_xent(a, b, temperature=0.05), info_nce(a, b, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = nt_xent(a, b, temperature=0.05), info_nce(a, b, temperature=0.05)
    assert torch.equal(cast[0], plain[0])
    assert torch.equal(cast[1], plain[1])


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
@pytest.mark.parametrize("tau", [0.005, 0.001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_temperature_and_large_embeddings_are_finite(loss, tau, dtype):
    a, b = (v.requires_grad_() for v in waves(dtype=dtype))
    value = loss(a * 1e4, b * 1e4, temperature=tau)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


def test_raw_scores_of_ten_thousand_are_finite():
    a, b = (v.requires_grad_() for v in waves(dtype=torch.float32))
    value = nt_xent(a * 100, b * 100, temperature=0.1, normalize=False)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_a_zero_row_has_a_finite_gradient(loss):
    a, b = waves(dtype=torch.float32)
    a[2] = 0
    b[2] = 0
    a.requires_grad_()
    b.requires_grad_()
    value = loss(a, b, temperature=0.5)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("loss", "first", "second"), [(nt_xent, "view_a", "view_b"), (info_nce, "query", "key")])
def test_bad_embeddings_name_the_argument(loss, first, second):
    a, b = waves()
    bad = a.clone()
    bad[1, 2] = math.nan
    with pytest.raises(ValueError, match=rf"{first} must be finite"):
        loss(bad, b)
    with pytest.raises(ValueError, match=rf"{second} must be finite"):
        loss(a, bad / 0)
    with pytest.raises(ValueError, match=rf"{second} must have the shape of {first}"):
        loss(a, b[:-1])
    with pytest.raises(ValueError, match=rf"{second} must have the dtype of {first}"):
        loss(a, b.float())
    with pytest.raises(ValueError, match=rf"{first} must have a floating dtype, got torch.int64"):
        loss(a.long(), b.long())
    with pytest.raises(ValueError, match=rf"{first} must have 2 dimension"):
        loss(a[0], b[0])
    with pytest.raises(ValueError, match=rf"{first} must have at least 2 rows"):
        loss(a[:1], b[:1])
    with pytest.raises(ValueError, match=rf"{first} must not be empty"):
        loss(a[:0], b[:0])
    with pytest.raises(ValueError, match=rf"{first} must be a torch.Tensor"):
        loss(a.numpy(), b)


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
@pytest.mark.parametrize("tau", [0.0, -0.5, math.nan, math.inf, torch.tensor(-1.0)])
def test_bad_temperature(loss, tau):
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        loss(*waves(), temperature=tau)


def test_bad_options():
    a, b = waves()
    with pytest.raises(ValueError, match="temperature must be one number"):
        nt_xent(a, b, temperature=torch.ones(2))
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'max'"):
        nt_xent(a, b, reduction="max")
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum-of-means'"):
        binary_nce(a[0], b[0], reduction="sum")
    with pytest.raises(ValueError, match="pos must be finite"):
        binary_nce(a[0] / 0, b[0])
    with pytest.raises(ValueError, match="neg must not be empty"):
        binary_nce(a[0], b[0, :0])
    with pytest.raises(ValueError, match="neg must have a floating dtype"):
        binary_nce(a[0], b[0].int())
