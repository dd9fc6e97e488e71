"""Method.descend: one step of one network's optimiser, in methods that alternate."""

import pytest
import torch
from torch import nn

from toydomain.duel import Duel, Ranks


def by_hand(x, orders, seed):
    """The same in a bare loop with detached copies in place of `inputs=`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, second = nn.Linear(3, 1), nn.Linear(3, 1)
    for order in orders:
        for rows in order:
            batch = x[rows]
            loss = (first(batch) - second(batch).detach()).square().mean()
            gradients = torch.autograd.grad(loss, list(first.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(first.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
            loss = -(first(batch).detach() * second(batch)).mean()
            gradients = torch.autograd.grad(loss, list(second.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(second.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
    return first, second


def test_each_step_moves_its_own_network_only():
    from gen_core.harness.fitting import Shuffle, mix

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    model = Duel().fit(x, seed=5, accelerator="cpu", progress=False)
    assert len(model.leaks) == 8
    assert not any(model.leaks)
    orders = [torch.tensor(list(Shuffle(8, mix(5, epoch)))).split(4) for epoch in (0, 1)]
    for ours, theirs in zip((model.first, model.second), by_hand(x, orders, 5), strict=True):
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_ranks_step_as_one():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    one = Ranks().fit(x, accelerator="cpu", progress=False)
    two = Ranks().fit(x, accelerator="cpu", devices=2, progress=False)
    # Two epochs: the ranks' shares must not overlap in the second either. The first network's loss is a mean over rows:
    # the mean of two halves' gradients is the whole's.
    assert torch.allclose(one.first.weight, two.first.weight, atol=1e-6)
    assert torch.allclose(one.second.weight, two.second.weight, atol=1e-6)
