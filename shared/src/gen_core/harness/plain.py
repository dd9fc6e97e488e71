"""Methods without training: raw inputs, popularity, closed forms. The same verbs, no engine."""

from pathlib import Path
from typing import Any, ClassVar, Self

from gen_core.harness import config as configs
from gen_core.harness import runs


class Plain:
    """A method whose `fit` learns nothing; subclasses write `embed` (or `predict`, ...)."""

    class Config(configs.Config):
        """No hyper-parameters."""

    revision: ClassVar[int] = 1

    def __init__(self, config: configs.Config | None = None) -> None:
        self.config: Any = config or self.Config()

    def fit(self, data: Any, *, seed: int = 0, out: str | Path | None = None, **_: Any) -> Self:
        if out:
            self.save(out)
        return self

    def save(self, folder: str | Path) -> None:
        """Write `config.toml`; other keys there are kept."""
        runs.update_header(Path(folder), type(self), config=self.config.model_dump())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        header = runs.header_of(Path(folder), cls)
        return cls(configs.parse(cls.Config, header.get("config", {}), str(folder)))
