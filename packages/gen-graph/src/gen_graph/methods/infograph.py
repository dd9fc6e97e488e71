"""InfoGraph: graph embeddings from telling a graph's own nodes from the nodes of the other graphs of a batch.

Citation: Sun, Hoffmann, Verma and Tang, "InfoGraph: Unsupervised and Semi-supervised Graph-Level Representation
Learning via Mutual Information Maximization", ICLR 2020, arXiv 1908.01000.

A GIN gives each node phi_i, the outputs of all its layers side by side, and each graph Phi_g = sum of its phi_i. Two
networks of the same shape take them to u_i = f_loc(phi_i) and v_g = f_glo(Phi_g); T_ig = u_i . v_g scores node and
graph. The Jensen-Shannon bound on T, with i's own graph as its positive and the batch's other graphs as its negatives,
is maximised; nothing is detached. The embedding is Phi, not v, in evaluation mode.

Deviations: batches are shuffled anew each epoch; the released code shuffles the data set once, so that the same graphs
are always each other's negatives. A last batch of one graph is left out: it has no negatives, and the released loss is
NaN there. Prior matching works on logits, so that it does not saturate. The released code evaluates before training and
after every epoch and does not say which the paper reports; here it is the last.
"""

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch_geometric.data import Data

from gen_core.estimators import BOUNDS, Match, Separable, separable
from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_core.harness.method import Method
from gen_graph import data as graphs
from gen_graph.encoders import FF, GIN, xavier
from gen_graph.graphset import GraphSet, loader


def local_global_loss(scores: Tensor, batch: Tensor) -> Tensor:
    """L_unsup of InfoGraph, the Jensen-Shannon estimator on node-graph scores; in nats, to minimise.

    mean_i sp(-T_{i,b(i)}) + mean over all (i, g != b(i)) of sp(T_ig) - 2 log 2, sp = softplus: minus the sum of the two
    expectations shifted by log 2 as in the released code. At T = 0 it is 0; perfect separation gives -2 log 2.

    It is -jsd(scores, own_graph(batch, g)) - 2 log 2 of `gen_core.estimators`. With exactly one positive a row, gather
    and scatter take the place of two masks (n, g): a tenth of a step's time.

    Args:
        scores: (n, g), T of each node and each graph; half precision is computed in float32.
        batch: (n,) int64, the graph of each node, in 0..g - 1.

    Raises:
        ValueError: one graph, which has no negatives; or shapes that do not fit.

    Examples:
        >>> T = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-0.3, 0.7]])
        >>> f"{local_global_loss(T, torch.tensor([0, 0, 1])).item():.6f}"
        '0.008729'
    """
    if scores.ndim != 2 or batch.shape != scores.shape[:1]:
        raise ValueError(f"scores must be (n, g), batch (n,); got {tuple(scores.shape)} and {tuple(batch.shape)}")
    n, g = scores.shape
    if g < 2:
        raise ValueError("scores must have a column for each of at least 2 graphs: one graph has no negatives; got 1")
    scores, own = scores if scores.dtype == torch.float64 else scores.float(), batch[:, None]
    pos, neg = scores.gather(1, own), scores.scatter(1, own, -math.inf)
    return sp(-pos).mean() + sp(neg).sum() / (n * (g - 1)) - 2 * math.log(2)


def sp(z: Tensor) -> Tensor:
    """log(1 + e^z); torch's own default turns linear at 20, 2e-9 too low there."""
    return F.softplus(z, threshold=40.0)


def own_graph(batch: Tensor, count: int) -> Match:
    """Which of `count` graphs is positive for each node: its own. For the bounds of `gen_core.estimators`."""
    return Match(batch, torch.arange(count, device=batch.device))


class InfoGraph(Method):
    """`InfoGraph(InfoGraph.Config(epochs=10)).fit(graphs).embed(graphs)`; own encoder: `InfoGraph(encoder=net)`.

    `net(x, edge_index) -> (n, hidden * layers)` is any module in PyG's manner that gives one row a node; a graph is the
    sum of its nodes' rows.
    """

    class Config(configs.Config):
        """Hyper-parameters."""

        hidden: PositiveInt = 32
        """Width of a GIN layer; a graph's embedding has hidden * layers dimensions, also with your own encoder."""
        layers: PositiveInt = 4
        """GIN layers. 4 as in DGL's example for MUTAG; the released code: 5 by default, 3 in its README's command."""
        learning_rate: PositiveFloat = 1e-2
        """Adam's learning rate; the released code has no default and tries 1e-2 and 1e-3."""
        batch_size: Annotated[int, Field(ge=2)] = 128
        """Graphs a batch; each node has batch_size - 1 negatives."""
        epochs: PositiveInt = 20
        """Passes over the graphs."""
        prior: NonNegativeFloat = 0.0
        """gamma, weight of prior matching, 0 is off; the released code's is 0.1. No adversary: see `mismatch`."""
        bound: Literal["paper", "infonce", "dv", "nwj", "tuba", "jsd", "smile", "interpolated", "nce"] = "paper"
        """Objective: the paper's on u . v, or another bound on cosines of u and v with learnt scale and offset."""

    measure = staticmethod(graphs.spec)
    encoder: nn.Module

    def build(self, spec: Any) -> None:
        width = self.config.hidden * self.config.layers
        if self.lacks("encoder"):
            self.encoder = GIN(spec["features"], self.config.hidden, self.config.layers)
        self.local, self.whole = FF(width, width), FF(width, width)
        if self.config.prior:
            self.judge = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
            ).apply(xavier)
        if self.config.bound != "paper":
            self.critic = Separable(temperature=0.5)  # cosines: u . v grows with the graph's size, e^(u . v) overflows

    def setup(self, stage: str) -> None:
        self.training_data = graphs.check_set(self.training_data)  # a list becomes a set once, not every epoch

    def batches(self, data: Any, seed: int) -> Any:
        found = GraphSet.of(data)
        if len(found) < 2:
            raise UsageError("InfoGraph needs at least 2 graphs: a node's negatives are the other graphs; got 1")
        alone = len(found) % self.config.batch_size == 1  # another graph each epoch
        return loader(found, self.config.batch_size, seed, drop_last=alone)

    def training_step(self, batch: GraphSet, _: int) -> Tensor:
        whole, nodes = self.encode(batch)
        loss = self.objective(self.local(nodes), self.whole(whole), batch.batch)
        if self.config.bound != "paper":
            self.log(f"objective/{self.config.bound}", -loss)
        if self.config.prior:
            loss = loss + self.config.prior * self.mismatch(whole)
        self.log("loss", loss)
        return loss

    def encode(self, batch: GraphSet) -> tuple[Tensor, Tensor]:
        """Phi of the graphs, (g, hidden * layers), and phi of their nodes, (n, hidden * layers)."""
        if batch.x.dtype != (dtype := self.local.shortcut.weight.dtype):
            batch = GraphSet(batch.x.to(dtype), batch.edge_index, batch.ptr)
        if isinstance(self.encoder, GIN):
            whole, nodes = self.encoder(batch)
        else:
            nodes = self.encoder(batch.x, batch.edge_index)
            whole = batch.sum(nodes)
        expected = (batch.nodes, self.config.hidden * self.config.layers)
        if nodes.shape != expected:
            raise UsageError(
                f"the given encoder returned shape {tuple(nodes.shape)}; expected {expected}: one row a node, and "
                "hidden * layers columns"
            )
        return whole, nodes

    def objective(self, local: Tensor, whole: Tensor, batch: Tensor) -> Tensor:
        """The paper's loss, or minus another bound; local (n, w), whole (g, w), batch (n,) the graph of each node."""
        if self.config.bound == "paper":
            return local_global_loss(separable(local, whole), batch)
        return -BOUNDS[self.config.bound](self.critic(local, whole), own_graph(batch, len(whole)))

    def mismatch(self, whole: Tensor) -> Tensor:
        """-[mean log D(p) + mean log(1 - D(Phi))], p uniform on [0, 1]^w.

        As in the released code, the encoder lowers it together with D: both make Phi *easy* to tell from the noise, the
        opposite of what an adversary's sign would do.
        """
        noise = torch.rand_like(whole)
        return sp(-self.judge(noise)).mean() + sp(self.judge(whole)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # 40 small tensors: one pass over them in place of one each saves up to a tenth of a step
        return torch.optim.Adam(self.parameters(), self.config.learning_rate, fused=True)

    def forward(self, batch: GraphSet) -> Tensor:
        """Phi, (g, hidden * layers)."""
        return self.encode(batch)[0]

    @torch.no_grad()
    def embed(self, data: GraphSet | list[Data], batch_size: int = 1024) -> Tensor:
        """Phi of every graph, (g, hidden * layers), on the CPU; `batch_size` graphs at a time."""
        found, expected = graphs.check_set(data), (self.spec or {}).get("features")
        if found.x.shape[1] != expected:
            raise UsageError(f"the graphs have {found.x.shape[1]} features; this model was built for {expected}")
        training = self.training
        self.eval()
        parts = torch.arange(len(found)).split(batch_size)
        rows = [self(found.select(part).to(self.device)).float().cpu() for part in parts]
        self.train(training)
        return torch.cat(rows)
