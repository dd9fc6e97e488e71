"""Sparse products and the one-layer GCN encoder. Matrices are CSR; only the dense operand of a product learns."""

import warnings
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

COLUMNS = 128
"""Columns that the gradient of the GCN takes at a time; 64 to 256 were alike."""
SPARSE_BELOW = 0.1
"""Features become CSR below this share of non-zeros; the CSR product was the faster one up to about there."""


class Sparse:
    """A constant (n, m) matrix, row by row, with its transpose for the way back of a product.

    Products go through `embedding_bag`, which is exactly the CSR product, two to four times faster on a CPU than
    torch's own. The transpose is made when it is first asked for, and shared by other values on the same places.

    Args:
        starts: (n + 1,) where each row's entries begin, the last one where they end.
        cols: (e,) the column of each entry.
        values: (e,) floating.
        width: m.
    """

    def __init__(self, starts: Tensor, cols: Tensor, values: Tensor, width: int) -> None:
        self.starts, self.cols, self.values, self.width = starts.int(), cols.int(), values, width
        self._turned: tuple[Tensor, Tensor, Tensor] | None = None
        self._transpose: Self | None = None

    @classmethod
    def from_coo(cls, rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> Self:
        """Entries (rows[k], cols[k], values[k]), added where places repeat. A symmetric matrix is stored once."""
        place, inverse = torch.unique(rows * shape[1] + cols, return_inverse=True)  # sorted: row by row
        total = torch.zeros(len(place), dtype=values.dtype, device=values.device).index_add_(0, inverse, values)
        found = cls(starts_of(place // shape[1], shape[0]), place % shape[1], total, shape[1])
        if shape[0] == shape[1]:
            other, names = found.transpose, ("starts", "cols", "values")
            if all(torch.equal(getattr(found, name), getattr(other, name)) for name in names):
                found._transpose = found
        return found

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """x: (n, m), dense or torch.sparse_csr."""
        if x.layout == torch.sparse_csr:
            return cls(x.crow_indices(), x.col_indices(), x.values(), x.shape[1])
        rows, cols = x.nonzero(as_tuple=True)
        return cls(starts_of(rows, x.shape[0]), cols, x[rows, cols], x.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.starts) - 1, self.width

    @cached_property
    def rows(self) -> Tensor:
        """(e,) the row of each entry, int64."""
        starts = self.starts.long()
        return torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff())

    @property
    def turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Starts and columns of the transpose, and where each of its values stands in `values`."""
        if self._turned is None:
            order = self.cols.argsort(stable=True)
            self._turned = starts_of(self.cols, self.width), self.rows[order].int(), order.int()
        return self._turned

    @property
    def transpose(self) -> Self:
        """(m, n); the matrix itself where it is known to be symmetric."""
        if self._transpose is None:
            starts, cols, order = self.turned
            self._transpose = type(self)(starts, cols, self.values.index_select(0, order), self.shape[0])
        return self._transpose

    def with_values(self, values: Tensor) -> Self:
        """Other entries on the same places; `values` has the shape of `self.values`."""
        other = type(self)(self.starts, self.cols, values, self.width)
        other._turned = self._turned if not torch.is_grad_enabled() else self.turned
        return other

    def shares(self) -> Tensor:
        """(e,) each entry divided by the sum of its row's absolute values; zeros stay."""
        total = self.values.new_zeros(self.shape[0]).index_add_(0, self.rows, self.values.abs())
        return self.values / torch.where(total > 0, total, 1)[self.rows]

    def to_dense(self) -> Tensor:
        """(n, m)."""
        dense = self.values.new_zeros(self.shape)
        return dense.index_put_((self.rows, self.cols.long()), self.values, accumulate=True)

    def to(self, device: torch.device | str) -> Self:
        """The same matrix on `device`; itself when it is there."""
        if self.values.device == torch.device(device):
            return self
        moved = type(self)(self.starts.to(device), self.cols.to(device), self.values.to(device), self.width)
        moved._transpose = moved if self._transpose is self else None
        return moved


def csr(starts: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """torch's CSR tensor without its two warnings (beta, invariants unchecked). starts: (rows + 1,)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")
        return torch.sparse_csr_tensor(starts, cols, values, shape)


def starts_of(rows: Tensor, count: int) -> Tensor:
    """(count + 1,) where each row begins among sorted entries of these rows."""
    counts = torch.bincount(rows, minlength=count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def ranges(ends: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The members of the ranges ends[k]..ends[k + 1] - 1 for k in index, one after the other, and the new ends."""
    sizes = ends[index + 1] - ends[index]
    new = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    members = torch.arange(int(new[-1]), device=ends.device) + (ends[index] - new[:-1]).repeat_interleave(sizes)
    return members, new


def product(left: Sparse | Tensor, right: Tensor) -> Tensor:
    """left @ right without gradient for a sparse left; `right` takes its precision."""
    if isinstance(left, Tensor):
        return left @ right
    right = right.to(left.values.dtype).contiguous()
    return nn.functional.embedding_bag(
        left.cols, right, left.starts, mode="sum", per_sample_weights=left.values, include_last_offset=True
    )


class _Spmm(torch.autograd.Function):
    # embedding_bag's own backward sorts anew and adds row by row: fifty times slower than the stored transpose.
    @staticmethod
    def forward(ctx: Any, sparse: Sparse, dense: Tensor) -> Tensor:
        ctx.sparse = sparse
        with torch.autocast(dense.device.type, enabled=False):
            return product(sparse, dense)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, product(ctx.sparse.transpose, grad)


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
    """Each row divided by the sum of its absolute values (for counts: its sum); a row of zeros stays.

    x: (n, f), dense or torch.sparse_csr; so is the result.
    """
    if x.layout == torch.sparse_csr:
        return csr(x.crow_indices(), x.col_indices(), Sparse.of(x).shares(), (x.shape[0], x.shape[1]))
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
        """x: (n, f), dense or torch.sparse_csr; it becomes `Sparse` where few entries are not 0.

        `dense=True` keeps or makes it dense, for encoders that are not ours.
        """
        matrix = gcn_matrix(edge_index, x.shape[0], x.dtype)
        strided = x.layout == torch.strided
        if dense or (strided and int(x.count_nonzero()) >= SPARSE_BELOW * x.numel()):
            x = x if strided else x.to_dense()
            return cls(normalize_rows(x) if normalize else x, matrix, edge_index)
        found = Sparse.of(x)  # before it is normalised, so that no dense copy is made
        return cls(found.with_values(found.shares()) if normalize else found, matrix, edge_index)

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

    Theta Xavier-uniform, bias 0, one shared slope that starts at 0.25.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(nn.init.xavier_uniform_(torch.empty(features, hidden)))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.slope = nn.Parameter(torch.full((1,), 0.25))

    def forward(self, graph: Graph) -> Tensor:
        return self.several(graph, None)[0]

    def several(self, graph: Graph, *orders: Tensor | None) -> tuple[Tensor, ...]:
        """One result an order: of the graph whose node i has the features of node order[i]; None: of the graph itself.

        (P X) Theta = P (X Theta): one product of the features serves them all.
        """
        return _GCN.apply(graph, orders, self.theta, self.bias, self.slope)  # pyright: ignore[reportReturnType]


class _GCN(torch.autograd.Function):
    # One function, so that of each result only A^ z + bias is kept for the way back, and columns go back a few at a
    # time, in the cache and into one gradient of Theta: half the memory of the same in separate steps.
    @staticmethod
    def forward(
        ctx: Any, graph: Graph, orders: tuple[Tensor | None, ...], theta: Tensor, bias: Tensor, slope: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.autocast(theta.device.type, enabled=False):
            z = product(graph.x, theta)
            before = [product(graph.propagation, z if order is None else z[order]) for order in orders]
            for y in before:
                y += bias
            ctx.graph, ctx.orders = graph, orders
            ctx.save_for_backward(slope, *before)
            return tuple(nn.functional.prelu(y, slope) for y in before)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        slope, *before = ctx.saved_tensors
        x, back = ctx.graph.x, ctx.graph.propagation.transpose
        x = x.transpose if isinstance(x, Sparse) else x.T
        hidden = len(before[0][0])
        for_theta, for_bias, for_slope = (
            slope.new_empty(x.shape[0], hidden),
            slope.new_empty(hidden),
            slope.new_zeros(1),
        )
        for start in range(0, hidden, COLUMNS):
            block = slice(start, start + COLUMNS)
            for_z, for_bias[block] = before[0].new_zeros(()), 0
            for full, full_grad, order in zip(before, grads, ctx.orders, strict=True):
                y, grad = full[:, block].contiguous(), full_grad[:, block].contiguous()
                for_slope += torch.dot(y.clamp(max=0).flatten(), grad.flatten())
                inner = torch.ops.aten.threshold_backward(grad, y, 0).lerp_(grad, slope)
                del y, grad
                for_bias[block] += inner.sum(0)
                inner = product(back, inner)
                if order is not None:
                    inner = torch.empty_like(inner).index_copy_(0, order, inner)
                for_z = inner + for_z
                del inner
            for_theta[:, block] = product(x, for_z)
        return None, None, for_theta, for_bias, for_slope


class MeanLayer(nn.Module):
    """DGI's mean pooling with skip: PReLU([own Theta', mean Theta] + bias), half of the columns each.

    (m, f) own rows, (m, f) means over closed neighbourhoods -> (m, hidden). Weights Xavier-uniform, bias 0, one slope.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        halves = hidden // 2, hidden - hidden // 2
        self.own, self.mean = (nn.Parameter(nn.init.xavier_uniform_(torch.empty(features, half))) for half in halves)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.slope = nn.Parameter(torch.full((1,), 0.25))

    def forward(self, own: Tensor, mean: Tensor) -> Tensor:
        return prelu(torch.cat([own @ self.own, mean @ self.mean], 1) + self.bias, self.slope)


class MeanSkip(nn.Module):
    """DGI's encoder of sampled patches (Reddit): a `MeanLayer` for each level of the sample."""

    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MeanLayer(features if k == 0 else hidden, hidden) for k in range(layers))

    def forward(self, x: Tensor, source: Any) -> Tensor:
        """x: (n, f) features; source: `Patches` -> (centres, hidden), or `Whole` -> (n, hidden)."""
        h = None
        for layer in self.layers:
            h = layer(*source.pair(x, h))
        assert h is not None
        return h


class MeanDense(nn.Module):
    """DGI's encoder of many graphs (PPI): three mean-pooling layers, MP(Z) = D^-1 (A + I) Z Theta, with dense skips.

    H1 = s(MP1(X)), H2 = s(MP2(H1 + X W)), H3 = s(MP3(H2 + H1 + X W)) with s a PReLU of one slope.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        sizes = [(features, hidden), (hidden, hidden), (hidden, hidden)]
        self.thetas = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(size)) for size in sizes)
        self.biases = nn.ParameterList(torch.zeros(hidden) for _ in sizes)
        self.slopes = nn.ParameterList(torch.full((1,), 0.25) for _ in sizes)
        self.skip = nn.Parameter(nn.init.xavier_uniform_(torch.empty(features, hidden)))

    def forward(self, x: Tensor, adjacency: Sparse, degree: Tensor) -> Tensor:
        """x: (n, f); adjacency: (n, n) sum over neighbours; degree: (n,) -> (n, hidden)."""
        scale = 1 / (degree[:, None].to(x.dtype) + 1)
        skip, given, found = x @ self.skip, x, []
        for theta, bias, slope in zip(self.thetas, self.biases, self.slopes, strict=True):
            z = given @ theta
            found.append(prelu((z + spmm(adjacency, z)) * scale + bias, slope))
            given = skip + sum(found)
        return found[-1]
