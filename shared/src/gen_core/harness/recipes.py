"""Recipes are data: `recipes/<method>.toml` in a domain's package says what runs, against what, and the paper's number.

The first table of a file is the method's default; it must need no network.
"""

import importlib.resources
import tomllib
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from gen_core.harness.config import parse
from gen_core.harness.errors import UsageError, nearest
from gen_core.harness.registry import Domain


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Protocol(pydantic.BaseModel):
    """An evaluation function of the domain's `protocols` module and its options."""

    model_config = pydantic.ConfigDict(frozen=True, extra="allow")
    name: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Paper(_Strict):
    """The published number, only where its source was read and the protocol is the paper's."""

    value: float
    std: float | None = None
    source: str


class Stage(_Strict):
    """A method that is a part of another: `"vae/mnist"`, that recipe's, or a table."""

    method: str = ""
    """METHOD or METHOD/RECIPE, whose config is then the recipe's."""
    config: dict[str, Any] = {}
    """Over the recipe's."""
    train: bool = True
    """Whether it is trained first, on the same data and seed; else it is only built, and learns with the method."""
    given: dict[str, "Stage"] = {}
    """Its own parts."""
    run: str | None = None
    """A finished run in place of all that."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"method": value} if isinstance(value, str) else value


class Baseline(_Strict):
    """An arm beside the method. Of the same method, `config` and `given` lie over the recipe's; of another, they stand
    alone."""

    method: str | None = None
    config: dict[str, Any] = {}
    protocol: Protocol | None = None
    train: bool = True
    given: dict[str, Stage] = {}


class Recipe(_Strict):
    """One table of a recipe file."""

    method: str
    scale: Literal["cpu", "gpu20", "paper"]
    """Minutes on two cores, twenty minutes on one large GPU, or the paper's own."""
    data: str
    protocol: Protocol
    metric: str
    unit: str
    higher_is_better: bool = True
    seeds: Annotated[list[int], Field(min_length=1)]
    interval_over: str | None = None
    """Unit of the test data, such as "users", that intervals pair in place of seeds: for a record of one seed."""
    claim_against: str | None = None
    config: dict[str, Any] = {}
    given: dict[str, Stage] = {}
    """The methods that are parts of this one."""
    baselines: dict[str, Baseline] = {}
    paper: Paper | None = None
    minutes: float | None = None
    """Measured length of a whole `reproduce` on two cores, printed before it starts."""
    note: str = ""
    """One line for the tables: what the setting is, where it differs from the paper's."""


class Arm(_Strict):
    """What one cell of `reproduce` runs: the method itself or a baseline, with everything resolved."""

    name: str
    method: str
    config: dict[str, Any]
    protocol: Protocol
    train: bool
    given: dict[str, Stage] = {}


def tables(domain: Domain, method: str) -> dict[str, dict[str, Any]]:
    """The raw tables of a method's recipe file, in its order; empty where the method has no file."""
    file = importlib.resources.files(domain.package) / "recipes" / f"{method}.toml"
    if not file.is_file():
        return {}
    return tomllib.loads(file.read_text(encoding="utf-8"))


def load(domain: Domain, target: str) -> tuple[str, Recipe]:
    """`"dgi/cora"` or `"dgi"` (the file's first table) -> the recipe's name and the validated recipe."""
    method, _, name = target.partition("/")
    if method not in domain.methods:
        raise UsageError(nearest(method, domain.methods, f"{domain.command} method"))
    found = tables(domain, method)
    if not found:
        raise UsageError(f"{method} has no recipes of its own; it is a baseline of other methods' recipes")
    name = name or next(iter(found))
    if name not in found:
        raise UsageError(nearest(name, found, f"recipe of {method}"))
    return name, parse(Recipe, {"method": method, **found[name]}, f"recipe {method}/{name}")


def stage_names(cls: Any) -> list[str]:
    """The parts of a method that are methods themselves; none of a plain class."""
    return cls.stages() if hasattr(cls, "stages") else []


def arms(domain: Domain, recipe: Recipe, overrides: dict[str, Any] | None = None) -> dict[str, Arm]:
    """The method's own arm under its method's name, then the baselines; `overrides` lie over the method's config."""
    from gen_core.harness import stages

    own = {**recipe.config, **(overrides or {})}
    whole = {part: stages.resolve(domain, stage) for part, stage in recipe.given.items()}
    name = recipe.method
    found = {name: Arm(name=name, method=name, config=own, protocol=recipe.protocol, train=True, given=whole)}
    for name, baseline in recipe.baselines.items():
        same = baseline.method in (None, recipe.method)
        found[name] = Arm(
            name=name,
            method=baseline.method or recipe.method,
            config={**own, **baseline.config} if same else baseline.config,
            protocol=baseline.protocol or recipe.protocol,
            train=baseline.train,
            given=(whole if same else {})
            | {part: stages.resolve(domain, stage) for part, stage in baseline.given.items()},
        )
    return found


def check(domain: Domain) -> list[str]:
    """Validate every recipe of a domain without running it; returns the complaints."""
    problems: list[str] = []
    for method in domain.methods:
        for name in tables(domain, method):
            where = f"{method}/{name}"
            try:
                _, recipe = load(domain, where)
                if recipe.data not in domain.datasets:
                    raise UsageError(nearest(recipe.data, domain.datasets, "data set"))
                if recipe.claim_against is not None and recipe.claim_against not in recipe.baselines:
                    raise UsageError(nearest(recipe.claim_against, recipe.baselines, "baseline in claim_against"))
                if method in recipe.baselines:
                    raise UsageError(f"a baseline may not carry the method's own name {method!r}")
                for arm in arms(domain, recipe).values():
                    domain.protocol(arm.protocol.name)
                    cls = domain.method(arm.method)
                    parse(cls.Config, arm.config, f"arm {arm.name}")
                    if unknown := sorted(set(arm.given) - set(stage_names(cls))):
                        what = "part in given"
                        raise UsageError(f"arm {arm.name}: " + nearest(unknown[0], stage_names(cls), what))
            except UsageError as error:
                problems += [f"{where}: {line}" for line in str(error).splitlines()]
    return problems
