"""Rows of all ranks, with exact gradients, for losses whose negatives should come from the whole batch.

The rule: each rank takes the mean over its own anchors against the rows of all ranks, and DDP averages the gradients.
Loss and parameter gradients are then those of one process on the joined batch. A bound with one logarithm over all
pairs (dv, mine, smile, tuba) needs both of its sides gathered; every rank then computes the whole matrix. Batch norm
still sees a rank's own rows: use `SyncBatchNorm` where that matters.

In a process that is not part of a group everything here is the identity.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, ranks): (0, 1) outside of a process group.

    Examples:
        >>> world()
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks; this rank's begin at rank * len(rows).

    The gradient of each row is the sum of what the ranks make of it, so that all ranks must call `backward`.

    Args:
        rows: (n, ...), the same shape on every rank; any dtype.

    Returns:
        (ranks * n, ...).

    Raises:
        ValueError: ranks hold different shapes (on all of them).

    Examples:
        >>> gather(torch.arange(3)).tolist()
        [0, 1, 2]
    """
    _, ranks = world()
    if ranks == 1:
        return rows
    shapes: list[Any] = [None] * ranks
    dist.all_gather_object(shapes, tuple(rows.shape))
    if len(set(shapes)) > 1:
        raise ValueError(f"rows must have one shape on all ranks, got {', '.join(map(str, shapes))} on ranks 0, 1, ...")
    return _Gather.apply(rows)  # pyright: ignore


class _Gather(torch.autograd.Function):
    # Ours, because `torch.distributed.nn.functional.all_gather` is deprecated and its successor is not public yet.

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rank, ranks = world()
        ctx.own = slice(rank * len(rows), (rank + 1) * len(rows))
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ranks)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own]
