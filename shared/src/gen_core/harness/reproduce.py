"""`reproduce`: the method and its baselines on the same seeds and splits, a process and a file for each (arm, seed).

A finished cell is never run again while what it depends on is unchanged; a cell that dies loses itself only.
"""

import contextlib
import hashlib
import json
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import shutil
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gen_core.harness import config as configs
from gen_core.harness import recipes, records, runs, stages
from gen_core.harness.errors import UsageError
from gen_core.harness.recipes import Arm, Recipe, Stage
from gen_core.harness.registry import Domain

REVISION = 1  # raised when the core's numbers change: finished cells of other revisions are run again
WRONG_USE = 2  # exit status of a cell that met a UsageError

Say = Callable[[str], None]
Ended = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One cell: an arm at a seed."""

    domain: Domain
    arm: Arm
    data: str
    seed: int
    key: str
    folder: Path
    options: Mapping[str, Any]
    threads: int
    figures: Path | None = None
    samples: bool = False
    stage: Path | None = None
    """Set where the job only trains a stage for other cells: the stage's folder."""

    @property
    def stem(self) -> str:
        return f"{self.arm.name}-{self.seed}"

    def home(self, part: str, stage: Stage) -> Path:
        """The folder of a stage at this seed, one for all cells that need it."""
        more = [self.data, self.seed, REVISION, *_unusual(self.options)]
        return self.folder / f"given-{part}-{stages.key(self.domain, stage, more)}.run"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stem}.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.stem}.log"

    def read(self) -> dict[str, Any] | None:
        """The finished cell, if it is there and what it depends on is unchanged."""
        try:
            cell = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        drawn = self.figures is None or self.figures.exists()
        enough = drawn and (not self.samples or "samples" in cell)
        return cell if cell.get("key") == self.key and enough else None


def _limit(threads: int) -> None:
    import threadpoolctl  # pyright: ignore
    import torch

    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads)


def _unusual(options: Mapping[str, Any]) -> list[str]:
    """The precision of a fit as keys know it: those of earlier cells, all of the default, name none."""
    precision = options.get("precision", "32-true")
    return [] if precision == "32-true" else [precision]


def _plan(domain: Domain, arms: Sequence[Arm], data: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arms' resolved configs and their keys. A key covers all that a cell's numbers depend on."""
    checksum = domain.module("data").checksum(domain.load_data(data))
    plan: dict[str, Any] = {"configs": {}, "keys": {}}
    for arm in arms:
        cls = domain.method(arm.method)
        resolved = configs.parse(cls.Config, arm.config, arm.name).model_dump(mode="json")
        facts = [arm.method, resolved, arm.train, arm.protocol.model_dump(), checksum, cls.revision, REVISION]
        facts += _unusual(options)
        if arm.given:
            facts.append({part: stages.facts(domain, stage) for part, stage in arm.given.items()})
        plan["configs"][arm.name] = resolved
        plan["keys"][arm.name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return plan


def _cell(job: Job) -> None:
    """The body of a cell's process; what it prints goes to a log that is kept only if it fails."""
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        _limit(job.threads)
        started = time.monotonic()
        run = runs.Run(None, job.domain.load_data(job.data), job.seed)
        work = job.folder / f"{job.stem}-{job.key[:8]}.run"
        fit = {"out": work, "resume": True, "progress": False, "logger": "none", **job.options}
        if job.stage:
            fit["out"] = job.stage
        arm = job.arm
        runs.execute(job.domain, arm.method, arm.config, run, train=arm.train, given=arm.given, home=job.home, **fit)
        if job.stage:
            return
        metrics = runs.evaluate(job.domain, job.arm.protocol, run)
        if job.figures:
            _draw(job, run, work)
        cell: dict[str, Any] = {"key": job.key, "arm": job.arm.name, "seed": job.seed, "metrics": metrics}
        cell |= {name: found for name in ("curves", "facts") if (found := getattr(run, name))}
        if job.samples:
            cell["samples"] = run.samples
        origin = runs.origin(job.domain, job.threads, job.options.get("precision", "32-true"))
        cell |= {"seconds": round(time.monotonic() - started, 2), **origin}
        runs.write_json(job.path, cell)
        shutil.rmtree(work, ignore_errors=True)
        job.log.unlink(missing_ok=True)
    except UsageError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(WRONG_USE)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _stages(jobs: Sequence[Job]) -> list[Job]:
    """The stages that these cells need trained first, each once."""
    found: dict[Path, Job] = {}
    for job in jobs:
        for part, stage in job.arm.given.items():
            home = job.home(part, stage)
            if stage.train and stage.run is None and not (home / runs.WEIGHTS).exists():
                name = f"given {part} ({stage.method})"
                update = {"name": name, "method": stage.method, "config": stage.config, "given": stage.given}
                arm = job.arm.model_copy(update=update | {"train": True})
                found[home] = replace(job, arm=arm, stage=home, figures=None, samples=False)
    return list(found.values())


def _draw(job: Job, run: runs.Run, work: Path) -> None:
    from gen_core.harness import report

    assert job.figures is not None
    partial = job.figures.with_name(job.figures.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    report.curve(work / runs.METRICS, partial / "loss.png")
    job.domain.module("protocols").figures(run, partial)
    partial.replace(job.figures)


def _reason(job: Job, code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = job.log.read_text(errors="replace").strip().splitlines() if job.log.exists() else []
    return f"{lines[-1] if lines else f'exit status {code}'} (log: {job.log})"


def context(domains: Sequence[Domain]) -> Any:
    """The forkserver, with torch and the domains' heavy modules imported once for all cells, started at once."""
    found = multiprocessing.get_context("forkserver")
    heavy = [f"{domain.package}.{name}" for domain in domains for name in ("data", "protocols")]
    heavy += [target.partition(":")[0] for domain in domains for target in domain.methods.values()]
    found.set_forkserver_preload(["torch", *heavy])
    multiprocessing.forkserver.ensure_running()
    return found


@contextlib.contextmanager
def _held() -> Generator[None]:
    """Ctrl-C waits for the end of the block: a cell that it met between start and list would run on for ever."""
    if threading.current_thread() is not threading.main_thread():  # where no signal is handled
        yield
        return
    arrived: list[int] = []
    before = {n: signal.signal(n, lambda n, _: arrived.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived[:1]:
            signal.raise_signal(number)


def _run_all(
    ctx: Any, jobs: Sequence[Job], parallel: int, say: Say, ended: Ended = lambda done, total: None
) -> dict[tuple[str, int], str]:
    """Run cells, `parallel` at a time; returns the reasons of those that failed."""
    waiting, running, failed = list(jobs), dict[int, tuple[Any, Job, float]](), dict[tuple[str, int], str]()
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                process = ctx.Process(target=_cell, args=(job,))
                with _held():
                    process.start()
                    running[process.sentinel] = (process, job, time.monotonic())
            for sentinel in multiprocessing.connection.wait(list(running)):
                process, job, started = running.pop(sentinel)  # pyright: ignore[reportArgumentType]
                process.join()
                seconds, left = time.monotonic() - started, len(waiting) + len(running)
                if process.exitcode == WRONG_USE:
                    raise UsageError(f"arm {job.arm.name}: " + job.log.read_text().strip())
                if process.exitcode:
                    failed[job.arm.name, job.seed] = reason = _reason(job, process.exitcode)
                    say(f"{job.arm.name} seed {job.seed}: LOST, {reason}")
                else:
                    say(f"{job.arm.name} seed {job.seed}: done in {seconds:.1f} s; {left} cells left")
                ended(len(jobs) - left, len(jobs))
    finally:
        for process, _, _ in running.values():
            process.kill()  # it goes on from its checkpoint; Lightning would answer SIGTERM at an epoch's end
        for process, _, _ in running.values():
            process.join()
    return failed


def _seeds(recipe: Recipe, count: int | None) -> list[int]:
    if count is None:
        return recipe.seeds
    further = (seed for seed in range(count + len(recipe.seeds)) if seed not in recipe.seeds)
    return [*recipe.seeds[:count], *(next(further) for _ in range(count - len(recipe.seeds)))]


def _share(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise UsageError(f"--shard {text!r}: must be i/n, such as 1/4") from None
    if not 1 <= index <= count:
        raise UsageError(f"--shard {text!r}: i must lie in 1..n")
    return index - 1, count


def reproduce(
    domain: Domain,
    target: str,
    *,
    out: Path,
    seeds: int | None = None,
    jobs: int = 1,
    shard: str | None = None,
    threads: int = 1,
    overrides: dict[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    figures: Path | None = None,
    ctx: Any = None,
    say: Say = print,
    ended: Ended = lambda done, total: None,
) -> dict[str, Any] | None:
    """Run what is not yet run; returns the record, or None while other shards still owe cells.

    Args:
        out: folder of `<domain>/<method>/<recipe>.json` and, beside it, `<recipe>.cells/`.
        seeds: how many of the recipe's seeds; more than it names adds the next numbers.
        overrides: method config over the recipe's, for all arms of the method.
        figures: folder for the figures of the method and of the `claim_against` arm at the first seed.
        say: told what happens, a line at a time.
        ended: told how many of the cells to run have ended, and how many there are.
    """
    from gen_core.harness import report

    name, recipe = recipes.load(domain, target)
    arms = recipes.arms(domain, recipe, overrides)
    if overrides:
        name += "".join(f"+{key}={value}" for key, value in sorted(overrides.items())).replace("/", "_")
    chosen = _seeds(recipe, seeds)
    index, count = _share(shard)
    ctx = ctx or context([domain])
    plan = _plan(domain, list(arms.values()), recipe.data, options or {})
    home = out / domain.name / recipe.method
    folder = home / f"{name}.cells"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error})") from None

    def job(arm: Arm, seed: int) -> Job:
        drawn = figures if seed == chosen[0] and arm.name in (recipe.method, recipe.claim_against) else None
        drawn = drawn / f"{domain.name}-{arm.name}" if drawn else None
        key = plan["keys"][arm.name]
        samples = recipe.interval_over is not None
        return Job(domain, arm, recipe.data, seed, key, folder, dict(options or {}), threads, drawn, samples)

    every = [job(arm, seed) for seed in chosen for arm in arms.values()]
    mine = every[index::count]
    if any(stage.train for arm in arms.values() for stage in arm.given.values()):  # a stage is trained by one shard
        mine = [cell for cell in every if cell.seed in chosen[index::count]]
    todo = [cell for cell in mine if cell.read() is None]
    minutes = "unknown length (not measured before)"
    if recipe.minutes is not None:
        share = len(todo) / len(recipe.seeds) / len(arms) / jobs
        whole = max(1, round(2 * recipe.minutes * share))
        minutes = f"about {whole} minute{'s' if whole > 1 else ''}"
    size = f"{len(every)} cells ({len(arms)} arms x {len(chosen)} seeds)"
    say(f"{recipe.method}/{name}: {size}, {len(todo)} to run here; {minutes}")
    before = _stages(todo)
    if before:
        say(f"first {len(before)} stages, one a seed")
        _run_all(ctx, before, jobs, say)  # one that fails is tried again by its cells, which then say why
    reasons = _run_all(ctx, todo, jobs, say, ended)
    cells = {(cell.arm.name, cell.seed): found for cell in every if (found := cell.read())}
    if len(cells) < len(every) and count > 1:
        say(f"{len(cells)} of {len(every)} cells are finished; the shard that ends last writes the record")
        return None
    if not any(arm == recipe.method for arm, _ in cells):
        reason = next((text for (arm, _), text in reasons.items() if arm == recipe.method), "not run")
        raise UsageError(f"no cell of {recipe.method} finished, so there is no record: {reason}")
    config = plan["configs"][recipe.method]
    record = records.build(domain, name, recipe, config, chosen, cells)
    for entry in record.get("failed", ()):
        entry["reason"] = reasons.get((entry["arm"], entry["seed"]), "not run")
    runs.write_json(home / f"{name}.json", record)
    report.record_curves(record, home)
    return record


def _spread_over_units(record: Mapping[str, Any]) -> float:
    """For a record of one seed: a quarter of its widest interval over test units, about a standard error."""
    intervals = [entry["gain_ci95"] for entry in record["baselines"].values() if entry.get("gain_ci95")]
    return max((high - low for low, high in intervals), default=0.0) / 4


def check(
    domain: Domain,
    file: Path,
    *,
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    say: Say = print,
) -> bool:
    """Run the first seed of a record again, with these options of the fit; True where it agrees.

    Equal to 1e-6 where hardware, versions, threads and precision are the record's, else within three of its standard
    deviations; with one seed a quarter of its widest interval over test units stands for these.
    """
    import tempfile

    try:
        record = json.loads(file.read_text())
        seed, wanted, method = record["seeds"][0], record["values"][0], record["method"]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UsageError(f"--check {file}: not a record of reproduce ({error!r})") from None
    base = record["recipe"].partition("+")[0]
    _, recipe = recipes.load(domain, f"{method}/{base}")
    arm = recipes.arms(domain, recipe, record["config"])[method]
    ctx = context([domain])
    plan = _plan(domain, [arm], recipe.data, options or {})
    with tempfile.TemporaryDirectory() as folder:
        key, fit = plan["keys"][method], dict(options or {})
        job = Job(domain, arm, recipe.data, seed, key, Path(folder), fit, threads or record["threads"])
        failed = _run_all(ctx, [job], 1, say)
        cell = job.read()
    if cell is None:
        raise RuntimeError(f"the cell failed: {next(iter(failed.values()), 'no reason known')}")
    got = cell["metrics"][record["metric"]]
    same = all(cell[key] == record[key] for key in ("hardware", "versions", "threads"))
    same = same and cell["precision"] == record.get("precision", "32-true")  # older records do not name it
    if same:
        allowed, why = 1e-6 * max(1.0, abs(wanted)), "same hardware, versions, threads and precision: 1e-6"
    elif domain.interval == "iqm":
        allowed, why = float("inf"), "other hardware or versions: must run and be finite"
    else:
        if len(record["values"]) > 1:
            spread, name = statistics.stdev(record["values"]), "the record's standard deviation"
        else:
            spread, name = _spread_over_units(record), "a quarter of the record's widest interval over test units"
        allowed, why = 3 * spread, f"other hardware, versions, threads or precision: 3 x {name}"
        wanted = statistics.fmean(record["values"])
    holds = math.isfinite(got) and abs(got - wanted) <= allowed
    say(f"{method}/{record['recipe']} seed {seed}: recorded {wanted:.6f}, now {got:.6f}, allowed {allowed:.2g} ({why})")
    return holds
