"""State that contrastive methods keep between steps: a queue of keys, a bank of rows, the momentum of a teacher.

All of it is saved by `state_dict` and none of it has a gradient. On several devices, gather the rows first: each
process would otherwise keep its own.

An averaged teacher (MoCo, BYOL, Mean Teacher) is torch's own `AveragedModel`, with `ema` as its rule:

>>> from functools import partial
>>> from torch.optim.swa_utils import AveragedModel
>>> student = nn.Linear(2, 1)
>>> momentum = partial(cosine_momentum, steps=1000, base=0.99)
>>> teacher = AveragedModel(student, multi_avg_fn=partial(ema, decay=momentum)).requires_grad_(False)
>>> teacher.update_parameters(student)  # the first call copies: once before training, then after each optimiser step
>>> before = student.weight.detach().clone()
>>> with torch.no_grad():
...     _ = student.weight.add_(1.0)
>>> teacher.update_parameters(student)
>>> bool(torch.allclose(teacher.module.weight, before + 0.01))
True

The count of calls is a buffer, `n_averaged`, so that the schedule goes on where a checkpoint stopped. Buffers (the
statistics of batch norm) are copied from the student at each call; `use_buffers=True` averages them instead.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_core._checks import finite, floating, is_integer


class Queue(nn.Module):
    """MoCo's queue of the last `size` keys (He et al. 2020, algorithm 1): first in, first out.

    `keys` (size, dim) serves as negatives. It starts with random rows of unit length, which the first size / B steps
    replace. The row at `pointer` is the oldest. A batch that crosses the end goes on at the start, and one larger than
    the queue leaves its newest rows: any cutting of a stream into batches gives the same queue.

    `keys` is replaced by each `enqueue`, not written into: a loss that used it may be differentiated afterwards.

    Args:
        size: rows, K in the paper.
        dim: columns.
        generator: of the first rows.

    Raises:
        ValueError: size or dim below 1.

    Examples:
        >>> queue = Queue(3, 1)
        >>> queue.enqueue(torch.tensor([[1.0], [2.0]]))
        >>> queue.enqueue(torch.tensor([[3.0], [4.0]]))
        >>> queue.keys.flatten().tolist()
        [4.0, 2.0, 3.0]
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("keys", _unit_rows("size", size, dim, generator))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put rows in, in their order, in place of the oldest.

        Args:
            keys: (B, dim) floating, taken as they are (normalised or not) and detached.

        Raises:
            ValueError: another shape, NaN or infinite rows.
        """
        rows = _rows("keys", keys, self.keys)
        size, batch = len(self.keys), len(rows)
        newest = torch.arange(max(0, batch - size), batch, device=rows.device)
        self.keys = self.keys.index_copy(0, (self.pointer + newest) % size, rows[newest])
        self.pointer = (self.pointer + batch) % size


class MemoryBank(nn.Module):
    """A row of features for each sample of the data (Wu et al. 2018, instance discrimination; Tian et al. 2020, CMC).

    Starts with random rows of unit length.

    Args:
        n: samples of the data set.
        dim: columns.
        momentum: m in [0, 1), the weight of the old row.
        generator: of the first rows.

    Raises:
        ValueError: n or dim below 1, momentum out of range.

    Examples:
        >>> bank = MemoryBank(10, 2)
        >>> bank.rows[3] = torch.tensor([1.0, 0.0])
        >>> bank.update(torch.tensor([3]), torch.tensor([[0.0, 1.0]]))
        >>> [f"{value:.4f}" for value in bank.get(torch.tensor(3)).tolist()]
        ['0.7071', '0.7071']
    """

    rows: Tensor

    def __init__(self, n: int, dim: int, momentum: float = 0.5, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.register_buffer("rows", _unit_rows("n", n, dim, generator))

    def get(self, index: Tensor) -> Tensor:
        """A copy of the rows of samples.

        Args:
            index: (...) integers, 0..n - 1; of any shape, (B, K + 1) for a positive and K negatives an anchor.

        Returns:
            (..., dim), without gradient. A later `update` does not change it.

        Raises:
            ValueError: no integers, or none of the bank.
        """
        return self.rows[self._index(index)]

    @torch.no_grad()
    def update(self, index: Tensor, z: Tensor) -> None:
        """rows[index] = normalise( m rows[index] + (1 - m) z ), after the step's scores have been taken.

        Of a sample that stands in the batch twice the last row counts, as if the others were not there.

        Args:
            index: (B,) integers, 0..n - 1.
            z: (B, dim) floating, rows of unit length, detached here.

        Raises:
            ValueError: shapes do not fit, an index that is no integer or not of the bank, NaN or infinite rows.
        """
        new = _rows("z", z, self.rows)
        index = self._index(index)
        if index.shape != new.shape[:1]:
            raise ValueError(f"index must hold {len(new)} integers, one a row of z, got shape {tuple(index.shape)}")
        # Each sample's last row alone: of two that are written to one place a GPU may keep either.
        keep = ~(index[:, None] == index).triu(1).any(1)
        index, new = index[keep], new[keep]
        mixed = self.momentum * self.rows[index] + (1 - self.momentum) * new
        self.rows[index] = F.normalize(mixed)

    def _index(self, index: Tensor) -> Tensor:
        if not is_integer(index):
            raise ValueError(f"index must be integers, got {index.dtype}")
        index = index.long().to(self.rows.device)
        if index.numel():
            least, most = (int(end) for end in index.aminmax())
            if least < 0 or most >= len(self.rows):
                raise ValueError(f"index must be in 0..{len(self.rows) - 1}, got {least} to {most}")
        return index


def cosine_momentum(step: int, steps: int, base: float = 0.996) -> float:
    """BYOL's momentum of the teacher (Grill et al. 2020, section 3.1): from `base` at step 0 to 1 at `steps`.

    1 - (1 - base) ( cos(pi step / steps) + 1 ) / 2, and 1 after the end.

    Args:
        step: updates done so far, >= 0.
        steps: of the whole training, > 0.
        base: at the start, in [0, 1].

    Returns:
        The weight of the teacher's old parameters.

    Raises:
        ValueError: step, steps or base out of range.

    Examples:
        >>> f"{cosine_momentum(250, 1000):.7f} {cosine_momentum(1500, 1000):.1f}"
        '0.9965858 1.0'
    """
    if step < 0 or steps < 1 or not 0 <= base <= 1:
        raise ValueError(
            f"step >= 0, steps >= 1 and base in [0, 1] are needed, got step={step}, steps={steps}, base={base}"
        )
    return 1 - (1 - base) * (math.cos(math.pi * min(step / steps, 1.0)) + 1) / 2


@torch.no_grad()
def ema(
    averaged: Sequence[Tensor],
    current: Sequence[Tensor],
    n_averaged: Tensor | int,
    *,
    decay: float | Callable[[int], float],
) -> None:
    """A rule for torch's `AveragedModel`: averaged <- decay averaged + (1 - decay) current, in place.

    `multi_avg_fn=partial(ema, decay=0.999)`. Beside torch's own `get_ema_multi_avg_fn` it takes a decay that changes
    and can be pickled, as a model must be that is sent to spawned processes. See the module's example.

    Args:
        averaged: the teacher's tensors.
        current: the student's.
        n_averaged: calls so far, counted by AveragedModel; the first (the copy) does not come here.
        decay: in [0, 1], or a function of k, the averaging steps done: 0 at the first. 1 leaves the teacher as it is,
            bit for bit.

    Raises:
        ValueError: decay outside [0, 1].

    Examples:
        >>> teacher, student = torch.zeros(2), torch.ones(2)
        >>> ema([teacher], [student], 1, decay=0.75)
        >>> teacher.tolist()
        [0.25, 0.25]
    """
    weight = decay(int(n_averaged) - 1) if callable(decay) else decay
    if not 0 <= weight <= 1:
        raise ValueError(f"decay must be in [0, 1], got {weight}")
    for old, new in zip(averaged, current, strict=True):
        if old.is_floating_point() or old.is_complex():
            old.lerp_(new, 1 - weight)
        else:  # counters among the buffers
            old.copy_(new)


def _unit_rows(name: str, n: int, dim: int, generator: torch.Generator | None) -> Tensor:
    for argument, value in ((name, n), ("dim", dim)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")
    return F.normalize(torch.randn(n, dim, generator=generator))


def _rows(name: str, value: Tensor, like: Tensor) -> Tensor:
    rows = floating(name, value, 2)
    if rows.shape[1] != like.shape[1]:
        raise ValueError(f"{name} must have {like.shape[1]} columns, got shape {tuple(value.shape)}")
    return finite(rows.to(like), **{name: value})
