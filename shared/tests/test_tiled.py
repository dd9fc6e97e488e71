"""The tiled log-sum-exp and the losses on it, against dense forms written out here, in float64."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from gen_core import _tiled
from gen_core._tiled import row_lse
from gen_core.estimators import Match
from gen_core.losses import contrastive, info_nce, nt_xent, sup_con

SIZES = [31, 64, 100, 150]  # below, at and above a tile of 64, and no multiple of it


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 64 x 64 from the first row on, so that small inputs have several."""
    monkeypatch.setattr(_tiled, "WHOLE", 0)
    monkeypatch.setattr(_tiled, "TILE", 64)
    monkeypatch.setattr(contrastive, "SMALL", 0)


def rows(n, d=8, seed=0, dtype=torch.float64, scale=1.0):
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return z.to(dtype)


def dense_lse(x, y, out):
    s = (x @ y.T).masked_fill(out, -math.inf)
    top = s.max(1, keepdim=True).values
    return (top + (s - top).exp().sum(1, keepdim=True).log())[:, 0]


def dense_nt_xent(a, b, tau, normalize=True):
    z = torch.cat([a, b])
    z = F.normalize(z) if normalize else z
    s = (z @ z.T / tau).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    return F.cross_entropy(s, torch.arange(len(z)).roll(len(a)))


def dense_info_nce(q, k, tau):
    return F.cross_entropy(F.normalize(q) @ F.normalize(k).T / tau, torch.arange(len(q)))


def dense_sup_con(z, y, tau):
    z = F.normalize(z)
    own = torch.eye(len(z), dtype=torch.bool)
    log_p = (z @ z.T / tau).masked_fill(own, -math.inf).log_softmax(1).masked_fill(own, 0.0)
    same = (y[:, None] == y) & ~own
    has = same.any(1)
    return -((log_p * same).sum(1)[has] / same.sum(1)[has]).mean()


def labels_of(n):
    y = torch.arange(n) % 10
    y[3] = 99  # a row without a positive
    return y


CASES = {
    "nt_xent": (nt_xent, dense_nt_xent, False),
    "info_nce": (info_nce, dense_info_nce, False),
    "sup_con": (lambda z, y, tau: sup_con(z, y, tau), dense_sup_con, True),
}


def both(name, n, tau, dtype=torch.float64):
    """(value, gradients) of the loss in `dtype` and of its dense form in float64 on the same numbers."""
    loss, dense, labelled = CASES[name]
    found = []
    for f, kind in ((loss, dtype), (dense, torch.float64)):
        a = rows(n, 16, 1).to(dtype).to(kind).requires_grad_()
        b = labels_of(n) if labelled else rows(n, 16, 2).to(dtype).to(kind).requires_grad_()
        value = f(a, b, tau)
        value.backward()
        found.append((value.detach().double(), torch.cat([v.grad.double() for v in (a, b) if v.is_floating_point()])))
    return found


# ------------------------------------------------------------------------------------------------- against the dense


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("tau", [0.5, 0.07, 0.01])  # the last one walks with a running maximum in float32
def test_losses_in_float64(name, n, tau):
    (value, grad), (expected, expected_grad) = both(name, n, tau)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12 * max(1, abs(expected.item())))
    assert (grad - expected_grad).norm() <= 1e-12 * expected_grad.norm()


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("n", [100, 150])
@pytest.mark.parametrize("tau", [0.5, 0.07, 0.01])
def test_losses_in_float32(name, n, tau):
    (value, grad), (expected, expected_grad) = both(name, n, tau, torch.float32)
    allowed = 1e-6 * max(1, abs(expected.item())) + 4 * torch.finfo(torch.float32).eps / tau
    assert abs(value - expected) <= allowed
    assert (grad - expected_grad).norm() <= 1e-5 * expected_grad.norm()


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(name, dtype):
    (value, grad), (expected, expected_grad) = both(name, 150, 0.1, dtype)
    assert abs(value - expected) <= 1e-5  # of the same rounded numbers
    # the gradient is rounded once, when it returns in the input's own dtype
    assert (grad - expected_grad).norm() <= 2 * torch.finfo(dtype).eps * expected_grad.norm()


@pytest.mark.parametrize("n", [2, 40])
@pytest.mark.parametrize("tau", [0.5, 0.01])
def test_few_pairs(monkeypatch, n, tau):
    monkeypatch.undo()
    (value, grad), (expected, expected_grad) = both("nt_xent", n, tau)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12 * max(1, abs(expected.item())))
    assert (grad - expected_grad).norm() <= 1e-12 * expected_grad.norm()


def test_the_real_tile_size(monkeypatch):
    monkeypatch.undo()
    n = 800  # 1,600 rows: above what is computed whole, and no multiple of the tile
    assert (2 * n) ** 2 > _tiled.WHOLE
    (value, grad), (expected, expected_grad) = both("nt_xent", n, 0.5)
    assert abs(value - expected) <= 1e-12
    assert (grad - expected_grad).norm() <= 1e-12 * expected_grad.norm()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("scale", [0.3, 60.0])  # 60: logits of 1e4, beyond one shift for all
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masks_of_all_kinds(monkeypatch, whole, scale, dtype):
    if whole:
        monkeypatch.setattr(_tiled, "WHOLE", 2**30)
    n, m = 130, 200
    x, y = rows(n, 8, 3, dtype, scale), rows(m, 8, 4, dtype, scale)
    draw = torch.Generator().manual_seed(5)
    own, ref = torch.randint(0, 9, (n,), generator=draw), torch.randint(-1, 9, (m,), generator=draw)
    i, j = torch.arange(n)[:, None], torch.arange(m)
    equal = (own[:, None] == ref) & (ref != -1)
    square = own[:, None] == own
    for columns, given, out in (
        (y, {}, torch.zeros(n, m, dtype=torch.bool)),
        (y, {"diagonals": (0,)}, i == j),
        (y, {"diagonals": (-70, 90)}, (i - 70 == j) | (i + 90 == j)),
        (y, {"match": Match(own, ref)}, equal),
        (y, {"match": Match(own, ref, skip=40)}, equal | (i + 40 == j)),
        (None, {"diagonals": (0,)}, torch.eye(n, dtype=torch.bool)),
        (None, {"diagonals": (5,)}, i + 5 == torch.arange(n)),  # not symmetric
        (None, {"match": Match(own, skip=0)}, square),
        (None, {"match": Match(own, own.flip(0))}, own[:, None] == own.flip(0)),  # not symmetric
    ):
        sides = [v.clone().requires_grad_() for v in ((x,) if columns is None else (x, columns))]
        lse = row_lse(*sides, **given)
        again = [v.detach().double().requires_grad_() for v in sides]
        expected = dense_lse(again[0], again[-1], out)
        weight = rows(n, 1, 6)[:, 0]
        grads = torch.autograd.grad((lse * weight).sum(), sides)
        expected_grads = torch.autograd.grad((expected * weight).sum(), again)
        close = 1e-12 if dtype == torch.float64 else 1e-6
        top = float(expected.detach().abs().max())
        assert (lse - expected).abs().max() <= close * (1 + 4 * top)
        for grad, exact in zip(grads, expected_grads, strict=True):
            assert (grad - exact).norm() <= (1e-12 if dtype == torch.float64 else 1e-5 * (1 + top / 1e3)) * exact.norm()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_without_columns_is_minus_infinity_without_gradient(monkeypatch, whole, scale, symmetric):
    if whole:
        monkeypatch.setattr(_tiled, "WHOLE", 2**30)
    x = rows(80, 4, scale=scale).requires_grad_()
    labels = torch.zeros(80, dtype=torch.long) if symmetric else torch.arange(80)
    ref = None if symmetric else torch.full((80,), 7)
    lse = row_lse(x, None if symmetric else rows(80, 4, 1, scale=scale), match=Match(labels, ref))
    gone = torch.ones(80, dtype=torch.bool) if symmetric else torch.arange(80) == 7
    assert torch.equal(lse == -math.inf, gone)
    lse.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[gone].any()


def test_bank_negatives_take_the_place_of_the_other_keys():
    q, k, bank = rows(40, 6, 1).requires_grad_(), rows(40, 6, 2), rows(333, 6, 3)
    logits = torch.cat(
        [(F.normalize(q) * F.normalize(k)).sum(1, keepdim=True), F.normalize(q) @ F.normalize(bank).T], 1
    )
    expected = F.cross_entropy(logits / 0.07, torch.zeros(40, dtype=torch.long))
    loss = info_nce(q, k, 0.07, negatives=bank)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(v, q)[0] for v in (loss, expected)), rtol=0, atol=1e-12)
    assert info_nce(q[:1], k[:1], negatives=bank).isfinite()
    with pytest.raises(ValueError, match="negatives must have 6 columns"):
        info_nce(q, k, negatives=bank[:, :5])
    with pytest.raises(ValueError, match="negatives must be finite"):
        info_nce(q, k, negatives=bank / 0)
    with pytest.raises(ValueError, match="gather must be False with negatives"):
        info_nce(q, k, negatives=bank, gather=True)


# ------------------------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("n", [70, 129])
def test_duplicated_rows_and_permutations(n):
    z = rows(n, 6)
    z = torch.cat([z[: n // 2], z])[:n]  # rows twice
    y = labels_of(n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sup_con(z[order], y[order], 0.1), sup_con(z, y, 0.1), rtol=0, atol=1e-12)
    torch.testing.assert_close(nt_xent(z, z.flip(0)), nt_xent(z.flip(0), z), rtol=0, atol=1e-12)
    same = torch.ones(n, 3, dtype=torch.float64)
    assert nt_xent(same, same, 0.01).item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_of_ten_thousand_are_finite(dtype):
    a, b = (rows(90, 4, s, dtype, 50.0).requires_grad_() for s in (1, 2))
    value = nt_xent(a, b, 0.5, normalize=False)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(v.grad).all() and v.grad.any() for v in (a, b))


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("whole", [True, False])
def test_gradcheck_and_gradgradcheck(monkeypatch, name, whole):
    monkeypatch.setattr(_tiled, "TILE", 4)
    if whole:
        monkeypatch.undo()
    loss, _, labelled = CASES[name]
    tau = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    a = rows(6, 3, 1).requires_grad_()
    if labelled:
        f, args = lambda a, t: loss(a, torch.tensor([0, 1, 0, 2, 1, 0]), t), (a, tau)
    else:
        f, args = loss, (a, rows(6, 3, 2).requires_grad_(), tau)
    assert torch.autograd.gradcheck(f, args)
    assert torch.autograd.gradgradcheck(f, args)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("only", ["both", "a", "b"])
def test_gradients_of_few_pairs(monkeypatch, normalize, only):
    monkeypatch.undo()
    a, b = rows(5, 3, 1), rows(5, 3, 2)
    a.requires_grad_(only != "b")
    b.requires_grad_(only != "a")

    def f(x, y):
        return nt_xent(x, y, 0.6, "none", normalize=normalize)

    assert torch.autograd.gradcheck(f, (a, b))
    assert torch.autograd.gradgradcheck(f, (a, b))
    zero = torch.zeros(3, 2, requires_grad=True)
    nt_xent(zero, rows(3, 2, dtype=torch.float32)).backward()
    assert torch.isfinite(zero.grad).all()


def test_backward_can_run_twice():
    a, b = rows(90).requires_grad_(), rows(90, 8, 2).requires_grad_()
    loss = nt_xent(a, b)
    first = torch.autograd.grad(loss, (a, b), retain_graph=True)
    for x, y in zip(first, torch.autograd.grad(loss, (a, b)), strict=True):
        assert torch.equal(x, y)


def test_only_one_number_a_row_is_kept_for_the_backward_pass():
    n, d = 1000, 4
    a, b = (rows(n, d, s, torch.float32).requires_grad_() for s in (1, 2))
    kept: dict[int, int] = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        nt_xent(a, b)
    assert sum(kept.values()) <= 6 * 2 * n * d * 4  # the full matrix has 16 million bytes, a tile 16 thousand


def test_autocast_stays_outside():
    a, b = (rows(90, 8, s, torch.float32).requires_grad_() for s in (1, 2))
    plain = nt_xent(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = nt_xent(a, b)
        grad = torch.autograd.grad(cast, a)[0]
    assert torch.equal(cast, plain)
    assert torch.equal(grad, torch.autograd.grad(plain, a)[0])


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_form_that_is_compiled(monkeypatch, name):
    """Inside torch.compile the dense form runs; the compiler itself takes half a minute, so we say that it is there."""
    (value, grad), _ = both(name, 70, 0.3)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    (compiled, compiled_grad), _ = both(name, 70, 0.3)
    assert abs(value - compiled) < 1e-12
    assert (grad - compiled_grad).norm() < 1e-12


def test_the_graph_that_is_compiled_is_whole():
    a, b = rows(70, 8, 1), rows(70, 8, 2)
    compiled = torch.compile(partial(nt_xent, temperature=0.3), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(a, b), nt_xent(a, b, 0.3), rtol=0, atol=1e-12)
