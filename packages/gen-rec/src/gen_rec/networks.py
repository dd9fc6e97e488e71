"""Layers of sequence models. Steps of all sequences lie in one flat list wherever a layer works step by step.

A batch of sequences is (B, L) padded on the right with lengths (B,); its P valid steps, user after user, are rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 256
"""Rows of logits that `linear_cross_entropy` holds at a time."""


def linear_cross_entropy(h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, chunk: int = CHUNK) -> Tensor:
    """Sum over rows of the cross-entropy of softmax(h weight^T + bias), in nats, without the (P, C) logits.

    Each chunk of rows is finished, loss and gradients, while its logits lie in the cache; only (chunk, C) is ever held.

    Args:
        h: (P, D).
        weight: (C, D).
        bias: (C,).
        target: (P,) integers in 0..C - 1.
        chunk: rows at a time.

    Examples:
        >>> h, w, b = torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4)
        >>> f"{linear_cross_entropy(h, w, b, torch.tensor([0, 1, 2])).item():.4f}"  # 3 log 4
        '4.1589'
    """
    return _LinearCrossEntropy.apply(h, weight, bias, target, chunk)  # pyright: ignore


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, target: Tensor, chunk: int) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            rows = h.to(weight.dtype)
            loss = rows.new_zeros(())
            of_h, of_weight, of_bias = torch.empty_like(rows), torch.zeros_like(weight), torch.zeros_like(bias)
            for part in range(0, len(rows), chunk):
                place = slice(part, part + chunk)
                wanted = target[place, None]
                log_p = torch.addmm(bias, rows[place], weight.T).log_softmax(1)
                loss -= log_p.gather(1, wanted).sum()
                error = log_p.exp_()  # softmax - one-hot is the gradient of the logits
                error.scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=error.dtype))
                of_h[place] = error @ weight
                of_weight.addmm_(error.T, rows[place])
                of_bias += error.sum(0)
        ctx.save_for_backward(of_h.to(h.dtype), of_weight, of_bias)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,), (of_h, of_weight, of_bias) = grads, ctx.saved_tensors
        return grad * of_h, grad * of_weight, grad * of_bias, None, None


class GRU(nn.Module):
    """One GRU layer over right-padded sequences, of which each step sees the past alone.

    It runs on over the padding: torch's packed sequences would save these steps, but their backward pass fills a zero
    tensor of the whole batch at each step, which took three times as long.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, inputs) -> (B, L, hidden); what lies beyond a sequence's length means nothing."""
        return self.gru(x.transpose(0, 1))[0].transpose(0, 1)


class CausalConvolution(nn.Module):
    """Convolution over the present and `width` - 1 past steps, on flat rows: one product, nothing spent on padding."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width * inputs, outputs)  # its initial range is that of a Conv1d

    def forward(self, h: Tensor, position: Tensor) -> Tensor:
        """(P, inputs), position (P,) of each row in its sequence, from 0 -> (P, outputs)."""
        past = [h]
        for back in range(1, self.width):
            moved = F.pad(h, (0, 0, back, 0))[: len(h)]
            past.append(moved * (position >= back)[:, None])
        return self.linear(torch.cat(past, dim=1))


class Noise(nn.Module):
    """x + tanh(W eps + b), eps ~ N(0, I) unless given."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        return x + self.linear(torch.randn_like(x) if eps is None else eps).tanh()


class ConvolutionalEncoder(nn.Module):
    """From the GRU's states to latents: local order by a causal convolution, and noise where the posterior is implicit.

    noise, 1 x 1, softplus, noise, causal, softplus, 1 x 1, softplus, + input, dropout, linear; one noise block.
    """

    def __init__(self, hidden: int, outputs: int, width: int, dropout: float, noise: bool) -> None:
        super().__init__()
        self.noise = Noise(hidden) if noise else None
        self.first = nn.Linear(hidden, hidden)
        self.causal = CausalConvolution(hidden, 2 * hidden, width)
        self.last = nn.Linear(2 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, h: Tensor, position: Tensor, eps: Tensor | None = None) -> Tensor:
        """(P, hidden), position (P,), eps (2, P, hidden) or None -> (P, outputs)."""
        x = h if self.noise is None else self.noise(h, None if eps is None else eps[0])
        x = F.softplus(self.first(x))
        x = x if self.noise is None else self.noise(x, None if eps is None else eps[1])
        x = F.softplus(self.causal(x, position))
        x = F.softplus(self.last(x)) + h
        return self.out(self.dropout(x))


class Adversary(nn.Module):
    """T(e, z) = Net([e; z]) + z^2 / 2, one log-ratio for each latent dimension.

    z^2 / 2 is -log N(z; 0, 1) but for a constant, so Net has only log q(z | x) to learn.
    """

    def __init__(self, embedding: int, latent: int, hidden: int = 128, dropout: float = 0.2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(embedding + latent, hidden), nn.Linear(hidden, latent)
        self.residual = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)) for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, e: Tensor, z: Tensor) -> Tensor:
        """(P, E), (P, Z) -> (P, Z)."""
        h = self.dropout(self.first(torch.cat([e, z], dim=1)))
        for block in self.residual:
            h = F.elu(h + block(h))
        return self.dropout(self.last(h)) + 0.5 * z.square()


class Discriminator(nn.Module):
    """C(e, z): a GRU over [e; z], GELU, and a score at each step."""

    def __init__(self, embedding: int, latent: int, hidden: int = 128) -> None:
        super().__init__()
        self.sequence = GRU(embedding + latent, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, e: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        """(B, L, E), (B, L, Z), mask (B, L) -> (P,) scores of the steps in it."""
        states = self.sequence(torch.cat([e, z], dim=2))
        return self.out(F.gelu(states[mask]))[:, 0]


class Together:
    """Optimisers that step after one backward pass, for `Method.descend`; each parameter is counted once."""

    def __init__(self, *optimizers: Any) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        every = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        return [{"params": list(dict.fromkeys(every))}]

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
