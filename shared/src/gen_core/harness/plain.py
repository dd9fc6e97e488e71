"""Methods without training: raw inputs, popularity, closed forms. The same verbs, no engine."""

from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import safetensors.torch

from gen_core.harness import config as configs
from gen_core.harness import runs, weights
from gen_core.harness.errors import UsageError


class Plain:
    """A method that learns by counting, in closed form or not at all; subclasses write `embed`, `predict`, ..."""

    class Config(configs.Config):
        """No hyper-parameters."""

    revision: ClassVar[int] = 1
    tensors: ClassVar[tuple[str, ...]] = ()
    """Attributes that `fit` leaves and `model.safetensors` keeps."""
    facts: ClassVar[tuple[str, ...]] = ()
    """Attributes that `fit` leaves and `config.toml` keeps."""

    def __init__(self, config: configs.Config | None = None) -> None:
        self.config: Any = config or self.Config()

    def fit(self, data: Any, *, seed: int = 0, out: str | Path | None = None, **_: Any) -> Self:
        if out:
            self.save(out)
        return self

    def save(self, folder: str | Path) -> None:
        """Write `config.toml`, whose other keys are kept, and `model.safetensors` where there are tensors."""
        facts = {name: getattr(self, name) for name in self.facts}
        runs.update_header(Path(folder), type(self), config=self.config.model_dump(), **facts)
        if self.tensors:
            weights.write(Path(folder) / runs.WEIGHTS, {name: getattr(self, name) for name in self.tensors})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The model of a run folder; no pickle is read."""
        header, path = runs.header_of(Path(folder), cls), Path(folder) / runs.WEIGHTS
        model = cls(configs.parse(cls.Config, header.get("config", {}), str(folder)))
        try:
            found = safetensors.torch.load_file(path) if cls.tensors else {}  # pyright: ignore[reportUnknownMemberType]
        except (OSError, safetensors.SafetensorError) as error:
            raise UsageError(f"{path} is missing or damaged: {error}") from None
        for name, value in {**found, **{name: header[name] for name in cls.facts}}.items():
            setattr(model, name, value)
        return model
