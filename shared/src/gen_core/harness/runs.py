"""A run is a folder: everything about one training, enough to repeat it, to go on with it and to use its model."""

import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen_core.harness import config as configs
from gen_core.harness.errors import LabelsMissing, UsageError
from gen_core.harness.recipes import Protocol, Stage
from gen_core.harness.registry import Domain

if TYPE_CHECKING:
    from gen_core.harness import stages

CONFIG, METRICS, SUMMARY, WEIGHTS = "config.toml", "metrics.jsonl", "summary.json", "model.safetensors"
LAST = Path("checkpoints") / "last.ckpt"


@dataclass
class Run:
    """What a protocol sees, a fitted model, the data, the seed, and what it may leave beside its metrics."""

    model: Any
    data: Any
    seed: int
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """A metric's values, one a test unit (a user, an image): a recipe's `interval_over` pairs them."""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict[str, list[tuple[float, float]]])
    """Curves over training, name -> [(x, y), ...]; all seeds on the same x, so that `reproduce` can draw their mean."""
    facts: dict[str, str] = field(default_factory=dict[str, str])
    """What a reader of the metrics must know beside them, such as the net that a Frechet distance was measured by."""


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a `.jsonl` log; a last line that a kill has cut is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a log anew, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One more line; the file is opened for each, which survives a kill and costs 20 microseconds."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def create(folder: Path, header: dict[str, Any]) -> None:
    """Make a run folder; refuses one that exists and is not empty, and one that cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        go_on = f"train --resume {folder}"
        raise UsageError(f"--out {folder} exists and is not empty; choose another, or go on with: {go_on}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        configs.write_toml(folder / CONFIG, header)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error})") from None


def trained(folder: Path) -> bool:
    """Whether a run folder holds weights or a checkpoint to go on from."""
    return (folder / WEIGHTS).exists() or any((folder / LAST.parent).glob("*"))


def free_name(base: Path) -> Path:
    """`base`, or `base-2`, `base-3`, ... where it is taken."""
    number, path = 1, base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def read_header(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run folder."""
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is not a run folder: it has no {CONFIG}")
    return configs.read_toml(folder / CONFIG)


def class_path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def update_header(folder: Path, cls: type, **values: Any) -> None:
    """Write the class and `values` into `config.toml`, whole or not at all; its other keys stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    header = configs.read_toml(path) if path.exists() else {}
    temporary = path.with_suffix(".tmp")
    configs.write_toml(temporary, header | {"class": class_path(cls)} | values)
    temporary.replace(path)


def header_of(folder: Path, cls: type) -> dict[str, Any]:
    """The header of a folder that holds a `cls`; anything else is refused."""
    header = read_header(folder)
    if header.get("class") != class_path(cls):
        raise UsageError(f"{folder} holds a {header.get('class')}, not a {class_path(cls)}")
    return header


def hardware() -> str:
    """Processor, usable cores and, where there is one, the GPU."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    text = f"{name}, {os.cpu_count()} cores"
    return text + f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else text


def versions(domain: Domain) -> dict[str, str]:
    """Python and the distributions that the numbers depend on."""
    found = {"python": platform.python_version()}
    ours = ("gen-core", f"gen-{domain.name}")
    for name in ("torch", "lightning", "numpy", "scipy", "scikit-learn", *ours, *domain.engines):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that the code runs from; None where it is installed without one."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def origin(domain: Domain, threads: int | None, precision: str = "32-true") -> dict[str, Any]:
    """What numbers depend on beside config, data and seed."""
    found = {"hardware": hardware(), "threads": threads, "precision": precision}
    return {**found, "versions": versions(domain), "commit": commit()}


def place(model: Any, device: str) -> None:
    """Move a model to "cuda", "mps" or the "auto" choice; Lightning leaves it on the CPU after a fit."""
    import torch

    if device != "cpu" and isinstance(model, torch.nn.Module):
        best = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(best if device == "auto" else device)


def execute(
    domain: Domain,
    method: str,
    config: dict[str, Any],
    run: Run,
    *,
    train: bool,
    given: Mapping[str, Stage] | None = None,
    home: "stages.Home | None" = None,
    **fit: Any,
) -> None:
    """Build the method and train it on the run's data; `train=False` stops after building.

    `given`: stages that its parts are; `home`: where these are trained, see `stages`.
    """
    from gen_core.harness.stages import below, provide

    cls = domain.method(method)
    home = home or below(Path(fit["out"]) if fit.get("out") else None)
    parts = provide(domain, given or {}, run, home, fit)
    run.model = cls(configs.parse(cls.Config, config, method), **parts)
    if train:
        run.model.fit(run.data, seed=run.seed, **fit)
    else:
        run.model.prepare(run.model.measure(run.data), run.seed)
    place(run.model, fit.get("accelerator", "cpu"))


def evaluate(domain: Domain, protocol: Protocol, run: Run) -> dict[str, float]:
    """The protocol's metrics."""
    return domain.protocol(protocol.name)(run, **protocol.options)


def finish(domain: Domain, folder: Path, run: Run, protocol: Protocol, started: float) -> dict[str, float]:
    """Evaluate a trained run and write summary, figures, environment and model card."""
    from gen_core.harness import report

    header = read_header(folder)
    write_json(
        folder / "environment.json", origin(domain, *(header["engine"].get(key) for key in ("threads", "precision")))
    )
    try:
        metrics = evaluate(domain, protocol, run)
    except LabelsMissing as error:
        print(f"not evaluated: {error}")
        metrics = {}
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    report.curve(folder / METRICS, figures / "loss.png")
    domain.module("protocols").figures(run, figures)
    card(domain, folder, header, metrics)
    seconds = round(time.monotonic() - started, 1)
    write_json(folder / SUMMARY, {"metrics": metrics, "protocol": protocol.model_dump(), "seconds": seconds})
    return metrics


def next_commands(domain: Domain, folder: Path, header: dict[str, Any]) -> list[str]:
    """What can be done with a finished run, as commands."""
    cls, command, data = domain.method(header["method"]), domain.command, header["data"]
    uses = {
        "embed": f"{command} embed {folder} --data {data} --out z.npz",
        "sample": f"{command} sample {folder} -n 64 --out samples.png",
        "reconstruct": f"{command} reconstruct {folder} --out reconstructions.png",
        "recommend": f"{command} recommend {folder} --user U -k 10",
        "predict": f"{command} predict {folder} --data {data} --out predictions.csv",
    }
    can = [uses[verb] for verb in domain.verbs if hasattr(cls, verb)]
    return [f"{command} evaluate {folder}", *can]


def card(domain: Domain, folder: Path, header: dict[str, Any], metrics: dict[str, float]) -> None:
    """The model card, `README.md`."""
    cls = domain.method(header["method"])
    about = inspect.cleandoc(inspect.getmodule(cls).__doc__ or cls.__doc__ or "")
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items()) or "| - | not evaluated |"
    given = {f"given {part}": stage.get("run") or stage["method"] for part, stage in header.get("stages", {}).items()}
    settings = "\n".join(f"| {name} | {value} |" for name, value in (given | header["config"]).items())
    module, _, name = domain.methods[header["method"]].partition(":")
    protocol = header["protocol"]["name"]
    (folder / "README.md").write_text(
        f"# {header['method']} on {header['data']}\n\n{about}\n\n"
        f"## Results\nProtocol `{protocol}`, seed {header['seed']}.\n\n| metric | value |\n|---|---|\n{rows}\n\n"
        f"## Settings\n| field | value |\n|---|---|\n{settings}\n\n"
        f"## Use\n```python\nfrom {module} import {name}\n\nmodel = {name}.load({str(folder)!r})\n```\n"
        + "".join(f"    {command}\n" for command in next_commands(domain, folder, header))
        + "\n"
        "## Limits\nTrained on the data named above and evaluated on its own test part; other data is unknown.\n"
        "The weights are in `model.safetensors`, how to repeat the run in `config.toml`, the machine in "
        "`environment.json`.\n",
        encoding="utf-8",
    )
