"""Losses without negatives: worked numbers, plain loops, invariances, gradients, degenerate batches, bad input."""

import math

import pytest
import torch

from gen_core.losses.negative_free import (
    alignment,
    barlow_twins,
    byol,
    simsiam,
    uniformity,
    vicreg,
    vicreg_terms,
)

K = torch.arange(12, dtype=torch.float64).view(4, 3)
A, B = torch.sin(0.37 * K + 0.1), torch.cos(0.53 * K + 0.2)
ROWS = [byol, simsiam, alignment]  # a mean over rows
BATCH = [barlow_twins, vicreg]  # statistics of the batch
NAMES = {byol: ("prediction", "target"), simsiam: ("prediction", "target")}


def draw(n, d, seed):
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- plain Python from the definitions


def unit(row):
    length = math.sqrt(sum(v * v for v in row))
    return [v / length for v in row]


def dot(x, y):
    return math.fsum(u * v for u, v in zip(x, y, strict=True))


def columns(z, divisor, eps):
    """Standardised columns of a tensor, as lists."""
    out = []
    for column in z.T.tolist():
        centre = math.fsum(column) / len(column)
        spread = math.sqrt(math.fsum((v - centre) ** 2 for v in column) / divisor + eps)
        out.append([(v - centre) / spread for v in column])
    return out


def plain_barlow(a, b, weight, eps, divisor):
    x, y = columns(a, divisor, eps), columns(b, divisor, eps)
    c = [[dot(u, v) / len(a) for v in y] for u in x]
    return sum((c[k][m] - 1) ** 2 if k == m else weight * c[k][m] ** 2 for k in range(len(c)) for m in range(len(c)))


def plain_vicreg(a, b):
    n, d = a.shape
    invariance = sum((u - v) ** 2 for u, v in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / (n * d)
    variance = covariance = 0.0
    for z in (a, b):
        centred = [[v - math.fsum(column) / n for v in column] for column in z.T.tolist()]
        cov = [[dot(u, v) / (n - 1) for v in centred] for u in centred]
        variance += sum(max(0.0, 1 - math.sqrt(cov[k][k] + 1e-4)) for k in range(d)) / d / 2
        covariance += sum(cov[k][m] ** 2 for k in range(d) for m in range(d) if k != m) / d
    return invariance, variance, covariance


def plain_uniformity(z, t):
    rows = [unit(row) for row in z.tolist()]
    terms = [
        -t * sum((u - v) ** 2 for u, v in zip(rows[i], rows[j], strict=True))
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
    ]
    top = max(terms)
    return top + math.log(math.fsum(math.exp(v - top) for v in terms) / len(terms))


# --- worked numbers


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_worked(dtype, tolerance):
    a, b = A.to(dtype), B.to(dtype)
    for found, value in [
        (byol(a, b), 3.143642),
        (simsiam(a, b), 0.571821),
        (alignment(a, b), 3.143642),
        (uniformity(a), -1.607509),
        (barlow_twins(a, b, eps=0), 8.644830),
        (barlow_twins(a, b, weight=0, eps=0), 8.629980),
        ((barlow_twins(a, b, weight=1, eps=0) - barlow_twins(a, b, weight=0, eps=0)), 2.911820),
        (barlow_twins(a, b), 8.644654),
        (vicreg(a, b), 45.582809),
    ]:
        assert found.dtype == dtype and found.item() == pytest.approx(value, abs=tolerance)
    terms = vicreg_terms(a, b)
    assert terms._fields == ("invariance", "variance", "covariance")
    assert [t.item() for t in terms] == pytest.approx([1.541082, 0.248404, 0.845679], abs=tolerance)


def test_the_biased_deviation_is_meant():
    assert plain_barlow(A, B, 0.0051, 0, divisor=3) == pytest.approx(6.957448, abs=1e-6)  # what it is not
    assert plain_barlow(A, B, 0.0051, 0, divisor=4) == pytest.approx(8.644830, abs=1e-6)


def test_symmetric_forms():
    p1, p2 = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[1.0, 1], [1, 0]])
    z1, z2 = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 1], [0, 1]])
    loss = byol(p1, z2) + byol(p2, z1)
    assert loss.item() == pytest.approx(1.585786, abs=1e-6)
    half = (simsiam(p1, z2) + simsiam(p2, z1)) / 2
    assert half.item() == pytest.approx(-0.603553, abs=1e-6)
    assert loss.item() == pytest.approx(4 + 4 * half.item(), abs=1e-6)


def test_barlow_on_a_small_case():
    a = torch.tensor([[1.0, 0], [0, 1], [-1, 1], [0, -2]])
    b = torch.tensor([[1, 0.5], [0.5, 1], [-1, 0], [-0.5, -1.5]])
    assert barlow_twins(a, b).item() == pytest.approx(0.0275798, abs=1e-6)


# --- definitions


@pytest.mark.parametrize(("n", "d", "seed"), [(2, 3, 0), (5, 4, 1), (9, 2, 2)])
def test_against_plain_loops(n, d, seed):
    a, b = draw(n, d, seed)
    cosines = [dot(unit(u), unit(v)) for u, v in zip(a.tolist(), b.tolist(), strict=True)]
    assert byol(a, b, "none").tolist() == pytest.approx([2 - 2 * c for c in cosines], abs=1e-12)
    assert simsiam(a, b, "none").tolist() == pytest.approx([-c for c in cosines], abs=1e-12)
    assert alignment(a, b, "none").tolist() == pytest.approx([2 - 2 * c for c in cosines], abs=1e-12)
    for loss in ROWS:
        rows = loss(a, b, "none")
        assert loss(a, b).item() == pytest.approx(math.fsum(rows.tolist()) / n, abs=1e-12)
        assert loss(a, b, reduction="sum").item() == pytest.approx(math.fsum(rows.tolist()), abs=1e-12)
    assert barlow_twins(a, b, 0.3, 0.01).item() == pytest.approx(plain_barlow(a, b, 0.3, 0.01, n), rel=1e-12)
    assert [t.item() for t in vicreg_terms(a, b)] == pytest.approx(plain_vicreg(a, b), rel=1e-12)
    s, v, c = plain_vicreg(a, b)
    assert vicreg(a, b, 2, 3, 4).item() == pytest.approx(2 * s + 3 * v + 4 * c, rel=1e-12)
    assert vicreg(a, b).item() == pytest.approx(25 * s + 25 * v + c, rel=1e-12)
    for t in (0.1, 2.0, 500.0):
        assert uniformity(a, t).item() == pytest.approx(plain_uniformity(a, t), rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_and_columns_is_free(seed):
    a, b = draw(7, 4, seed)
    g = torch.Generator().manual_seed(seed)
    rows, cols = torch.randperm(7, generator=g), torch.randperm(4, generator=g)
    for loss in ROWS + BATCH:
        value = loss(a, b)
        torch.testing.assert_close(loss(a[rows][:, cols], b[rows][:, cols]), value, rtol=1e-12, atol=1e-12)
        assert not torch.isclose(loss(a, b.roll(1, 0)), value)
        torch.testing.assert_close(loss(b, a), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(uniformity(a[rows]), uniformity(a), rtol=1e-12, atol=0)


def test_row_lengths_are_free_where_rows_are_normalised():
    a, b = draw(6, 4, 0)
    scale = torch.logspace(-4, 4, 6, dtype=torch.float64)[:, None]
    for loss in ROWS:
        torch.testing.assert_close(loss(a * scale, b / scale), loss(a, b), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(uniformity(a * scale), uniformity(a), rtol=1e-12, atol=0)


def test_barlow_standardises_columns():
    a, b = draw(8, 4, 1)
    factor, shift = torch.tensor([0.5, 2.0, 10.0, 1.0]).double(), torch.tensor([0.0, 3.0, -50.0, 1.0]).double()
    value = barlow_twins(a, b, eps=0)
    torch.testing.assert_close(barlow_twins(a * factor + shift, b, eps=0), value, rtol=1e-11, atol=0)
    turn = torch.linalg.qr(draw(4, 4, 2)[0]).Q
    assert not torch.isclose(barlow_twins(a @ turn, b @ turn), value, rtol=1e-3)
    x = a.clone().requires_grad_()
    barlow_twins(x, b).backward()
    assert x.grad.sum(0).abs().max() < 1e-10
    assert x.grad.abs().max() > 1e-3


def test_bounds_that_are_reached():
    z = draw(6, 4, 3)[0]
    assert byol(z, 3 * z).item() == pytest.approx(0, abs=1e-12)
    assert byol(z, -z).item() == pytest.approx(4, abs=1e-12)
    assert simsiam(z, 2 * z).item() == pytest.approx(-1, abs=1e-12)
    assert alignment(z, z).item() == 0
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    assert barlow_twins(corners, corners, eps=0).item() == pytest.approx(0, abs=1e-15)
    assert vicreg(corners, corners).item() == pytest.approx(0, abs=1e-15)
    assert uniformity(torch.ones(5, 3).double()).item() == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.tensor([[1.0, 0], [-1, 0]]), t=3).item() == pytest.approx(-12, abs=1e-5)


# --- gradients


def test_gradcheck():
    a, b = (v.clone().requires_grad_() for v in (A, B))
    fixed = B.clone()
    for loss in (byol, simsiam):
        for reduction in ("mean", "none"):
            assert torch.autograd.gradcheck(lambda x, f=loss, r=reduction: f(x, fixed, r), (a,))
    for loss in (
        alignment,
        barlow_twins,
        lambda x, y: barlow_twins(x, y, 0.5, 0.0),
        vicreg,
        lambda x, y: torch.stack(vicreg_terms(x, y)),
    ):
        assert torch.autograd.gradcheck(loss, (a, b))
    assert torch.autograd.gradcheck(uniformity, (a,))
    assert torch.autograd.gradcheck(lambda z: uniformity(z, 0.3), (a,))


@pytest.mark.parametrize("loss", [byol, simsiam])
def test_no_gradient_reaches_the_target(loss):
    a, b = (v.clone().requires_grad_() for v in (A, B))
    loss(a, b).backward()
    assert b.grad is None
    assert (a.grad * A).sum(1).abs().max() < 1e-12  # along the row there is none
    assert a.grad.abs().max() > 1e-2
    shared = A.clone().requires_grad_()  # an identity for a predictor: the side of p alone
    loss(shared, shared * 1.0).backward()
    assert shared.grad.abs().max() < 1e-12
    both = A.clone().requires_grad_()
    alignment(both, B.clone().requires_grad_()).backward()
    torch.testing.assert_close(both.grad, a.grad * (1 if loss is byol else 2), rtol=1e-12, atol=1e-12)


# --- precision and extremes


@pytest.mark.parametrize("loss", [*ROWS, *BATCH, lambda a, b: uniformity(a)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(loss, dtype):
    a, b = (v.to(dtype) for v in draw(16, 8, 4))
    low = loss(a, b)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(loss(a.double(), b.double()).item(), rel=1e-5, abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(a, b) == low


@pytest.mark.parametrize("loss", [*ROWS, *BATCH, lambda a, b: uniformity(a)])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1e4), (torch.float32, 1e4), (torch.float32, 1e-20)])
def test_large_and_tiny_embeddings_are_finite(loss, dtype, scale):
    a, b = ((v.clamp(-3, 3) * scale).to(dtype).requires_grad_() for v in draw(6, 4, 5))
    value = loss(a, b)
    value.backward()
    assert value.isfinite()
    if (loss, dtype) != (vicreg, torch.float16):  # there the gradient itself is beyond 16 bits
        assert a.grad.isfinite().all()


@pytest.mark.parametrize("loss", [*ROWS, *BATCH, lambda a, b: uniformity(a), lambda a, b: barlow_twins(a, b, eps=0)])
def test_collapse_zero_rows_and_dead_columns_have_finite_gradients(loss):
    dead_column, zero_row = A.float().clone(), A.float().clone()
    dead_column[:, 1] = 0.5
    zero_row[2] = 0
    for z in (torch.zeros(4, 3), torch.ones(4, 3), dead_column, zero_row):
        for other in (z.clone(), B.float()):
            x, y = z.clone().requires_grad_(), other.requires_grad_()
            value = loss(x, y)
            value.backward()
            assert value.isfinite() and x.grad.isfinite().all()


def test_values_at_collapse():
    z = torch.ones(4, 3).double()
    assert barlow_twins(z, z).item() == 3 and barlow_twins(z, z, eps=0).item() == 3  # C = 0
    terms = vicreg_terms(z, z)
    assert [t.item() for t in terms] == pytest.approx([0, 0.99, 0], abs=1e-12)
    zero = torch.zeros(1, 3).double()
    assert byol(zero, z[:1]).item() == 2 and simsiam(zero, z[:1]).item() == 0
    assert alignment(zero, z[:1]).item() == pytest.approx(1, abs=1e-12)
    pair = torch.cat([zero, z[:1]])
    assert uniformity(pair).item() == pytest.approx(-2, abs=1e-12)  # distance^2 from the centre is 1


def test_small_off_diagonals_are_not_rounded_away():
    t = torch.arange(64, dtype=torch.float64)
    a = torch.stack([torch.cos(2 * math.pi * t / 64), torch.sin(2 * math.pi * t / 64)], 1)  # orthogonal columns
    b = a + 1e-4 * a.flip(1)
    exact = barlow_twins(a, b, weight=1e8, eps=0) - barlow_twins(a, b, weight=0, eps=0)  # about 2 (0.0001)^2 1e8
    found = barlow_twins(a.float(), b.float(), weight=1e8, eps=0)
    assert exact.item() == pytest.approx(2, rel=1e-3)
    assert found.item() == pytest.approx(exact.item(), rel=1e-2)


def test_uniformity_keeps_no_array_of_pairs_times_columns():
    z = torch.randn(32, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        uniformity(z).backward()
    assert max(sizes) <= 32 * 256


def test_one_column():
    a, b = A[:, :1], B[:, :1]
    assert barlow_twins(a, b, weight=1e6).item() == pytest.approx(plain_barlow(a, b, 0, 1e-5, 4), rel=1e-12)
    assert vicreg_terms(a, b).covariance.item() == 0


# --- errors


@pytest.mark.parametrize("loss", ROWS + BATCH)
def test_bad_views_name_the_argument(loss):
    first, second = NAMES.get(loss, ("view_a", "view_b"))
    bad = A.clone()
    bad[1, 2] = math.nan
    for call, message in [
        (lambda: loss(bad, B), rf"{first} must be finite"),
        (lambda: loss(A, bad), rf"{second} must be finite"),
        (lambda: loss(A, B[:3]), rf"{second} must have the shape of {first}, \(4, 3\), got \(3, 3\)"),
        (lambda: loss(A, B[:, :1]), rf"{second} must have the shape of {first}"),
        (lambda: loss(A, B.float()), rf"{second} must have the dtype of {first}, torch.float64, got torch.float32"),
        (lambda: loss(A.long(), B), rf"{first} must have a floating dtype, got torch.int64"),
        (lambda: loss(A[0], B[0]), rf"{first} must have 2 dimension"),
        (lambda: loss(A[:0], B[:0]), rf"{first} must not be empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("loss", BATCH)
def test_one_row_has_no_statistics(loss):
    with pytest.raises(ValueError, match="view_a must have at least 2 rows, got 1"):
        loss(A[:1], B[:1])


@pytest.mark.parametrize("loss", ROWS)
def test_one_row_is_enough_for_a_mean_over_rows(loss):
    assert loss(A[:1], B[:1]).item() == loss(A, B, reduction="none")[0].item()
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'max'"):
        loss(A, B, reduction="max")


def test_bad_options():
    for value in (-1.0, math.nan, math.inf):
        for option in ("weight", "eps"):
            with pytest.raises(ValueError, match=f"{option} must be a finite number of at least 0"):
                barlow_twins(A, B, **{option: value})
        for option in ("invariance", "variance", "covariance"):
            with pytest.raises(ValueError, match=f"{option} must be a finite number of at least 0"):
                vicreg(A, B, **{option: value})
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="t must be a finite number above 0"):
            uniformity(A, value)
    with pytest.raises(ValueError, match="z must have at least 2 rows, got 1"):
        uniformity(A[:1])
    with pytest.raises(ValueError, match="z must be finite"):
        uniformity(A / 0)
    with pytest.raises(ValueError, match="z must have a floating dtype"):
        uniformity(A.long())
