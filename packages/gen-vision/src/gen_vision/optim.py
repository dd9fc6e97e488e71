"""LARS and the warm-up cosine schedule of SimCLR; torch keeps neither."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al. 2017), as SimCLR's official code writes it.

        g <- g + weight_decay * w
        r  = trust * |w| / |g|          (1 if either norm is 0, or in a group with `adapt=False`)
        v <- momentum * v + lr * r * g  (the learning rate is inside the momentum)
        w <- w - v

    Use `lars_groups` to keep biases and norm layers from both decay and scaling.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        for name, value in {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad.add(weight, alpha=group["weight_decay"])
                if group["adapt"]:
                    size, slope = weight.norm(), update.norm()
                    update = update * torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, 1.0)
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                weight.sub_(state["momentum"].mul_(group["momentum"]).add_(update, alpha=group["lr"]))
        return loss


def lars_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of `LARS`: vectors (biases, scales of norm layers) get neither weight decay nor scaling."""
    params = [weight for weight in module.parameters() if weight.requires_grad]
    matrices = [weight for weight in params if weight.ndim > 1]
    vectors = [weight for weight in params if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": weight_decay}]
    return [*groups, {"params": vectors, "weight_decay": 0.0, "adapt": False}] if vectors else groups


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the peak learning rate at update `step` (from 0).

    step / warmup on the way up, then half a cosine from 1 to 0 over the remaining `total - warmup` updates.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
