"""Row log-sum-exp of inner products without the n x m matrix: the one autograd function behind the contrastive losses.

Forward and backward walk over tiles; what is kept is one number a row, and the backward pass computes each tile
again. Where the matrix is symmetric (NT-Xent, SupCon) only the tiles on and above the diagonal are visited, and one
exponential serves its row and its column. The floor, for n rows of D numbers: 2 n^2 D operations forward and 6 n^2 D
backward, half of both where symmetric, and one exponential a visited entry and pass.

One shift c for all entries, c = max |x| max |y| >= |x_i . y_j|, takes the place of a running maximum as long as
e^{-2c} is a normal number; above that (small temperatures, raw scores) each row has its own running maximum.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gen_core._checks import full_precision
from gen_core.estimators.bounds import Match

WHOLE, TILE = 2**19, 512  # entries computed as one tile, and the side of a tile: 1 MiB, which stays in a core's cache
WHOLE_CUDA, TILE_CUDA = 2**24, 4096
NOBODY = torch.iinfo(torch.int64).min  # the label of columns that are negative for all rows


def row_lse(
    x: Tensor,
    y: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    *,
    diagonals: tuple[int, ...] = (),
    match: Match | None = None,
) -> Tensor:
    """log sum_j exp(x_i . y_j / t) over the columns j of each row i that are not left out.

    Few pairs are computed at once, many by tiles. These are once differentiable in O(n D) memory: the gradient of the
    gradient (`create_graph=True`), and everything inside `torch.compile`, is computed at once too, in n x m numbers.

    Args:
        x: (n, d) float32 or float64; normalisation is the caller's.
        y: (m, d) columns; None takes x, and half of the products.
        temperature: t > 0.
        diagonals: the pairs j = i + d are left out, for each d.
        match: its positive pairs are left out too (labels, where diagonals cannot say it).

    Returns:
        (n,) nats; -inf, with no gradient, at a row whose columns are all left out.

    Examples:
        >>> z = torch.zeros(4, 2)
        >>> row_lse(z, diagonals=(0, 2))[:3].exp().tolist()
        [2.0, 2.0, 3.0]
    """
    labels = ref = None
    if match is not None:
        labels = match.labels.to(x.device, torch.int64)
        ref = labels if match.ref_labels is None else match.ref_labels.to(x.device, torch.int64)
        ref = torch.where(ref == -1, NOBODY, ref)
        diagonals = diagonals if match.skip is None else (*diagonals, match.skip)
    columns = x if y is None else y
    if x.shape[0] * columns.shape[0] <= (WHOLE_CUDA if x.is_cuda else WHOLE) or torch.compiler.is_compiling():
        return _dense(x / temperature, columns, labels, ref, diagonals)
    root = temperature**0.5  # on both sides, so that the matrix of x with itself stays symmetric
    symmetric = y is None and (match is None or match.ref_labels is None) and set(diagonals) == {-d for d in diagonals}
    x = x / root
    columns = x if y is None else columns / root
    return _RowLSE.apply(x, columns, labels, ref, diagonals, symmetric)  # pyright: ignore


def _dense(x: Tensor, y: Tensor, labels: Tensor | None, ref: Tensor | None, diagonals: tuple[int, ...]) -> Tensor:
    s = x @ y.T
    i, j = torch.arange(x.shape[0], device=s.device)[:, None], torch.arange(y.shape[0], device=s.device)
    out = None if labels is None or ref is None else labels[:, None] == ref
    for d in diagonals:
        out = i + d == j if out is None else out | (i + d == j)
    if out is None:
        return s.logsumexp(1)
    empty = out.all(1)  # a row of -inf alone would give NaN gradients
    lse = s.masked_fill(out & ~empty[:, None], -math.inf).logsumexp(1)
    return lse.masked_fill(empty, -math.inf)


class _RowLSE(torch.autograd.Function):
    """`_dense` by tiles."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        labels: Tensor | None,
        ref: Tensor | None,
        diagonals: tuple[int, ...],
        symmetric: bool,
    ) -> Tensor:
        lse = _forward(_Tiles(x, y, labels, ref, diagonals, symmetric))
        ctx.save_for_backward(x, y, labels, ref, lse)
        ctx.diagonals, ctx.symmetric = diagonals, symmetric
        return lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, labels, ref, lse = ctx.saved_tensors
        grad, none = grads[0], (None, None, None, None)
        need_x, need_y = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not ctx.symmetric
        if torch.is_grad_enabled():  # create_graph: the gradient itself must be differentiable
            again = _dense(x, y, labels, ref, ctx.diagonals)
            sides = [side for side, needed in ((x, need_x), (y, need_y)) if needed]
            found = iter(torch.autograd.grad(again, sides, grad, create_graph=True))
            return (next(found) if need_x else None, next(found) if need_y else None, *none)
        with full_precision(x):
            return (*_backward(_Tiles(x, y, labels, ref, ctx.diagonals, ctx.symmetric), lse, grad, need_y), *none)


class _Tiles:
    """The tiles of x y^T that must be visited, with the columns that do not count at -inf."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        labels: Tensor | None,
        ref: Tensor | None,
        diagonals: tuple[int, ...],
        symmetric: bool,
    ) -> None:
        self.x, self.y, self.labels, self.ref = x, y, labels, ref
        self.diagonals, self.symmetric = diagonals, symmetric
        self.side = TILE_CUDA if x.is_cuda else TILE
        self.n, self.m = x.shape[0], y.shape[0]
        self._rows, self._columns = _ranges(labels, self.side), _ranges(ref, self.side)
        self._buffer = x.new_empty(self.side**2)

    def __iter__(self) -> Iterator[tuple[slice, slice, bool]]:
        """Rows, columns, and whether the mirrored tile is another one, to be served by this one too."""
        for i in range(0, self.n, self.side):
            for j in range(i if self.symmetric else 0, self.m, self.side):
                yield slice(i, i + self.side), slice(j, j + self.side), self.symmetric and j > i

    def bound(self) -> float:
        """c >= |x_i . y_j| for all pairs."""
        top = self.x.square().sum(1).max()
        return float(top if self.symmetric else (top * self.y.square().sum(1).max()).sqrt())

    def scores(self, rows: slice, columns: slice) -> Tensor:
        """The scores of one tile, good until the next is asked for."""
        x, y = self.x[rows], self.y[columns]
        n, m = x.shape[0], y.shape[0]
        s = torch.mm(x, y.T, out=self._buffer[: n * m].view(n, m))
        i, j = rows.start, columns.start
        if self.labels is not None and self.ref is not None and self._meet(i, j):
            s.masked_fill_(self.labels[rows, None] == self.ref[columns], -math.inf)
        for d in self.diagonals:
            if -n < i + d - j < m:
                s.diagonal(i + d - j).fill_(-math.inf)
        return s

    def _meet(self, i: int, j: int) -> bool:
        """False where no label of the rows can be among those of the columns."""
        a, b = self._rows[i // self.side], self._columns[j // self.side]
        return a[0] <= b[1] and b[0] <= a[1]


def _ranges(labels: Tensor | None, side: int) -> list[tuple[int, int]]:
    """The least and the largest label of each block, so that most tiles need no comparison."""
    if labels is None:
        return []
    blocks = (labels[i : i + side] for i in range(0, len(labels), side))
    return [(int(b.min()), int(b.max())) for b in blocks]


def _shareable(bound: float, dtype: torch.dtype) -> bool:
    """Whether e^{-2 bound} is a normal number, so that one exponential, shifted by the bound, serves row and column."""
    return 2 * bound < (80 if dtype == torch.float32 else 600)


def _forward(t: _Tiles) -> Tensor:
    c = t.bound()
    sums = t.x.new_zeros(t.n)
    if _shareable(c, t.x.dtype):
        for rows, columns, mirrored in t:
            e = t.scores(rows, columns).sub_(c).exp_()
            sums[rows] += e.sum(1)
            if mirrored:
                sums[columns] += e.sum(0)
        return sums.log_().add_(c)
    top = torch.full_like(sums, -math.inf)
    for rows, columns, mirrored in t:
        s = t.scores(rows, columns)
        _merge(top, sums, rows, s, 1)
        if mirrored:
            _merge(top, sums, columns, s, 0)
    return top + sums.log()


def _merge(top: Tensor, sums: Tensor, where: slice, s: Tensor, dim: int) -> None:
    """Add the exponentials of a tile to the running sums, which are relative to the running maximum."""
    old = top[where]
    new = torch.maximum(old, s.amax(dim))
    shift = torch.where(new == -math.inf, 0.0, new)
    sums[where] = sums[where] * (old - shift).exp() + (s - shift.unsqueeze(dim)).exp_().sum(dim)
    top[where] = new


def _backward(t: _Tiles, lse: Tensor, grad: Tensor, need_y: bool) -> tuple[Tensor, Tensor | None]:
    """d/dx_i = sum_j (g_i p_ij [+ g_j p_ji, symmetric]) y_j with p_ij = exp(s_ij - lse_i)."""
    some = lse > -math.inf
    g, lse = torch.where(some, grad, 0.0), torch.where(some, lse, 0.0)
    dx, dy = torch.zeros_like(t.x), torch.zeros_like(t.y) if need_y else None
    c = t.bound()
    shared = _shareable(c, t.x.dtype)
    weight = g * (c - lse).exp() if shared else g
    for rows, columns, mirrored in t:
        p = t.scores(rows, columns)
        if shared:
            p.sub_(c).exp_().mul_(weight[rows, None] + weight[columns] if t.symmetric else weight[rows, None])
        elif t.symmetric:
            p = (p - lse[rows, None]).exp_().mul_(g[rows, None]) + (p - lse[columns]).exp_().mul_(g[columns])
        else:
            p.sub_(lse[rows, None]).exp_().mul_(g[rows, None])
        dx[rows].addmm_(p, t.y[columns])
        if mirrored:
            dx[columns].addmm_(p.T, t.x[rows])
        if dy is not None:
            dy[columns].addmm_(p.T, t.x[rows])
    return dx, dy
