"""Our estimator of mutual information on the 40 tasks of "Beyond Normal", beside CCA and KSG on the same samples.

    python benchmarks/mi/run.py                 writes results/mi/benchmark.json and prints the table; one thread
    python benchmarks/mi/run.py --seeds 7 --tasks 1v1-normal-0.75 --out /tmp/mi.json

One configuration for all tasks, the defaults of `MutualInformation`; it never sees a true value.
"""

import argparse
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma

from gen_core.estimators.mutual_information import MutualInformation
from gen_core.harness.runs import hardware
from gen_core.testing.mi_tasks import TASKS, Task

Array = NDArray[np.float64]
OUT = Path(__file__).parents[2] / "results/mi/benchmark.json"

# CCA and KSG (k = 10) of the benchmark's own package, n = 2,000, one seed.
REFERENCE = {
    "1v1-normal-0.75": (0.426, 0.430),
    "normal_cdf-1v1-normal-0.75": (0.411, 0.446),
    "1v1-bimodal-0.75": (0.351, 0.436),
    "wiggly-1v1-normal-0.75": (0.390, 0.432),
    "half_cube-1v1-normal-0.75": (0.385, 0.419),
    "1v1-additive-0.1": (1.646, 1.661),
    "1v1-additive-0.75": (0.188, 0.295),
    "student-identity-1-1-1": (0.833, 0.083),
    "asinh-student-identity-1-1-1": (0.000, 0.193),
    "swissroll_x-normal_cdf-1v1-normal-0.75": (0.026, 0.434),
    "multinormal-dense-2-2-0.5": (0.311, 0.315),
    "multinormal-dense-3-3-0.5": (0.412, 0.388),
    "multinormal-dense-5-5-0.5": (0.583, 0.521),
    "multinormal-dense-25-25-0.5": (1.435, 0.989),
    "multinormal-sparse-3-3-2-2.0": (1.009, 0.848),
    "multinormal-sparse-25-25-2-2.0": (1.149, 0.121),
    "half_cube-multinormal-sparse-3-3-2-2.0": (0.941, 0.753),
    "spiral-multinormal-sparse-3-3-2-2.0": (0.238, 0.555),
    "student-identity-2-2-1": (1.430, 0.142),
    "student-identity-5-5-2": (0.314, 0.235),
}


def cca(x: Array, y: Array) -> float:
    """Exact for normal distributions: -1/2 sum log(1 - r_k^2) over the sample canonical correlations."""
    q_x, q_y = (np.linalg.qr(z - z.mean(0))[0] for z in (x, y))
    r = np.linalg.svd(q_x.T @ q_y, compute_uv=False)
    return float(-0.5 * np.log1p(-(np.clip(r, 0, 1 - 1e-12) ** 2)).sum())


def ksg(x: Array, y: Array, k: int = 10) -> float:
    """Kraskov, Stoegbauer and Grassberger (2004), eq. 8, maximum norm, on standardised columns."""
    x, y = ((z - z.mean(0)) / z.std(0) for z in (x, y))
    both = np.hstack([x, y])
    radius = cKDTree(both).query(both, k + 1, p=np.inf)[0][:, -1] * (1 - 1e-12)  # strictly nearer
    counts = (cKDTree(z).query_ball_point(z, radius, p=np.inf, return_length=True) for z in (x, y))  # with itself
    return float(digamma(k) + digamma(len(x)) - sum(digamma(c).mean() for c in counts))


def ours(x: Array, y: Array, seed: int) -> dict[str, Any]:
    start = time.process_time()  # of one thread: other work on the machine does not count
    model = MutualInformation(seed=seed).fit(x, y)
    found = model.estimate(x, y)
    return {
        "seed": seed,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "train": found.train,
        "ess": found.ess,
        "critic": model.critic_name,
        "reliable": found.reliable,
        "reasons": list(found.reasons),
        "seconds": round(time.process_time() - start, 2),
    }


def one_task(task: Task, n: int, seeds: Sequence[int]) -> dict[str, Any]:
    samples = [task.sample(n, seed) for seed in seeds]
    reference = REFERENCE.get(task.name)
    return {
        "dims": [task.dim_x, task.dim_y],
        "truth": task.mutual_information,
        "ours": [ours(x, y, seed) for (x, y), seed in zip(samples, seeds, strict=True)],
        "cca": [cca(x, y) for x, y in samples],
        "ksg": [ksg(x, y) for x, y in samples],
        "reference": None if reference is None else {"cca": reference[0], "ksg": reference[1]},
    }


def errors(row: dict[str, Any]) -> dict[str, float]:
    """Error of the mean over seeds: for each estimator."""
    values = {"ours": [run["value"] for run in row["ours"]], "cca": row["cca"], "ksg": row["ksg"]}
    return {name: float(np.mean(found)) - row["truth"] for name, found in values.items()}


def summary(tasks: dict[str, Any]) -> dict[str, Any]:
    found = {name: errors(row) for name, row in tasks.items()}
    runs = [run for row in tasks.values() for run in row["ours"]]
    return {
        "tasks": len(tasks),
        "within_0.1": {e: sum(abs(row[e]) <= 0.1 for row in found.values()) for e in ("ours", "cca", "ksg")},
        "within_0.1_on_every_seed": sum(
            all(abs(run["value"] - row["truth"]) <= 0.1 for run in row["ours"]) for row in tasks.values()
        ),
        "mean_absolute_error": {
            e: round(float(np.mean([abs(row[e]) for row in found.values()])), 4) for e in ("ours", "cca", "ksg")
        },
        "seconds": {
            "mean": round(float(np.mean([run["seconds"] for run in runs])), 2),
            "max": max(run["seconds"] for run in runs),
        },
    }


def table(record: dict[str, Any]) -> str:
    lines = [
        "| task | truth | ours (mean over seeds) | error | critic | flagged | CCA | KSG | reference CCA / KSG | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in record["tasks"].items():
        runs, error = row["ours"], errors(row)
        mean = row["truth"] + error["ours"]
        critics = "/".join(dict.fromkeys(run["critic"] for run in runs))
        flagged = f"{sum(not run['reliable'] for run in runs)} of {len(runs)}"
        reference = (
            "-" if row["reference"] is None else f"{row['reference']['cca']:.3f} / {row['reference']['ksg']:.3f}"
        )
        lines.append(
            f"| {name} | {row['truth']:.3f} | {mean:.3f} | {error['ours']:+.3f} | {critics} | {flagged} "
            f"| {np.mean(row['cca']):.3f} | {np.mean(row['ksg']):.3f} | {reference} "
            f"| {np.mean([run['seconds'] for run in runs]):.1f} |"
        )
    return "\n".join(lines) + "\n\n" + json.dumps(record["summary"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5000, help="pairs of each sample")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the samples and of the estimator")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="TASK")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ours(*TASKS["1v1-normal-0.75"].sample(200, 0), seed=0)  # what torch loads at its first step is no task's time
    record: dict[str, Any] = {
        "n": given.n,
        "seeds": given.seeds,
        "estimator": "MutualInformation(seed=seed)",
        "seconds": "processor time of fit and estimate, one thread",
        "threads": 1,
        "hardware": hardware(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")},
        "tasks": {},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name in given.tasks:
        record["tasks"][name] = one_task(TASKS[name], given.n, given.seeds)
        record["summary"] = summary(record["tasks"])
        given.out.write_text(json.dumps(record, indent=1) + "\n")
        error = errors(record["tasks"][name])
        print(f"{name}: " + ", ".join(f"{e} {value:+.3f}" for e, value in error.items()), flush=True)
    print("\n" + table(record))


if __name__ == "__main__":
    main()
