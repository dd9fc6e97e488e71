"""`gen demo` and `gen compare`: what crosses domains."""

import base64
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gen_core.harness import recipes, registry, report, reproduce, runs
from gen_core.harness.errors import UsageError

if TYPE_CHECKING:
    from gen_core.harness.options import Compare, Demo

State = dict[str, dict[str, Any]]


def _table(state: State) -> Any:
    from rich.table import Table

    table = Table(title="gen demo: each domain's method against its own baseline", title_justify="left")
    for column in ("method", "value", "baseline", "gain [95 %]", "verdict", "s"):
        table.add_column(column.replace("[", "\\["), overflow="fold")
    for name, row in state.items():
        cells = [str(row.get(key, "")) for key in ("value", "baseline", "gain", "verdict", "seconds")]
        table.add_row(f"{name}: {row['method']}", *(cell.replace("[", "\\[") for cell in cells))
    return table


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    arms = record["baselines"]
    ran = [arm for arm in arms if arms[arm]["values"]] or list(arms)
    shown = record["claim_against"] or min(ran, key=lambda arm: arms[arm]["gain"])  # without a claim the strongest
    against = arms[shown]
    smoke = "smoke: " if record["note"].startswith("smoke") else ""
    return {
        "method": f"{smoke}{record['method']}/{record['recipe']}",
        "value": " ".join(dict.fromkeys((report.summarise(record["values"]), record["unit"], record["metric"]))),
        "baseline": f"{shown}: {report.summarise(against['values'])}",
        "gain": report.gain(against),
        "verdict": record["verdict"],
        "seconds": f"{record['seconds']:.0f}",
    }


def demo(options: "Demo") -> int:
    """Reproduce each installed domain's demo recipe, show a live table, write `index.html`."""
    from rich.console import Console
    from rich.live import Live

    if (options.seeds is not None and options.seeds < 1) or options.jobs < 1:
        raise UsageError(f"--seeds {options.seeds}, --jobs {options.jobs}: must be at least 1")
    found = registry.domains()
    ready = {name: domain for name, domain in found.items() if domain.demo}
    if not ready:
        raise UsageError("no installed domain has a method to show; install gen-vision or gen-graph")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {options.out}: cannot be written ({error})") from None
    ctx = reproduce.context(list(ready.values()))
    state: State = {name: {"method": domain.demo or "no method yet"} for name, domain in found.items()}
    records: dict[str, Any] = {}
    console = Console()
    with Live(_table(state), console=console, transient=True) as live:
        for name, domain in ready.items():

            def say(text: str, name: str = name) -> None:
                state[name]["verdict"] = text.rpartition("; ")[2]
                live.update(_table(state))
                if not console.is_terminal:
                    print(f"{name}: {text}", flush=True)

            record = reproduce.reproduce(
                domain, str(domain.demo), out=options.out, seeds=options.seeds, jobs=options.jobs,
                figures=options.out / "figures", ctx=ctx, say=say,
            )  # fmt: skip
            assert record is not None
            records[name] = record
            state[name] = _row(record)
            live.update(_table(state))
    console.print(_table(state))
    page = write_page(options.out, found, records)
    print(f"page: {page}")
    return 1 if any(record["verdict"] == "falls-short" for record in records.values()) else 0


def _image(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _bars(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    arms = {record["method"]: record["values"]}
    arms |= {name: entry["values"] for name, entry in record["baselines"].items()}
    means = {name: sum(values) / len(values) for name, values in arms.items() if values}
    top = max(100.0 if record["unit"] == "%" else 0.0, *means.values())
    return [
        {"name": name, "text": report.summarise(arms[name]), "percent": round(100 * mean / top, 1), "own": i == 0}
        for i, (name, mean) in enumerate(means.items())
    ]


def write_page(out: Path, domains: Mapping[str, registry.Domain], records: Mapping[str, Any]) -> Path:
    """The self-contained page: one row a domain, and the figures that the cells drew."""
    import jinja2

    text = (importlib.resources.files("gen_core.harness") / "templates" / "demo.html.jinja").read_text(encoding="utf-8")
    sections: list[dict[str, Any]] = []
    for name, domain in domains.items():
        section: dict[str, Any] = {"name": name, "command": domain.command, "summary": domain.summary, "row": None}
        if name in records:
            record = records[name]
            figures = [
                {"title": f"{arm}: {path.stem}", "source": _image(path)}
                for arm in (record["method"], record["claim_against"])
                for path in sorted((out / "figures" / f"{name}-{arm}").glob("*.png"))
            ]
            home = out / name / record["method"]
            drawn = [home / file for file in report.curve_files(record).values()]  # by `reproduce`
            figures += [{"title": path.stem, "source": _image(path)} for path in drawn]
            note = recipes.load(domain, f"{record['method']}/{record['recipe']}")[1].note
            about = f"Data: {domain.datasets[record['dataset']].summary}." + (f" Setting: {note}." if note else "")
            section |= {"row": _row(record), "record": record, "figures": figures, "bars": _bars(record)}
            section |= {"about": about, "seeds": len(record["values"])}
        sections.append(section)
    page = out / "index.html"
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    page.write_text(template.render(sections=sections), encoding="utf-8")
    return page


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= (
            _flat(cast(Mapping[str, Any], value), f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


def compare(options: "Compare") -> int:
    """Runs side by side: differing settings, metrics, loss curves."""
    import json

    from rich.console import Console
    from rich.table import Table

    if len(options.runs) < 2:
        raise UsageError(f"gen compare needs two run folders or more; given: {len(options.runs)}")
    headers = [_flat(runs.read_header(folder)) for folder in options.runs]
    summaries: list[dict[str, Any]] = []
    for folder in options.runs:
        path = folder / runs.SUMMARY
        summaries.append(json.loads(path.read_text())["metrics"] if path.exists() else {})
    table = Table()
    table.add_column("")
    for folder in options.runs:
        table.add_column(str(folder), overflow="fold")
    for key in sorted({key for header in headers for key in header}):
        values = [header.get(key) for header in headers]
        if any(value != values[0] for value in values):
            table.add_row(key, *("-" if value is None else str(value) for value in values))
    table.add_section()
    for key in sorted({key for summary in summaries for key in summary}):
        table.add_row(key, *(f"{summary[key]:.4f}" if key in summary else "-" for summary in summaries))
    lines = {str(folder): report.read_metrics(folder / runs.METRICS).get("loss", []) for folder in options.runs}
    table.add_row("last loss", *(f"{points[-1][1]:.4f}" if points else "-" for points in lines.values()))
    Console().print(table)
    if options.out:
        report.curves({name: points for name, points in lines.items() if points}, options.out, "loss")
        print(f"wrote {options.out}")
    return 0
