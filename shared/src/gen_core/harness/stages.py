"""Stages are runs: a method whose part is another method takes a trained one, trains it first, or learns with it.

`--given.vae RUN` on the command line; in a recipe `given.vae = "vae/mnist"` (trained once a seed, for all arms) or
`given.vae = { method = "iwae", train = false }` (only built: it learns with the method).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gen_core.harness import config as configs
from gen_core.harness import recipes, runs
from gen_core.harness.errors import UsageError, nearest
from gen_core.harness.recipes import Stage
from gen_core.harness.registry import Domain

Home = Callable[[str, Stage], Path | None]
"""(part, stage) -> the folder where that stage is trained, or None to keep nothing of it."""


def resolve(domain: Domain, stage: Stage) -> Stage:
    """A stage with the recipe that it names written out: its whole config and its own stages."""
    if stage.run is not None:
        return stage
    method, _, name = stage.method.partition("/")
    config, given = stage.config, stage.given
    if name:
        recipe = recipes.load(domain, stage.method)[1]
        config, given = recipe.config | config, recipe.given | given
    cls = domain.method(method)
    whole = configs.parse(cls.Config, config, f"given {stage.method}").model_dump(mode="json")
    nested = {part: resolve(domain, inner) for part, inner in given.items()}
    return Stage(method=method, config=whole, train=stage.train, given=nested)


def chosen(domain: Domain, value: str | None, template: Stage | None) -> Stage | None:
    """What `--given.PART value` says: a run folder, or a method (with a recipe), trained where the template's is."""
    if value is None:
        return None if template is None else resolve(domain, template)
    if (Path(value) / runs.CONFIG).is_file():
        return Stage(run=str(Path(value).absolute()))
    if value.partition("/")[0] in domain.methods:
        return resolve(domain, Stage(method=value, train=template.train if template else True))
    raise UsageError(
        f"--given {value!r}: neither a run folder nor a method; {nearest(value, domain.methods, 'method')}"
    )


def facts(domain: Domain, stage: Stage) -> list[Any]:
    """What a stage's numbers depend on, beside data and seed."""
    inner = {part: facts(domain, nested) for part, nested in stage.given.items()}
    return [stage.method, stage.config, stage.train, domain.method(stage.method).revision, inner]


def key(domain: Domain, stage: Stage, more: Any) -> str:
    """A short name of everything that the stage's weights depend on but the seed."""
    return hashlib.sha256(json.dumps([facts(domain, stage), more], sort_keys=True).encode()).hexdigest()[:8]


def provide(domain: Domain, given: Mapping[str, Stage], run: runs.Run, home: Home, fit: Mapping[str, Any]) -> Any:
    """The modules that a method is given: loaded, trained on the run's data and seed, or only made."""
    made: dict[str, Any] = {}
    for part, stage in given.items():
        if stage.run is not None:
            made[part] = _loaded(domain, Path(stage.run))
            continue
        cls = domain.method(stage.method)
        where = home(part, stage)
        inner = provide(domain, stage.given, run, below(where), fit)
        made[part] = cls(configs.parse(cls.Config, stage.config, f"given {part}"), **inner)
        if stage.train:
            made[part].fit(run.data, seed=run.seed, **{**fit, "out": where, "resume": where is not None})
    return made


def below(where: Path | None) -> Home:
    """Stages inside their owner's folder."""
    return lambda part, _: where / "given" / part if where else None


def _loaded(domain: Domain, folder: Path) -> Any:
    header = runs.read_header(folder)
    if header.get("domain", domain.name) != domain.name:
        raise UsageError(f"{folder} is a run of gen-{header['domain']}, not of {domain.command}")
    classes = {domain.methods[name]: name for name in domain.methods}
    if header.get("class") not in classes:
        raise UsageError(f"{folder} holds a {header.get('class')}, which {domain.command} does not know")
    return domain.method(classes[header["class"]]).load(folder)
