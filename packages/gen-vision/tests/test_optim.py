"""LARS and the schedule against worked numbers and a plain float64 derivation."""

import math

import pytest
import torch
from torch import nn

from gen_vision.optim import LARS, lars_groups, warmup_cosine


def parameter(values: list[float], gradient: list[float]) -> nn.Parameter:
    weight = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    weight.grad = torch.tensor(gradient, dtype=torch.float64)
    return weight


def test_worked_step() -> None:
    weight = parameter([3, 4], [0.6, 0.8])  # g + wd w = (.63, .84), |w| = 5, norm 1.05: trust .0047619
    LARS([weight], lr=1.0, weight_decay=0.01).step()
    torch.testing.assert_close(weight.data, torch.tensor([2.997, 3.996], dtype=torch.float64), atol=1e-12, rtol=0)


def test_momentum_holds_the_rate_inside() -> None:
    weight, gradient = parameter([3, 4], [0.6, 0.8]), torch.tensor([0.6, 0.8], dtype=torch.float64)
    optimizer = LARS([weight], lr=2.0, momentum=0.9, weight_decay=0.1)
    w, v = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for rate in (2.0, 0.5, 0.25):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        g = gradient + 0.1 * w
        v = 0.9 * v + rate * 0.001 * math.hypot(*w.tolist()) / math.hypot(*g.tolist()) * g
        w = w - v
    torch.testing.assert_close(weight.data, w, atol=1e-12, rtol=0)


def test_trust_is_one_where_a_norm_is_zero() -> None:
    born, still = parameter([0, 0], [0.5, 0.5]), parameter([1, 1], [0, 0])
    LARS([born, still], lr=0.1).step()
    assert born.tolist() == pytest.approx([-0.05, -0.05]) and still.tolist() == [1, 1]


def test_biases_and_norm_layers_are_excluded() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.fill_(2.0)
            weight.grad = torch.ones_like(weight)
    LARS(lars_groups(net, weight_decay=0.5), lr=0.1, trust=0.001).step()
    for name, weight in net.named_parameters():
        if name in ("0.weight", "3.weight"):  # g = 1 + .5 * 2 = 2, trust .001 * |w| / |g| = .001
            assert torch.allclose(weight, torch.tensor(2.0 - 0.1 * 0.001 * 2, dtype=torch.float64), atol=1e-12, rtol=0)
        else:  # neither decay nor scaling
            assert torch.allclose(weight, torch.tensor(1.9, dtype=torch.float64), atol=1e-12, rtol=0)


def test_frozen_parameters_are_left_out() -> None:
    net = nn.Linear(2, 2)
    net.weight.requires_grad_(False)
    assert [len(group["params"]) for group in lars_groups(net, 0.1)] == [0, 1]


@pytest.mark.parametrize("field", ["lr", "momentum", "weight_decay", "trust"])
def test_lars_refuses(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be finite and at least 0, got -1"):
        LARS([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | {field: -1.0}))


def test_schedule() -> None:
    values = [warmup_cosine(step, warmup=4, total=12) for step in range(14)]
    assert values[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert values[8] == pytest.approx(0.5)  # half way down
    assert values[6] == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert values[12] == values[13] == pytest.approx(0, abs=1e-12)
    assert warmup_cosine(0, 0, 10) == 1
