"""GraphMix: a graph network for few labels, regularised by a fully connected network with the same weights.

Citation: Verma, Qu, Kawaguchi, Lamb, Bengio, Kannala and Tang, "GraphMix: Improved Training of GNNs for Semi-Supervised
Learning", AAAI 2021, arXiv 1909.11715.

The twin (FCN) is the graph network (GNN) without aggregation. One iteration tosses a coin. Heads: K passes of the GNN
with dropout, averaged and sharpened, give targets to unlabelled nodes, as many as there are labelled ones, drawn with
replacement; the twin learns by Manifold Mixup of its hidden layer on labelled and on these nodes: L_sup + w(t) L_usup.
Tails: the GNN learns by cross-entropy on the labelled nodes. One Adam serves both. The GNN alone predicts. The weights
kept are those of the last step among the best on the validation nodes, looked at after every step.

Deviations: from the paper, as in the released code: the twin's loss is element-wise binary cross-entropy on the softmax
(`loss` = "ce" is the paper's). From the released code: hidden rows are gathered, not mixed in place, where a node that
is drawn twice depends on the order of writing. An average of the weights that it keeps beside them shares their memory,
so that its first step sets all weights to 0 and Adam's momentum starts them again; not so here. Its first versions, and
the copy whose README states the paper's numbers, drop no features in the GNN's passes; the last version does, and so do
we. It makes features 0 or 1 first; here they are the data's (PubMed's are weights). PyG's reader drops self-loops and
repeated edges of CiteSeer. Only what a step needs is computed: targets of the drawn nodes, outputs of the labelled and
of the validation nodes. Binary cross-entropy comes from logits; past its bound of 100 nats it has no gradient. Released
was the GCN alone; the settings of GAT and Graph U-Net are those of the GAT paper and of PyG's example.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch_geometric.data import Data

from gen_core.harness import config as configs
from gen_core.harness.errors import LabelsMissing, UsageError
from gen_core.harness.fitting import Repeat
from gen_core.harness.method import Method
from gen_core.losses import mixup, mixup_draw, ramp_up, sharpen
from gen_graph import data as graphs
from gen_graph import splits
from gen_graph.backbones import GAT, GCN2, Backbone, Scope, UNet
from gen_graph.networks import Graph

VIRTUAL = 50
"""Steps in one epoch of the engine, which is only the interval of checkpoints."""
BACKBONES: dict[str, type[Backbone]] = {"gcn": GCN2, "gat": GAT, "unet": UNet}


class GraphMix(Method):
    """`GraphMix().fit(data).predict(data)`; own network: `GraphMix(backbone=net)`, a `gen_graph.backbones.Backbone`.

    The defaults are the released code's for Cora and CiteSeer.
    """

    class Config(configs.Config):
        """Hyper-parameters."""

        backbone: Literal["gcn", "gat", "unet"] = "gcn"
        """The graph network: two-layer GCN, graph attention network or Graph U-Net."""
        hidden: PositiveInt | None = None
        """Width of the hidden layers; None: as published, 16 (gcn), 64 in 8 heads (gat), 32 (unet)."""
        dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
        """Dropout of the features; None: as published, 0.5 (gcn), 0.6 with attention (gat), 0.92 (unet)."""
        learning_rate: PositiveFloat | None = None
        """Adam's learning rate; None: as published, 0.01, gat 0.005."""
        weight_decay: NonNegativeFloat | None = None
        """Adam's weight decay on all weights; None: as published, 5e-4, unet 1e-3."""
        steps: PositiveInt = 2000
        """Iterations, of the twin and of the GNN together."""
        fcn_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
        """Chance that an iteration trains the twin; 0 is the GNN alone."""
        alpha: NonNegativeFloat = 1.0
        """Mixing weights follow Beta(alpha, alpha); 0 is no mixing."""
        passes: PositiveInt = 10
        """K, passes with dropout that are averaged into a target."""
        temperature: PositiveFloat = 0.1
        """T of the sharpened targets; 1 leaves them as they are."""
        gamma_max: NonNegativeFloat = 10.0
        """The greatest weight of the twin's loss on unlabelled nodes."""
        ramp_start: NonNegativeInt = 500
        """Iteration up to which that weight is gamma_max e^-5."""
        ramp_end: NonNegativeInt = 1000
        """Iteration from which it is gamma_max; not before ramp_start."""
        loss: Literal["bce", "ce"] = "bce"
        """The twin's loss: binary cross-entropy, mean over nodes and classes (released code), or the paper's."""

        @model_validator(mode="after")
        def _ramp(self) -> Self:
            if self.ramp_end < self.ramp_start:
                raise ValueError(f"ramp_end must be at least ramp_start = {self.ramp_start}, got {self.ramp_end}")
            return self

    measure = staticmethod(graphs.spec)
    backbone: Backbone

    def build(self, spec: Any) -> None:
        self.automatic_optimization = False
        config, classes = self.config, spec["classes"]
        if classes < 2:
            raise LabelsMissing(f"GraphMix needs y with at least two classes, got {classes}")
        if self.lacks("backbone"):
            kind = BACKBONES[config.backbone]
            hidden, dropout = config.hidden or kind.published.hidden, config.dropout
            more = {"nodes": spec["nodes"]} if kind is UNet else {}
            dropout = kind.published.dropout if dropout is None else dropout
            self.backbone = kind(spec["features"], hidden, classes, dropout, **more)
        if not isinstance(self.backbone, Backbone):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"backbone is a {type(self.backbone).__name__}; expected a gen_graph.backbones.Backbone")
        for name, module in self.backbone.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                raise UsageError(f"backbone.{name} is batch norm; its statistics differ between GNN and twin: use none")

    def training_step(self, graph: Scope, index: int) -> None:
        heads = torch.rand(()).item() < self.config.fcn_probability
        loss = self.twin_loss(self.current_epoch * VIRTUAL + index) if heads else self.gnn_loss()
        self.descend(self.optimizers(), loss)
        self.choose()
        self.log_dict(
            {"loss": loss, "val_accuracy": self.accuracy}
        )  # one name: the engine repeats what a step leaves out

    def gnn_loss(self) -> Tensor:
        """Cross-entropy of the GNN on the labelled nodes, in nats."""
        return F.cross_entropy(self(self.labelled), self.y)

    def twin_loss(self, step: int) -> Tensor:
        """L_sup + w(t) L_usup of the twin."""
        config, classes = self.config, (self.spec or {})["classes"]
        drawn = self.unlabelled[torch.randint(len(self.unlabelled), (len(self.y),)).to(self.device)]
        nodes, place = drawn.unique(return_inverse=True)  # a node drawn twice has one hidden row and one target
        targets = self.pseudo_targets(nodes)
        supervised = self.mixed_loss(self.alone, F.one_hot(self.y, classes).to(targets))
        unsupervised = self.mixed_loss(self.graph.at(nodes, 0), targets, place)
        weight = config.gamma_max * ramp_up(step - config.ramp_start, config.ramp_end - config.ramp_start)
        return supervised + weight * unsupervised

    @torch.no_grad()
    def pseudo_targets(self, nodes: Tensor) -> Tensor:
        """Sharpened mean of the GNN's K predictions with dropout for different `nodes`, (len(nodes), classes)."""
        scope = self.graph.at(nodes, self.backbone.hops)
        mean = torch.stack([self(scope).float().softmax(1) for _ in range(self.config.passes)]).mean(0)
        return sharpen(mean, self.config.temperature)

    def mixed_loss(self, scope: Scope, targets: Tensor, place: Tensor | None = None) -> Tensor:
        """The twin's loss on mixed hidden rows and targets of the nodes in scope; `place`: rows to take, in order."""
        h = self.backbone.hidden(scope, aggregate=False)
        h, targets = (h, targets) if place is None else (h[place], targets[place])
        weight, partner = mixup_draw(len(h), self.config.alpha)
        partner = partner.to(h.device)
        logits = self.backbone.head(mixup(h, weight, partner), scope, aggregate=False)
        loss = softmax_bce if self.config.loss == "bce" else F.cross_entropy
        return loss(logits.float(), mixup(targets, weight, partner))

    @torch.no_grad()
    def choose(self) -> None:
        """Keep the weights if no step before was better on the validation nodes."""
        self.backbone.eval()
        self.accuracy = float((self(self.watched).argmax(1) == self.y_watched).float().mean())
        self.backbone.train()
        if self.accuracy >= self.best_accuracy:
            self.best_accuracy = self.accuracy
            for name, value in self.state_dict().items():
                self.best.setdefault(name, torch.empty_like(value)).copy_(value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        config, published = self.config, self.backbone.published
        rate, decay = config.learning_rate or published.learning_rate, config.weight_decay
        decay = published.weight_decay if decay is None else decay
        return torch.optim.Adam(self.parameters(), rate, weight_decay=decay, fused=True)

    def forward(self, batch: Scope) -> Tensor:
        """The GNN's logits, (n, classes)."""
        return self.backbone(batch)

    @torch.no_grad()
    def logits(self, data: Data) -> Tensor:
        """The GNN's logits of all nodes, (n, classes), on the CPU."""
        return self._evaluated(self.backbone, data)

    @torch.no_grad()
    def embed(self, data: Data, batch_size: int = 0) -> Tensor:
        """The hidden layer of the GNN, (n, width), on the CPU; the whole graph at once: `batch_size` is not used."""
        return self._evaluated(self.backbone.hidden, data)

    def _evaluated(self, function: Any, data: Data) -> Tensor:
        training = self.training
        self.eval()
        found = function(self.graph_of(data).to(self.device)).float().cpu()
        self.train(training)
        return found

    def predict(self, data: Data) -> dict[str, Any]:
        """Columns id, class (its number) and score (its probability), a row a node."""
        best = self.logits(data).softmax(1).max(1)
        return {"id": graphs.ids(data), "class": best.indices.numpy(), "score": best.values.numpy()}

    # What follows holds a full-batch fit together: the graph prepared once, virtual epochs, state that survives a kill.

    def graph_of(self, data: Data) -> Scope:
        """The data as this model's backbone takes it, each node's features divided by their sum."""
        x, edge_index = graphs.check(data)
        expected = (self.spec or {}).get("features")
        if x.shape[1] != expected:
            raise UsageError(f"data.x has {x.shape[1]} features; this model was built for {expected}")
        x = x.to(next(self.parameters()).dtype)
        graph = Graph.of(x, edge_index, normalize=True, dense=not self.backbone.sparse)
        return Scope.of(graph, self.backbone.hops or 1)

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            raise UsageError(f"devices {self.trainer.world_size}: each step of GraphMix sees the whole graph; use 1")
        self.accuracy = self.best_accuracy = 0.0
        self.best: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:  # not in setup, where the weights do not yet have the precision of the run
        data = self.training_data
        train, val, _ = splits.nodes(data, self.fit_seed)
        if not len(train) or not len(val):
            raise UsageError(
                f"{len(train)} training and {len(val)} validation nodes: GraphMix needs both, since it keeps the step "
                "that is best on the latter; set train_mask and val_mask, or no masks at all"
            )
        self.graph = self.graph_of(data).to(self.device)
        y, train, val = (tensor.to(self.device) for tensor in (data.y, train, val))
        self.y, self.y_watched = y[train], y[val]
        free = torch.ones_like(y, dtype=torch.bool)
        free[train] = False
        self.unlabelled = free.nonzero()[:, 0]
        hops = self.backbone.hops
        self.labelled, self.alone, self.watched = (
            self.graph.at(rows, reach) for rows, reach in ((train, hops), (train, 0), (val, hops))
        )

    @property
    def max_epochs(self) -> int:
        return -(-self.config.steps // VIRTUAL)

    def batches(self, data: Data, seed: int) -> Iterable[Scope]:
        return Repeat(self.graph, min(VIRTUAL, self.config.steps - self.current_epoch * VIRTUAL))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["selection"] = [self.best_accuracy, self.best]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.best_accuracy, self.best = checkpoint["selection"]

    def on_fit_end(self) -> None:
        self.load_state_dict(self.best)
        del self.graph, self.labelled, self.alone, self.watched, self.unlabelled, self.y, self.y_watched, self.best


def softmax_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all elements of -(y log q + (1 - y) log(1 - q)), q = softmax(logits): the released code's loss.

    Computed from logits, so that log(1 - q) of a sure class keeps its value; each logarithm is cut at
    -100 as in `torch.nn.BCELoss`. (n, C >= 2) and (n, C) -> (), in nats.
    """
    logs = logits.log_softmax(1)
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
    # Below the top q is at most 1/2, and log1p exact; of the top, 1 - q is the sum of the others.
    rest = torch.log1p(-logs.exp().scatter(1, top, 0)).scatter(1, top, others)
    return -(targets * logs.clamp(min=-100) + (1 - targets) * rest.clamp(min=-100)).mean()
