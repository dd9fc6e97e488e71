"""The method: theory, learning, weights on disk, and a run that is killed and goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from gen_core.harness.errors import UsageError
from gen_rl import RCRL
from gen_rl.data import load


def config(**more):
    return RCRL.Config(**{"steps": 300, "threshold": 10.0, "buffer_size": 1000, "save_every": 100} | more)


def weights(model):
    return model.agent.policy.state_dict()


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_theory_the_optimum_is_one_minus_the_inner_product_of_return_distributions():
    """Tabular w by least squares on sampled returns: w(x1, x2) = 1 - Z(x1) . Z(x2), though x1 = x2 gives no 0."""
    z = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(3, (100_000, 2), generator=generator)
    returns = torch.multinomial(z[x.flatten()], 1, generator=generator).view(-1, 2)
    differ = (returns[:, 0] != returns[:, 1]).double()

    def fit(code):
        """The least-squares table on codes of the states, and its error."""
        cell = code[x[:, 0]] * 3 + code[x[:, 1]]
        total, count = (
            torch.zeros(9, dtype=torch.float64).index_add_(0, cell, v) for v in (differ, torch.ones(len(x)).double())
        )
        w = total / count.clamp(min=1)
        return w.view(3, 3), (w[cell] - differ).square().mean()

    w, error = fit(torch.arange(3))
    for (i, j), value in {(0, 1): 0.5, (0, 2): 0.9, (2, 2): 0.32}.items():
        assert w[i, j] == pytest.approx(value, abs=0.02)
        assert value == pytest.approx(1 - float(z[i] @ z[j]))
    assert fit(torch.tensor([0, 0, 1]))[1] - error < 1e-4  # the states of one return distribution may merge
    assert fit(torch.tensor([0, 1, 1]))[1] - error > 0.01  # and no others


def test_theory_codes_merge_exactly_the_states_with_equal_return_distributions():
    """Six states, three return distributions: of all codings into 3 codes the loss prefers the right one."""
    import itertools

    z = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.3, 0.7]], dtype=torch.float64)[torch.tensor([0, 1, 2, 0, 1, 2])]
    y = 1 - z @ z.T

    def loss(code):
        groups = torch.tensor(code)
        table = sum(((y[groups == a][:, groups == b] - y[groups == a][:, groups == b].mean()) ** 2).sum()
                    for a in set(code) for b in set(code))  # fmt: skip
        return float(table)

    best = min(itertools.product(range(3), repeat=6), key=loss)
    assert best[0] == best[3] and best[1] == best[4] and best[2] == best[5] and len(set(best)) == 3


def test_fit_leaves_a_run_and_load_gives_the_same_agent(tmp_path):
    model = RCRL(config(double_q=True)).fit(load("cartpole-noise"), out=tmp_path, progress=False)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "config.toml",
        "episodes.jsonl",
        "metrics.jsonl",
        "tensorboard",
    }
    again = RCRL.load(tmp_path)
    assert again.config == model.config
    assert same(weights(model), weights(again))
    obs = np.random.default_rng(0).normal(size=(6, 36)).astype(np.float32)
    assert (again.predict(obs) == model.predict(obs)).all()
    assert again.episodes == model.episodes
    assert again.metrics == model.metrics
    steps = [row["step"] for row in model.episodes]
    assert steps == sorted(steps) and steps[-1] <= 300
    assert sum(row["length"] for row in model.episodes) == steps[-1]
    assert all(row["return"] == row["length"] for row in model.episodes)  # CartPole gives 1 a step
    assert [row["step"] for row in model.metrics] == [200, 300]  # before 100 nothing is learnt
    for row in model.metrics:
        assert row["loss"] == pytest.approx(row["td_loss"] + 0.5 * row["aux_loss"], rel=1e-5)


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    import pickle

    def refuse(*_, **__):
        raise AssertionError("pickle")

    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    RCRL(config()).fit(load("cartpole"), out=tmp_path, progress=False, logger="none")
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".toml", ".jsonl", ".safetensors", ".npy", ".json"}
    RCRL.load(tmp_path)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    runs = [RCRL(config(envs=2)).fit(load("cartpole"), seed=seed, progress=False) for seed in (3, 3, 4)]
    assert same(weights(runs[0]), weights(runs[1]))
    assert runs[0].episodes == runs[1].episodes != runs[2].episodes


def test_a_host_without_the_loss_logs_none(tmp_path):
    model = RCRL(config(aux_coef=0.0)).fit(load("cartpole"), out=tmp_path, progress=False, logger="csv")
    assert set(model.metrics[-1]) == {"step", "loss", "epsilon"}
    lines = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,loss,epsilon" and len(lines) == 3


KILLED = """
import sys, torch
torch.set_num_threads(1)
from gen_rl import RCRL
from gen_rl.data import load
config = RCRL.Config(steps=100_000, threshold=10.0, buffer_size=400, save_every=200, learning_starts=50)
RCRL(config).fit(load("cartpole"), out=sys.argv[1], resume=True, progress=False, logger="tensorboard")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed some way after its second checkpoint, in the middle of whatever it did."""
    out = tmp_path_factory.mktemp("killed") / "run"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not (out / "episodes.jsonl").exists() or _last_step(out) < 700:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return out


def _last_step(out):
    lines = (out / "episodes.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def go_on(killed, folder, steps=1500):
    """A copy of the killed run, resumed to its end."""
    import shutil

    shutil.copytree(killed, folder)
    done = max(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*") if not path.suffix)
    settings = {"steps": steps, "threshold": 10.0, "buffer_size": 400, "save_every": 200, "learning_starts": 50}
    with (folder / "episodes.jsonl").open("a") as file:
        file.write('{"step": 99999, "ret')  # a line that the kill cut
    return done, RCRL(RCRL.Config(**settings)).fit(load("cartpole"), out=folder, resume=True, progress=False)


def test_a_killed_run_goes_on_from_its_checkpoint_without_double_entries(killed, tmp_path):
    reached = _last_step(killed)
    done, model = go_on(killed, tmp_path / "a")
    assert reached - 400 < done <= reached + 200  # at most save_every steps (and an episode) are repeated
    assert done % 200 == 0 and done >= 400
    steps = [row["step"] for row in model.episodes]
    assert steps == sorted(set(steps)) and steps[-1] <= 1500
    assert [json.loads(line) for line in (tmp_path / "a" / "episodes.jsonl").read_text().splitlines()] == model.episodes
    before = [json.loads(line) for line in (killed / "episodes.jsonl").read_text().splitlines() if line.endswith("}")]
    assert model.episodes[: len([row for row in before if row["step"] <= done])] == [
        r for r in before if r["step"] <= done
    ]
    first = next(row for row in model.episodes if row["step"] > done)
    assert first["step"] - first["length"] == done  # the interrupted episode is dropped, a new one begins
    noted = [row["step"] for row in model.metrics]
    assert noted == sorted(set(noted)) == list(range(100, 1501, 100))
    assert model.agent.num_timesteps == 1500
    assert model.agent._n_updates == 1450  # of every step after the first 50, none twice
    assert not list((tmp_path / "a").rglob("*.tmp"))


def test_going_on_is_the_same_every_time(killed, tmp_path):
    _, first = go_on(killed, tmp_path / "a", 1000)
    _, second = go_on(killed, tmp_path / "b", 1000)
    assert same(weights(first), weights(second))
    assert first.episodes == second.episodes


def test_a_checkpoint_holds_everything_but_the_environments_insides(tmp_path):
    """Weights, moments, buffer with segments, counters, random numbers: equal after a round trip."""
    from gen_rl import state

    model = RCRL(config(envs=2, positives="return", buffer_size=200)).fit(load("cartpole-noise"), progress=False)
    agent = model.agent
    state.save(agent, tmp_path)
    found = (np.random.random(), torch.rand(1), agent.replay_buffer.generator.random(), agent.action_space.sample())
    env = agent.env.envs[1]
    noise = [env.unwrapped.np_random.random(), env.get_wrapper_attr("noise").random()]
    again = RCRL(model.config)
    other = again._agent(load("cartpole-noise").vec(2, 9), seed=9, device="cpu")
    state.restore(other, state.last(tmp_path))
    assert same(agent.policy.state_dict(), other.policy.state_dict())
    for number, moments in agent.policy.optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, other.policy.optimizer.state_dict()["state"][number][name])
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "lo"):
        assert (getattr(agent.replay_buffer, name) == getattr(other.replay_buffer, name)).all()
    live = agent.replay_buffer.hi <= agent.replay_buffer.steps
    assert (other.replay_buffer.hi[live] == agent.replay_buffer.hi[live]).all()
    assert (other.replay_buffer.hi[~live] == agent.replay_buffer.steps).all()  # what was open has ended
    assert np.array_equal(agent.replay_buffer.returns, other.replay_buffer.returns, equal_nan=True)
    for name in state.COUNTERS:
        assert getattr(agent, name) == getattr(other, name)
    assert found == (
        np.random.random(),
        torch.rand(1),
        other.replay_buffer.generator.random(),
        other.action_space.sample(),
    )
    env = other.env.envs[1]
    assert noise == [env.unwrapped.np_random.random(), env.get_wrapper_attr("noise").random()]


def test_a_finished_run_is_left_alone_and_a_damaged_one_named(tmp_path):
    model = RCRL(config()).fit(load("cartpole"), out=tmp_path, progress=False)
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = RCRL(config()).fit(load("cartpole"), out=tmp_path, resume=True, progress=False)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp
    assert same(weights(model), weights(again)) and again.episodes == model.episodes
    with pytest.raises(UsageError, match="holds a run already"):
        RCRL(config()).fit(load("cartpole"), out=tmp_path, progress=False)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="damaged"):
        RCRL.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="its training did not end"):
        RCRL.load(tmp_path)
    tensors = next((tmp_path / "checkpoints").rglob("tensors.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-10])
    with pytest.raises(UsageError, match="damaged or of another run"):
        RCRL(config()).fit(load("cartpole"), out=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 2}, "devices 2"),
        ({"precision": "bf16-mixed"}, "precision 'bf16-mixed'"),
        ({"accelerator": "tpu"}, "accelerator 'tpu'"),
        ({"logger": "wandb"}, "unknown logger of gen-rl 'wandb'; known: csv, none, tensorboard"),
    ],
)
def test_what_fit_refuses(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        RCRL(config()).fit(load("cartpole"), out=tmp_path / "run", progress=False, **options)


def test_what_an_unfitted_model_refuses(tmp_path):
    for act in (lambda: RCRL().predict(np.zeros(4)), lambda: RCRL().save(tmp_path)):
        with pytest.raises(UsageError, match="no agent yet"):
            act()


def test_progress_lines_off_a_terminal(capsys):
    RCRL(config()).fit(load("cartpole"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("step 300/300  return ")
    assert len(lines) < 5


def test_image_spaces_are_kept_short(tmp_path):
    from gen_rl.methods.rcrl import _short

    assert _short(np.zeros((3, 4), dtype=np.uint8)) == 0
    assert _short(np.array([1.0, np.inf], dtype=np.float32)) == [1.0, np.inf]


def test_weights_are_plain_tensors(tmp_path):
    model = RCRL(config(steps=120)).fit(load("catch"), out=tmp_path, progress=False)
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert same(weights(model), found)


def test_it_learns_cartpole():
    """Smoke: a wrong sign anywhere and the return stays near random play's 22; with 3,000 steps it reaches hundreds."""
    model = RCRL(config(steps=3000, double_q=True, gamma=0.97)).fit(load("cartpole"), seed=1, progress=False)
    late = [row["return"] for row in model.episodes if row["step"] > 2250]
    assert np.mean(late) > 90
    losses = [row["aux_loss"] for row in model.metrics if row["step"] > 2250]
    assert np.mean(losses) < 0.47  # chance is 0.5
