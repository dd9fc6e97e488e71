"""Small buffers and agents that several test files use."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from gen_rl.replay import SegmentReplayBuffer
from gen_rl.sb3 import RCRLDQN

torch.set_num_threads(1)


@pytest.fixture
def buffer_of():
    def make(size=100, envs=1, **options):
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        return SegmentReplayBuffer(size, box, spaces.Discrete(3), "cpu", envs, seed=0, **options)

    return make


@pytest.fixture
def feed():
    """Add steps to a buffer; an observation says its time and environment."""

    def add(buffer, rewards, dones, truncated=False):
        for reward, done in zip(np.atleast_2d(rewards.T).T, np.atleast_2d(dones.T).T, strict=True):
            envs = np.arange(buffer.n_envs)
            obs = np.stack([np.full(buffer.n_envs, buffer.steps), envs], axis=1).astype(np.float32)
            infos = [{"TimeLimit.truncated": truncated and bool(ended)} for ended in done]
            buffer.add(obs, obs + 0.5, envs % 3, reward, done, infos)

    return add


@pytest.fixture
def agent_of():
    def make(env="CartPole-v1", policy="MlpPolicy", cls=RCRLDQN, **options):
        base = {"seed": 0, "device": "cpu", "learning_starts": 50, "train_freq": 1, "buffer_size": 1000}
        if cls is RCRLDQN:
            base |= {"threshold": 10.0}
        return cls(policy, gymnasium.make(env) if isinstance(env, str) else env, **base | options)

    return make
