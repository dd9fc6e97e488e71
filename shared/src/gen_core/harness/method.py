"""The thin base of trained torch methods. A method's file writes `Config`, `build`, `batches`, `training_step`, ...

The verbs are the contract, not this class: anything with `Config`, `fit`, `save`, `load` and `embed` is a method.
"""

import contextlib
import inspect
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning
import torch
from torch import Tensor, nn

from gen_core.harness import config as configs
from gen_core.harness import weights
from gen_core.harness.errors import UsageError, nearest

Spec = Mapping[str, Any]


def _itself(data: Any) -> Any:
    return data


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Evaluation mode; each submodule has its own mode again afterwards, also after an error."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class Method(lightning.LightningModule):
    """Base class: networks are built from the data's sizes, or given: `SimCLR(encoder=net)`.

    The class-level annotations with an `nn.Module` type name the parts that may be given.
    """

    Config: ClassVar[type[configs.Config]]
    measure: ClassVar[Callable[[Any], Spec]]
    """The domain's `data.spec`: the sizes that `build` needs."""
    inputs: ClassVar[Callable[[Any], Any]] = staticmethod(_itself)
    """Data -> the tensor whose rows go through `forward` in `embed`."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Parts that do not learn: without gradient, and in evaluation mode also while the rest trains."""
    revision: ClassVar[int] = 1
    """Raised when the method's numbers change: recorded results of other revisions are not reused."""

    def __init__(self, config: configs.Config | None = None, **given: nn.Module) -> None:
        super().__init__()
        self.config: Any = config or self.Config()
        self.spec: Spec | None = None
        self.given = sorted(given)
        self.fit_seed = 0
        self.training_data: Any = None
        self.logged: dict[str, Any] | None = None  # in this training step
        for name, module in given.items():
            if name not in self.parts():
                raise UsageError(nearest(name, self.parts(), f"part of {type(self).__name__}"))
            setattr(self, name, module)

    @classmethod
    def parts(cls) -> list[str]:
        """Names of the networks that a user may give."""
        return sorted(cls._kinds())

    @classmethod
    def stages(cls) -> list[str]:
        """Names of the parts that are methods themselves: a recipe's `given`, `--given.NAME` on the command line."""
        return sorted(name for name, kind in cls._kinds().items() if issubclass(kind, Method))

    @classmethod
    def _kinds(cls) -> dict[str, type[nn.Module]]:
        hints = {name: hint for base in cls.__mro__ for name, hint in inspect.get_annotations(base).items()}
        return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, nn.Module)}

    def lacks(self, part: str) -> bool:
        """True where `build` has to make the part, because none was given."""
        return part not in self._modules

    def prepare(self, spec: Spec, seed: int = 0) -> None:
        """Build the networks that were not given, once, from the data's sizes, seeded."""
        if self.spec is None:
            with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
                torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
                self.build(spec)
            for name in self.frozen:
                getattr(self, name).requires_grad_(False).eval()
            self.spec = dict(spec)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen:
            if not self.lacks(name):
                getattr(self, name).eval()
        return self

    def build(self, spec: Spec) -> None:
        raise NotImplementedError

    def batches(self, data: Any, seed: int) -> Any:
        raise NotImplementedError

    @property
    def max_epochs(self) -> int:
        """Lightning epochs; a full-batch method counts virtual ones."""
        return int(self.config.epochs)

    def fit(
        self, data: Any, *, seed: int = 0, out: str | Path | None = None, resume: bool = False, **trainer: Any
    ) -> Self:
        """Train on `data`; with `out`, keep metrics, checkpoints and weights there.

        `resume=True` goes on from the last checkpoint in `out`; `trainer` goes to lightning.Trainer.
        """
        from gen_core.harness import fitting

        self.prepare(type(self).measure(data), seed)
        self.fit_seed, self.training_data = seed, data
        try:
            fitting.run(self, Path(out) if out else None, resume=resume, **trainer)
        finally:
            self.training_data = None
        return self

    def descend(self, optimizer: Any, loss: Tensor) -> None:
        """One step of one network's optimiser in a method with `automatic_optimization = False`.

        Gradients go to the optimiser's own parameters only: nothing has to be frozen, and nothing leaks to the others.
        """
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.zero_grad()
        if self.trainer.world_size == 1:
            self.manual_backward(loss, inputs=own)
        else:  # DDP's own reduction expects a gradient in every parameter
            with self.trainer.strategy.model.no_sync():  # pyright: ignore
                self.manual_backward(loss, inputs=own)
            for parameter in own:
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.trainer.world_size
        optimizer.step()

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **options: Any) -> None:
        """Lightning's; where nothing else is asked for, a training step's values go straight to the loggers."""
        if self.logged is None or args or options:
            super().log_dict(dictionary, *args, **options)
        else:
            detached = {k: v.detach() if isinstance(v, Tensor) else v for k, v in dictionary.items()}
            self.logged |= detached

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """As `log_dict`, of one value."""
        if self.logged is None or args or options:
            super().log(name, value, *args, **options)
        else:
            self.log_dict({name: value})

    def train_dataloader(self) -> Any:
        from gen_core.harness.fitting import mix

        return self.batches(self.training_data, mix(self.fit_seed, self.current_epoch))

    @torch.no_grad()
    def embed(self, data: Any, batch_size: int = 1024) -> Tensor:
        """The representation of every row of `data`, (n, d), on the CPU; in evaluation mode, without gradient."""
        batches: list[Tensor] = type(self).inputs(data).split(batch_size)
        with evaluating(self):
            return torch.cat([self(batch.to(self.device)).cpu() for batch in batches])

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors` and what `load` needs into `config.toml`; other keys there are kept."""
        weights.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, **given: nn.Module) -> Self:
        """The model of a run folder; modules that were given at training are given again. No pickle is read."""
        return weights.load(cls, Path(folder), given)
