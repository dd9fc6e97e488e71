"""Run by test_distributed.py in a process of its own: forks the ranks of a gloo group and writes what each one found.

python ranks.py RANKS FOLDER: losses and DDP's parameter gradients of a small net, one safetensors file a rank.
"""

import multiprocessing
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from gen_core.distributed import gather, world
from gen_core.estimators import Match, dv, jsd, separable
from gen_core.losses import info_nce, nt_xent, sup_con

ROWS = 24  # of the joined batch


class Net(nn.Module):
    """Two views in, two embeddings and the temperature out: one call of DDP a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
        self.temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.encoder(a), self.encoder(b), self.temperature


def data() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(ROWS, 5, dtype=torch.float64, generator=draw)
    labels = torch.randint(0, 6, (ROWS,), generator=draw)
    labels[:5] = torch.arange(100, 105)  # rows without a positive, all on the first rank
    return a, a + 0.3 * torch.randn(ROWS, 5, dtype=torch.float64, generator=draw), labels


def nt(a: Tensor, b: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return nt_xent(a, b, t, gather=True)


def nce(a: Tensor, b: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return info_nce(a, b, t, gather=True)


def sup(a: Tensor, b: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return sup_con(a, y, t, gather=True) + 0 * b.sum()


def sup_zero(a: Tensor, b: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return sup_con(a, y, t, empty="zero", gather=True) + 0 * b.sum()


def js(a: Tensor, b: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Linear in rows: own rows against the columns of all ranks."""
    rank, ranks = world()
    n = len(a)
    ids = torch.arange(ranks * n)
    return -jsd(separable(a, gather(b), t, normalize=True), Match(ids[rank * n : (rank + 1) * n], ids))


def donsker(a: Tensor, b: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """One logarithm over all pairs: both sides gathered."""
    return -dv(separable(gather(a), gather(b), t, normalize=True))


LOSSES = {"nt_xent": nt, "info_nce": nce, "sup_con": sup, "sup_con_zero": sup_zero, "jsd": js, "dv": donsker}


def measured(net: nn.Module, a: Tensor, b: Tensor, y: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, loss in LOSSES.items():
        net.zero_grad()
        value = loss(*net(a, b), y)
        value.backward()
        found[name] = torch.cat([value.detach().view(1), *(p.grad.flatten() for p in net.parameters())])
    return found


def rank(number: int, ranks: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=number, world_size=ranks)
    n = ROWS // ranks
    a, b, y = (v[number * n : (number + 1) * n] for v in data())
    found = measured(nn.parallel.DistributedDataParallel(Net()), a, b, y)
    try:  # one row more on the last rank
        gather(torch.zeros(n + (number == ranks - 1), 2))
    except ValueError as error:
        (folder / f"unequal-{number}.txt").write_text(str(error))
    save_file(found, folder / f"{number}.safetensors")
    dist.destroy_process_group()


def main() -> None:
    ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
    fork = multiprocessing.get_context("fork")  # one import of torch for all
    processes = [fork.Process(target=rank, args=(i, ranks, folder)) for i in range(ranks)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    sys.exit(max(abs(p.exitcode or 0) for p in processes))


if __name__ == "__main__":
    main()
