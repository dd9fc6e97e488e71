"""What the losses, the bounds and the critics of the core share: checks of their inputs, the reduction, softplus.

Shapes and dtypes are checked first. For NaN and infinity no pass is made over the inputs: `finite` looks at the result,
and at the inputs only where the result is not finite. On a GPU, where a look would wait for the device, it looks only
under `torch.autograd.detect_anomaly()`; inside `torch.compile` and `torch.func.vmap` never.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = Tensor | NDArray[Any]
Reduction = Literal["mean", "sum", "none"]


def floating(name: str, value: Tensor, ndim: int | None = None) -> Tensor:
    """Return `value` as float32 or float64 after checking its kind and shape; half precision becomes float32.

    Args:
        name: the argument's name, for the message.
        value: any floating tensor with at least one element.
        ndim: the number of dimensions asked for; None takes any.

    Raises:
        ValueError: not a tensor, not of a floating dtype, of another number of dimensions, or empty.

    Examples:
        >>> floating("scores", torch.ones(2, dtype=torch.float16)).dtype
        torch.float32
    """
    if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(f"{name} must have a floating dtype, got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), got shape {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def is_integer(value: Tensor) -> bool:
    """Whether the dtype holds whole numbers; booleans are none.

    Examples:
        >>> is_integer(torch.arange(2)), is_integer(torch.tensor(True))
        (True, False)
    """
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def integers(name: str, value: Array, lowest: int | None = None) -> Tensor:
    """Return labels as int64 (n,) after checking them; `lowest` is the smallest that is allowed, None takes any.

    Raises:
        ValueError: no vector of integers, or one below `lowest`.

    Examples:
        >>> integers("labels", torch.tensor([0, 2], dtype=torch.int16), lowest=0).tolist()
        [0, 2]
    """
    y = torch.as_tensor(value)
    if y.ndim != 1 or not is_integer(y):
        raise ValueError(f"{name} must be a vector of integers, got {y.dtype} of shape {tuple(y.shape)}")
    if lowest is not None and len(y) and int(y.min()) < lowest:
        raise ValueError(f"{name} must be {lowest} or above, got {int(y.min())}")
    return y.long()


def finite(result: Tensor, **inputs: Tensor | float | None) -> Tensor:
    """Return `result`; where it is not finite, say which of the inputs is to blame.

    A result that is not finite though all inputs are is returned: it is the formula's value (nwj is -inf where e^f
    overflows).

    Raises:
        ValueError: the result and an input are not finite.

    Examples:
        >>> finite(torch.tensor(-math.inf), scores=torch.ones(2)).item()
        -inf
        >>> finite(torch.tensor(math.nan), scores=torch.tensor([1.0, math.nan]))
        Traceback (most recent call last):
            ...
        ValueError: scores must be finite, got NaN or infinite entries
    """
    if not _may_look(result) or _is_finite(result):
        return result
    for name, value in inputs.items():
        if isinstance(value, Tensor) and not _is_finite(value):
            raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    return result


def _may_look(value: Tensor) -> bool:
    return not torch.compiler.is_compiling() and (not value.is_cuda or torch.is_anomaly_enabled())


def _is_finite(value: Tensor) -> bool:
    try:
        return math.isfinite(value.item()) if value.ndim == 0 else bool(torch.isfinite(value).all())
    except RuntimeError:  # inside torch.func.vmap no value can be looked at
        return True


def positive(name: str, value: float | Tensor) -> None:
    """Refuse what is not one finite number above 0 (a float or a tensor with one element).

    Examples:
        >>> positive("temperature", 0.5)
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, got shape {tuple(value.shape)}")
        if not _may_look(value):
            return
        try:
            value = value.item()
        except RuntimeError:  # inside torch.func.vmap
            return
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def not_negative(name: str, value: float) -> None:
    """Refuse what is not one finite number of at least 0.

    Examples:
        >>> not_negative("margin", 0.0)
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")


def within(name: str, value: Tensor, low: float, high: float) -> None:
    """Refuse entries outside [low, high]; NaN is left to `finite`, and it looks where `finite` looks.

    Examples:
        >>> within("target", torch.tensor([0.0, 1.0]), 0.0, 1.0)
    """
    if not _may_look(value):
        return
    try:
        least, most = (end.item() for end in value.detach().aminmax())
    except RuntimeError:  # inside torch.func.vmap
        return
    if least < low or most > high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {least:.4g} to {most:.4g}")


def alike(name_x: str, x: Tensor, name_y: str, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two matrices (N, D) whose rows belong together, as `floating` gives them: one shape, one dtype, N >= least.

    Examples:
        >>> x, y = alike("query", torch.ones(2, 3), "key", torch.ones(2, 3))
    """
    u, v = floating(name_x, x, 2), floating(name_y, y, 2)
    if u.shape != v.shape:
        raise ValueError(f"{name_y} must have the shape of {name_x}, {tuple(u.shape)}, got {tuple(v.shape)}")
    if u.dtype != v.dtype:
        raise ValueError(f"{name_y} must have the dtype of {name_x}, {u.dtype}, got {v.dtype}")
    if u.shape[0] < least:
        raise ValueError(f"{name_x} must have at least {least} rows, got {u.shape[0]}: a row needs others beside it")
    return u, v


def reduced(loss: Tensor, reduction: Reduction) -> Tensor:
    """The mean or the sum of `loss`, or `loss` itself for `none`.

    Raises:
        ValueError: another reduction.

    Examples:
        >>> reduced(torch.tensor([1.0, 3.0]), "mean").item()
        2.0
    """
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def unit(x: Tensor) -> Tensor:
    """Rows at length 1. The floor of the length bounds the gradient of a zero row; torch's own lets it reach 1e12.

    Examples:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return F.normalize(x, eps=1e-8)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Leaves autocast, where it is on: entering torch's context costs 40 microseconds, as much as the loss of few rows.

    Examples:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(torch.ones(2)):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    on = torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if on else nullcontext()


def softplus(u: Tensor) -> Tensor:
    """log(1 + e^u), exact in float32 and float64 (torch's own default turns linear at 20, 2e-9 too low there).

    Examples:
        >>> f"{softplus(torch.tensor(0.0)).item():.6f}"
        '0.693147'
    """
    return F.softplus(u, threshold=40.0)
