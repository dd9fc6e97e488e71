"""What is read off a run: the last quarter's return, its learning curve, greedy play."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from gen_core.harness.errors import UsageError
from gen_rl import RCRL, protocols
from gen_rl.data import load


@pytest.fixture
def run():
    """1,000 steps, an episode of 100 steps each; its return is its number."""
    model = RCRL(RCRL.Config(steps=1000))
    model.episodes = [{"step": 100 * n, "return": float(n), "length": 100} for n in range(1, 11)]
    model.metrics = [{"step": 250 * n, "loss": 1.0, "aux_loss": n / 10} for n in range(1, 5)]
    return SimpleNamespace(model=model, data=load("cartpole"), seed=0, curves={}, samples={})


def test_the_last_quarter(run):
    assert protocols.training_return(run) == {
        "return": 9.0,
        "episodes": 3.0,
        "aux_loss": 0.4,
    }  # those at 800, 900, 1,000
    assert protocols.training_return(run, part=0.5)["return"] == 8.0
    assert protocols.training_return(run, part=0.05)["return"] == 10.0
    run.model.metrics = [{"step": 900, "loss": 1.0}]
    assert "aux_loss" not in protocols.training_return(run)


def test_without_an_episode_there(run):
    run.model.episodes = run.model.episodes[:3]
    assert protocols.training_return(run) == {"return": 3.0, "episodes": 1.0, "aux_loss": 0.4}
    run.model.episodes = []
    with pytest.raises(UsageError, match="no episode ended in 1000 steps"):
        protocols.training_return(run)


def test_the_curve_is_on_one_grid_for_all_seeds(run):
    protocols.training_return(run)
    points = run.curves["return over environment steps"]
    assert len(points) == protocols.POINTS and points[-1] == (1000.0, 10.0)
    assert math.isnan(points[0][1]) and points[3][1] == 1.0
    run.model.episodes = run.model.episodes[::2]
    protocols.training_return(run)
    assert [x for x, _ in run.curves["return over environment steps"]] == [x for x, _ in points]


def test_greedy_play(run):
    class Right:
        def predict(self, obs):
            return np.array(1)

    run.model = Right()
    found = protocols.greedy(run, episodes=5)
    assert 8 <= found["greedy_return"] <= 11  # pushing right all the time
    assert found == protocols.greedy(run, episodes=5)
    with pytest.raises(UsageError, match="episodes = 0"):
        protocols.greedy(run, episodes=0)


def test_figures(run, tmp_path):
    protocols.figures(run, tmp_path)
    assert (tmp_path / "return.png").read_bytes().startswith(b"\x89PNG")
