"""Imports, recipes, and the command line on registered environments and any gymnasium id."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gen_core.harness import cli, recipes
from gen_rl.registry import DOMAIN

FOREIGN = ("torchvision", "torch_geometric", "recbole", "lightning")
QUICK = ["--steps", "400", "--buffer-size", "1000", "--device", "cpu", "--threads", "1"]


def test_light_imports():
    code = (
        "import sys, gen_rl, gen_rl.registry; assert 'RCRL' in dir(gen_rl);"
        "heavy = ('torch', 'gymnasium', 'stable_baselines3', 'ale_py', 'dm_control', 'numpy');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_method_needs_neither_lightning_nor_the_simulators():
    code = (
        "import sys, gen_rl.methods.rcrl, gen_rl.data, gen_rl.protocols;"
        "print([m for m in ('lightning', 'ale_py', 'dm_control', 'shimmy', 'mujoco') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    import gen_rl

    assert gen_rl.RCRL is DOMAIN.method("rcrl")
    assert gen_rl.RCRLDQN.__mro__[2].__name__ == "DQN"
    with pytest.raises(AttributeError, match="CURL"):
        _ = gen_rl.CURL


@pytest.mark.skipif(os.environ.get("GEN_ISOLATED") != "1", reason="only where this package and the core are alone")
@pytest.mark.parametrize("name", FOREIGN)
def test_other_domains_are_not_needed(name):
    with pytest.raises(ModuleNotFoundError):
        __import__(name)


def test_recipes_are_valid(capsys):
    assert cli.main(DOMAIN, ["list", "--check"]) == 0
    name, first = recipes.load(DOMAIN, "rcrl")
    assert (f"rcrl/{name}", DOMAIN.datasets[first.data].embedded) == (DOMAIN.demo, True)
    for name in set(recipes.tables(DOMAIN, "rcrl")) - {"bounds"}:
        recipe = recipes.load(DOMAIN, f"rcrl/{name}")[1]
        assert recipe.claim_against == "host"
        assert recipe.baselines["host"].config == {"aux_coef": 0.0}
        assert recipe.note.startswith("smoke") == (name != "cartpole-noise")
    record = recipes.load(DOMAIN, "rcrl/cartpole-noise")[1]
    assert record.seeds == list(range(40))
    assert len(record.seeds) >= DOMAIN.claim_seeds
    assert set(record.baselines) == {"host", "shuffled"}


def test_train_and_evaluate(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert cli.main(DOMAIN, ["train", "rcrl", *QUICK, "--out", out, "--logger", "csv"]) == 0
    for name in (
        "config.toml",
        "metrics.jsonl",
        "episodes.jsonl",
        "model.safetensors",
        "README.md",
        "figures/return.png",
    ):
        assert (tmp_path / "run" / name).exists()
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    capsys.readouterr()
    assert cli.main(DOMAIN, ["evaluate", out]) == 0
    assert f"return: {metrics['return']:.4f}" in capsys.readouterr().out
    assert cli.main(DOMAIN, ["evaluate", out, "--protocol", "greedy"]) == 0
    assert "greedy_return" in capsys.readouterr().out
    assert cli.main(DOMAIN, ["train", "--resume", out]) == 0
    assert "finished already" in capsys.readouterr().out


def test_any_gymnasium_id(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "rcrl", "--data", "MountainCar-v0", *QUICK, "--threshold", "10", "--out", str(out)]
    assert cli.main(DOMAIN, words) == 0
    assert cli.main(DOMAIN, ["evaluate", str(out)]) == 0
    assert "return: -200.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "CartPole-v9"], "unknown environment 'CartPole-v9'; nearest: CartPole-v1"),
        (["--data", "Pendulum-v1"], "environment 'Pendulum-v1': action space Box"),
        (["--aux-coef", "-1"], "aux_coef"),
        (["--bound", "infonce"], "infonce"),
        (["--data", "CartPole-v1", "--threshold", "0"], "threshold"),
    ],
)
def test_wrong_use_leaves_no_folder(words, message, tmp_path, capsys):
    assert cli.main(DOMAIN, ["train", "rcrl", *words, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_dense_rewards_without_a_threshold_are_named(tmp_path, capsys):
    words = ["train", "rcrl", "--data", "CartPole-v1", *QUICK, "--out", str(tmp_path / "run")]
    assert cli.main(DOMAIN, words) == 2
    assert "threshold = None: 100 updates met no two transitions of one segment" in capsys.readouterr().err


def test_a_killed_command_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    code = "import sys, gen_core.harness.cli as c, gen_rl.registry as r; c.main(r.DOMAIN, sys.argv[1:])"
    words = ["train", "rcrl", *QUICK, "--steps", "2000", "--save-every", "100", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoints/step-*[0-9]")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model.safetensors").exists()
    assert cli.main(DOMAIN, ["train", "--resume", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"going on with {out}\n" in printed
    steps = [json.loads(line)["step"] for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2000


def test_a_small_reproduction(tmp_path, capsys):
    words = ["reproduce", "rcrl/cartpole-noise", "--seeds", "2", "--out", str(tmp_path), "--steps", "300"]
    assert cli.main(DOMAIN, [*words, "--save-every", "1000"]) == 0
    assert "verdict: preliminary" in capsys.readouterr().out
    folder = tmp_path / "rl" / "rcrl"
    record = json.loads(next(folder.glob("*.json")).read_text())
    assert set(record["baselines"]) == {"host", "shuffled"}
    assert len(record["values"]) == 2
    curve = record["curves"]["return over environment steps"]
    assert set(curve["arms"]) == {"rcrl", "host", "shuffled"}
    assert curve["kind"] == "IQM"
    assert list(folder.glob("*.png"))
