"""Margin losses: worked numbers, plain loops, gradients at equal points and ties, precision, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from gen_core.losses.margin import contrastive_margin, pair_distance, ranking_hinge, triplet

K = torch.arange(12, dtype=torch.float64).view(4, 3)
A, B = torch.sin(0.37 * K + 0.1), torch.cos(0.53 * K + 0.2)
NEXT = B.roll(-1, 0)  # row i holds b_{i+1}
DISTANCES = ["euclidean", "squared", "cosine"]


def cosines():
    return F.normalize(A) @ F.normalize(B).T


def draw(n, d, seed, count=3):
    return torch.randn(count, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_distance(x, y, kind):
    dot = lambda u, v: math.fsum(p * q for p, q in zip(u, v, strict=True))  # noqa: E731
    if kind == "cosine":
        return 1 - dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))
    gap = [p - q for p, q in zip(x, y, strict=True)]
    return dot(gap, gap) if kind == "squared" else math.sqrt(dot(gap, gap))


# --- worked numbers


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_worked(dtype, tolerance):
    a, b, c = (v.to(dtype) for v in (A, B, NEXT))
    for found, value in [
        (triplet(a, b, c), 1.029124),
        (triplet(a, b, c, distance="squared"), 1.633148),
        (triplet(a, b, c, margin=0.2, distance="cosine"), 0.598323),
        (triplet(a, b, c, margin=None), 0.768124),
        (contrastive_margin(pair_distance(a, b), pair_distance(a, c)), 2.311623),
        (ranking_hinge(cosines().to(dtype)), 4.237734),
        (ranking_hinge(cosines().to(dtype), hardest=True), 2.046490),
    ]:
        assert found.dtype == dtype and found.item() == pytest.approx(value, abs=tolerance)


def test_torch_adds_a_millionth():
    assert F.triplet_margin_loss(A, B, NEXT).item() == pytest.approx(1.029125, abs=1e-6)
    assert F.triplet_margin_loss(A, B, NEXT, eps=0).item() == pytest.approx(triplet(A, B, NEXT).item(), abs=1e-12)


# --- definitions


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("n", "d", "seed"), [(1, 4, 0), (6, 3, 1), (9, 1, 2)])
def test_triplets_against_plain_loops(distance, n, d, seed):
    a, p, q = draw(n, d, seed)
    rows = list(zip(a.tolist(), p.tolist(), q.tolist(), strict=True))
    near = [plain_distance(x, y, distance) for x, y, _ in rows]
    far = [plain_distance(x, z, distance) for x, _, z in rows]
    assert pair_distance(a, p, distance).tolist() == pytest.approx(near, abs=1e-12)
    for margin in (0.0, 0.3, 2.0):
        expected = [max(0.0, margin + u - v) for u, v in zip(near, far, strict=True)]
        assert triplet(a, p, q, margin, distance, "none").tolist() == pytest.approx(expected, abs=1e-12)
        assert triplet(a, p, q, margin, distance).item() == pytest.approx(math.fsum(expected) / n, abs=1e-12)
        assert triplet(a, p, q, margin, distance, "sum").item() == pytest.approx(math.fsum(expected), abs=1e-12)
    soft = [math.log1p(math.exp(u - v)) for u, v in zip(near, far, strict=True)]
    assert triplet(a, p, q, None, distance, "none").tolist() == pytest.approx(soft, abs=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.7, 3.0])
def test_contrastive_against_a_plain_loop(margin):
    pos, neg = (v.abs() for v in (draw(7, 1, 0, 1)[0, :, 0], draw(4, 1, 1, 1)[0, :, 0]))
    expected = sum(v**2 for v in pos.tolist()) / 14 + sum(max(0.0, margin - v) ** 2 for v in neg.tolist()) / 8
    assert contrastive_margin(pos, neg, margin).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("margin", [0.0, 0.5, 4.0])
def test_ranking_against_plain_loops(n, margin):
    scores = draw(n, n, n, 1)[0]
    s = scores.tolist()
    costs = [[max(0.0, margin - s[i][i] + s[i][j]) for j in range(n) if j != i] for i in range(n)]
    total, worst = [math.fsum(row) for row in costs], [max(row) for row in costs]
    assert ranking_hinge(scores, margin, reduction="none").tolist() == pytest.approx(total, abs=1e-12)
    assert ranking_hinge(scores, margin, hardest=True, reduction="none").tolist() == pytest.approx(worst, abs=1e-12)
    assert ranking_hinge(scores, margin).item() == pytest.approx(math.fsum(total) / n, abs=1e-12)
    assert ranking_hinge(scores, margin, reduction="sum").item() == pytest.approx(math.fsum(total), abs=1e-12)
    assert ranking_hinge(scores, margin, hardest=True).item() == pytest.approx(math.fsum(worst) / n, abs=1e-12)


def test_both_directions_of_ranking_differ():
    s = cosines()
    s_t = s.T.tolist()
    expected = sum(max(0.0, 0.5 - s_t[i][i] + s_t[i][j]) for i in range(4) for j in range(4) if i != j) / 4
    assert ranking_hinge(s.T).item() == pytest.approx(expected, abs=1e-12)
    assert not torch.isclose(ranking_hinge(s), ranking_hinge(s.T))


@pytest.mark.parametrize("seed", range(3))
def test_order_shift_and_scale(seed):
    a, p, q = draw(6, 4, seed)
    rows = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    scores = a @ p.T
    for distance in DISTANCES:
        value = triplet(a, p, q, distance=distance)
        torch.testing.assert_close(triplet(a[rows], p[rows], q[rows], distance=distance), value, rtol=1e-12, atol=0)
    shifted = triplet(a + 3, p + 3, q + 3)
    torch.testing.assert_close(shifted, triplet(a, p, q), rtol=1e-12, atol=0)
    torch.testing.assert_close(triplet(2 * a, 2 * p, 2 * q, margin=2.0), 2 * triplet(a, p, q), rtol=1e-12, atol=0)
    stretched = triplet(5 * a, p / 7, 2 * q, distance="cosine")
    torch.testing.assert_close(stretched, triplet(a, p, q, distance="cosine"), rtol=1e-12, atol=0)
    for hardest in (False, True):
        value = ranking_hinge(scores, hardest=hardest)
        torch.testing.assert_close(ranking_hinge(scores[rows][:, rows], hardest=hardest), value, rtol=1e-12, atol=0)
        torch.testing.assert_close(ranking_hinge(scores + 9, hardest=hardest), value, rtol=1e-12, atol=0)
        assert not torch.isclose(ranking_hinge(scores.roll(1, 0), hardest=hardest), value)


# --- gradients


def test_gradcheck():
    inputs = [v.clone().requires_grad_() for v in (A, B, NEXT)]
    for distance in DISTANCES:
        for margin in (1.0, None):
            for reduction in ("mean", "none"):
                assert torch.autograd.gradcheck(
                    lambda *v, m=margin, d=distance, r=reduction: triplet(*v, m, d, r), inputs
                )
        assert torch.autograd.gradcheck(lambda x, y, d=distance: pair_distance(x, y, d), inputs[:2])
    near, far = pair_distance(A, B).requires_grad_(), (pair_distance(A, NEXT) / 2).requires_grad_()
    assert (far < 1).any() and (far > 1).any()
    assert torch.autograd.gradcheck(contrastive_margin, (near, far))
    scores = cosines().requires_grad_()
    for hardest in (False, True):
        assert torch.autograd.gradcheck(lambda s, h=hardest: ranking_hinge(s, hardest=h), (scores,))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_equal_points_have_a_finite_gradient(distance, dtype):
    for fill in (0.0, 1.0):
        a, p, q = (torch.full((3, 2), fill, dtype=dtype).requires_grad_() for _ in range(3))
        value = triplet(a, p, q, distance=distance)
        value.backward()
        assert value.item() == pytest.approx(1, abs=1e-6)
        assert all(v.grad.isfinite().all() for v in (a, p, q))
        x, y = (torch.full((3, 2), fill, dtype=dtype).requires_grad_() for _ in range(2))
        pair_distance(x, y, distance).sum().backward()
        assert x.grad.isfinite().all() and y.grad.isfinite().all()
        if distance == "euclidean":
            assert (x.grad == 0).all()
    x, y = (torch.ones(3, 2, dtype=dtype).requires_grad_() for _ in range(2))
    contrastive_margin(pair_distance(x, y, distance), pair_distance(x, y, distance)).backward()
    assert x.grad.isfinite().all()


def test_triplets_beyond_the_margin_have_no_gradient_but_count():
    a = torch.zeros(2, 1, requires_grad=True)
    p, q = torch.tensor([[1.0], [1.0]]), torch.tensor([[5.0], [1.5]])
    loss = triplet(a, p, q)
    loss.backward()
    assert loss.item() == 0.25  # (0 + 0.5) / 2
    assert a.grad[0].item() == 0


def test_the_hardest_negative_alone_has_a_gradient_and_ties_share_it():
    s = torch.tensor([[1.0, 0.9, 0.7], [0.6, 1.0, 0.6], [0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    ranking_hinge(s, hardest=True, reduction="sum").backward()
    expected = [[-1, 1, 0], [0.5, -1, 0.5], [0, 0, 0]]
    torch.testing.assert_close(s.grad, torch.tensor(expected, dtype=torch.float64))


# --- precision and extremes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    low = [v.to(dtype) for v in (A, B, NEXT)]
    scores = cosines().to(dtype)
    for call in (
        *[lambda up, d=d, m=m: triplet(*map(up, low), m, d) for d in DISTANCES for m in (1.0, None)],
        lambda up: contrastive_margin(up(low[0][:, 0]), up(low[1][:, 0])),
        lambda up: ranking_hinge(up(scores)),
        lambda up: ranking_hinge(up(scores), hardest=True),
    ):
        found = call(lambda v: v)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(call(torch.Tensor.double).item(), rel=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert call(lambda v: v) == found


@pytest.mark.parametrize("margin", [1.0, None])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_large_and_tiny_points_are_finite(margin, distance, scale):
    a, p, q = ((v * scale).half().requires_grad_() for v in (A, B, NEXT))
    value = triplet(a, p, q, margin, distance)
    value.backward()
    exact = triplet(a.double(), p.double(), q.double(), margin, distance)
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    assert a.grad.isfinite().all()


def test_large_scores_and_all_equal_scores():
    s = (cosines() * 6e4).half().requires_grad_()
    value = ranking_hinge(s)
    value.backward()
    assert value.isfinite() and s.grad.isfinite().all()
    equal = torch.ones(5, 5)
    assert ranking_hinge(equal).item() == 2.0 and ranking_hinge(equal, hardest=True).item() == 0.5
    assert contrastive_margin(torch.full((3,), 1e4).half(), torch.zeros(2)).item() == pytest.approx((1e8 + 1) / 2)


# --- errors


@pytest.mark.parametrize(
    ("place", "first", "name"), [(0, "anchor", "anchor"), (1, "anchor", "positive"), (2, "anchor", "negative")]
)
def test_bad_triplets_name_the_argument(place, first, name):
    def call(wrong):
        given = [A, B, NEXT]
        given[place] = wrong
        return triplet(*given)

    bad = A.clone()
    bad[1, 1] = math.nan
    for wrong, message in [
        (bad, f"{name} must be finite"),
        (A.long(), f"{name} must have a floating dtype, got torch.int64"),
        (A[0], f"{name} must have 2 dimension"),
        (A[:0], f"{name} must not be empty"),
        (A.numpy(), f"{name} must be a torch.Tensor"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(wrong)
    second = "positive" if place == 0 else name
    for wrong, message in [(A[:, :1], "shape"), (A[:1], "shape"), (A.float(), "dtype")]:
        with pytest.raises(ValueError, match=f"{second} must have the {message} of {first}"):
            call(wrong)


def test_bad_options():
    for margin in (-0.1, math.nan, math.inf):
        for call in (
            lambda m=margin: triplet(A, B, NEXT, m),
            lambda m=margin: contrastive_margin(A[:, 0], B[:, 0], m),
            lambda m=margin: ranking_hinge(cosines(), m),
        ):
            with pytest.raises(ValueError, match="margin must be a finite number of at least 0, got"):
                call()
    for call in (lambda: triplet(A, B, NEXT, distance="manhattan"), lambda: pair_distance(A, B, "manhattan")):
        with pytest.raises(ValueError, match="distance must be 'euclidean', 'squared' or 'cosine', got 'manhattan'"):
            call()
    for call in (
        lambda: triplet(A, B, NEXT, reduction="max"),
        lambda: ranking_hinge(cosines(), reduction="max"),
    ):
        with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'max'"):
            call()


def test_bad_scores_and_distances():
    for wrong in (cosines()[:3], torch.ones(1, 1)):
        with pytest.raises(ValueError, match="scores must be a square matrix of at least 2 rows, got shape"):
            ranking_hinge(wrong)
    for wrong, message in [
        (cosines() / 0, "be finite"),
        (torch.ones(3), "have 2 dim"),
        (torch.ones(2, 2).int(), "have a floating"),
    ]:
        with pytest.raises(ValueError, match=f"scores must {message}"):
            ranking_hinge(wrong)
    good = torch.ones(2)
    for wrong, message in [
        (good * math.nan, "be finite"),
        (torch.ones(2, 1), "have 1 dim"),
        (good.int(), "have a floating"),
        (good[:0], "not be empty"),
    ]:
        with pytest.raises(ValueError, match=f"pos must {message}"):
            contrastive_margin(wrong, good)
        with pytest.raises(ValueError, match=f"neg must {message}"):
            contrastive_margin(good, wrong)
    with pytest.raises(ValueError, match="y must have the shape of x"):
        pair_distance(A, B[:, :1])
    with pytest.raises(ValueError, match="x must be finite"):
        pair_distance(A / 0, B)
