"""DGI: node embeddings from telling the nodes of a graph from those of a corrupted one, given a summary of the graph.

Citation: Velickovic, Fedus, Hamilton, Lio, Bengio and Hjelm, "Deep Graph Infomax", ICLR 2019, arXiv 1809.10341.

An encoder E gives embeddings H of the graph (X, A) and H~ of (P X, A), whose features are rows of X in random order P;
the summary is s = sigmoid(mean of H); a bilinear critic scores l = H W s + b and l~ = H~ W s + b; binary cross-entropy
calls the former real, the latter fake. Nothing is detached: the gradient reaches E through s too. A step is one full
batch.

Deviations: none in the mathematics. (P X) Theta = P (X Theta), so one product of the features serves both passes; W s
is one vector and s is never repeated; the loss is softplus on logits, so that it does not saturate. `reduction` =
"sum-of-means" is the scale of the PyG and DGL layers, twice the paper's. The inductive variants (Reddit, PPI) are not
here. PyG's Planetoid reader, which we use, drops the raw self-loops that the paper's code keeps (124 in CiteSeer).
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch_geometric.data import Data

from gen_core.estimators import BOUNDS, Bilinear, Pairs
from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import Repeat
from gen_core.harness.method import Method
from gen_core.losses import binary_nce
from gen_graph import data as graphs
from gen_graph.networks import GCN, Graph

VIRTUAL = 50
"""Steps in one epoch of the engine, which is only the interval of checkpoints."""


class DGI(Method):
    """`DGI(DGI.Config(hidden=512)).fit(data).embed(data)`; own encoder: `DGI(encoder=net)`.

    `net(x, edge_index) -> (n, hidden)` is any module in PyG's manner; it runs on both graphs.
    """

    class Config(configs.Config):
        """Hyper-parameters."""

        hidden: PositiveInt = 512
        """Dimensions of a node's embedding; with your own encoder: of its output."""
        learning_rate: PositiveFloat = 1e-3
        """Adam's learning rate."""
        epochs: PositiveInt = 10_000
        """The most steps; each is one full batch."""
        patience: PositiveInt = 20
        """Steps without a new lowest training loss after which training stops; the lowest one's weights are kept."""
        normalize_features: bool = True
        """Divide each node's features by the sum of their absolute values; made for counts, off for other scales."""
        reduction: Literal["mean", "sum-of-means"] = "mean"
        """Paper's loss: mean over the N + M logits, or the sum of the two means (PyG, DGL), twice that."""
        bound: Literal["paper", "dv", "nwj", "tuba", "jsd", "smile", "nce"] = "paper"
        """Objective on the scores: the paper's cross-entropy, or another bound of mutual information."""

    measure = staticmethod(graphs.spec)
    encoder: nn.Module

    def build(self, spec: Any) -> None:
        if self.lacks("encoder"):
            self.encoder = GCN(spec["features"], self.config.hidden)
        self.critic = Bilinear(self.config.hidden, self.config.hidden)  # W and b: a free scale and offset for any bound
        # The released code draws W as a tensor (1, h, h): Xavier's fans are then h and h^2, its range far smaller than
        # for (h, h). It matters: on CiteSeer 71.0 against 68.7.
        nn.init.xavier_uniform_(self.critic.weight.data[None])

    def training_step(self, graph: Graph, _: int) -> Tensor:
        real, fake = self.encode_both(graph, torch.randperm(graph.nodes))
        loss = self.objective(real, fake)
        self.log("loss", loss)
        self.keep_best(loss.item())  # before the update: these weights gave this loss
        return loss

    def encode_both(self, graph: Graph, order: Tensor) -> tuple[Tensor, Tensor]:
        """H of the graph and H~ of the one whose node i has the features of node order[i], both (n, hidden)."""
        order = order.to(graph.edge_index.device)
        if isinstance(self.encoder, GCN):
            z = self.encoder.project(graph.x)
            return self.encoder.propagate(z, graph.propagation), self.encoder.propagate(z[order], graph.propagation)
        assert isinstance(graph.x, Tensor)  # graph_of sees to it
        return self(graph), self(Graph(graph.x[order], graph.propagation, graph.edge_index))

    def objective(self, real: Tensor, fake: Tensor) -> Tensor:
        """Cross-entropy of the critic, or minus another bound, in nats."""
        summary = real.mean(dim=0).sigmoid()
        scores = Pairs(self.critic(real, summary), self.critic(fake, summary))
        if self.config.bound == "paper":
            return binary_nce(scores.pos, scores.neg, self.config.reduction)
        return -BOUNDS[self.config.bound](scores)

    def keep_best(self, loss: float) -> None:
        """Early stopping on the training loss: keep the weights of the lowest one, stop after `patience` others."""
        self.steps += 1
        if loss < self.lowest:
            self.lowest, self.waited = loss, 0
            for name, value in self.state_dict().items():
                self.best.setdefault(name, torch.empty_like(value)).copy_(value)
        else:
            self.waited += 1
        self.trainer.should_stop |= self.waited >= self.config.patience

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.config.learning_rate)

    def forward(self, batch: Graph) -> Tensor:
        """H, (n, hidden)."""
        if isinstance(self.encoder, GCN):
            return self.encoder(batch)
        found = self.encoder(batch.x, batch.edge_index)
        if found.shape != (batch.nodes, self.config.hidden):
            expected = f"({batch.nodes}, {self.config.hidden}): one row a node, and hidden columns"
            raise UsageError(f"the given encoder returned shape {tuple(found.shape)}; expected {expected}")
        return found

    @torch.no_grad()
    def embed(self, data: Data, batch_size: int = 0) -> Tensor:
        """H of all nodes, (n, hidden), on the CPU; the whole graph at once, so `batch_size` is not used."""
        graph, training = self.graph_of(data), self.training
        self.eval()
        found = self(graph.to(self.device)).float().cpu()
        self.train(training)
        return found

    # What follows holds a full-batch fit together: the graph prepared once, virtual epochs, state that survives a kill.

    def graph_of(self, data: Data) -> Graph:
        """The data as this model's encoder takes it."""
        x, edge_index = graphs.check(data)
        expected = (self.spec or {}).get("features")
        if x.shape[1] != expected:
            raise UsageError(f"data.x has {x.shape[1]} features; this model was built for {expected}")
        own, x = not isinstance(self.encoder, GCN), x.to(self.critic.weight.dtype)
        return Graph.of(x, edge_index, normalize=self.config.normalize_features, dense=own)

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            raise UsageError(f"devices {self.trainer.world_size}: each step of DGI sees the whole graph; use 1")
        self.steps, self.waited, self.lowest = 0, 0, float("inf")
        self.best: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:  # not in setup, where the weights do not yet have the precision of the run
        self.graph = self.graph_of(self.training_data)

    @property
    def max_epochs(self) -> int:
        return -(-self.config.epochs // VIRTUAL)

    def batches(self, data: Data, seed: int) -> Iterable[Graph]:
        self.graph = self.graph.to(self.device)
        return Repeat(self.graph, min(VIRTUAL, self.config.epochs - self.current_epoch * VIRTUAL))

    def on_train_start(self) -> None:  # resumed after the last step and before the end of the run
        self.trainer.should_stop |= self.waited >= self.config.patience

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["early_stopping"] = [self.steps, self.waited, self.lowest, self.best]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps, self.waited, self.lowest, self.best = checkpoint["early_stopping"]

    def on_fit_end(self) -> None:
        self.load_state_dict(self.best)
        del self.graph, self.best
