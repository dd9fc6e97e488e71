"""`gen bounds`: each method that takes `--bound`, under each bound that it takes, on its recipe `bounds`.

A matrix of bounds by domains. It has no verdict: a few seeds, short runs, settings chosen for the paper's own form. A
method joins it by a table `[bounds]` in its recipe file.
"""

from typing import TYPE_CHECKING, Any

from gen_core.harness import recipes, registry, report, reproduce, runs
from gen_core.harness.errors import UsageError

if TYPE_CHECKING:
    from gen_core.harness.options import Bounds

RECIPE = "bounds"
HEADING = "no verdict: few seeds and short runs, with settings that were chosen for each paper's own form"
KEPT = ("domain", "method", "dataset", "metric", "unit", "higher_is_better", "seeds", "note", "config", "seconds")
ORIGIN = ("hardware", "threads", "versions", "commit")


def bounds(options: "Bounds") -> int:
    """Run the matrix, print it, write it as one JSON object."""
    from rich.console import Console

    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}: must be at least 1")
    found = registry.domains()
    ready = [(d, m) for d in found.values() for m in d.methods if RECIPE in recipes.tables(d, m)]
    if not ready:
        raise UsageError("no installed domain has a method that takes --bound; install gen-vision or gen-graph")
    ctx = reproduce.context([domain for domain, _ in ready])
    matrix: dict[str, Any] = {"heading": HEADING, "rows": [], "left_out": {}}
    for domain, method in ready:
        try:
            record = reproduce.reproduce(
                domain, f"{method}/{RECIPE}", out=options.out, jobs=options.jobs, ctx=ctx,
                say=lambda text, name=domain.name: print(f"{name}: {text}", flush=True),
            )  # fmt: skip
        except UsageError as error:  # data that are not here, say; the other rows are worth having
            matrix["left_out"][f"{domain.name}: {method}"] = str(error)
            print(f"{domain.name}: {method} is left out: {error}", flush=True)
            continue
        assert record is not None
        values = {"paper": record["values"]} | {name: arm["values"] for name, arm in record["baselines"].items()}
        row = {key: record[key] for key in KEPT} | {"values": values, "failed": record.get("failed", [])}
        matrix["rows"].append(row | {key: record[key] for key in ORIGIN})
    if not matrix["rows"]:
        raise UsageError("no row could be run; what each lacked is printed above")
    Console().print(_table(matrix))
    file = options.json or options.out / "bounds.json"
    runs.write_json(file, matrix)
    print(f"wrote {file}")
    return 0


def _table(matrix: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"gen bounds, {matrix['heading']}", title_justify="left")
    columns = list(dict.fromkeys(name for row in matrix["rows"] for name in row["values"]))
    for column in ("method", "metric", *columns):
        table.add_column(column, overflow="fold")
    for row in matrix["rows"]:
        cells = [report.summarise(row["values"][name]) if row["values"].get(name) else "-" for name in columns]
        table.add_row(f"{row['domain']}: {row['method']} on {row['dataset']}", row["metric"], *cells)
    return table
