"""Sparse products and the one-layer GCN encoder. Matrices are CSR; only the dense operand of a product learns."""

import warnings
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SPARSE_BELOW = 0.1
"""Features become CSR below this share of non-zeros; the CSR product was the faster one up to about there."""


@dataclass(frozen=True)
class Sparse:
    """A constant (n, m) matrix in CSR form with its transpose, which the backward pass of `spmm` multiplies by."""

    matrix: Tensor
    transpose: Tensor

    @classmethod
    def from_coo(cls, rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> Self:
        """Entries (rows[k], cols[k], values[k]), added where places repeat. A symmetric matrix is stored once."""
        matrix = _csr(rows, cols, values, shape)
        transpose = _csr(cols, rows, values, (shape[1], shape[0]))
        return cls(matrix, matrix if _equal(matrix, transpose) else transpose)

    @classmethod
    def from_dense(cls, x: Tensor) -> Self:
        """x: (n, m)."""
        rows, cols = x.nonzero(as_tuple=True)
        return cls.from_coo(rows, cols, x[rows, cols], (x.shape[0], x.shape[1]))

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    def to(self, device: torch.device | str) -> Self:
        """The same matrix on `device`; itself when it is there."""
        if self.matrix.device == torch.device(device):
            return self
        matrix = self.matrix.to(device)
        return type(self)(matrix, matrix if self.transpose is self.matrix else self.transpose.to(device))


def _csr(rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    place, inverse = torch.unique(rows * shape[1] + cols, return_inverse=True)  # sorted: row by row
    total = torch.zeros(len(place), dtype=values.dtype, device=values.device).index_add_(0, inverse, values)
    counts = torch.bincount(place // shape[1], minlength=shape[0])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # "CSR support is in beta", "invariant checks are off"
        return torch.sparse_csr_tensor(starts, place % shape[1], total, shape)


def _equal(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and torch.equal(a.crow_indices(), b.crow_indices())
        and torch.equal(a.col_indices(), b.col_indices())
        and torch.equal(a.values(), b.values())
    )


class _Spmm(torch.autograd.Function):
    # PyTorch's own backward of CSR @ dense transposes anew each time, or refuses; the stored transpose costs nothing.
    @staticmethod
    def forward(ctx: Any, sparse: Sparse, dense: Tensor) -> Tensor:
        ctx.transpose = sparse.transpose
        with torch.autocast(dense.device.type, enabled=False):
            return sparse.matrix @ dense.to(sparse.matrix.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.transpose @ grad


def spmm(left: Sparse | Tensor, right: Tensor) -> Tensor:
    """(n, m) @ (m, h) -> (n, h), differentiable in `right` when `left` is `Sparse`, in both when it is dense."""
    return _Spmm.apply(left, right) if isinstance(left, Sparse) else left @ right  # pyright: ignore[reportReturnType]


class _PReLU(torch.autograd.Function):
    # torch's backward writes an (n, h) gradient of the one slope before summing it: ten times a CSR product's time.
    @staticmethod
    def forward(ctx: Any, z: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(z, slope)
        with torch.autocast(z.device.type, enabled=False):
            return nn.functional.prelu(z, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, slope = ctx.saved_tensors
        above = torch.ops.aten.threshold_backward(grad, z, 0)  # grad where z > 0, else 0
        return torch.lerp(above, grad, slope), torch.dot(z.clamp(max=0).flatten(), grad.flatten()).reshape(1)


def prelu(z: Tensor, slope: Tensor) -> Tensor:
    """max(z, 0) + slope * min(z, 0) with one shared slope; z: any shape, slope: (1,)."""
    return _PReLU.apply(z, slope)  # pyright: ignore[reportReturnType]


def gcn_matrix(edge_index: Tensor, nodes: int, dtype: torch.dtype = torch.float32) -> Sparse:
    """D^-1/2 (A + I) D^-1/2 of Kipf and Welling (2017), entry [target, source], degrees by target.

    edge_index: (2, e), rows source and target. A self-loop that is there already stays one of weight 1 (as in PyG's
    `GCNConv`); an isolated node keeps its own self-loop, so that every degree is at least 1 and nothing is infinite.
    """
    source, target = edge_index
    apart = source != target
    loops = torch.arange(nodes, device=edge_index.device)
    source, target = torch.cat([source[apart], loops]), torch.cat([target[apart], loops])
    scale = torch.bincount(target, minlength=nodes).to(dtype).rsqrt()
    return Sparse.from_coo(target, source, scale[target] * scale[source], (nodes, nodes))


def normalize_rows(x: Tensor) -> Tensor:
    """Each row divided by the sum of its absolute values (for counts: its sum); a row of zeros stays. x: (n, f)."""
    total = x.abs().sum(dim=1, keepdim=True)
    return x / torch.where(total > 0, total, 1)


class Graph:
    """What a full-batch step needs, prepared once: features x (n, f), the GCN matrix (n, n), edge_index (2, e).

    No dataclass, since Lightning would take one apart and convert its tensors anew at every step.
    """

    def __init__(self, x: Tensor | Sparse, propagation: Sparse, edge_index: Tensor) -> None:
        self.x, self.propagation, self.edge_index = x, propagation, edge_index

    @classmethod
    def of(cls, x: Tensor, edge_index: Tensor, *, normalize: bool, dense: bool = False) -> Self:
        """`dense=True` keeps dense features whatever their density, for encoders that are not ours."""
        x = normalize_rows(x) if normalize else x
        sparse = not dense and int(x.count_nonzero()) < SPARSE_BELOW * x.numel()
        return cls(Sparse.from_dense(x) if sparse else x, gcn_matrix(edge_index, len(x), x.dtype), edge_index)

    @property
    def nodes(self) -> int:
        return self.x.shape[0]

    def to(self, device: torch.device | str, **_: Any) -> Self:
        """The same graph on `device`; itself when it is there."""
        if self.edge_index.device == torch.device(device):
            return self
        return type(self)(self.x.to(device), self.propagation.to(device), self.edge_index.to(device))


class GCN(nn.Module):
    """One graph convolution: PReLU(A^ X Theta + bias), A^ the normalised adjacency. (n, f) -> (n, hidden).

    Theta Xavier-uniform, bias 0, one shared slope that starts at 0.25. `project` and `propagate` are apart because
    corruption by permuting rows commutes with the first: (P X) Theta = P (X Theta).
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(nn.init.xavier_uniform_(torch.empty(features, hidden)))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.slope = nn.Parameter(torch.full((1,), 0.25))

    def project(self, x: Tensor | Sparse) -> Tensor:
        """X Theta."""
        return spmm(x, self.theta)

    def propagate(self, z: Tensor, propagation: Sparse) -> Tensor:
        """PReLU(A^ z + bias)."""
        return prelu(spmm(propagation, z) + self.bias, self.slope)

    def forward(self, graph: Graph) -> Tensor:
        return self.propagate(self.project(graph.x), graph.propagation)
