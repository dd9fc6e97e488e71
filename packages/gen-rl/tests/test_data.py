"""Environments: seeds, noise, our own games, and what cannot be taken."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from gen_core.harness.errors import UsageError
from gen_rl import data
from gen_rl.environments import Catch, NoisyVector, Pellets
from gen_rl.registry import DOMAIN


def play(env, seed, steps=30):
    """Observations and rewards of fixed actions."""
    obs, _ = env.reset(seed=seed)
    found = [obs]
    for step in range(steps):
        obs, reward, terminated, truncated, _ = env.step(step % env.action_space.n)
        found += [obs, np.array([reward])]
        if terminated or truncated:
            found.append(env.reset()[0])
    return np.concatenate([np.ravel(part) for part in found])


@pytest.mark.parametrize("name", DOMAIN.datasets)
def test_registered_environments_are_embedded_and_follow_their_seed(name):
    found = data.load(name)
    assert DOMAIN.datasets[name].embedded
    env = found.make()
    assert env.observation_space.dtype == np.float32
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert np.array_equal(play(found.make(), 3), play(env, 3))
    assert not np.array_equal(play(env, 3), play(env, 4))
    assert data.spec(found) == {"observation": list(env.observation_space.shape), "actions": env.action_space.n}


def test_noise_is_appended_independent_and_standard():
    plain, noisy = data.load("cartpole").make(), data.load("cartpole-noise").make()
    assert noisy.observation_space.shape == (36,)
    obs = noisy.reset(seed=5)[0]
    assert np.array_equal(obs[:4], plain.reset(seed=5)[0])  # the game itself is the same
    rows = []
    for step in range(400):
        obs, _, terminated, _, _ = noisy.step(step % 2)
        rows.append(obs[4:])
        if terminated:
            noisy.reset()
    noise = np.array(rows)
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.05
    with pytest.raises(ValueError, match="vector observation"):
        NoisyVector(gymnasium.wrappers.ReshapeObservation(gymnasium.make("CartPole-v1"), (2, 2)), 3)


def test_vector_environments_have_seeds_of_their_own():
    vec = data.load("cartpole-noise").vec(3, seed=7)
    first = vec.reset()
    assert first.shape == (3, 36)
    for row, obs in enumerate(first):
        assert np.array_equal(obs, data.load("cartpole-noise").make().reset(seed=7 + row)[0])


@pytest.mark.parametrize("env", [Catch(), Pellets()])
def test_our_games_keep_gymnasiums_rules(env):
    check_env(env, skip_render_check=True)


def test_catch_is_won_by_following_the_ball():
    env = Catch()
    for seed in range(10):
        board, _ = env.reset(seed=seed)
        total, steps, done = 0.0, 0, False
        while not done:
            ball, paddle = np.argwhere(board.reshape(10, 7))[0, 1], np.flatnonzero(board.reshape(10, 7)[-1])[-1]
            board, reward, done, _, _ = env.step(1 + np.sign(ball - paddle) if steps < 8 else 1)
            total, steps = total + reward, steps + 1
        assert (total, steps) == (1.0, 9)
    env.reset(seed=0)
    env.ball, env.paddle = [8, 0], 6
    assert env.step(1)[1:3] == (-1.0, True)


def test_pellets_pay_one_each_and_end_after_sixty_steps():
    env = data.load("pellets").make(0)
    inner = env.unwrapped
    inner.agent, inner.pellet = (2, 2), (2, 3)
    board, reward, *_ = env.step(3)
    assert reward == 1.0 and inner.agent == (2, 3) != inner.pellet
    assert board.reshape(2, 6, 6)[0, 2, 3] == 1 and board.sum() == 2
    inner.agent, inner.pellet = (0, 0), (5, 5)
    assert env.step(0)[1] == 0.0 and inner.agent == (0, 0)
    assert [env.step(0)[3] for _ in range(58)] == [False] * 57 + [True]


def test_any_gymnasium_id_and_its_options():
    found = data.load("Acrobot-v1", max_episode_steps=7)
    assert [data.load("Acrobot-v1", max_episode_steps=7).make(0).spec.max_episode_steps, found.id] == [7, "Acrobot-v1"]
    assert data.spec(found) == {"observation": [6], "actions": 3}


def test_observations_that_are_no_vector_are_flattened():
    env = data.load("FrozenLake-v1", is_slippery=False).make(0)
    assert env.observation_space.shape == (16,) and env.observation_space.dtype == np.float32
    assert data.load("Blackjack-v1").make(0).reset()[0].dtype == np.float32


def test_atari_is_played_as_dqn_does():
    pytest.importorskip("ale_py")
    env = data.load("ALE/Pong-v5").make(0)
    assert env.observation_space.shape == (4, 84, 84)
    assert env.step(0)[0].dtype == np.uint8
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.0


def test_checksums_tell_environments_apart():
    names = [*DOMAIN.datasets, "Acrobot-v1"]
    sums = {data.checksum(data.load(name)) for name in names}
    sums |= {data.checksum(data.load("Acrobot-v1", max_episode_steps=9))}
    assert len(sums) == len(names) + 1
    assert data.checksum(data.load("catch")) == data.checksum(data.load("catch"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cartpoel", "unknown environment 'cartpoel'; nearest: cartpole"),
        ("CartPole-v9", "unknown environment 'CartPole-v9'; nearest: CartPole-v1"),
        ("Pendulum-v1", "environment 'Pendulum-v1': action space Box.*allowed: Discrete"),
        ("ALE/Pongg-v5", "unknown environment 'ALE/Pongg-v5'; nearest: ALE/Pong-v5"),
    ],
)
def test_what_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        data.load(name)


def test_dm_control_has_no_discrete_actions():
    pytest.importorskip("imageio")  # shimmy's adapter wants it
    with pytest.raises(UsageError, match=r"action space Box.*allowed: Discrete"):
        data.load("dm_control/cartpole-swingup-v0")


def test_environments_have_no_ids():
    with pytest.raises(UsageError, match="no rows"):
        data.ids(data.load("catch"))
