"""What a domain package announces: dotted names and short texts, so that `list` and `--help` import nothing heavy."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from gen_core.harness.errors import UsageError, nearest


@dataclass(frozen=True)
class Dataset:
    """A registered data set: what it is, where below `$GEN_DATA` it lies, how to get it."""

    summary: str
    path: str = ""
    how: str = ""
    embedded: bool = False
    shipped: str = ""
    """Where a library brings it along, "library/folder/file" """

    def located(self, root: Path) -> Path:
        """The file below `root`, or the library's where only that is there; it may be absent."""
        library, _, inside = self.shipped.partition("/")
        found = importlib.util.find_spec(library) if library and not (root / self.path).exists() else None
        return Path(found.origin).parent / inside if found and found.origin else root / self.path


@dataclass(frozen=True)
class Domain:
    """One installed domain (`gen-vision`, ...)."""

    name: str
    package: str
    summary: str
    methods: Mapping[str, str] = field(default_factory=dict[str, str])
    """method name -> "package.module:Class" """
    datasets: Mapping[str, Dataset] = field(default_factory=dict[str, Dataset])
    demo: str | None = None
    """The recipe that `gen demo` runs, "method/recipe"."""
    protocol_default: str = ""
    """Evaluates runs on data that no recipe of the method names."""
    protocol_of: Mapping[str, str] = field(default_factory=dict[str, str])
    """method name -> the protocol in its place, for methods that are evaluated otherwise"""
    data_options: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further files of the user's own data, `--features x.npy`: name -> help text."""
    verbs: tuple[str, ...] = ()
    """What its models do beside being evaluated: `embed`, `sample`, `reconstruct`, `recommend`, `predict`."""
    engines: tuple[str, ...] = ()
    """Distributions whose versions are recorded beside torch and lightning."""
    claim_seeds: int = 5
    """Seeds that a claim needs."""
    interval: Literal["auto", "student-t", "bootstrap", "iqm"] = "auto"
    """Kind of confidence interval, see gen_core.evaluation.stats."""

    @property
    def command(self) -> str:
        return f"gen-{self.name}"

    def module(self, name: str) -> ModuleType:
        """`package.name`, e.g. the domain's `data` or `protocols`."""
        return importlib.import_module(f"{self.package}.{name}")

    def method(self, name: str) -> Any:
        """The class of a registered method."""
        if name not in self.methods:
            raise UsageError(nearest(name, self.methods, f"{self.command} method"))
        module, _, attribute = self.methods[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def own_protocol(self, method: str) -> str:
        """The protocol of a run on the user's own data."""
        return self.protocol_of.get(method, self.protocol_default)

    def protocol(self, name: str) -> Any:
        """The evaluation function of that name (dashes for underscores) in the domain's `protocols` module."""
        module = self.module("protocols")
        known = [key.replace("_", "-") for key in module.__all__]
        if name not in known:
            raise UsageError(nearest(name, known, f"{self.command} protocol"))
        return getattr(module, name.replace("-", "_"))

    def load_data(self, name: str, **extra: str) -> Any:
        """A registered data set or the user's own data at that path."""
        return self.module("data").load(name, **extra)


def domains() -> dict[str, Domain]:
    """The domains installed in this environment, by name, found through the entry points of group `gen.domains`."""
    found = importlib.metadata.entry_points(group="gen.domains")
    return {point.name: point.load() for point in sorted(found, key=lambda point: point.name)}
