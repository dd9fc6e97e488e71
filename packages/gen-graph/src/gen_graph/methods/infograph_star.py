"""InfoGraph*: few labels and many graphs; one encoder learns from the labels, a second one without, and their codes of
the same graph are made to agree.

Citation: Sun, Hoffmann, Verma and Tang, "InfoGraph: Unsupervised and Semi-supervised Graph-Level Representation
Learning via Mutual Information Maximization", ICLR 2020, arXiv 1908.01000.

A step takes a batch of labelled graphs and a batch of the pool, which is all training graphs without their labels:

    L = loss(head(Enc_theta(labelled)), y) + w_u L_unsup(Enc_phi, pool) + lambda L_align(pool)

L_unsup is InfoGraph's loss. L_align is the same Jensen-Shannon estimator on S = a c^T, a = g1(Enc_theta(G)) and
c = g2(Enc_phi(G)): a graph's two codes are the positive pair, codes of two graphs the negative ones. Nothing is
detached: the alignment teaches both encoders. Targets are standardised, the loss is their mean squared error; for
classes, which the paper does not have, it is cross-entropy. An epoch ends with the labelled graphs; the weights of the
best epoch on the validation graphs are kept. With both weights at 0 this is the supervised baseline.

Deviations: mean and scale of the targets come from the labelled graphs alone (released code: from the whole data set,
test graphs included). L_align takes the final codes of a graph, as the released code does; the paper writes a sum over
the encoder's levels. A batch of one graph is left out unless it is the only one, and so is an incomplete batch of the
pool. Validation and test graphs are in no training batch, with or without labels, as in the released code.
"""

import math
from collections.abc import Callable, Iterator, Sized
from itertools import chain, repeat
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch_geometric.data import Data

from gen_core.estimators import jsd, separable
from gen_core.harness import config as configs
from gen_core.harness.errors import LabelsMissing, UsageError
from gen_core.harness.fitting import mix
from gen_core.harness.method import Method
from gen_graph import data as graphs
from gen_graph import splits
from gen_graph.encoders import FF, GIN, xavier
from gen_graph.enn_s2s import EnnS2S
from gen_graph.graphset import GraphSet, loader
from gen_graph.methods.infograph import local_global_loss

Part = PositiveInt | Annotated[float, Field(gt=0, lt=1)]
EVALUATED = 64
"""Graphs at a time without gradient; enn-s2s holds a matrix an edge."""


def global_global_loss(a: Tensor, c: Tensor) -> Tensor:
    """L_align of two codes of the same graphs, both (g, d), g at least 2; in nats, to minimise.

    mean_i sp(-S_ii) + mean over all i != j of sp(S_ij) - 2 log 2, S = a c^T, sp = softplus; 0 at S = 0.

    Examples:
        >>> f"{global_global_loss(torch.eye(2), torch.eye(2)).item():.6f}"
        '-0.379886'
    """
    return -jsd(separable(a, c)) - 2 * math.log(2)


class Paired(Sized):
    """Batches of labelled graphs, each with a batch of the pool, or with None where there is no pool."""

    def __init__(self, labelled: Any, pool: Any | None) -> None:
        self.labelled, self.pool = labelled, pool

    def __len__(self) -> int:
        return len(self.labelled)

    def __iter__(self) -> Iterator[tuple[GraphSet, GraphSet | None]]:
        # The pool holds the labelled graphs, so that one pass less its incomplete batch is at most one batch short.
        return zip(self.labelled, chain(self.pool, self.pool) if self.pool else repeat(None), strict=False)


class InfoGraphStar(Method):
    """`InfoGraphStar(InfoGraphStar.Config(labelled=100, validation=0.1, test=0.2)).fit(graphs).predict(others)`."""

    class Config(configs.Config):
        """Hyper-parameters; the defaults are the released code's for QM9."""

        encoder: Literal["gin", "enn-s2s"] = "enn-s2s"
        """Message passing with edge features and Set2Set (the paper's), or InfoGraph's GIN, which uses no edge_attr."""
        hidden: PositiveInt = 64
        """Width of a node's state, or of a GIN layer."""
        layers: PositiveInt = 3
        """Message steps, or GIN layers."""
        labelled: PositiveInt = 5000
        """Training graphs that keep their label; the others are used without."""
        validation: Part = 10_000
        """Labelled graphs that choose the epoch and lower the learning rate: a number, or a share below 1."""
        test: Part = 10_000
        """Labelled graphs that training never sees: a number, or a share below 1."""
        unsupervised_weight: NonNegativeFloat = 1.0
        """w_u, weight of InfoGraph's loss on the pool."""
        align_weight: NonNegativeFloat = 1e-3
        """lambda, weight of the agreement between the two encoders; both weights 0: the supervised baseline."""
        separate: bool = True
        """Off: one encoder for both tasks, no alignment (the released code then weighs the loss on the pool 1e-3)."""
        learning_rate: PositiveFloat = 1e-3
        """Adam's learning rate at the start."""
        patience: PositiveInt = 5
        """Epochs without a lower validation error after which the learning rate falls to 0.7 of it; targets only."""
        batch_size: Annotated[int, Field(ge=2)] = 20
        """Graphs in a labelled batch and in a batch of the pool."""
        epochs: PositiveInt = 500
        """Passes over the labelled graphs."""

        @model_validator(mode="after")
        def _aligned(self) -> Self:
            if self.align_weight and not self.separate:
                raise ValueError(f"align_weight = {self.align_weight} needs separate = true; with one encoder give 0")
            return self

    mean: Tensor
    std: Tensor

    def __init__(self, config: configs.Config | None = None) -> None:
        super().__init__(config)
        # By itself Lightning lowers the learning rate after the epoch's checkpoint is written: a resumed run would not.
        self.automatic_optimization = False

    @staticmethod
    def measure(data: Any) -> dict[str, int]:
        """Sizes of several graphs; one `Data` is refused."""
        return graphs.spec(graphs.check_set(data))

    def build(self, spec: Any) -> None:
        if spec["classes"] == 1:
            raise UsageError("all graphs have the class 0: classification needs two classes, regression float targets")
        # The supervised part first: what follows must not move its initial weights.
        self.encoder = self.new_encoder(spec)
        width, hidden = self.encoder.width, self.config.hidden
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, spec["classes"] or 1))
        self.head.apply(xavier)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        if self.uses_pool:
            code = hidden if isinstance(self.encoder, EnnS2S) else width
            self.second = self.new_encoder(spec) if self.config.separate else None
            self.local, self.whole = FF(code, code), FF(width, code)
            if self.config.align_weight:
                self.code, self.second_code = FF(width, code), FF(width, code)

    def new_encoder(self, spec: Any) -> GIN | EnnS2S:
        """An encoder `graphs -> (one row a graph, one row a node)`."""
        config = self.config
        if config.encoder == "gin":
            return GIN(spec["features"], config.hidden, config.layers)
        if "edge_features" not in spec:
            raise UsageError(
                "encoder 'enn-s2s' needs edge_attr, which the graphs do not have; encoder = 'gin' does not"
            )
        return EnnS2S(spec["features"], spec["edge_features"], config.hidden, config.layers)

    @property
    def uses_pool(self) -> bool:
        return self.config.unsupervised_weight > 0 or self.config.align_weight > 0

    @property
    def regression(self) -> bool:
        return (self.spec or {})["classes"] == 0

    def batches(self, data: Any, seed: int) -> Paired:
        size = self.config.batch_size
        alone = len(self.labelled) % size == 1 and len(self.labelled) > 1
        labelled = loader(self.labelled, size, seed, drop_last=alone)
        if not self.uses_pool:
            return Paired(labelled, None)
        return Paired(labelled, loader(self.pool, min(size, len(self.pool)), mix(seed, 1), drop_last=True))

    def training_step(self, batch: tuple[GraphSet, GraphSet | None], _: int) -> None:
        labelled, pool = batch
        terms = {"supervised": self.supervised(labelled)}
        loss = terms["supervised"]
        if pool is not None:
            for name, (weight, term) in self.unsupervised(pool).items():
                terms[name] = term
                loss = loss + weight * term
        with torch.autocast(self.device.type, enabled=False):  # it is still on here, and CSR has no half precision
            self.descend(self.optimizers(), loss)
        self.log_dict({"loss": loss, **terms})

    def supervised(self, batch: GraphSet) -> Tensor:
        """Mean squared error of the standardised targets, or cross-entropy in nats."""
        found = self.head(self(batch))
        assert batch.y is not None
        if self.regression:
            return F.mse_loss(found[:, 0], (batch.y - self.mean) / self.std)
        return F.cross_entropy(found, batch.y)

    def unsupervised(self, pool: GraphSet) -> dict[str, tuple[float, Tensor]]:
        """L_unsup and L_align of a batch with their weights; a term of weight 0 is not computed."""
        config, found = self.config, dict[str, tuple[float, Tensor]]()
        whole, nodes = (self.second or self.encoder)(pool)
        if config.unsupervised_weight:
            scores = separable(self.local(nodes), self.whole(whole))
            found["unsupervised"] = config.unsupervised_weight, local_global_loss(scores, pool.batch)
        if config.align_weight:
            aligned = global_global_loss(self.code(self(pool)), self.second_code(whole))
            found["align"] = config.align_weight, aligned
        return found

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.config.learning_rate, fused=True)
        if not self.regression:
            return optimizer
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.7, patience=self.config.patience, min_lr=1e-6
        )
        return [optimizer], [schedule]

    def on_train_epoch_end(self) -> None:
        error = self.error()
        self.log("validation", error)
        if self.regression:
            self.lr_schedulers().step(error)  # pyright: ignore
        if error <= self.lowest:
            self.lowest = error
            for name, value in self.state_dict().items():
                self.best.setdefault(name, torch.empty_like(value)).copy_(value)

    def error(self) -> float:
        """On the validation graphs: mean absolute error in the targets' units, or the share of wrong classes."""
        found, y = self.outputs(self.validation), self.validation.y
        assert y is not None
        wrong = (found[:, 0] - y).abs() if self.regression else (found.argmax(1) != y).double()
        return float(wrong.mean())

    # What it gives.

    def forward(self, batch: GraphSet) -> Tensor:
        """Enc_theta, (g, width): what the head reads; width = 2 * hidden (enn-s2s) or layers * hidden (gin)."""
        return self.encoder(batch)[0]

    def embed(self, data: GraphSet | list[Data], batch_size: int = EVALUATED) -> Tensor:
        """The supervised encoder's code of every graph, (g, width), on the CPU."""
        return self.rows(self.taken(data), batch_size, self).float().cpu()

    def predict(self, data: GraphSet | list[Data], batch_size: int = EVALUATED) -> dict[str, Any]:
        """Columns id and value (in the targets' units), or id, class and score (its probability); a row a graph."""
        found = self.outputs(self.taken(data), batch_size).double().cpu()
        names = graphs.ids(GraphSet.of(data))
        if self.regression:
            return {"id": names, "value": found[:, 0].tolist()}
        best = found.softmax(1).max(1)
        return {"id": names, "class": best.indices.tolist(), "score": best.values.tolist()}

    def outputs(self, data: GraphSet, batch_size: int = EVALUATED) -> Tensor:
        """Targets (g, 1) in their units, or logits (g, classes)."""
        found = self.rows(data, batch_size, lambda batch: self.head(self(batch)))
        return found * self.std + self.mean if self.regression else found

    @torch.no_grad()
    def rows(self, data: GraphSet, batch_size: int, function: Callable[[GraphSet], Tensor]) -> Tensor:
        """`function` of every graph, in evaluation mode."""
        training = self.training
        self.eval()
        parts = torch.arange(len(data)).split(batch_size)
        found = [function(data.select(part).to(self.device)) for part in parts]
        self.train(training)
        return torch.cat(found)

    def taken(self, data: Any) -> GraphSet:
        """Checked graphs with numbers of the precision of this model."""
        found, spec, dtype = graphs.check_set(data), self.spec or {}, next(self.parameters()).dtype
        if found.x.shape[1] != spec["features"]:
            raise UsageError(
                f"the graphs have {found.x.shape[1]} features; this model was built for {spec['features']}"
            )
        if self.config.encoder == "gin":
            edge_attr = None
        elif found.edge_attr is None or found.edge_attr.shape[1] != spec["edge_features"]:
            had = "no edge_attr" if found.edge_attr is None else f"{found.edge_attr.shape[1]} edge features"
            raise UsageError(f"the graphs have {had}; this model was built for {spec['edge_features']} edge features")
        else:
            edge_attr = found.edge_attr.to(dtype)
        y = found.y.to(dtype) if found.y is not None and found.y.is_floating_point() else found.y
        return GraphSet(found.x.to(dtype), found.edge_index, found.ptr, y, edge_attr)

    def split(self, data: GraphSet, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Numbers of the labelled graphs, of the pool (with these), of the validation and of the test graphs."""
        return splits.graphs(data, seed, self.config.labelled, self.config.validation, self.config.test)

    # What holds a fit together: the parts of the data, and the best epoch's weights, which survive a kill.

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            raise UsageError(f"devices {self.trainer.world_size}: the best epoch is chosen in one process; use 1")
        self.lowest, self.best = math.inf, dict[str, Tensor]()

    def on_fit_start(self) -> None:
        data = self.taken(self.training_data)
        labelled, pool, validation, _ = self.split(data, self.fit_seed)
        if self.uses_pool and len(pool) < 2:
            raise UsageError(f"InfoGraph* needs two training graphs, so that one has a negative; got {len(pool)}")
        self.labelled, self.pool, self.validation = (
            data.select(part).to(self.device) for part in (labelled, pool, validation)
        )
        y, self.pool.y = self.labelled.y, None
        if y is None:
            raise LabelsMissing("InfoGraph* needs y")
        if self.regression:
            self.mean.copy_(y.mean())
            self.std.copy_(y.std() if len(y.unique()) > 1 else torch.ones(()))
        elif len(kinds := y.unique()) < 2:
            raise UsageError(f"labelled = {len(y)}: all of these graphs have the class {int(kinds[0])}; take more")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["best"] = [self.lowest, self.best]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.lowest, self.best = checkpoint["best"]

    def on_fit_end(self) -> None:
        if not self.best:
            raise UsageError(f"learning_rate = {self.config.learning_rate}: the validation error was never finite")
        self.load_state_dict(self.best)
        del self.best, self.labelled, self.pool, self.validation
