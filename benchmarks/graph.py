"""gen-graph against PyG: an epoch of DGI and of InfoGraph, time and memory; and how DGI grows with the graph.

    python benchmarks/graph.py dgi          Cora and CiteSeer, hidden 512, against PyG's DeepGraphInfomax example
    python benchmarks/graph.py infograph    MUTAG and PROTEINS, against the released code's layout on PyG's layers
    python benchmarks/graph.py scale        generated graphs of 10,000 to 1,000,000 nodes, full batch and sampled
    ... --json FILE                         all tables of that call into one file (three names: all three)

Both sides of a time take turns in one process; median of wall times. Memory is the most that a side's epochs hold above
what stood before its model was made, peak resident memory of a process of its own (Linux). One thread.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `gen-graph` does, for both sides

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import DeepGraphInfomax, GCNConv, GINConv, global_add_pool

from gen_graph import DGI, InfoGraph
from gen_graph.data import load
from gen_graph.files import undirected

Epoch = Callable[[], Any]
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


# ------------------------------------------------------------------------------------------------------------------ DGI


def dgi_ours(data: Data, **config: Any) -> Epoch:
    model: Any = DGI(DGI.Config(**config))
    model.prepare(model.measure(data))
    graph, optimizer = model.graph_of(data), model.configure_optimizers()

    def epoch() -> None:
        optimizer.zero_grad()
        model.objective(*model.encode_both(graph, torch.randperm(graph.nodes))).backward()
        optimizer.step()

    return epoch


def dgi_pyg(data: Data, hidden: int) -> Epoch:
    """PyG's examples/infomax_transductive.py: dense features, GCNConv, PReLU a channel, Adam 1e-3."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.prelu = GCNConv(data.num_features, hidden), nn.PReLU(hidden)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.prelu(self.conv(x, edge_index))

    model = DeepGraphInfomax(
        hidden,
        encoder=Encoder(),
        summary=lambda z, *_: z.mean(dim=0).sigmoid(),
        corruption=lambda x, edge_index: (x[torch.randperm(len(x))], edge_index),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch() -> None:
        optimizer.zero_grad()
        model.loss(*model(data.x, data.edge_index)).backward()
        optimizer.step()

    return epoch


def planetoid(name: str) -> Data:
    data = load(name)
    assert isinstance(data, Data)
    return data


def dgi() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    print("DGI, hidden 512, one epoch     ours ms   PyG ms  ratio    ours MB  PyG MB  ratio")
    for name in ("cora", "citeseer"):
        data = planetoid(name)
        times = in_turn({"ours": dgi_ours(data, hidden=512), "pyg": dgi_pyg(data, 512)}, rounds=12)
        memory = {side: in_a_process(_memory_of_dgi, name, side) for side in ("ours", "pyg")}
        rows.append({"dataset": name, "ms": times, "mb": memory} | ratios(times, memory))
        print(f"{name:28} {line(times, memory)}", flush=True)
    return rows


def _memory_of_dgi(name: str, side: str) -> float:
    data = planetoid(name)
    return megabytes(lambda hidden: dgi_ours(data, hidden=hidden) if side == "ours" else dgi_pyg(data, hidden), 8, 512)


# ------------------------------------------------------------------------------------------------------------ InfoGraph


def infograph_ours(graphs: Any, layers: int) -> Epoch:
    model: Any = InfoGraph(InfoGraph.Config(layers=layers))
    model.prepare(model.measure(graphs))
    optimizer: Any = model.configure_optimizers()
    model.log = lambda *_, **__: None  # no trainer here
    seed = iter(range(10**6))

    def epoch() -> None:
        for batch in model.batches(graphs, next(seed)):
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            optimizer.step()

    return epoch


def infograph_released(graphs: list[Data], features: int, layers: int, hidden: int = 32) -> Epoch:
    """The released layout on PyG's layers: a list of graphs, batches of 128, masks filled node by node in Python."""
    from torch_geometric.loader import DataLoader

    def perceptron(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    class Projection(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            steps = [step for _ in range(3) for step in (nn.Linear(width, width), nn.ReLU())]
            self.block = nn.Sequential(*steps)
            self.shortcut = nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) + self.shortcut(x)

    convs = nn.ModuleList(GINConv(perceptron(features if k == 0 else hidden)) for k in range(layers))
    norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers))
    local, whole = Projection(layers * hidden), Projection(layers * hidden)
    parameters = [p for part in (convs, norms, local, whole) for p in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    loader = DataLoader(graphs, batch_size=128)

    def epoch() -> None:
        for batch in loader:
            optimizer.zero_grad()
            h, found = batch.x, []
            for conv, norm in zip(convs, norms, strict=True):
                h = norm(F.relu(conv(h, batch.edge_index)))
                found.append(h)
            pooled = torch.cat([global_add_pool(h, batch.batch) for h in found], 1)
            u, v = local(torch.cat(found, 1)), whole(pooled)
            n, g = len(u), len(v)
            pos, neg = torch.zeros(n, g), torch.ones(n, g)
            for node, graph in enumerate(batch.batch.tolist()):
                pos[node][graph], neg[node][graph] = 1.0, 0.0
            scores = u @ v.T
            e_pos = (torch.log(torch.tensor(2.0)) - F.softplus(-scores * pos)).sum() / n
            e_neg = (F.softplus(-scores * neg) + scores * neg - torch.log(torch.tensor(2.0))).sum() / (n * (g - 1))
            (e_neg - e_pos).backward()
            optimizer.step()

    return epoch


def infograph() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    print("InfoGraph, one epoch           ours ms  PyG ms  ratio    ours MB  PyG MB  ratio")
    for name in ("mutag", "proteins"):
        times = in_turn({side: _infograph(name, side) for side in ("ours", "pyg")}, rounds=5)
        memory = {side: in_a_process(_memory_of_infograph, name, side) for side in ("ours", "pyg")}
        rows.append({"dataset": name, "ms": times, "mb": memory} | ratios(times, memory))
        print(f"{name:28} {line(times, memory)}", flush=True)
    return rows


def _infograph(name: str, side: str, graphs: Any = None) -> Epoch:
    graphs = load(name) if graphs is None else graphs
    if side == "ours":
        return infograph_ours(graphs, layers=4)
    parts = [graphs.select(torch.tensor([k])) for k in range(len(graphs))]
    return infograph_released([Data(x=p.x, edge_index=p.edge_index) for p in parts], graphs.x.shape[1], layers=4)


def _memory_of_infograph(name: str, side: str) -> float:
    graphs: Any = load(name)
    few = graphs.select(torch.arange(4))
    return megabytes(lambda chosen: _infograph(name, side, chosen), few, graphs)


# ---------------------------------------------------------------------------------------------------------------- scale


def community_graph(nodes: int) -> Data:
    """Average degree 10, mostly within blocks of 1,000; 64 dense features."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(nodes, (5 * nodes,), generator=generator)
    near = (ends // 1000 * 1000 + torch.randint(1000, (5 * nodes,), generator=generator)).clamp(max=nodes - 1)
    far = torch.randint(nodes, (5 * nodes,), generator=generator)
    other = torch.where(torch.rand(5 * nodes, generator=generator) < 0.8, near, far)
    x = torch.randn(nodes, 64, generator=generator)
    return Data(x=x, edge_index=undirected(torch.stack([ends, other]), nodes))


def scale() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    print("DGI, hidden 64          prepared s   step s   embed s   peak MB  (the whole process)")
    for nodes in (10_000, 100_000, 1_000_000):
        for way in ("full batch", "sampled"):
            found = in_a_process(_scale, nodes, way)
            rows.append({"nodes": nodes, "way": way} | found)
            cells = (
                f"{found['prepared_s']:10.2f} {found['step_s']:8.3f} {found['embed_s']:9.2f} {found['peak_mb']:9.0f}"
            )
            print(f"{nodes:10,} {way:11} {cells}", flush=True)
    return rows


def _scale(nodes: int, way: str) -> dict[str, float]:
    torch.set_num_threads(1)
    data = community_graph(nodes)
    config: dict[str, Any] = {"hidden": 64, "normalize_features": False}
    start = time.perf_counter()
    model: Any = DGI(DGI.Config(batch_size=None if way == "full batch" else 256, **config))
    model.prepare(model.measure(data))
    if way == "full batch":
        step = dgi_ours(data, **config)
    else:
        model.prepared, model.seen = model.graph_of(data), torch.zeros(())
        model.log = lambda *_, **__: None  # no trainer here
        optimizer: Any = model.configure_optimizers()

        def step() -> None:
            optimizer.zero_grad()
            model.training_step((torch.randint(nodes, (256,)),), 0).backward()
            optimizer.step()

    prepared = time.perf_counter() - start
    times = [timed(step) for _ in range(6)][1:]
    start = time.perf_counter()
    model.embed(data)
    embedded = time.perf_counter() - start
    return {
        "edges": model.measure(data)["edges"],
        "prepared_s": prepared,
        "step_s": statistics.median(times),
        "embed_s": embedded,
        "peak_mb": status("VmHWM") / 1024,
    }


# -------------------------------------------------------------------------------------------------------------- helpers


def timed(step: Epoch) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turn(sides: dict[str, Epoch], rounds: int) -> dict[str, float]:
    """Median milliseconds of each side, which take turns; the first two rounds do not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 2):
        for name, epoch in sides.items():
            times[name].append(1000 * timed(epoch))
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def megabytes(make: Callable[[Any], Epoch], small: Any, size: Any) -> float:
    """What making a side of that size and five epochs of it hold at most, above what stands after a small one went."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)  # what is freed goes back at once: peaks are of live memory
    epoch = make(small)  # code that is loaded with the first step, the libraries' own buffers
    epoch()
    del epoch
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    epoch = make(size)
    for _ in range(5):
        epoch()
    return (status("VmHWM") - before) / 1024


def in_a_process(target: Callable[..., Any], *args: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(target, args)


def ratios(times: dict[str, float], memory: dict[str, float]) -> dict[str, float]:
    return {"time_ratio": times["ours"] / times["pyg"], "memory_ratio": memory["ours"] / memory["pyg"]}


def line(times: dict[str, float], memory: dict[str, float]) -> str:
    sides = [f"{v['ours']:9.1f} {v['pyg']:8.1f} {v['ours'] / v['pyg']:6.2f}" for v in (times, memory)]
    return "  ".join(sides)


def status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(text.split()[1]) for text in lines if text.startswith(key + ":"))


def main() -> None:
    tables: dict[str, Callable[[], list[dict[str, Any]]]] = {"dgi": dgi, "infograph": infograph, "scale": scale}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*tables, []], help="default: all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": torch.__version__, "cpu": platform.processor() or "unknown", "threads": 1}
    for name in options.tables or tables:
        found[name] = tables[name]()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
