"""Pieces of semi-supervised learning: mixing of samples, sharpened targets, the ramp of a loss's weight.

Cross-entropy against soft targets is torch's own: `torch.nn.functional.cross_entropy(logits, probabilities)`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from gen_core._checks import finite, floating, not_negative, positive


def mixup_draw(rows: int, alpha: float, generator: torch.Generator | None = None) -> tuple[float, Tensor]:
    """Draw for `mixup` one weight for the whole batch, Beta(alpha, alpha), and a random permutation of the rows.

    Args:
        rows: N >= 1.
        alpha: >= 0; 0 gives weight 1, no mixing. Below 1 the weight is mostly near 0 or 1.
        generator: of both draws; torch's global one where None.

    Returns:
        The weight in [0, 1] and the partners, (N,) int64 on the generator's device.

    Raises:
        ValueError: rows below 1, or an alpha that is negative or not finite.

    Examples:
        >>> weight, partner = mixup_draw(3, alpha=1.0, generator=torch.Generator().manual_seed(0))
        >>> f"{weight:.4f}", sorted(partner.tolist())
        ('0.9701', [0, 1, 2])
    """
    from scipy.special import betaincinv  # pyright: ignore

    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    not_negative("alpha", alpha)
    device = generator.device if generator is not None else "cpu"
    # By the inverse distribution function: torch's own Beta takes no generator.
    uniform = torch.rand((), dtype=torch.float64, generator=generator, device=device).item()
    partner = torch.randperm(rows, generator=generator, device=device)
    return float(betaincinv(alpha, alpha, uniform)) if alpha > 0 else 1.0, partner


def mixup(x: Tensor, weight: float, partner: Tensor) -> Tensor:
    """Mix each row with its partner (Zhang et al. 2018, section 1): weight * x_i + (1 - weight) * x_partner(i).

    Inputs, hidden activations (Manifold Mixup, Verma et al. 2019), latents and one-hot or soft labels are mixed alike:
    one call for each, with one draw. For an integer label y, cross-entropy against the mixed one-hot labels is
    weight * CE(y) + (1 - weight) * CE(y[partner]).

    Args:
        x: (N, ...) floating; gradient flows into both rows.
        weight: in [0, 1], as from `mixup_draw`.
        partner: (N,) int64 in 0..N - 1; any choice of partners, repeats too.

    Returns:
        The shape and dtype of `x`; half precision is mixed in float32.

    Raises:
        ValueError: x is not floating or empty, weight or partner out of range; or the result is not finite because
            x is not.

    Examples:
        >>> mixup(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 0.75, torch.tensor([1, 0])).tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """
    value = floating("x", x)
    if value.ndim == 0:
        raise ValueError("x must have shape (N, ...), got shape ()")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie in [0, 1], got {weight}")
    if partner.dtype != torch.int64 or partner.shape != value.shape[:1]:
        raise ValueError(
            f"partner must be {len(value)} int64, one for each row of x, got {partner.dtype} {tuple(partner.shape)}"
        )
    if not partner.is_cuda and not 0 <= int(partner.min()) <= int(partner.max()) < len(value):
        raise ValueError(f"partner must lie in 0..{len(value) - 1}, got {int(partner.min())} to {int(partner.max())}")
    other = value.index_select(0, partner.to(value.device))
    return finite((weight * value + (1 - weight) * other).to(x.dtype), x=x)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Sharpen distributions (Berthelot et al. 2019, MixMatch, eq. 7): p_c^(1/T) / sum_k p_k^(1/T).

    Computed as softmax(log p / T) with the greatest log p at 0, so that no power underflows however small T is: the
    limit is one-hot, shared by ties. Entries of exactly 0 stay 0, with gradient 0.

    Args:
        probabilities: (N, C) floating, rows >= 0 that sum to 1 within 0.01. Detach them where they are targets.
        temperature: T > 0; 1 is the identity.

    Returns:
        (N, C), rows that sum to 1; float32 for half precision.

    Raises:
        ValueError: the input is not (N, C) floating, NaN, infinite or no rows of probabilities; T is out of range.

    Examples:
        >>> [f"{p:.6f}" for p in sharpen(torch.tensor([[0.5, 0.3, 0.2]]), 0.5)[0].tolist()]
        ['0.657895', '0.236842', '0.105263']
    """
    positive("temperature", temperature)
    p = floating("probabilities", probabilities, 2)
    lowest, total = p.min(), p.sum(1)
    if not bool((lowest >= 0) & ((total - 1).abs() < 0.01).all()):  # so written that NaN is refused
        raise ValueError(
            "probabilities must hold rows >= 0 that sum to 1, "
            f"got a lowest entry of {lowest:.4g} and sums from {total.min():.4g} to {total.max():.4g}"
        )
    zero = p == 0
    logs = p.masked_fill(zero, 1.0).log().masked_fill(zero, -math.inf)  # masked before the log too: no NaN gradient
    # A temperature that is 0 in this dtype would make 0 / 0 of the greatest.
    return ((logs - logs.detach().amax(1, keepdim=True)) / max(temperature, torch.finfo(p.dtype).tiny)).softmax(1)


def ramp_up(step: float, length: float, shape: Literal["sigmoid", "linear"] = "sigmoid") -> float:
    """Factor that brings a loss's weight up to 1 over the first `length` steps.

    With t = step / length clipped to [0, 1]: `sigmoid` is exp(-5 (1 - t)^2) (Laine and Aila 2017, appendix A), which
    starts at e^-5 = 0.0067; `linear` is t. A ramp from step a to step b is `ramp_up(step - a, b - a)`.

    Args:
        step: now, in any unit (steps, epochs); below 0 counts as 0.
        length: >= 0, in the same unit; 0 is no ramp, a factor of 1.
        shape: `sigmoid` or `linear`.

    Returns:
        A number in [0, 1], 1 from `length` on.

    Raises:
        ValueError: a step that is not finite, a length that is negative or not finite, an unknown shape.

    Examples:
        >>> [f"{ramp_up(epoch, 200):.6f}" for epoch in (0, 50, 100, 200, 300)]
        ['0.006738', '0.060055', '0.286505', '1.000000', '1.000000']
    """
    if not math.isfinite(step):
        raise ValueError(f"step must be a finite number, got {step}")
    not_negative("length", length)
    t = min(max(step / length, 0.0), 1.0) if length > 0 else 1.0
    if shape == "sigmoid":
        return math.exp(-5 * (1 - t) ** 2)
    if shape == "linear":
        return t
    raise ValueError(f"shape must be 'sigmoid' or 'linear', got {shape!r}")
