"""ACVAE as a model of RecBole 1.2.1, beside RecBole's own: same data, split and evaluation, one row a user in training.

    from gen_rec import recbole
    recbole.run("ACVAE", "ml-100k", {"epochs": 20, "acvae": {"contrast": 0.0}})
    recbole.run("SASRec", "ml-100k", {"epochs": 20})

The fields of `gen_rec.ACVAE.Config` go into the key `acvae`; `epochs`, `train_batch_size`, `MAX_ITEM_LIST_LENGTH` are
RecBole's. Nothing else of gen-rec imports RecBole. It needs no ray and reads no pickle.
"""

import contextlib
import importlib.machinery
import sys
import tempfile
import types
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from gen_core.harness import config as configs
from gen_core.harness.errors import UsageError
from gen_rec.methods.acvae import ACVAE as Method
from gen_rec.networks import Together


def compatible() -> None:
    """Names that RecBole's Config reads and numpy 2 no longer has; what exists is left alone."""
    for name, kind in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
        if not hasattr(np, name):
            setattr(np, name, kind)


compatible()
try:
    from recbole import trainer as _trainers  # pyright: ignore
    from recbole.config import Config  # pyright: ignore
    from recbole.data import create_dataset, data_preparation  # pyright: ignore
    from recbole.data import dataset as _datasets  # pyright: ignore
    from recbole.model.abstract_recommender import SequentialRecommender  # pyright: ignore
    from recbole.utils import InputType, get_model, get_trainer, init_seed  # pyright: ignore
except ImportError as error:
    raise UsageError(
        f"RecBole cannot be imported ({error}). gen-rec installs recbole 1.2.1 on Python 3.11; this is "
        f"{sys.version_info.major}.{sys.version_info.minor}. Later ones lack it: it asks for ray <= 2.6.3, which has "
        "no wheels there: pip install --no-deps recbole==1.2.1, then colorlog colorama tabulate texttable thop psutil"
    ) from None

trainers: Any = _trainers
datasets: Any = _datasets
DEFAULTS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "MAX_ITEM_LIST_LENGTH": 200,
    "train_neg_sample_args": None,
    "loss_type": "CE",
    "metrics": ["Recall", "NDCG", "MRR"],
    "topk": [5, 10, 20],
    "valid_metric": "NDCG@10",
    "dataset_save_path": "no pickled data set is looked for",
}
"""What `run` sets, where the caller says nothing else; RecBole's split then leaves one item a user out, twice."""


class ACVAE(SequentialRecommender):
    """`gen_rec.ACVAE` behind RecBole's interface."""

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        given = {"max_length": config["MAX_ITEM_LIST_LENGTH"], "epochs": config["epochs"], **(config["acvae"] or {})}
        self.acvae: Any = Method(configs.parse(Method.Config, given, "acvae"))
        self.acvae.prepare({"items": self.n_items - 1}, config["seed"])
        self.acvae.noise_seed.fill_(config["seed"])
        self.acvae.to(self.device)

    def losses(self, interaction: Any) -> dict[str, Tensor]:
        """Of whole sequences: RecBole's list of a row, and behind it the item that it wants to be predicted."""
        lengths = interaction[self.ITEM_SEQ_LEN]
        items = torch.nn.functional.pad(interaction[self.ITEM_SEQ], (0, 1))
        items = items.scatter(1, lengths[:, None], interaction[self.POS_ITEM_ID][:, None])
        return self.acvae.losses(items, lengths + 1)

    def calculate_loss(self, interaction: Any) -> Tensor:
        losses = self.losses(interaction)
        losses.pop("adversary", None)
        return torch.stack(list(losses.values())).sum()

    def full_sort_predict(self, interaction: Any) -> Tensor:
        rows = zip(interaction[self.ITEM_SEQ].cpu(), interaction[self.ITEM_SEQ_LEN].tolist(), strict=True)
        return self.acvae.score([row[:length] for row, length in rows]).to(self.device)

    def predict(self, interaction: Any) -> Tensor:
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]


class ACVAEDataset(datasets.SequentialDataset):
    """RecBole makes a row of every prefix; in the train part only each user's longest is kept, its last row there."""

    def build(self) -> list[Any]:
        parts = super().build()
        users = parts[0].inter_feat[self.uid_field]
        rows = torch.arange(len(users))
        last = torch.full((self.user_num,), -1).scatter_reduce(0, users, rows, "amax")
        parts[0].inter_feat = parts[0].inter_feat[last[last >= 0].sort().values]
        return parts


class ACVAETrainer(trainers.Trainer):
    """Three optimisers; checkpoints hold the best weights alone and no pickle."""

    def _build_optimizer(self, **_: Any) -> Any:
        self.network, self.second, *rest = self.model.acvae.configure_optimizers()
        self.adversary = rest[0] if rest else None
        return self.network

    def _train_epoch(self, train_data: Any, *_: Any, **__: Any) -> float:
        total = 0.0
        for interaction in train_data:
            losses = self.model.train().losses(interaction.to(self.device))
            adversary = losses.pop("adversary", None)
            loss = torch.stack(list(losses.values())).sum()
            self._check_nan(loss)
            _descend(Together(self.network, self.second), loss)
            if adversary is not None:  # last: the others' gradients go through T
                _descend(self.adversary, adversary)
            total += loss.item()
        return total

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **_: Any) -> None:
        safetensors.torch.save_file(dict(self.model.state_dict()), self.saved_model_file)

    def resume_checkpoint(self, resume_file: Any) -> None:
        raise UsageError("RecBole's runs of ACVAE cannot be resumed; gen-rec train --resume can")

    def evaluate(self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, **rest: Any) -> Any:
        if load_best_model:
            self.model.load_state_dict(safetensors.torch.load_file(model_file or self.saved_model_file))
        return super().evaluate(eval_data, load_best_model=False, **rest)


def register() -> None:
    """Let RecBole find the three classes by the name "ACVAE", in `run` and in its own entry points."""
    name = "recbole.model.sequential_recommender.acvae"
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.ACVAE = ACVAE  # pyright: ignore
    sys.modules[name] = module
    trainers.ACVAETrainer, datasets.ACVAEDataset = ACVAETrainer, ACVAEDataset


def prepare(model: str, dataset: str, settings: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """RecBole's config, trainer and (train, valid, test) loaders for a model of that name, ACVAE or its own."""
    register()
    with _no_arguments():
        config = Config(model=model, dataset=dataset, config_dict=DEFAULTS | dict(settings))
    init_seed(config["seed"], True)
    data = create_dataset(config)
    loaders: Any = data_preparation(config, data)
    network = get_model(config["model"])(config, loaders[0].dataset).to(config["device"])
    return config, get_trainer(config["MODEL_TYPE"], config["model"])(config, network), loaders


def run(model: str, dataset: str = "ml-100k", settings: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Train by RecBole, restore the best epoch on its validation part, return the test part's metrics."""
    given = dict(settings or {})
    given["data_path"] = str(Path(given.get("data_path", "dataset")).absolute())
    # RecBole leaves its logs and event files in the current folder: this one goes when the run ends.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        _, trainer, (train, valid, test) = prepare(model, dataset, given)
        best: dict[str, Tensor] = {}

        def keep(*_: Any, **__: Any) -> None:
            best.update({name: value.clone() for name, value in trainer.model.state_dict().items()})

        trainer._save_checkpoint = keep  # RecBole's own would be a pickle
        trainer.fit(train, valid, verbose=False)
        trainer.model.load_state_dict(best)
        return dict(trainer.evaluate(test, load_best_model=False))


def _descend(optimizer: Any, loss: Tensor) -> None:
    own = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=own)
    optimizer.step()


@contextlib.contextmanager
def _no_arguments() -> Generator[None]:
    """RecBole takes any --key=value of the command line as configuration: hide them."""
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = kept
