"""RCRL for users of stable-baselines3: `RCRLDQN("MlpPolicy", "CartPole-v1", threshold=10).learn(10_000)`.

It is SB3's DQN with one more loss; the rest of SB3's interface stays.
"""

import functools
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples
from torch import Tensor

from gen_core.estimators import BOUNDS, Pairs
from gen_core.harness.errors import UsageError, nearest
from gen_rl.networks import StateActionCnnPolicy, StateActionPolicy
from gen_rl.replay import Positives, SegmentReplayBuffer

__all__ = ["RCRLDQN", "RCRLMixin", "SegmentReplayBuffer", "StateActionCnnPolicy", "StateActionPolicy"]

Bound = Literal["paper", "dv", "nwj", "tuba", "jsd", "smile", "nce"]
OBSERVATIONS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
PATIENCE = 100
"""Updates without a single positive pair after which training is refused."""


class RCRLMixin:
    """RCRL's auxiliary loss, for an off-policy algorithm of SB3 whose policy has `q_net.embed` and `discriminator`.

    Args:
        aux_coef: weight of the auxiliary loss; 0 leaves the host with the same networks, the fair baseline.
        positives: `segments` (the paper's), `shuffled` (any transition: the control) or `return` (nearest returns).
        threshold: sum of |reward| that ends a segment; None ends it at every reward that is not 0.
        bound: the paper's squared error, or another bound on the discriminator's logits.
    """

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        *args: Any,
        aux_coef: float = 0.5,
        positives: Positives = "segments",
        threshold: float | None = None,
        bound: Bound = "paper",
        **kwargs: Any,
    ) -> None:
        # Before SB3's constructor, which builds the networks; plain values, because it saves them.
        if not 0 <= aux_coef < float("inf"):
            raise UsageError(f"aux_coef = {aux_coef}: must be a finite number, at least 0")
        if threshold is not None and not threshold > 0:
            raise UsageError(f"threshold = {threshold}: must be above 0, or None")
        for name, value, allowed in (("positives", positives, Positives), ("bound", bound, Bound)):
            if value not in allowed.__args__:  # pyright: ignore
                raise UsageError(nearest(str(value), allowed.__args__, name))  # pyright: ignore
        self.aux_coef, self.positives, self.threshold, self.bound = aux_coef, positives, threshold, bound
        self._without_pairs = 0
        if env is not None:
            env = maybe_make_env(env, kwargs.get("verbose", 0))
            check_spaces(env.observation_space, env.action_space)
        super().__init__(policy, env, *args, **kwargs)  # pyright: ignore

    def _setup_model(self: Any) -> None:
        if self.n_steps > 1:
            raise UsageError(f"n_steps = {self.n_steps}: must be 1, segments and n-step returns are not combined")
        self.replay_buffer_class = self.replay_buffer_class or SegmentReplayBuffer
        if not issubclass(self.replay_buffer_class, SegmentReplayBuffer):
            name = self.replay_buffer_class.__name__
            raise UsageError(f"replay_buffer_class = {name}: must be a SegmentReplayBuffer")
        if not issubclass(self.policy_class, StateActionPolicy):
            name = self.policy_class.__name__
            raise UsageError(f"policy = {name}: must be MlpPolicy, CnnPolicy or a StateActionPolicy")
        own = {"positives": self.positives, "threshold": self.threshold, "gamma": self.gamma, "seed": self.seed}
        self.replay_buffer_kwargs = own | self.replay_buffer_kwargs
        super()._setup_model()  # pyright: ignore
        space: Any = self.observation_space
        shape: Any = (1, *get_obs_shape(space))
        obs = torch.as_tensor(np.zeros(shape, dtype=space.dtype), device=self.device)
        self.policy.set_training_mode(False)
        if self.aux_coef and not self.policy.q_net.embed(obs, torch.zeros(1, device=self.device)).requires_grad:
            raise UsageError("q_net.embed has no trainable parameter, so the auxiliary loss would change nothing")

    def pair_loss(self: Any, embedded: Tensor, anchors: Any = None) -> Tensor | None:
        """L_aux of embeddings (2 B, d): those of the batch, then of the positives of its rows `anchors` (None: of all).

        The rows of the batch are independent and uniform over the replay: each one's negative is the next one.
        """
        self._without_pairs = self._without_pairs + 1 if anchors is not None and not len(anchors) else 0
        if self._without_pairs:
            if self._without_pairs == PATIENCE:
                raise UsageError(
                    f"threshold = {self.threshold}: {PATIENCE} updates met no two transitions of one segment; where "
                    "most rewards are not 0, set threshold to the sum of |reward| of 5 to 50 steps"
                )
            return None
        size = len(embedded) // 2
        layout, rows, labels = _layout(size, embedded.device)
        if anchors is not None:
            layout = layout.copy()
            layout[:size, 0] = anchors
            rows = torch.from_numpy(layout.ravel()).to(embedded.device)
        logits = self.policy.discriminator(embedded.index_select(0, rows).view(2 * size, -1))
        if self.bound == "paper":  # gen_core.losses.pair_mse for equally many of both, in a third of the time
            return 2 * F.mse_loss(logits.sigmoid(), labels)
        same, different = logits.squeeze(1).split(size)
        return -BOUNDS[self.bound](Pairs(-same, -different))  # a bound scores high what is the same


@functools.cache
def _layout(size: int, device: torch.device) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Rows (2 B, 2) of the pairs: each anchor and its positive, each and the next. The same flat; labels (2 B, 1)."""
    anchors = np.arange(size)
    others = np.concatenate([anchors + size, np.roll(anchors, -1)])
    rows = np.stack([np.tile(anchors, 2), others], axis=1)
    labels = torch.arange(2.0).repeat_interleave(size)[:, None]
    return rows, torch.from_numpy(rows.ravel()).to(device), labels.to(device)


class RCRLDQN(RCRLMixin, DQN):
    """SB3's DQN with RCRL: its constructor, `learn`, `predict`, `save`, `load`, callbacks and VecEnvs.

    Args: those of DQN and of `RCRLMixin`, and
        double_q: the online network chooses the action whose value the target network gives (van Hasselt et al. 2016).
    """

    policy_aliases = {"MlpPolicy": StateActionPolicy, "CnnPolicy": StateActionCnnPolicy}  # noqa: RUF012  (SB3's form)
    policy: StateActionPolicy  # pyright: ignore[reportIncompatibleVariableOverride]
    replay_buffer: SegmentReplayBuffer  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, policy: Any, env: GymEnv | str | None, *args: Any, double_q: bool = False, **kwargs: Any
    ) -> None:
        self.double_q = double_q
        super().__init__(policy, env, *args, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """DQN's updates with the joint loss; one pass embeds the batch and its positives."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        losses: dict[str, list[float]] = {"loss": [], "td_loss": [], "aux_loss": []}
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            target = self._target(batch)
            values, aux_loss = self._values(batch)
            loss = td_loss = F.smooth_l1_loss(values, target)
            if aux_loss is not None:
                loss = torch.add(td_loss, aux_loss, alpha=self.aux_coef)
                losses["td_loss"].append(td_loss.item())
                losses["aux_loss"].append(aux_loss.item())
            losses["loss"].append(loss.item())
            self.policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, found in losses.items():
            if found:
                self.logger.record(f"train/{name}", sum(found) / len(found))

    @torch.no_grad()
    def _target(self, batch: ReplayBufferSamples) -> Tensor:
        following = self.q_net_target(batch.next_observations)
        if self.double_q:
            best = following.gather(1, self.q_net(batch.next_observations).argmax(dim=1, keepdim=True))
        else:
            best = following.max(dim=1).values.reshape(-1, 1)
        return batch.rewards + (1 - batch.dones) * self.gamma * best

    def _values(self, batch: ReplayBufferSamples) -> tuple[Tensor, Tensor | None]:
        """Q(s, a) of the batch, (B, 1), and the auxiliary loss, if there is one."""
        if not self.aux_coef:
            return torch.gather(self.q_net(batch.observations), dim=1, index=batch.actions.long()), None
        anchors, observations, actions = self.replay_buffer.sample_pairs(self._vec_normalize_env)
        q_net = self.policy.q_net
        embedded = q_net.embed(observations, actions)
        return q_net.head(embedded[: len(batch.rewards)]), self.pair_loss(embedded, anchors)


def check_spaces(observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
    """Refuse, by name, what DQN on vectors or images cannot do."""
    if not isinstance(actions, spaces.Discrete) or actions.start != 0:
        raise UsageError(f"action space {actions}: not supported; allowed: Discrete, counted from 0")
    if not isinstance(observations, OBSERVATIONS):
        allowed = ", ".join(kind.__name__ for kind in OBSERVATIONS)
        raise UsageError(f"observation space {observations}: not supported; allowed: {allowed}")
