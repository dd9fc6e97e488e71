"""What each verb does; the heavy imports stand where they are needed."""

import contextlib
import dataclasses
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

from gen_core.harness import config as configs
from gen_core.harness import recipes
from gen_core.harness.errors import UsageError, nearest
from gen_core.harness.options import (
    Data,
    Embed,
    Engine,
    Evaluate,
    List,
    ListAll,
    Predict,
    Recommend,
    Reconstruct,
    Sample,
)
from gen_core.harness.registry import Domain

PREVIEW = 20
"""Rows that `predict` prints where it has no file to write."""


def recipe_of(domain: Domain, target: str, data: str | None) -> tuple[str, recipes.Recipe] | None:
    """The recipe that `train` starts from: the named one; the first with that data; the first; none for own data."""
    method, _, name = target.partition("/")
    found = recipes.tables(domain, method)
    if name or (data is None and found):
        return recipes.load(domain, target)
    for key, table in found.items():
        if table.get("data") == data:
            return recipes.load(domain, f"{method}/{key}")
    return None


def list_(domain: Domain, options: List | ListAll) -> int:
    if options.check:
        problems = recipes.check(domain)
        print("\n".join(problems) or f"{domain.command}: every recipe is valid")
        return 2 if problems else 0
    methods = {name: list(recipes.tables(domain, name)) for name in domain.methods}
    datasets = {name: data.summary for name, data in domain.datasets.items()}
    if options.json:
        print(json.dumps({"domain": domain.name, "summary": domain.summary, "methods": methods, "datasets": datasets}))
        return 0
    print(f"{domain.command}: {domain.summary}")
    print("methods (recipes):")
    for name, found in methods.items():
        print(f"  {name:16} {', '.join(found) or '(a baseline)'}")
    if not methods:
        print("  none yet")
    print("data sets:")
    for name, summary in datasets.items():
        print(f"  {name:16} {summary}{' [embedded]' if domain.datasets[name].embedded else ''}")
    if not datasets:
        print("  none yet")
    return 0


def data(domain: Domain, options: Data) -> int:
    from gen_core.harness import data as files

    if options.action == "list":
        print(f"data root: {files.root()} (GEN_DATA)")
        for name, info in domain.datasets.items():
            where = "embedded" if info.embedded else "present" if info.located(files.root()).exists() else "absent"
            print(f"  {name:16} {where:9} {info.summary}" + ("" if where != "absent" else f"\n{'':20}{info.how}"))
        return 0
    if options.name not in domain.datasets:
        raise UsageError(nearest(options.name, domain.datasets, "data set"))
    spec, found = domain.module("data").spec, domain.load_data(options.name)
    sizes = {key: f"{len(value)} names" if _names(value) else value for key, value in spec(found).items()}
    print(f"{options.name} is ready: {sizes}")
    return 0


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in cast(list[Any], value))


def train(domain: Domain, options: Any, method: str, overrides: dict[str, Any]) -> int:
    from gen_core.harness import runs

    if options.resume:
        if overrides:
            raise UsageError(f"--resume goes on with the run's own settings; remove {', '.join(overrides)}")
        return _resume(domain, options.resume, options.target)
    options.apply()
    if options.logger in ("mlflow", "wandb") and importlib.util.find_spec(options.logger) is None:
        raise UsageError(f"--logger {options.logger}: that package is not installed; here: tensorboard, csv")
    found = recipe_of(domain, options.target, options.data)
    name, recipe = found or (None, None)
    data_name = options.data or (recipe.data if recipe else None)
    if data_name is None:
        raise UsageError(f"{method} has no recipe, so it needs --data; known: {', '.join(domain.datasets)}")
    cls = domain.method(method)
    config = configs.parse(cls.Config, (recipe.config if recipe else {}) | overrides, method)
    given = _given(domain, cls, options)
    extra = {key: value for key in domain.data_options if (value := getattr(options, key))}
    data = domain.load_data(data_name, **extra)
    name_or_file = data_name if data_name in domain.datasets else _whole(data_name)
    out = options.out or runs.free_name(Path("runs") / f"{method}-{Path(data_name).stem}-s{options.seed}")
    protocol = recipe.protocol if recipe else recipes.Protocol(name=domain.own_protocol(method))
    header = {
        "domain": domain.name,
        "method": method,
        "class": domain.methods[method],
        "recipe": name,
        "data": name_or_file,
        "data_options": {key: _whole(value) for key, value in extra.items()},
        "data_sha256": domain.module("data").checksum(data),
        "seed": options.seed,
        "protocol": protocol.model_dump(),
        "engine": {key: getattr(options, key) for key in ("device", "devices", "threads", "precision", "logger")},
        "stages": {part: stage.model_dump() for part, stage in given.items()},
        "config": config.model_dump(),
    }
    runs.create(out, header)
    print(f"training {method} on {data_name} in {out}" + (f" (recipe {method}/{name})" if name else ""))
    return _fit_and_finish(domain, out, data, header, made=True)


def stages_of(domain: Domain, target: str, data: str | None) -> dict[str, recipes.Stage]:
    """The stages that `train` starts from: those of the recipe, on own data those of the method's first recipe."""
    method = target.partition("/")[0]
    found = recipe_of(domain, target, data)
    if found is None and recipes.tables(domain, method):
        found = recipes.load(domain, method)
    return found[1].given if found else {}


def _given(domain: Domain, cls: Any, options: Any) -> dict[str, recipes.Stage]:
    """The stages of a training, with what the flags say."""
    from gen_core.harness import stages

    start, given = stages_of(domain, options.target, options.data), dict[str, recipes.Stage]()
    for name in recipes.stage_names(cls):
        stage = stages.chosen(domain, getattr(options, f"given_{name}"), start.get(name))
        if stage is not None:
            fields = getattr(options, f"given_{name}_fields", None)
            if fields is not None:
                model = domain.method(stage.method).Config
                checked = configs.parse(model, dataclasses.asdict(fields), f"--given.{name}")
                stage = stage.model_copy(update={"config": checked.model_dump(mode="json")})
            given[name] = stage
    return given


def _whole(value: str) -> str:
    """The whole path of a file, so that the run can be gone on with from anywhere; other words stay as they are."""
    return str(Path(value).absolute()) if Path(value).exists() else value


def _resume(domain: Domain, folder: Path, target: str) -> int:
    from gen_core.harness import runs

    header = runs.read_header(folder)
    if header.get("domain") != domain.name:
        raise UsageError(f"{folder} is a run of gen-{header.get('domain')}, not of {domain.command}")
    if target and target.partition("/")[0] != header["method"]:
        raise UsageError(f"{folder} is a run of {header['method']}, not of {target}")
    if (folder / runs.SUMMARY).exists():
        print(f"{folder} is finished already; nothing to do")
        return 0
    Engine(**{key: value for key, value in header["engine"].items() if key != "logger"}).apply()
    data = domain.load_data(header["data"], **header["data_options"])
    if (found := domain.module("data").checksum(data)) != header["data_sha256"]:
        raise UsageError(f"the data {header['data']} has changed since the run began (sha256 {found[:12]}...)")
    print(f"going on with {folder}" + ("" if runs.trained(folder) else "; it has no checkpoint yet, so from step 0"))
    return _fit_and_finish(domain, folder, data, header)


def _fit_and_finish(domain: Domain, out: Path, data: Any, header: dict[str, Any], *, made: bool = False) -> int:
    """`made`: by this very command, which takes the folder away again if it refuses before anything is in there."""
    from gen_core.harness import runs

    started = time.monotonic()
    run = runs.Run(None, data, header["seed"])
    fit = {"accelerator" if key == "device" else key: value for key, value in header["engine"].items()}
    fit.pop("threads", None)
    given = {part: recipes.Stage(**stage) for part, stage in header.get("stages", {}).items()}
    try:
        runs.execute(
            domain, header["method"], header["config"], run, train=True, given=given, out=out, resume=True, **fit
        )
        metrics = runs.finish(domain, out, run, recipes.Protocol(**header["protocol"]), started)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Go on with:\n  {domain.command} train --resume {out}") from None
    except UsageError:
        if made and not runs.trained(out) and not (out / runs.METRICS).exists():
            shutil.rmtree(out)  # so that the corrected command can use the same name
        raise
    except OSError as error:
        command = f"{domain.command} train --resume {out}"
        raise UsageError(f"{out}: writing failed ({error}); go on with: {command}") from None
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")
    print(f"run folder: {out}\nnext:")
    for command in runs.next_commands(domain, out, header):
        print(f"  {command}")
    return 0


def _open(domain: Domain, folder: Path, data: str | None, needs_data: bool = True) -> tuple[dict[str, Any], Any]:
    """A run folder's header and its run: loaded model, its own data or other, or none where none is needed."""
    from gen_core.harness import runs

    header = runs.read_header(folder)
    if header.get("domain") != domain.name:
        raise UsageError(f"{folder} is a run of gen-{header.get('domain')}, not of {domain.command}")
    model = domain.method(header["method"]).load(folder)
    found = None
    if needs_data:
        found = domain.load_data(data) if data else domain.load_data(header["data"], **header["data_options"])
    return header, runs.Run(model, found, header["seed"])


def _to_device(options: Engine, run: Any) -> None:
    from gen_core.harness import runs

    options.apply()
    runs.place(run.model, options.device)


def evaluate(domain: Domain, options: Evaluate) -> int:
    from gen_core.harness import runs

    header, run = _open(domain, options.run, None)
    _to_device(options, run)
    protocol = recipes.Protocol(**({"name": options.protocol} if options.protocol else header["protocol"]))
    metrics = runs.evaluate(domain, protocol, run)
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")
    return 0


def _able(domain: Domain, verb: str, folder: Path, data: str | None, needs_data: bool = True) -> Any:
    """The run, where its method has that verb."""
    header, run = _open(domain, folder, data, needs_data)
    if not hasattr(run.model, verb):
        able = [name for name in domain.methods if hasattr(domain.method(name), verb)]
        raise UsageError(f"{verb}: {header['method']} cannot; methods that can: {', '.join(able) or 'none'}")
    return run


def embed(domain: Domain, options: Embed) -> int:
    import numpy as np

    run = _able(domain, "embed", options.run, options.data)
    _to_device(options, run)
    vectors = np.asarray(run.model.embed(run.data))
    ids = np.array(domain.module("data").ids(run.data))
    with _writing(f"--out {options.out}"):
        _save(options.out, ids=ids, vectors=vectors)
    print(f"wrote {options.out}: ids {ids.shape}, vectors {vectors.shape}")
    return 0


def sample(domain: Domain, options: Sample) -> int:
    run = _able(domain, "sample", options.run, None, needs_data=False)
    _to_device(options, run)
    found = run.model.sample(_count(options.n), seed=options.seed)
    _write(options.out, lambda path: domain.module("pictures").samples(found, path), samples=found)
    return 0


def reconstruct(domain: Domain, options: Reconstruct) -> int:
    run = _able(domain, "reconstruct", options.run, options.data)
    _to_device(options, run)
    data = run.data.test or run.data if options.data is None else run.data
    data = data.take(slice(_count(options.n)))
    found = run.model.reconstruct(data)
    module = domain.module("data")
    arrays = {"ids": module.ids(data), "originals": module.unit(module.pixels(data)), "reconstructions": found}
    draw = domain.module("pictures").reconstructions
    _write(options.out, lambda path: draw(arrays["originals"], found, path), **arrays)
    return 0


def _count(n: int) -> int:
    if n < 1:
        raise UsageError(f"-n {n}: must be at least 1")
    return n


def _write(out: Path, draw: Callable[[Path], None], **arrays: Any) -> None:
    """A picture, or an npz of the arrays, by the name's ending."""
    allowed = (".png", ".jpg", ".jpeg", ".npz")
    if out.suffix.lower() not in allowed:
        raise UsageError(f"--out {out}: must end in {', '.join(allowed)}")
    with _writing(f"--out {out}"):
        if out.suffix.lower() == ".npz":
            _save(out, **arrays)
        else:
            draw(out)
    print(f"wrote {out}")


def _save(out: Path, **arrays: Any) -> None:
    """An npz of the arrays, under the very name that was asked for."""
    import numpy as np

    with out.open("wb") as file:
        cast(Any, np).savez(file, **{name: np.asarray(value) for name, value in arrays.items()})


@contextlib.contextmanager
def _writing(flag: str) -> Generator[None]:
    """What cannot be written is wrong use of the flag that names it."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{flag}: cannot be written ({error})") from None


def recommend(domain: Domain, options: Recommend) -> int:
    if options.k < 1:
        raise UsageError(f"-k {options.k}: must be at least 1")
    run = _able(domain, "recommend", options.run, options.data)
    _to_device(options, run)
    found = run.model.recommend(run.data, options.user, options.k, options.exclude_seen)
    if options.json:
        items = [{"item": item, "score": score} for item, score in found]
        print(json.dumps({"user": options.user, "items": items}))
        return 0
    for rank, (item, score) in enumerate(found, start=1):
        print(f"{rank:4}  {item:24} {score:.4f}")
    return 0


def predict(domain: Domain, options: Predict) -> int:
    import csv
    import itertools
    import sys

    run = _able(domain, "predict", options.run, options.data)
    _to_device(options, run)
    columns: dict[str, Any] = run.model.predict(run.data)
    rows = list(zip(*columns.values(), strict=True))
    with (
        _writing(f"--out {options.out}"),
        options.out.open("w", newline="") if options.out else contextlib.nullcontext(sys.stdout) as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows if options.out else itertools.islice(rows, PREVIEW))
    if options.out:
        print(f"wrote {options.out}: {len(rows)} rows of {', '.join(columns)}")
    elif len(rows) > PREVIEW:
        print(f"... {len(rows)} rows in all; --out FILE.csv writes them", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _bar() -> Generator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Plain lines, on a terminal above a progress bar of the cells."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console()
    if not console.is_terminal:
        yield lambda text: print(text, flush=True), lambda done, total: None
        return
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("cells", total=None)
        yield console.print, lambda done, total: progress.update(task, completed=done, total=total)


def reproduce(domain: Domain, options: Any, method: str, overrides: dict[str, Any]) -> int:
    import signal

    from gen_core.harness import reproduce as running
    from gen_core.harness import runs

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job takes its cells with it, as Ctrl-C does

    fit = {"accelerator": options.device, "precision": options.precision}
    if options.check:
        return 0 if running.check(domain, options.check, threads=options.threads, options=fit) else 1
    for key in ("seeds", "jobs", "threads"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise UsageError(f"--{key} {value}: must be at least 1")
    try:
        with _bar() as (say, ended):
            record = running.reproduce(
                domain, options.target, out=options.out, seeds=options.seeds, jobs=options.jobs, shard=options.shard,
                threads=options.threads or 1, overrides=overrides, options=fit, say=say, ended=ended,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Run the same command again to go on; finished cells are kept.") from None
    if record is None:
        return 0
    if options.json:
        with _writing(f"--json {options.json}"):
            runs.write_json(options.json, record)
    from rich.console import Console

    from gen_core.harness import report

    Console().print(report.record_table(record))
    for lost in record.get("failed", ()):
        print(f"lost: {lost['arm']} seed {lost['seed']}: {lost['reason']}")
    print(f"verdict: {record['verdict']}")
    return 1 if record["verdict"] == "falls-short" else 0
