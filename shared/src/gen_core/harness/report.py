"""Figures and tables that people look at; matplotlib and rich are imported when one is drawn."""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gen_core.harness import runs

MAP_POINTS = 1500  # t-SNE is quadratic here; more points take minutes and show no more


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """`metrics.jsonl` as curves: name -> [(step, value), ...]."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in runs.read_rows(path):
        step = row.pop("step")
        row.pop("epoch", None)
        for name, value in row.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def curve(metrics: Path, out: Path) -> None:
    """The loss over steps, raw and smoothed; nothing is drawn where nothing was logged."""
    curves_of_run = read_metrics(metrics)
    if "loss" in curves_of_run:
        curves({"loss": curves_of_run["loss"]}, out, "loss")


def curves(lines: Mapping[str, Sequence[tuple[int, float]]], out: Path, label: str) -> None:
    """Several curves over steps in one figure; long ones are smoothed, the raw values stay visible behind."""
    figure, axes = _axes(6, 3.6)
    for name, points in lines.items():
        steps, values = np.array(points, dtype=float).T
        window = max(1, len(values) // 50)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        marker = "." if len(values) <= 30 else None  # a single point is seen
        (drawn,) = axes.plot(steps[window - 1 :], smooth, label=name, marker=marker)
        if window > 1:
            axes.plot(steps, values, color=drawn.get_color(), alpha=0.2, linewidth=0.8)
    axes.set(xlabel="step", ylabel=label)
    if len(lines) > 1:
        axes.legend(frameon=False)
    figure.savefig(out, dpi=120)


def bars(series: Mapping[str, Mapping[str, float]], out: Path, ylabel: str) -> None:
    """Grouped bars, series -> {label: value}: a group a label, in it a bar a series."""
    labels = list(dict.fromkeys(label for values in series.values() for label in values))
    figure, axes = _axes(max(4.0, 1.1 * len(labels) + 1.6), 3.6)
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        places = [labels.index(label) + (index - (len(series) - 1) / 2) * width for label in values]
        drawn = axes.bar(places, list(values.values()), width * 0.94, label=name)
        axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(ylabel=ylabel)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series))
    figure.savefig(out, dpi=120)


def curve_files(record: Mapping[str, Any]) -> dict[str, str]:
    """curve -> name of its figure, for each curve of the record."""
    names = record.get("curves", ())
    words = {name: re.sub(r"[^\w-]+", "-", name.partition(" over ")[0]).strip("-") for name in names}
    return {name: f"{record['recipe']}-{word}.png" for name, word in words.items()}


def record_curves(record: Mapping[str, Any], folder: Path) -> None:
    """One figure a curve of the record, named by `curve_files`: each arm's middle over the seeds and its interval.

    A curve's name may say what it is over, `return over steps`; without that it is over epochs.
    """
    files = curve_files(record)
    for name, curve in record.get("curves", {}).items():
        figure, axes = _axes(6, 3.6)
        for arm, band in curve["arms"].items():
            (line,) = axes.plot(band["x"], band["middle"], label=arm)
            axes.fill_between(band["x"], band["low"], band["high"], color=line.get_color(), alpha=0.15, linewidth=0)
        ylabel, _, xlabel = name.partition(" over ")
        places = curve["arms"][record["method"]]["x"]
        if len(places) < 10 and min(places) > 0 and max(places) >= 100 * min(places):  # a few, decades apart
            axes.set_xscale("log")
        axes.set(xlabel=xlabel or "epoch", ylabel=ylabel)
        axes.set_title(f"{record['method']}/{record['recipe']}: {curve['kind']} of {len(record['seeds'])} seeds, 95 %")
        axes.legend(frameon=False)
        figure.savefig(folder / files[name], dpi=120)


def beside_paper(found: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Records of one metric, a row each: method and `claim_against` with their spread over seeds, and the paper's."""
    figure, axes = _axes(7, 0.5 * len(found) + 1.3)
    kinds = {"method": ("tab:blue", "o"), "baseline": ("tab:gray", "s"), "paper": ("tab:red", "D")}
    for row, record in enumerate(found):
        against = record["baselines"].get(record["claim_against"], {"values": []})
        points: dict[str, tuple[float, float]] = {}
        for kind, values in (("method", record["values"]), ("baseline", against["values"])):
            if len(values):
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                points[kind] = statistics.fmean(values), spread
        if record["paper"]:
            points["paper"] = record["paper"]["value"], record["paper"]["std"] or 0.0
        for kind, (mean, spread) in points.items():
            place = row + {"method": -0.15, "paper": 0.0, "baseline": 0.15}[kind]
            colour, marker = kinds[kind]
            axes.errorbar(mean, place, xerr=spread, color=colour, marker=marker, markersize=5, capsize=2, linewidth=1)
    names = [f"{record['method']}/{record['recipe']}" for record in found]
    axes.set_yticks(range(len(found)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    unit = found[0]["unit"]
    axes.set(xlabel=f"{found[0]['metric']}, {unit}: mean and standard deviation over seeds")
    for kind, (colour, marker) in kinds.items():
        label = "the arm that the claim is against" if kind == "baseline" else kind
        axes.plot([], [], color=colour, marker=marker, linestyle="", label=label)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.savefig(out, dpi=120)


def embedding_map(z: Any, labels: Any, classes: Sequence[str], out: Path) -> None:
    """t-SNE of embeddings (n, d), coloured by class where labelled; at most 1,500 rows, chosen with a fixed seed."""
    from matplotlib import colormaps
    from sklearn.manifold import TSNE  # pyright: ignore

    rows = np.asarray(z, dtype=np.float32)
    if len(rows) < 5:
        return
    chosen = np.random.default_rng(0).permutation(len(rows))[:MAP_POINTS]
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    tsne: Any = TSNE(init="pca", perplexity=perplexity, random_state=0)
    flat: NDArray[np.float32] = tsne.fit_transform(rows[chosen])
    figure, axes = _axes(5.4, 4.4)
    if labels is None:
        axes.scatter(*flat.T, s=7, linewidths=0)
    else:
        y = np.asarray(labels)[chosen]
        kinds = np.unique(y)
        names = [classes[k] if k < len(classes) else str(k) for k in kinds]
        for colour, (kind, name) in enumerate(zip(kinds, names, strict=True)):
            cmap = "tab10" if len(kinds) <= 10 else "tab20"
            points = flat[y == kind]
            axes.scatter(*points.T, s=7, linewidths=0, color=colormaps[cmap](colour % colormaps[cmap].N), label=name)
        if len(kinds) <= 20:
            axes.legend(markerscale=2.5, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xticks=[], yticks=[], title="t-SNE of the embeddings")
    axes.spines[:].set_visible(False)
    figure.savefig(out, dpi=120)


def picture(image: Any, out: Path) -> None:
    """An image (c, h, w) in [0, 1] as a file of the kind that the name's ending says; grey unless it has 3 channels."""
    from PIL import Image

    pixels = (np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]).save(out)


def summarise(values: Sequence[float]) -> str:
    """`mean +- std` (sample standard deviation), or the one value."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def gain(entry: Mapping[str, Any]) -> str:
    """A baseline's gain with its interval."""
    if entry["gain"] is None:
        return "-"
    interval = entry["gain_ci95"]
    text = f"{entry['gain']:+.2f}"
    return text if interval is None else f"{text} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def record_table(record: Mapping[str, Any]) -> Any:
    """A `reproduce` record as a rich table."""
    from rich.table import Table

    unit = "" if record["unit"] == record["metric"] else f" ({record['unit']})"
    title = f"{record['method']}/{record['recipe']} on {record['dataset']}: {record['metric']}{unit}"
    table = Table(title=title, title_justify="left")
    for column in ("arm", "mean ± std", "gain of the method [95 % interval]", "interval"):
        table.add_column(column)
    table.add_row(record["method"], summarise(record["values"]), "", "")
    for name, entry in record["baselines"].items():
        mark = " (claim against)" if name == record["claim_against"] else ""
        table.add_row(name + mark, summarise(entry["values"]), gain(entry), entry["ci_method"] or "-")
    if paper := record["paper"]:
        std = "" if paper["std"] is None else f" ± {paper['std']}"
        table.add_row("paper", f"{paper['value']}{std}", "", paper["source"])
    for name, values in record["also"].items():
        table.add_row(f"also: {name}", summarise(values), "", "")
    return table
