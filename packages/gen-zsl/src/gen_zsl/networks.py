"""Networks that methods share. Every Linear starts as in the released codes: weight N(0, 0.02), bias 0."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Of every LeakyReLU here."""
TILE = 2**17
"""Hidden units of pairs that the comparator holds at a time: what stays in a core's cache."""


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A Linear layer at the released codes' start."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class Generator(nn.Module):
    """G(noise (b, nz), a (b, A)) -> features (b, d) >= 0."""

    def __init__(self, noise: int, attributes: int, hidden: int, features: int) -> None:
        super().__init__()
        layers = linear(noise + attributes, hidden), nn.LeakyReLU(SLOPE), linear(hidden, features), nn.ReLU()
        self.net = nn.Sequential(*layers)

    def forward(self, noise: Tensor, attributes: Tensor) -> Tensor:
        return self.net(torch.cat([noise, attributes], 1))


class Critic(nn.Module):
    """D(x (b, d), a (b, A)) -> scores (b,)."""

    def __init__(self, features: int, attributes: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(linear(features + attributes, hidden), nn.LeakyReLU(SLOPE), linear(hidden, 1))

    def forward(self, x: Tensor, attributes: Tensor) -> Tensor:
        return self.net(torch.cat([x, attributes], 1))[:, 0]


class Projection(nn.Module):
    """H(h (b, de)) -> z (b, dz) of length 1."""

    def __init__(self, embedding: int, projection: int) -> None:
        super().__init__()
        self.linear = linear(embedding, projection)

    def forward(self, h: Tensor) -> Tensor:
        return F.normalize(self.linear(h), eps=1e-8)


class Comparator(nn.Module):
    """F(h, a) = w . LeakyReLU(W [h; a] + b) + c of every embedding with every class: (b, de), (S, A) -> (b, S).

    W [h; a] + b = W_h h + (W_a a + b): b + S products in place of b S, and no concatenated pair is ever made.
    """

    def __init__(self, embedding: int, attributes: int, hidden: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.first, self.last = linear(embedding + attributes, hidden), linear(hidden, 1)

    def forward(self, h: Tensor, attributes: Tensor) -> Tensor:
        of_h, of_a = self.first.weight.split([self.embedding, attributes.shape[1]], 1)
        p, q = F.linear(h, of_h), F.linear(attributes, of_a, self.first.bias)
        if p.dtype in (torch.float16, torch.bfloat16):  # under autocast; sums over thousands of units need more
            p, q = p.float(), q.float()
        scores: Any = _PairScores.apply(p, q, self.last.weight[0].to(p.dtype))
        return scores + self.last.bias


class _PairScores(torch.autograd.Function):
    """out[i, s] = sum_k v_k LeakyReLU(p_ik + q_sk), of which only tiles exist, computed again in the backward pass.

    With G_ik = sum_s g_is LeakyReLU'(p_ik + q_sk) and G_sk likewise, the gradients are v G of p and of q, and, since
    LeakyReLU(t) = t LeakyReLU'(t), sum_i p_ik G_ik + sum_s q_sk G_sk of v.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(p, q, v)
        out = p.new_empty(len(p), len(q))
        for rows in _tiles(p, q):
            out[rows] = F.leaky_relu_(p[rows, None] + q, SLOPE) @ v
        return out

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (p, q, v), (g,) = ctx.saved_tensors, grad
        of_p, of_q = torch.empty_like(p), torch.zeros_like(q)
        for rows in _tiles(p, q):
            active = (p[rows, None] + q).gt_(0).mul_(g[rows, :, None])
            of_p[rows] = active.sum(1)
            of_q += active.sum(0)
        of_p = (1 - SLOPE) * of_p + SLOPE * g.sum(1, keepdim=True)
        of_q = (1 - SLOPE) * of_q + SLOPE * g.sum(0)[:, None]
        return v * of_p, v * of_q, (p * of_p).sum(0) + (q * of_q).sum(0)


def _tiles(p: Tensor, q: Tensor) -> list[slice]:
    step = max(1, TILE // q.numel())
    return [slice(start, start + step) for start in range(0, len(p), step)]
