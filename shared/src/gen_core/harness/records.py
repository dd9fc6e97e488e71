"""A `reproduce` record: paired gains, intervals, the verdict; one JSON object, the same for every domain."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gen_core.harness.recipes import Recipe
from gen_core.harness.registry import Domain

Kind = Literal["auto", "student-t", "bootstrap", "iqm"]
Cells = Mapping[tuple[str, int], Mapping[str, Any]]


def build(
    domain: Domain,
    name: str,
    recipe: Recipe,
    config: Mapping[str, Any],
    seeds: Sequence[int],
    cells: Cells,
) -> dict[str, Any]:
    """Assemble the record from finished cells; a seed counts where the method and the baseline both have it.

    Args:
        name: the recipe's name, as recorded.
        config: the method's whole resolved config.
        cells: (arm, seed) -> what that cell wrote; its machine, versions and commit become the record's.
    """

    def metric(arm: str, key: str, chosen: Sequence[int]) -> list[float]:
        return [cells[arm, seed]["metrics"][key] for seed in chosen]

    own = [seed for seed in seeds if (recipe.method, seed) in cells]
    baselines: dict[str, Any] = {}
    for arm in recipe.baselines:
        both = [seed for seed in own if (arm, seed) in cells]
        values, own_values = (metric(name, recipe.metric, both) for name in (arm, recipe.method))
        if recipe.interval_over is None:
            entry = compare(own_values, values, recipe.higher_is_better, domain.interval)
        else:
            own_units, units = (_units(cells, name, recipe.metric, both) for name in (recipe.method, arm))
            entry = compare(own_units, units, recipe.higher_is_better, "auto")
            entry["ci_method"] = entry["ci_method"] and f"{entry['ci_method']} over {recipe.interval_over}"
        baselines[arm] = {"values": values, **entry, "also": _also(cells, arm, both, recipe.metric)}
    wanted = [(arm, seed) for arm in (recipe.method, *recipe.baselines) for seed in seeds]
    failed = [{"arm": arm, "seed": seed} for arm, seed in wanted if (arm, seed) not in cells]
    record: dict[str, Any] = {
        "method": recipe.method,
        "recipe": name,
        "dataset": recipe.data,
        "domain": domain.name,
        "scale": recipe.scale,
        "protocol": recipe.protocol.model_dump(),
        "metric": recipe.metric,
        "unit": recipe.unit,
        "higher_is_better": recipe.higher_is_better,
        "seeds": own,
        "values": metric(recipe.method, recipe.metric, own),
        "baselines": baselines,
        "claim_against": recipe.claim_against,
        "paper": recipe.paper.model_dump() if recipe.paper else None,
        "also": _also(cells, recipe.method, own, recipe.metric),
        "config": dict(config),
        "seconds": round(sum(cell["seconds"] for cell in cells.values()), 1),
        "note": recipe.note,
        "hardware": "; ".join(sorted({cell["hardware"] for cell in cells.values()})),
        "precision": next((cell.get("precision", "32-true") for cell in cells.values()), None),
        **{key: next((cell[key] for cell in cells.values()), None) for key in ("threads", "versions", "commit")},
    }
    if bands := _bands(cells, (recipe.method, *recipe.baselines), own, domain.interval):
        record["curves"] = bands
    if facts := next((cell["facts"] for seed in own if "facts" in (cell := cells[recipe.method, seed])), None):
        record["facts"] = facts
    if failed:
        record["failed"] = failed
    record["verdict"] = verdict(record, domain.claim_seeds)
    return record


def _also(cells: Cells, arm: str, seeds: Sequence[int], metric: str) -> dict[str, list[float]]:
    names = cells[arm, seeds[0]]["metrics"] if seeds else ()
    return {key: [cells[arm, seed]["metrics"][key] for seed in seeds] for key in names if key != metric}


def _units(cells: Cells, arm: str, metric: str, seeds: Sequence[int]) -> list[float]:
    """A metric's value at each test unit, the mean over the seeds."""
    rows = [cells[arm, seed]["samples"][metric] for seed in seeds]
    return [statistics.fmean(values) for values in zip(*rows, strict=True)]


def _bands(cells: Cells, arms: Sequence[str], seeds: Sequence[int], kind: Kind) -> dict[str, Any]:
    """name -> {kind, arms: {arm: {x, middle, low, high}}}: the middle over the seeds and its interval, at each x."""
    bands: dict[str, Any] = {}
    for arm in arms:
        curves = [cells[arm, seed].get("curves", {}) for seed in seeds if (arm, seed) in cells]
        for name in curves[0] if curves else ():
            band: dict[str, list[float]] = {"x": [], "middle": [], "low": [], "high": []}
            for points in zip(*(curve[name] for curve in curves), strict=True):
                point = _middle([y for _, y in points if math.isfinite(y)], kind)
                if point:
                    for key, value in zip(band, (points[0][0], *point), strict=True):
                        band[key].append(value)
            entry = bands.setdefault(name, {"kind": "IQM" if kind == "iqm" else "mean", "arms": {}})
            entry["arms"][arm] = band
    return bands


def _middle(values: Sequence[float], kind: Kind) -> tuple[float, float, float] | None:
    """Mean or IQM with its 95 % interval; the value itself where there is but one."""
    from gen_core.evaluation.stats import paired_interval

    if not values:
        return None
    middle, low, high, _ = paired_interval(values, 0.0, kind=kind, resamples=2000)
    return (middle, low, high) if math.isfinite(low) else (middle, middle, middle)


def compare(values: Sequence[float], baseline: Sequence[float], higher_is_better: bool, kind: Kind) -> dict[str, Any]:
    """Gain over a baseline on the same seeds, positive where the method is better, with its 95 % interval."""
    from gen_core.evaluation.stats import paired_interval

    if not values:
        return {"gain": None, "gain_ci95": None, "ci_method": None}
    gain, low, high, method = paired_interval(values, baseline, higher_is_better=higher_is_better, kind=kind)
    interval = None if math.isnan(low) or math.isnan(high) else [low, high]
    return {"gain": gain, "gain_ci95": interval, "ci_method": method if interval else None}


def verdict(record: Mapping[str, Any], claim_seeds: int = 5) -> str:
    """What the record may say of itself, by the rules that docs/records.md states."""
    if record["claim_against"] is None:
        return "no-claim"
    against = record["baselines"][record["claim_against"]]
    if len(against["values"]) < claim_seeds:
        return "preliminary"
    if against["gain_ci95"] is None or not against["gain_ci95"][0] > 0:
        return "falls-short"
    paper = record["paper"]
    if paper is None or record["config"].get("bound", "paper") != "paper":
        return "claim-holds"
    sign = 1 if record["higher_is_better"] else -1
    short = sign * (paper["value"] - statistics.fmean(record["values"]))
    margin = max(2 * (paper["std"] or 0.0), 0.01 * abs(paper["value"]))
    return "reproduced" if short <= margin else "claim-holds"
