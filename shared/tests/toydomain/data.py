import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gen_core.harness.data import missing, root
from gen_core.harness.errors import UsageError, nearest


@dataclass(frozen=True)
class Table:
    x: Tensor
    labels: Tensor | None


def load(name: str) -> Table:
    if name == "absent":
        raise missing(name, root() / "absent", "It cannot be had.")
    if name == "unlabelled":
        return Table(load("rows").x, None)
    if name != "rows":
        if Path(name).exists():
            return Table(torch.tensor([[float(v) for v in r.split(",")] for r in Path(name).read_text().split()]), None)
        raise UsageError(nearest(name, ["rows", "absent"], "data set") + ", and no such path")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(256) % 2
    x = torch.randn(256, 8, generator=generator)
    x[:, 0] += 2.5 * labels
    return Table(x, labels)


def spec(data: Table) -> dict[str, int]:
    return {"features": data.x.shape[1]}


def checksum(data: Table) -> str:
    return hashlib.sha256(data.x.numpy().tobytes()).hexdigest()


def ids(data: Table) -> list[str]:
    return [str(i) for i in range(len(data.x))]
