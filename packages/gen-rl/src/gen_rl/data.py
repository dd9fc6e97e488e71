"""Environments: registered ones and any gymnasium id, always as one `Environment` that makes seeded copies.

Observations that are no Box (Dict, Tuple, Discrete, ...) are flattened to one vector; 64-bit numbers become float32.
`ALE/...` ids are played as DQN does: no sticky actions, 84 x 84 grey frames, a decision each 4 frames, 4 of them
stacked; rewards and episodes stay the game's own.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers

from gen_core.harness.errors import UsageError, nearest

for _name, _limit in (("Catch", None), ("Pellets", 60)):
    if f"gen_rl/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(f"gen_rl/{_name}-v0", f"gen_rl.environments:{_name}", max_episode_steps=_limit)

REGISTERED: dict[str, tuple[str, int]] = {
    "cartpole": ("CartPole-v1", 0),
    "cartpole-noise": ("CartPole-v1", 32),
    "catch": ("gen_rl/Catch-v0", 0),
    "pellets": ("gen_rl/Pellets-v0", 0),
}
"""Name -> gymnasium id and how many dimensions of noise are appended."""
ATARI = {"frameskip": 1, "repeat_action_probability": 0.0}
PROVIDERS = {"ALE": "ale_py", "dm_control": "shimmy"}
"""Namespaces whose package has to be imported first."""


@dataclass(frozen=True)
class Environment:
    """What can be made again and again: a gymnasium id, its options, and what is wrapped around it."""

    id: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    noise: int = 0
    """Dimensions of independent N(0, 1) noise appended to the observation."""

    def make(self, seed: int | None = None) -> gymnasium.Env[Any, Any]:
        """One environment; with a seed, reset and its random numbers fixed."""
        atari = self.id.startswith("ALE/")
        env = gymnasium.make(self.id, **(ATARI if atari else {}) | dict(self.options))
        if atari:
            env = wrappers.FrameStackObservation(wrappers.AtariPreprocessing(env), 4)
        if not isinstance(env.observation_space, spaces.Box):
            env = wrappers.FlattenObservation(env)
        if env.observation_space.dtype in (np.float64, np.int64):
            env = wrappers.DtypeObservation(env, np.float32)
        if self.noise:
            from gen_rl.environments import NoisyVector

            env = NoisyVector(env, self.noise)
        if seed is not None:
            env.reset(seed=seed)
            env.action_space.seed(seed)
        return env

    def vec(self, n: int = 1, seed: int = 0) -> Any:
        """`n` environments as SB3's DummyVecEnv, each in its Monitor; the first reset seeds them seed, seed + 1, ..."""
        from stable_baselines3.common.monitor import Monitor
        from stable_baselines3.common.vec_env import DummyVecEnv

        found = DummyVecEnv([lambda: Monitor(self.make())] * n)
        found.seed(seed)
        return found


def load(name_or_env_id: str, **options: Any) -> Environment:
    """A registered environment by name, or any gymnasium id; `options` go to gymnasium.make.

    Raises `UsageError` that names the id, or the space that DQN on vectors and images cannot take.
    """
    name = name_or_env_id
    env_id, noise = REGISTERED.get(name, (name, 0))
    if provider := PROVIDERS.get(env_id.partition("/")[0]):
        try:
            gymnasium.register_envs(__import__(provider))
        except ImportError as error:
            raise UsageError(f"environment {env_id!r} needs {error.name or provider}, which is not installed") from None
    if env_id.partition(":")[2] == "" and env_id not in gymnasium.registry:
        raise UsageError(nearest(name, [*REGISTERED, *gymnasium.registry], "environment").partition("; known")[0])
    found = Environment(env_id, options, noise)
    try:
        env = found.make()
    except Exception as error:  # whatever the environment's own constructor raises
        raise UsageError(f"environment {env_id!r} cannot be made: {error}") from None
    from gen_rl.sb3 import check_spaces

    try:
        check_spaces(env.observation_space, env.action_space)
    except UsageError as error:
        raise UsageError(f"environment {env_id!r}: {error}") from None
    finally:
        env.close()
    return found


def spec(data: Environment) -> dict[str, Any]:
    """Sizes: observation shape and number of actions."""
    env = data.make()
    try:
        return {"observation": list(env.observation_space.shape or ()), "actions": int(env.action_space.n)}  # pyright: ignore
    finally:
        env.close()


def checksum(data: Environment) -> str:
    """sha256 over the id, its options and the wrappers' settings."""
    facts = [data.id, dict(data.options), data.noise, ATARI if data.id.startswith("ALE/") else {}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()


def ids(data: Environment) -> list[str]:
    """Environments have no rows to name."""
    raise UsageError(f"environment {data.id!r} has no rows, and so no ids")
