"""The command line, the same in every domain: `gen-X VERB ...`; `gen` for what crosses domains.

Options come from the dataclasses below and, for `train` and `reproduce`, from the method's own `Config`: tyro makes the
flags, pydantic checks the values. Exit status: 0 done, 1 the claim falls short, 2 wrong use, 130 interrupted.
"""

import dataclasses
import inspect
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tyro
from tyro.conf import FlagConversionOff, Positional, arg

from gen_core.harness import config as configs
from gen_core.harness import recipes, registry
from gen_core.harness.errors import UsageError, nearest
from gen_core.harness.registry import Domain


@dataclass(kw_only=True)
class Engine:
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute"""
    devices: int = 1
    """how many of them; more than one trains by data-parallel processes"""
    threads: int | None = None
    """threads a process (default: torch's own choice)"""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Lightning's name of the number format"""

    def apply(self) -> None:
        """Set the threads; refuse devices that are not there."""
        if self.devices < 1:
            raise UsageError(f"--devices {self.devices}: must be at least 1")
        if self.threads is not None:
            if self.threads < 1:
                raise UsageError(f"--threads {self.threads}: must be at least 1")
            import torch

            torch.set_num_threads(self.threads)
        if self.device in ("cuda", "mps"):
            import torch

            backend = torch.cuda if self.device == "cuda" else torch.backends.mps
            if not backend.is_available():
                raise UsageError(f"--device {self.device}: there is none on this machine; allowed here: auto, cpu")
            if self.device == "cuda" and self.devices > torch.cuda.device_count():
                raise UsageError(f"--devices {self.devices}: this machine has {torch.cuda.device_count()}")


@dataclass(kw_only=True)
class List:
    """Methods, recipes and data sets of this domain."""

    json: bool = False
    """print one JSON object"""
    check: bool = False
    """validate every recipe without running it"""


@dataclass(kw_only=True)
class Train(Engine):
    """Train a method: `train METHOD[/RECIPE]`, or go on with a stopped run: `train --resume RUN`."""

    target: Positional[str] = ""
    """method, or method/recipe"""
    data: str | None = None
    """a registered data set or the path of your own data (default: the recipe's)"""
    seed: int = 0
    """of initialisation, order and noise"""
    out: Path | None = None
    """the run's folder (default: runs/METHOD-DATA-sSEED)"""
    config: Path | None = None
    """a TOML file of the method's fields, over the recipe's and below the flags"""
    logger: Literal["tensorboard", "csv", "mlflow", "wandb"] = "tensorboard"
    """Lightning logger, beside metrics.jsonl"""
    resume: Path | None = None
    """a run folder to go on with"""


@dataclass(kw_only=True)
class Evaluate(Engine):
    """Evaluate a trained run again, by its own or another protocol."""

    run: Positional[Path]
    """run folder"""
    protocol: str | None = None
    """another protocol of this domain"""


@dataclass(kw_only=True)
class Reproduce:
    """Run a recipe's method and its baselines on the same seeds and splits, and say whether the claim holds."""

    target: Positional[str] = ""
    """method, or method/recipe (default: the method's first recipe, which needs no network)"""
    seeds: int | None = None
    """how many seeds (default: the recipe's)"""
    out: Path = Path("runs/reproduce")
    """folder for DOMAIN/METHOD/RECIPE.json and its cells"""
    json: Path | None = None
    """also write the record there"""
    jobs: int = 1
    """cells at a time"""
    shard: str | None = None
    """i/n: only the i-th share of the cells; give all shards one --out"""
    threads: int | None = None
    """threads a cell (default: 1)"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """where to compute"""
    config: Path | None = None
    """a TOML file of the method's fields, over the recipe's and below the flags"""
    check: Path | None = None
    """run one seed of this record again and compare"""


@dataclass(kw_only=True)
class Embed(Engine):
    """Write the representation of data by a trained run: ids and vectors in one npz."""

    run: Positional[Path]
    """run folder"""
    data: str | None = None
    """a registered data set or your own data (default: the run's)"""
    out: Path = Path("embeddings.npz")
    """arrays `ids` (n,) and `vectors` (n, d)"""


@dataclass(kw_only=True)
class Data:
    """Registered data sets: `data list`, or make one ready: `data prepare NAME`."""

    action: Positional[Literal["list", "prepare"]] = "list"
    name: Positional[str] = ""
    """data set"""


@dataclass(kw_only=True)
class Compare:
    """Runs side by side: the settings that differ, their metrics, their loss curves."""

    runs: Positional[tuple[Path, ...]]
    """run folders"""
    out: Path | None = None
    """also draw the loss curves into this png"""


@dataclass(kw_only=True)
class Demo:
    """One method of each installed domain against its own baseline: a table, then a page to look at."""

    out: Path = Path("runs/demo")
    """folder of the page"""
    seeds: int = 5
    """seeds a method"""
    jobs: int = 2
    """cells at a time"""


@dataclass(kw_only=True)
class ListAll:
    """The installed domains with their methods, recipes and data sets."""

    json: bool = False
    """print one JSON object"""
    check: bool = False
    """validate every recipe without running it"""


VERBS = {"list": List, "train": Train, "evaluate": Evaluate, "reproduce": Reproduce, "embed": Embed, "data": Data}
ABOVE = {"list": ListAll, "demo": Demo, "compare": Compare}


def gen() -> None:
    """Entry point of `gen`."""
    sys.exit(main(None, sys.argv[1:]))


def run(domain: Domain) -> None:
    """Entry point of `gen-X`."""
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # torch_geometric's import
    sys.exit(main(domain, sys.argv[1:]))


def main(domain: Domain | None, argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        return _dispatch(domain, list(argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted; what was finished is kept. {stop}".rstrip(), file=sys.stderr)
        return 130
    except SystemExit as stop:  # tyro's own: 0 after --help, 2 after a wrong flag
        return stop.code if isinstance(stop.code, int) else 2


def _dispatch(domain: Domain | None, argv: list[str]) -> int:
    prog = domain.command if domain else "gen"
    verbs: Mapping[str, Any] = VERBS if domain else ABOVE
    about = domain.summary if domain else "Generative and contrastive representation learning: what is installed here."
    if not argv or argv[0] not in verbs:
        if argv and not argv[0].startswith("-"):
            raise UsageError(nearest(argv[0], verbs, "verb"))
        tyro.extras.subcommand_cli_from_dict(dict(verbs), prog=prog, description=about, args=argv or ["--help"])
        return 0
    verb, rest = argv[0], argv[1:]
    if domain is None:
        from gen_core.harness import demo

        options = _parse(f"{prog} {verb}", verbs[verb], rest)
        if verb == "list":
            return max([_list(found, options) for found in registry.domains().values()], default=_nothing())
        return demo.demo(options) if verb == "demo" else demo.compare(options)
    if verb == "reproduce" and "--help" not in rest:
        from gen_core.harness import reproduce

        reproduce.context([domain])  # its imports run beside ours
    if verb in ("train", "reproduce"):
        method, options, overrides = _parse_with_config(domain, verb, verbs[verb], rest)
        return (_train if verb == "train" else _reproduce)(domain, options, method, overrides)
    action: Callable[[Domain, Any], int] = {"list": _list, "evaluate": _evaluate, "embed": _embed, "data": _data}[verb]
    return action(domain, _parse(f"{prog} {verb}", verbs[verb], rest))


def _nothing() -> int:
    if not registry.domains():
        print("no domain is installed; install gen-vision, gen-graph, gen-rl, gen-rec or gen-zsl")
    return 0


def _parse(prog: str, shape: Any, argv: list[str]) -> Any:
    if {"-h", "--help"} & set(argv):
        argv = ["--help"]  # alone, since tyro leaves out of the help what was given beside it
    return tyro.cli(shape, prog=prog, description=shape.__doc__, args=argv)


def _parse_with_config(domain: Domain, verb: str, shape: Any, argv: list[str]) -> tuple[str, Any, dict[str, Any]]:
    """Options, and those of the method's fields that a file or a flag sets.

    The method is known only from the words themselves, its fields only from the method: the target is found first, then
    tyro parses everything at once, so that help and errors cover both kinds of flags.
    """
    prog = f"{domain.command} {verb}"
    target = next((word for word in argv if word.partition("/")[0] in domain.methods), None)
    if target is None:
        first = next((word for word in argv if not word.startswith("-")), "")
        if argv and argv[0] == first and first:
            raise UsageError(nearest(first.partition("/")[0], domain.methods, f"{domain.command} method"))
        options = _parse(prog, _with_data_options(domain, shape), argv)
        if not (getattr(options, "resume", None) or getattr(options, "check", None)):
            raise UsageError(f"{prog} needs a method: {', '.join(domain.methods) or 'this domain has none yet'}")
        return "", options, {}
    method = target.partition("/")[0]
    cls = domain.method(method)
    shape = _with_data_options(domain, shape)
    base = _recipe_config(domain, verb, target, argv)
    file = _value(argv, "--config")
    below = base | (configs.read_toml(Path(file)) if file else {})
    start = configs.parse(cls.Config, below, file or f"recipe {target}")
    combined = dataclasses.make_dataclass(
        shape.__name__,
        [("fields_", Annotated[FlagConversionOff[cls.Config], arg(name="")], field(default_factory=lambda: start))],
        bases=(shape,),
        kw_only=True,
    )
    combined.__doc__ = f"{shape.__doc__}\n\n{inspect.getdoc(cls) or ''}"
    try:
        options = _parse(prog, combined, argv)
    except pydantic.ValidationError as error:
        raise UsageError("\n".join(configs.complaints(cls.Config, error, "command line"))) from None
    recipe = configs.parse(cls.Config, base, f"recipe {target}").model_dump()
    overrides = {key: value for key, value in options.fields_.model_dump().items() if value != recipe[key]}
    return method, options, overrides


def _value(argv: list[str], flag: str) -> str | None:
    """What a flag is set to, before its parser can be made."""
    spaced = (value for word, value in itertools.pairwise(argv) if word == flag)
    joined = (word.removeprefix(flag + "=") for word in argv if word.startswith(flag + "="))
    return next(itertools.chain(spaced, joined), None)


def _with_data_options(domain: Domain, shape: Any) -> Any:
    if shape is not Train or not domain.data_options:
        return shape
    options = domain.data_options.items()
    extra = [(name, Annotated[Path | None, arg(help=text)], field(default=None)) for name, text in options]
    made = dataclasses.make_dataclass(shape.__name__, extra, bases=(shape,), kw_only=True)
    made.__doc__ = shape.__doc__
    return made


def _recipe_of(domain: Domain, target: str, data: str | None) -> tuple[str, recipes.Recipe] | None:
    """The recipe that `train` starts from: the named one; the first with that data; the first; none for own data."""
    method, _, name = target.partition("/")
    found = recipes.tables(domain, method)
    if name or (data is None and found):
        return recipes.load(domain, target)
    for key, table in found.items():
        if table.get("data") == data:
            return recipes.load(domain, f"{method}/{key}")
    return None


def _recipe_config(domain: Domain, verb: str, target: str, argv: list[str]) -> dict[str, Any]:
    if verb == "reproduce":
        return recipes.load(domain, target)[1].config
    found = _recipe_of(domain, target, _value(argv, "--data"))
    return found[1].config if found else {}


def _list(domain: Domain, options: List | ListAll) -> int:
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


def _data(domain: Domain, options: Data) -> int:
    from gen_core.harness import data

    if options.action == "list":
        print(f"data root: {data.root()} (GEN_DATA)")
        for name, info in domain.datasets.items():
            where = "embedded" if info.embedded else f"{'present' if (data.root() / info.path).exists() else 'absent'}"
            print(f"  {name:16} {where:9} {info.summary}" + ("" if where != "absent" else f"\n{'':20}{info.how}"))
        return 0
    if options.name not in domain.datasets:
        raise UsageError(nearest(options.name, domain.datasets, "data set"))
    found = domain.load_data(options.name)
    print(f"{options.name} is ready: {dict(domain.module('data').spec(found))}")
    return 0


def _train(domain: Domain, options: Any, method: str, overrides: dict[str, Any]) -> int:
    from gen_core.harness import runs

    if options.resume:
        return _resume(domain, options.resume, options.target)
    options.apply()
    found = _recipe_of(domain, options.target, options.data)
    name, recipe = found or (None, None)
    data_name = options.data or (recipe.data if recipe else None)
    if data_name is None:
        raise UsageError(f"{method} has no recipe, so it needs --data; known: {', '.join(domain.datasets)}")
    cls = domain.method(method)
    config = configs.parse(cls.Config, (recipe.config if recipe else {}) | overrides, method)
    extra = {key: str(path) for key in domain.data_options if (path := getattr(options, key))}
    data = domain.load_data(data_name, **extra)
    own = data_name not in domain.datasets
    out = options.out or runs.free_name(Path("runs") / f"{method}-{Path(data_name).stem}-s{options.seed}")
    protocol = recipe.protocol if recipe else recipes.Protocol(name=domain.protocol_default)
    header = {
        "domain": domain.name,
        "method": method,
        "class": domain.methods[method],
        "recipe": name,
        "data": str(Path(data_name).absolute()) if own else data_name,
        "data_options": {key: str(Path(path).absolute()) for key, path in extra.items()},
        "data_sha256": domain.module("data").checksum(data),
        "seed": options.seed,
        "protocol": protocol.model_dump(),
        "engine": {key: getattr(options, key) for key in ("device", "devices", "threads", "precision", "logger")},
        "config": config.model_dump(),
    }
    runs.create(out, header)
    print(f"training {method} on {data_name} in {out}" + (f" (recipe {method}/{name})" if name else ""))
    return _fit_and_finish(domain, out, data, header)


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
    kept = any((folder / name).exists() for name in ("checkpoints/last.ckpt", "model.safetensors"))
    print(f"going on with {folder}" + ("" if kept else "; it has no checkpoint yet, so from step 0"))
    return _fit_and_finish(domain, folder, data, header)


def _fit_and_finish(domain: Domain, out: Path, data: Any, header: dict[str, Any]) -> int:
    from gen_core.harness import runs

    started = time.monotonic()
    run = runs.Run(None, data, header["seed"])
    fit = {"accelerator" if key == "device" else key: value for key, value in header["engine"].items()}
    fit.pop("threads", None)
    try:
        runs.execute(domain, header["method"], header["config"], run, train=True, out=out, resume=True, **fit)
        run.model.save(out)
        metrics = runs.finish(domain, out, run, recipes.Protocol(**header["protocol"]), started)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Go on with:\n  {domain.command} train --resume {out}") from None
    except OSError as error:
        command = f"{domain.command} train --resume {out}"
        raise UsageError(f"{out}: writing failed ({error}); go on with: {command}") from None
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")
    print(f"run folder: {out}\nnext:")
    print(f"  {domain.command} evaluate {out}")
    print(f"  {domain.command} embed {out} --data {header['data']} --out z.npz")
    return 0


def _open(domain: Domain, folder: Path, data: str | None) -> tuple[dict[str, Any], Any]:
    """A run folder's header and its run: loaded model, its own data or other."""
    from gen_core.harness import runs

    header = runs.read_header(folder)
    if header.get("domain") != domain.name:
        raise UsageError(f"{folder} is a run of gen-{header.get('domain')}, not of {domain.command}")
    model = domain.method(header["method"]).load(folder)
    found = domain.load_data(data) if data else domain.load_data(header["data"], **header["data_options"])
    return header, runs.Run(model, found, header["seed"])


def _to_device(options: Engine, run: Any) -> None:
    import torch

    options.apply()
    if options.device != "cpu" and isinstance(run.model, torch.nn.Module):
        best = "cuda" if torch.cuda.is_available() else "cpu"
        run.model.to(best if options.device == "auto" else options.device)


def _evaluate(domain: Domain, options: Evaluate) -> int:
    from gen_core.harness import runs

    header, run = _open(domain, options.run, None)
    _to_device(options, run)
    protocol = recipes.Protocol(**({"name": options.protocol} if options.protocol else header["protocol"]))
    metrics = runs.evaluate(domain, protocol, run)
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")
    return 0


def _embed(domain: Domain, options: Embed) -> int:
    import numpy as np

    header, run = _open(domain, options.run, options.data)
    if not hasattr(run.model, "embed"):
        raise UsageError(f"{header['method']} has no representation to write; gen-X list shows methods that have")
    _to_device(options, run)
    vectors = np.asarray(run.model.embed(run.data))
    ids = np.array(domain.module("data").ids(run.data))
    try:
        with options.out.open("wb") as file:
            np.savez(file, ids=ids, vectors=vectors)
    except OSError as error:
        raise UsageError(f"--out {options.out}: cannot be written ({error})") from None
    print(f"wrote {options.out}: ids {ids.shape}, vectors {vectors.shape}")
    return 0


def _reproduce(domain: Domain, options: Any, method: str, overrides: dict[str, Any]) -> int:
    from gen_core.harness import reproduce, runs

    if options.check:
        return 0 if reproduce.check(domain, options.check, threads=options.threads) else 1
    for key in ("seeds", "jobs", "threads"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise UsageError(f"--{key} {value}: must be at least 1")
    try:
        record = reproduce.reproduce(
            domain, options.target, out=options.out, seeds=options.seeds, jobs=options.jobs, shard=options.shard,
            threads=options.threads or 1, overrides=overrides, options={"accelerator": options.device},
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Run the same command again to go on; finished cells are kept.") from None
    if record is None:
        return 0
    if options.json:
        try:
            runs.write_json(options.json, record)
        except OSError as error:
            raise UsageError(f"--json {options.json}: cannot be written ({error})") from None
    from rich.console import Console

    from gen_core.harness import report

    Console().print(report.record_table(record))
    for lost in record.get("failed", ()):
        print(f"lost: {lost['arm']} seed {lost['seed']}: {lost['reason']}")
    print(f"verdict: {record['verdict']}")
    return 1 if record["verdict"] == "falls-short" else 0
