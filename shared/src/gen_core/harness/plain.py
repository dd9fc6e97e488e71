"""Methods without training: raw inputs, popularity, closed forms. The same verbs, no engine."""

from pathlib import Path
from typing import Any, ClassVar, Self

from gen_core.harness import config as configs


class Plain:
    """A method whose `fit` learns nothing; subclasses write `embed` (or `predict`, ...)."""

    class Config(configs.Config):
        """No hyper-parameters."""

    revision: ClassVar[int] = 1

    def __init__(self, config: configs.Config | None = None) -> None:
        self.config: Any = config or self.Config()

    def fit(self, data: Any, *, seed: int = 0, out: Path | None = None, **_: Any) -> Self:
        return self

    def save(self, folder: str | Path) -> None:
        """Write `config.toml`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        configs.write_toml(folder / "config.toml", {"config": self.config.model_dump()})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        path = Path(folder) / "config.toml"
        return cls(configs.parse(cls.Config, configs.read_toml(path).get("config", {}), str(path)))
