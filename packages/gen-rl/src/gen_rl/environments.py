"""Small environments in numpy, and the wrapper that adds irrelevant dimensions to an observation."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Observation = NDArray[np.float32]


class NoisyVector(gymnasium.ObservationWrapper[Observation, Any, Observation]):
    """Appends `count` independent N(0, sigma^2) numbers to a vector observation, new ones at each step."""

    def __init__(self, env: gymnasium.Env[Any, Any], count: int, sigma: float = 1.0) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"NoisyVector needs a vector observation, got {space}")
        self.count, self.sigma = count, sigma
        self.noise = np.random.default_rng()
        edge = np.full(count, np.inf, dtype=np.float32)
        low, high = np.concatenate([space.low, -edge]), np.concatenate([space.high, edge])
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        if seed is not None:
            self.noise = np.random.default_rng([seed, 2])  # not the environment's own stream, default_rng(seed)
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Observation:
        noise = self.noise.normal(0.0, self.sigma, self.count)
        return np.concatenate([observation, noise]).astype(np.float32)


class Catch(gymnasium.Env[Observation, int]):
    """A ball falls down a board of `rows` x `columns`; the paddle in the last row moves left, stays or moves right.

    The observation is the flat board. The only reward is the last one: 1 if the paddle is under the ball, else -1.
    """

    def __init__(self, rows: int = 10, columns: int = 7) -> None:
        self.rows, self.columns = rows, columns
        self.observation_space = spaces.Box(0.0, 1.0, (rows * columns,), np.float32)
        self.action_space = spaces.Discrete(3)  # pyright: ignore[reportAttributeAccessIssue]
        self.ball, self.paddle = [0, 0], 0

    def _board(self) -> Observation:
        board = np.zeros((self.rows, self.columns), dtype=np.float32)
        board[*self.ball] = board[-1, self.paddle] = 1.0
        return board.ravel()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        super().reset(seed=seed)
        self.ball, self.paddle = [0, int(self.np_random.integers(self.columns))], self.columns // 2
        return self._board(), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.columns - 1)
        self.ball[0] += 1
        done = self.ball[0] == self.rows - 1
        reward = (1.0 if self.ball[1] == self.paddle else -1.0) if done else 0.0
        return self._board(), reward, done, False, {}


class Pellets(gymnasium.Env[Observation, int]):
    """Collect pellets on a grid of `size` x `size`: each gives 1 and another appears; 60 steps (registered limit).

    The observation is two flat boards, the agent's and the pellet's. Actions: up, down, left, right. Pairs of one
    segment share the pellet and not the agent's place, which the contrast then teaches the agent to ignore: a setting
    in which it is known to hurt.
    """

    MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def __init__(self, size: int = 6) -> None:
        self.size = size
        self.observation_space = spaces.Box(0.0, 1.0, (2 * size * size,), np.float32)
        self.action_space = spaces.Discrete(len(self.MOVES))  # pyright: ignore[reportAttributeAccessIssue]
        self.agent = self.pellet = (0, 0)

    def _anywhere_else(self) -> tuple[int, int]:
        cell = int(self.np_random.integers(self.size * self.size - 1))
        cell += cell >= self.agent[0] * self.size + self.agent[1]
        return divmod(cell, self.size)

    def _boards(self) -> Observation:
        boards = np.zeros((2, self.size, self.size), dtype=np.float32)
        boards[0, *self.agent] = boards[1, *self.pellet] = 1.0
        return boards.ravel()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Any]:
        super().reset(seed=seed)
        self.agent = divmod(int(self.np_random.integers(self.size * self.size)), self.size)
        self.pellet = self._anywhere_else()
        return self._boards(), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        down, right = self.MOVES[int(action)]
        inside = (min(max(place, 0), self.size - 1) for place in (self.agent[0] + down, self.agent[1] + right))
        row, column = inside
        self.agent = (row, column)
        reward = float(self.agent == self.pellet)
        if reward:
            self.pellet = self._anywhere_else()
        return self._boards(), reward, False, False, {}
