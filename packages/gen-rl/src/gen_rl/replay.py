"""A replay buffer that knows which transitions belong to one segment of a trajectory, and draws pairs of them.

Rows are (slot, environment); time counts the additions and never wraps, slot = time mod size. Each row keeps the time
at which its segment starts and, once that is known, the one at which it ends; the work is O(1) a step, amortised.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

Positives = Literal["segments", "shuffled", "return"]
OPEN = np.iinfo(np.int64).max
"""End of a segment that still grows."""
WINDOW = 0.0125
"""Positives by return come from this share of the ranked returns on either side of the anchor's."""
RERANK = 256
"""Steps after which the returns are ranked anew."""


class PairSamples(NamedTuple):
    """The batch that `sample` drew last, and B positive pairs, each of a row of this batch and another transition."""

    anchors: NDArray[np.intp] | None
    """(B,) rows of the batch; None where each row has a positive and stands for itself.

    Rows without one are left out; the others, whose order is random, are repeated from the first to fill their places.
    Empty where no row has a positive.
    """
    observations: Tensor
    """(2 B, ...) the batch, then the positives."""
    actions: Tensor
    """(2 B, 1)"""


class SegmentReplayBuffer(ReplayBuffer):
    """SB3's replay buffer, with the same draws from numpy's global generator, and pairs from a generator of its own.

    Args:
        positives: `segments`, another transition of the anchor's segment; `shuffled`, any transition (the control);
            `return`, one whose discounted return is among the nearest 2.5 % (episodes that a time limit cut have none).
        threshold: a segment ends with the step at which the sum of its |reward| reaches this; None, with every step
            whose reward is not 0. It also ends with the episode.
        gamma: discount of the returns.
        seed: of the pairs.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        positives: Positives = "segments",
        threshold: float | None = None,
        gamma: float = 0.99,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage,
            handle_timeout_termination,
        )  # fmt: skip
        self.positives, self.threshold, self.gamma = positives, threshold, gamma
        # Not default_rng(seed): gymnasium seeds its environments like that, and the streams would be the same.
        self.generator = np.random.default_rng(None if seed is None else [seed, 1])
        self._clear()

    def _clear(self) -> None:
        shape = (self.buffer_size, self.n_envs)
        self.steps = 0
        self.lo = np.zeros(shape, dtype=np.int64)
        self.hi = np.full(shape, OPEN, dtype=np.int64)
        self.start = np.zeros(self.n_envs, dtype=np.int64)
        self.sum = np.zeros(self.n_envs)
        self.episode = np.zeros(self.n_envs, dtype=np.int64)
        self.returns = np.full(shape if self.positives == "return" else (0, self.n_envs), np.nan)
        self.rank = np.full(self.returns.size, -1, dtype=np.int64)
        self.order = np.zeros(0, dtype=np.int64)
        self.ranked = -RERANK
        self.drawn = np.zeros(0, dtype=np.int64)

    def reset(self) -> None:
        super().reset()
        self._clear()

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        slot = self.pos
        self.lo[slot] = self.start
        self.hi[slot] = OPEN
        super().add(obs, next_obs, action, reward, done, infos)
        self.steps += 1
        if self.threshold is None:
            ended = np.logical_or(done, reward)
        else:
            self.sum += np.abs(reward)
            ended = np.logical_or(done, self.sum >= self.threshold)
        if ended.any():
            for env in np.flatnonzero(ended).tolist():
                self._end_segment(env)
        if self.positives == "return":
            self.returns[slot] = np.nan
            self.rank.reshape(-1, self.n_envs)[slot] = -1
            for env in np.flatnonzero(done).tolist():
                self._end_episode(env, not infos[env].get("TimeLimit.truncated", False))

    def _slots(self, begin: int) -> NDArray[np.int64]:
        """Slots of the times from `begin` to now that are still there."""
        return np.arange(max(begin, self.steps - self.buffer_size), self.steps) % self.buffer_size

    def _end_segment(self, env: int) -> None:
        self.hi[self._slots(self.start[env]), env] = self.steps
        self.start[env], self.sum[env] = self.steps, 0.0

    def _end_episode(self, env: int, complete: bool) -> None:
        """Fill in the returns of an episode that came to its own end."""
        if complete:
            total = 0.0
            for slot in self._slots(self.episode[env])[::-1]:
                total = self.rewards[slot, env] + self.gamma * total
                self.returns[slot, env] = total
        self.episode[env] = self.steps

    def interrupt(self) -> None:
        """End what is open without a return: the environments start new episodes."""
        for env in range(self.n_envs):
            self._end_segment(env)
            self._end_episode(env, complete=False)

    @property
    def oldest(self) -> int:
        """The first time whose observation is still there."""
        # Where next observations share the array, the next slot to be written already holds the newest one.
        return self.steps - self.size() + (self.optimize_memory_usage and self.full)

    def _rows(self, array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
        """array[slot, environment] of rows = slot x environments + environment, copied."""
        return array.reshape(-1, *array.shape[2:]).take(rows, axis=0)

    def _tensor(self, array: Any) -> Tensor:
        """What was taken is a copy already, so no second one as in SB3's `to_torch`."""
        return torch.from_numpy(array).to(self.device)

    def _get_samples(self, batch_inds: NDArray[Any], env: VecNormalize | None = None) -> ReplayBufferSamples:
        """SB3's, which would not tell the environments that it draws."""
        envs = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        self.drawn = rows = batch_inds * self.n_envs + envs
        if self.optimize_memory_usage:
            next_obs = self._rows(self.observations, (rows + self.n_envs) % (self.buffer_size * self.n_envs))
        else:
            next_obs = self._rows(self.next_observations, rows)
        dones = self._rows(self.dones, rows) * (1 - self._rows(self.timeouts, rows))
        data = (
            self._normalize_obs(self._rows(self.observations, rows), env),
            self._rows(self.actions, rows),
            self._normalize_obs(next_obs, env),
            dones.reshape(-1, 1),
            self._normalize_reward(self._rows(self.rewards, rows).reshape(-1, 1), env),
        )
        return ReplayBufferSamples(*map(self._tensor, data))  # pyright: ignore

    def sample_pairs(self, env: VecNormalize | None = None) -> PairSamples:
        """The last batch and positive pairs."""
        anchors, positives = self.draw_pairs()
        rows = np.concatenate([self.drawn, positives])
        obs = self._normalize_obs(self._rows(self.observations, rows), env)
        actions = self._rows(self.actions, rows)
        return PairSamples(anchors, self._tensor(obs), self._tensor(actions))

    def draw_pairs(self) -> tuple[NDArray[np.intp] | None, NDArray[np.int64]]:
        """The anchors, as in `PairSamples`, and the rows of their positives."""
        size = len(self.drawn)
        positives, found = getattr(self, f"_by_{self.positives}")(self.generator.random(size))
        if found is None or found.all():
            return None, positives
        having = found.nonzero()[0]
        anchors = having[np.arange(size if len(having) else 0) % max(1, len(having))]
        return anchors, positives[anchors]

    def _by_shuffled(self, uniform: NDArray[np.float64]) -> tuple[NDArray[np.int64], None]:
        oldest, envs = self.oldest, self.n_envs
        rows = (uniform * ((self.steps - oldest) * envs)).astype(np.int64)
        return (rows + oldest * envs) % (self.buffer_size * envs), None

    def _by_segments(self, uniform: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Another row of the same segment, the own one being passed over; in place, because it is faster."""
        rows, envs, steps, oldest = self.drawn, self.n_envs, self.steps, self.oldest
        times = rows // envs if envs > 1 else rows
        low, high = self.lo.reshape(-1).take(rows), np.minimum(self.hi.reshape(-1).take(rows), steps)
        if oldest:  # the ring has come round: times are no longer slots, and segments lose their first rows
            times = steps - 1 - (steps - 1 - times) % self.buffer_size
            low = np.maximum(low, oldest)
        high -= low
        high -= 1
        uniform *= high
        chosen = uniform.astype(np.int64)
        chosen += low
        chosen += chosen >= times
        chosen -= times  # a step of time is a step of as many rows as there are environments
        if envs > 1:
            chosen *= envs
        chosen += rows
        if oldest:
            chosen %= self.buffer_size * envs
        return chosen, high > 0

    def _by_return(self, uniform: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A row near in the ranking of the returns, which is made anew now and then."""
        if self.steps - self.ranked >= RERANK:
            flat = self.returns.ravel()
            known = np.flatnonzero(~np.isnan(flat))
            self.order = known[np.argsort(flat[known], kind="stable")]
            self.rank[:] = -1
            self.rank[self.order] = np.arange(len(self.order))
            self.ranked = self.steps
        last = len(self.order) - 1
        if last < 1:
            return self.drawn, np.zeros(len(self.drawn), dtype=bool)
        place, width = self.rank[self.drawn], max(1, round(WINDOW * last))
        low, high = np.maximum(place - width, 0), np.minimum(place + width, last)
        chosen = low + (uniform * (high - low)).astype(np.int64)
        rows = self.order[np.minimum(chosen + (chosen >= place), last)]
        found = (place >= 0) & (self.rank[rows] >= 0)
        if self.optimize_memory_usage and self.full:
            found &= rows // self.n_envs != self.pos  # this slot already holds the newest observation
        return rows, found
