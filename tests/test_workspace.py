"""What crosses packages: wheels, the tables made from records, one cheap record a domain, examples, light help."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gen_core.harness import cli, recipes, registry

ROOT = Path(__file__).parent.parent
UV = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
PACKAGES = ["core", "vision", "graph", "rl", "rec", "zsl"]


def call(*words: str, **more):
    return subprocess.run(words, capture_output=True, text=True, check=False, **more)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The six wheels and sdists, built from a copy so that the checkout stays clean."""
    out = tmp_path_factory.mktemp("dist")
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "shared", "packages"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy)
    done = call(UV, "build", "--all-packages", "--out-dir", str(out), cwd=copy)
    assert done.returncode == 0, done.stderr
    return out


def test_six_wheels_and_sdists_are_built(built):
    names = {path.name for path in built.iterdir()}
    for package in PACKAGES:
        assert f"gen_{package}-0.1.0-py3-none-any.whl" in names
        assert f"gen_{package}-0.1.0.tar.gz" in names


def test_the_core_wheel_installs_and_imports(built, tmp_path):
    wheel = built / "gen_core-0.1.0-py3-none-any.whl"
    done = call(UV, "pip", "install", "--no-deps", "--target", str(tmp_path), "--python", sys.executable, str(wheel))
    assert done.returncode == 0, done.stderr
    code = (
        "import gen_core, torch; from gen_core.losses import nt_xent; from importlib.resources import files;"
        "assert (files('gen_core') / 'py.typed').is_file();"
        "assert (files('gen_core.harness') / 'templates' / 'demo.html.jinja').is_file();"
        "print(gen_core.__file__, float(nt_xent(torch.eye(2), torch.eye(2))))"
    )
    done = call(sys.executable, "-c", code, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin"})
    assert done.returncode == 0, done.stderr
    where, value = done.stdout.split()
    assert where.startswith(str(tmp_path))
    assert float(value) == pytest.approx(0.2395448, abs=1e-6)


def test_every_wheel_carries_its_licence_its_type_marker_and_its_recipes(built):
    import zipfile

    for package in PACKAGES:
        names = zipfile.ZipFile(built / f"gen_{package}-0.1.0-py3-none-any.whl").namelist()
        assert f"gen_{package}/py.typed" in names
        assert any(name.endswith("licenses/LICENSE") for name in names)
    names = zipfile.ZipFile(built / "gen_graph-0.1.0-py3-none-any.whl").namelist()
    assert "gen_graph/recipes/dgi.toml" in names


def test_installed_domains_are_found_and_their_recipes_are_valid():
    found = registry.domains()
    assert set(found) == set(CHEAP)
    for domain in found.values():
        assert recipes.check(domain) == []


@pytest.mark.parametrize(
    "words", [("gen-graph", "--help"), *((f"gen-{name}", "list") for name in PACKAGES[1:]), ("gen", "list")]
)
def test_help_and_list_import_nothing_heavy(words):
    command = str(Path(sys.executable).parent / words[0])
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print([m for m in ('torch', 'lightning', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = call(sys.executable, "-c", code, command, *words[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


def test_tables_agree_with_the_records():
    done = call(sys.executable, str(ROOT / "docs" / "generate.py"), "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/*/*.json")), ids=lambda p: p.stem)
def test_records_follow_their_recipes(path):
    """A recipe that was changed after its run would make the record a lie."""
    record = json.loads(path.read_text())
    domain = registry.domains()[record["domain"]]
    _, recipe = recipes.load(domain, f"{record['method']}/{record['recipe']}")
    assert path == ROOT / "results" / record["domain"] / record["method"] / f"{record['recipe']}.json"
    config = domain.method(record["method"]).Config(**recipe.config).model_dump(mode="json")
    assert record["config"] == config
    assert (record["claim_against"], record["seeds"]) == (recipe.claim_against, recipe.seeds)
    assert record["protocol"] == recipe.protocol.model_dump()
    assert set(record["baselines"]) == set(recipe.baselines)
    assert record["paper"] == (recipe.paper.model_dump() if recipe.paper else None)


def test_the_matrix_of_bounds_follows_its_recipes_and_leaves_no_method_out():
    matrix = json.loads((ROOT / "results" / "bounds" / "bounds.json").read_text())
    domains = registry.domains()
    takes = {
        (name, method)
        for name, domain in domains.items()
        for method in domain.methods
        if "bound" in domain.method(method).Config.model_fields
    }
    assert {(row["domain"], row["method"]) for row in matrix["rows"]} == takes
    assert not matrix["left_out"]
    for row in matrix["rows"]:
        domain = domains[row["domain"]]
        _, recipe = recipes.load(domain, f"{row['method']}/bounds")
        assert row["config"] == domain.method(row["method"]).Config(**recipe.config).model_dump(mode="json")
        assert row["seeds"] == recipe.seeds and row["dataset"] == recipe.data
        assert set(row["values"]) == {"paper", *recipe.baselines}
        assert all(baseline.config == {"bound": name} for name, baseline in recipe.baselines.items())
        assert all(len(values) == len(recipe.seeds) for values in row["values"].values())


CHEAP = {
    "graph": "dgi/csbm",
    "vision": "simclr/digits",
    "rl": "rcrl/cartpole",
    "rec": "acvae/catalogue",
    "zsl": "ce-gzsl/digits",
}


@pytest.mark.parametrize(("domain", "record"), CHEAP.items())
def test_a_cheap_record_of_each_domain_still_holds(domain, record, capsys):
    path = ROOT / "results" / domain / f"{record}.json"
    assert cli.main(registry.domains()[domain], ["reproduce", "--check", str(path)]) == 0, capsys.readouterr()


@pytest.mark.parametrize("name", ["vision", "graph", "rl", "rec", "zsl"])
def test_examples_are_short_use_no_harness_and_learn(name):
    path = ROOT / "examples" / f"{name}.py"
    text = path.read_text()
    assert len(text.splitlines()) <= 70
    assert "harness" not in text
    raw, learnt = runpy.run_path(str(path))["main"]()
    assert learnt > raw + 5


@pytest.mark.parametrize("page", ["docs/core.md", "shared/README.md"])
def test_python_on_the_pages_of_the_core_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_compare_puts_runs_side_by_side(tmp_path, capsys):
    graph = registry.domains()["graph"]
    for seed, hidden in ((0, 4), (1, 8)):
        words = [
            "train",
            "dgi/karate",
            "--epochs",
            "5",
            "--hidden",
            str(hidden),
            "--seed",
            str(seed),
            "--device",
            "cpu",
        ]
        assert cli.main(graph, [*words, "--out", str(tmp_path / str(seed))]) == 0
    capsys.readouterr()
    png = tmp_path / "curves.png"
    assert cli.main(None, ["compare", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(png)]) == 0
    text = capsys.readouterr().out
    assert "config.hidden" in text
    assert "config.epochs" not in text  # the same in both
    assert png.read_bytes().startswith(b"\x89PNG")
    assert cli.main(None, ["compare", str(tmp_path / "0")]) == 2


def test_a_reader_that_leaves_early_is_no_error():
    command = str(Path(sys.executable).parent / "gen-graph")
    done = call("bash", "-c", f"{command} list | head -1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.splitlines()[1] == "0"
    assert done.stderr == ""
