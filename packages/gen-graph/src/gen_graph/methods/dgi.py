"""DGI: node embeddings from telling the nodes of a graph from those of a corrupted one, given a summary of the graph.

Citation: Velickovic, Fedus, Hamilton, Lio, Bengio and Hjelm, "Deep Graph Infomax", ICLR 2019, arXiv 1809.10341.

An encoder E gives embeddings H of the graph (X, A) and H~ of (X~, A~), a corrupted one; the summary is s = sigmoid(mean
of H); a bilinear critic scores l = H W s + b and l~ = H~ W s + b; binary cross-entropy calls the former real, the
latter fake. Nothing is detached: the gradient reaches E through s too. Three settings, by the data and `batch_size`:

- one graph, each step a full batch: E is one GCN layer, corruption gives the nodes each other's features;
- one graph, `batch_size` nodes a step: E is the paper's three layers of mean pooling with skips on sampled
  neighbourhoods, corruption swaps features within each patch, the summary is that of the batch's centres;
- a set of graphs: E is the paper's mean pooling with dense skips, each graph's fakes are another graph of the set, with
  dropout on its features; means are per graph.

Deviations: none in the mathematics of the first. (P X) Theta = P (X Theta), so one product of the features serves both
passes; W s is one vector and s is never repeated; the loss is softplus on logits, so that it does not saturate.
`reduction` = "sum-of-means" is the scale of the PyG and DGL layers, twice the paper's. The raw self-loops that the
paper's code keeps (124 in CiteSeer) are dropped. The code of the other two settings was never released: the rate of
dropout, the size of batches of graphs and halving the columns between a node's own part and its neighbours' are our
choices; a sampled mean is weighted so that it has no bias, and `embed` uses all neighbours without sampling.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch_geometric.data import Data

from gen_core.estimators import BOUNDS, Bilinear, Pairs
from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_core.harness.fitting import Repeat, loader
from gen_core.harness.method import Method
from gen_core.losses import binary_nce
from gen_graph import data as graphs
from gen_graph.graphset import GraphSet
from gen_graph.networks import GCN, Graph, MeanDense, MeanSkip, normalize_rows
from gen_graph.sampling import Loaded, Neighbours, pyg_loader

VIRTUAL = 50
"""Steps in one epoch of the engine in full-batch training, which is only the interval of checkpoints."""


class DGI(Method):
    """`DGI(DGI.Config(hidden=512)).fit(data).embed(data)`; own encoder: `DGI(encoder=net)`.

    `net(x, edge_index) -> (n, hidden)` is any module in PyG's manner; it runs on both graphs. `data` is one `Data`, or
    several in a `GraphSet` or list; of several graphs `embed` gives the means of their nodes, of one graph its nodes.
    """

    class Config(configs.Config):
        """Hyper-parameters."""

        hidden: PositiveInt = 512
        """Dimensions of a node's embedding; with your own encoder: of its output."""
        learning_rate: PositiveFloat = 1e-3
        """Adam's learning rate."""
        epochs: PositiveInt = 10_000
        """The most epochs: steps where each is one full batch, else passes over the nodes or graphs."""
        patience: PositiveInt = 20
        """Epochs without a new lowest training loss after which training stops; the lowest one's weights are kept."""
        batch_size: PositiveInt | None = None
        """Nodes a step, with sampled neighbours (none: the whole graph); graphs a step of a set (none: 32)."""
        fanouts: tuple[PositiveInt, ...] = (10, 10, 25)
        """Neighbours sampled of a node at each distance from it; also the number of layers."""
        sampler: Literal["uniform", "pyg"] = "uniform"
        """Own sampler, or PyG's NeighborLoader where its library pyg-lib is installed; they draw different samples."""
        training_nodes_only: bool = False
        """Fit on the graph of the training nodes alone, so that the others are new when they are embedded."""
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
        """Share of the other graph's features that corruption of a set drops."""
        normalize_features: bool = True
        """Divide each node's features by the sum of their absolute values; made for counts, off for other scales."""
        reduction: Literal["mean", "sum-of-means"] = "mean"
        """Paper's loss: mean over the N + M logits, or the sum of the two means (PyG, DGL), twice that."""
        bound: Literal["paper", "dv", "nwj", "tuba", "jsd", "smile", "nce"] = "paper"
        """Objective on the scores: the paper's cross-entropy, or another bound of mutual information."""

    revision: ClassVar[int] = 2
    measure = staticmethod(graphs.spec)
    encoder: nn.Module

    def build(self, spec: Any) -> None:
        features, hidden = spec["features"], self.config.hidden
        if self.lacks("encoder"):
            if "graphs" in spec:
                self.encoder = MeanDense(features, hidden)
            elif self.config.batch_size:
                self.encoder = MeanSkip(features, hidden, len(self.config.fanouts))
            else:
                self.encoder = GCN(features, hidden)
        self.critic = Bilinear(hidden, hidden)  # W and b: a free scale and offset for any bound
        # The released code draws W as a tensor (1, h, h): Xavier's fans are then h and h^2, its range far smaller than
        # for (h, h). It matters: on CiteSeer 71.0 against 68.7.
        nn.init.xavier_uniform_(self.critic.weight.data[None])

    def training_step(self, batch: Any, _: int) -> Tensor:
        if isinstance(batch, Graph):
            loss = self.objective(*self.encode_both(batch, torch.randperm(batch.nodes)))
            self.keep_best(loss.item())  # before the update: these weights gave this loss
        elif isinstance(self.prepared, GraphSet):
            chosen = batch[0]
            other = (chosen + torch.randint(1, len(self.prepared), chosen.shape).to(chosen)) % len(self.prepared)
            loss = self.objective_of_set(self.prepared.select(chosen), self.prepared.select(other))
        else:
            x, neighbours = self.prepared
            if self.config.sampler == "pyg":
                patches = Loaded(batch, neighbours.degree)
            else:
                patches = neighbours.patches(batch[0], self.config.fanouts)
            loss = self.objective(self.encoder(x, patches), self.encoder(x, patches.shuffled()))
        self.log("loss", loss)
        self.seen += loss.detach()
        return loss

    def encode_both(self, graph: Graph, order: Tensor) -> tuple[Tensor, Tensor]:
        """H of the graph and H~ of the one whose node i has the features of node order[i], both (n, hidden)."""
        order = order.to(graph.edge_index.device)
        if isinstance(self.encoder, GCN):
            real, fake = self.encoder.several(graph, None, order)
            return real, fake
        assert isinstance(graph.x, Tensor)  # graph_of sees to it
        return self(graph), self(Graph(graph.x[order], graph.propagation, graph.edge_index))

    def objective(self, real: Tensor, fake: Tensor) -> Tensor:
        """Cross-entropy of the critic, or minus another bound, in nats."""
        summary = real.mean(dim=0).sigmoid()
        scores = Pairs(self.critic(real, summary), self.critic(fake, summary))
        if self.config.bound == "paper":
            return binary_nce(scores.pos, scores.neg, self.config.reduction)
        return -BOUNDS[self.config.bound](scores)

    def objective_of_set(self, real: GraphSet, other: GraphSet) -> Tensor:
        """The same on several graphs, graph k's fakes being the nodes of graph k of `other`; the mean over graphs."""
        x = F.dropout(other.x, self.config.dropout, self.training)
        h, fake = self(real), self(GraphSet(x, other.edge_index, other.ptr))
        directions = real.mean(h).sigmoid() @ self.critic.weight.T  # W s of each graph
        pos, neg = ((z * directions[part.batch]).sum(1) + self.critic.bias for z, part in ((h, real), (fake, other)))
        if self.config.bound != "paper":
            return -BOUNDS[self.config.bound](Pairs(pos, neg))
        ends = [real.sizes, other.sizes]
        totals = [ends[0] + ends[1]] * 2 if self.config.reduction == "mean" else ends
        terms = zip((F.softplus(-pos), F.softplus(neg)), (real, other), totals, strict=True)
        return torch.stack([(part.sum(loss[:, None])[:, 0] / total).mean() for loss, part, total in terms]).sum()

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
        # fused: without the temporary copies of Theta's size
        return torch.optim.Adam(self.parameters(), self.config.learning_rate, fused=True)

    def forward(self, batch: Graph | GraphSet) -> Tensor:
        """H, (n, hidden)."""
        if isinstance(self.encoder, GCN):
            return self.encoder(batch)
        if isinstance(self.encoder, MeanDense):
            assert isinstance(batch, GraphSet)
            return self.encoder(batch.x, batch.adjacency, batch.degree)
        found = self.encoder(batch.x, batch.edge_index)
        if found.shape != (batch.nodes, self.config.hidden):
            expected = f"({batch.nodes}, {self.config.hidden}): one row a node, and hidden columns"
            raise UsageError(f"the given encoder returned shape {tuple(found.shape)}; expected {expected}")
        return found

    @torch.no_grad()
    def embed(self, data: Data | GraphSet | Sequence[Data], batch_size: int = 1024) -> Tensor:
        """H of all nodes, (n, hidden), or of a set the means of its graphs, (g, hidden), on the CPU.

        A graph is encoded at once, a set `batch_size` graphs at a time.
        """
        prepared, training = self.graph_of(data), self.training
        self.eval()
        if isinstance(prepared, Graph):
            found = self(prepared.to(self.device)).float().cpu()
        elif isinstance(prepared, GraphSet):
            parts = (prepared.select(index).to(self.device) for index in torch.arange(len(prepared)).split(batch_size))
            several = not isinstance(data, Data)
            found = torch.cat([(part.mean(self(part)) if several else self(part)).float().cpu() for part in parts])
        else:
            x, neighbours = prepared[0].to(self.device), prepared[1].to(self.device)
            found = self.encoder(x, neighbours.whole(x)).float().cpu()
        self.train(training)
        return found

    # What follows holds a fit together: the data prepared once, virtual epochs, state that survives a kill.

    def graph_of(self, data: Data | GraphSet | Sequence[Data]) -> "Graph | GraphSet | tuple[Tensor, Neighbours]":
        """The data as this model's encoder takes it; of sampled training the features and the neighbours."""
        spec = self.spec or {}
        if "graphs" in spec:
            found = graphs.check_set([data] if isinstance(data, Data) else data)
            return GraphSet(self.features_of(found.x), found.edge_index, found.ptr, found.y)
        if not isinstance(data, Data):
            raise UsageError("this model was built for one graph; got several: embed them one by one")
        x, edge_index = graphs.check(data)
        if not self.config.batch_size:
            x, own = self.features_of(x, normalize=False), not isinstance(self.encoder, GCN)
            return Graph.of(x, edge_index, normalize=self.config.normalize_features, dense=own)
        x = self.features_of(x.to_dense() if x.layout != torch.strided else x)
        return x, Neighbours(edge_index, len(x))

    def features_of(self, x: Tensor, normalize: bool = True) -> Tensor:
        """x in the weights' precision and, as configured, normalised."""
        expected = (self.spec or {}).get("features")
        if x.shape[1] != expected:
            raise UsageError(f"data.x has {x.shape[1]} features; this model was built for {expected}")
        x = x.to(self.critic.weight.dtype)
        return normalize_rows(x) if normalize and self.config.normalize_features else x

    @property
    def full_batch(self) -> bool:
        return not self.config.batch_size and "graphs" not in (self.spec or {})

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            raise UsageError(f"devices {self.trainer.world_size}: DGI's early stopping sees one process; use 1")
        self.steps, self.waited, self.lowest = 0, 0, float("inf")
        self.best: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:  # not in setup, where the weights do not yet have the precision of the run
        data = self.training_data
        if self.config.training_nodes_only:
            if not isinstance(data, Data) or "train_mask" not in data:
                raise UsageError("training_nodes_only True: the data need a train_mask")
            data = data.subgraph(data.train_mask)
        self.prepared: Any = self.graph_of(data)
        if isinstance(self.prepared, GraphSet) and len(self.prepared) < 2:
            raise UsageError("a set of one graph: its fakes come from another graph; give the one graph as a Data")
        if isinstance(self.prepared, Graph) and self.prepared.nodes < 2:
            raise UsageError("a graph of one node: corruption swaps the features of nodes, at least 2 are needed")

    def on_train_epoch_start(self) -> None:
        self.seen = torch.zeros((), device=self.device)

    @property
    def max_epochs(self) -> int:
        return -(-self.config.epochs // VIRTUAL) if self.full_batch else self.config.epochs

    def batches(self, data: Any, seed: int) -> Iterable[Any]:
        if isinstance(self.prepared, tuple):
            x, neighbours = self.prepared
            self.prepared = x.to(self.device), neighbours.to(self.device)
            if self.config.sampler == "pyg":
                return pyg_loader(neighbours, self.config.fanouts, self.config.batch_size, seed)
            return loader([torch.arange(len(x))], self.config.batch_size, seed)
        self.prepared = self.prepared.to(self.device)
        if isinstance(self.prepared, GraphSet):
            return loader([torch.arange(len(self.prepared))], self.config.batch_size or 32, seed)
        return Repeat(self.prepared, min(VIRTUAL, self.config.epochs - self.current_epoch * VIRTUAL))

    def on_train_epoch_end(self) -> None:
        if not self.full_batch:
            self.keep_best(float(self.seen) / self.trainer.num_training_batches)

    def on_train_start(self) -> None:  # resumed after the last step and before the end of the run
        self.trainer.should_stop |= self.waited >= self.config.patience

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["early_stopping"] = [self.steps, self.waited, self.lowest, self.best]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps, self.waited, self.lowest, self.best = checkpoint["early_stopping"]

    def on_fit_end(self) -> None:
        self.load_state_dict(self.best)
        del self.prepared, self.best
