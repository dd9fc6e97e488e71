"""RCRL: an agent whose embedding of (state, action) also learns which transitions have different returns.

Citation: Liu, Zhang, Zhao, Qin, Zhu, Li, Yu and Liu, "Return-Based Contrastive Representation Learning for
Reinforcement Learning", ICLR 2021, arXiv 2102.10960.

Host DQN: Q(s, a) = v . f(s, a) + b on the embedding f(s, a) = relu(U h(s) + E a). At each update a discriminator w of
pairs gives w(f(x), f(x')), the probability that their returns differ; its squared error, with label 0 for x and a
transition x+ of the same segment of a trajectory and 1 for x and any transition x-, is added to the TD loss:
aux_coef (mean w(x, x+)^2 + mean (w(x, x-) - 1)^2), chance being 0.5 aux_coef. The gradient reaches f through both
arguments. A segment ends with a reward that is not 0, or where rewards are dense with a sum of |reward| of `threshold`.

Deviations: the paper's hosts are Rainbow and SAC, here it is DQN on vectors or images. Its coefficient, thresholds and
the operator that joins s and a were not found; ours are above. The anchors are the host's own batch, and the negative
of each is the next one of the batch, which is as independent of it as a further draw; a batch's few rows alone in their
segment give way to a repetition of others. The discriminator is small (32 units, no biases) for the sake of time.
With a constant reward, as in CartPole, a segment is a fixed length of time: temporal contrast, nothing about returns.
A gain is to be expected where the observation has irrelevant dimensions; elsewhere the loss is neutral or harmful.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import is_image_space

from gen_core.harness import config as configs
from gen_core.harness import runs, weights
from gen_core.harness.errors import UsageError
from gen_rl import data as environments
from gen_rl import state
from gen_rl.diary import EPISODES, Diary
from gen_rl.sb3 import RCRLDQN

Fraction = Annotated[float, Field(ge=0, le=1)]
DEVICES = {"auto": "auto", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}
SMALLEST_IMAGE = 36
"""Pixels that NatureCNN needs on either side; smaller images go in as vectors."""


class RCRL:
    """`RCRL(RCRL.Config(threshold=10)).fit(gen_rl.data.load("CartPole-v1")).agent.predict(observation)`"""

    class Config(configs.Config):
        """Hyper-parameters."""

        steps: PositiveInt = 10_000
        """Environment steps, all environments together; exploration is scheduled over them."""
        aux_coef: NonNegativeFloat = 0.5
        """Weight of the auxiliary loss; 0 is the same agent without it, the fair baseline."""
        positives: Literal["segments", "shuffled", "return"] = "segments"
        """What is paired with label 0: a transition of the same segment, any (the control), or one of near return."""
        threshold: PositiveFloat | None = None
        """Sum of |reward| that ends a segment; without one, each reward that is not 0 ends it."""
        bound: Literal["paper", "dv", "nwj", "tuba", "jsd", "smile", "nce"] = "paper"
        """Auxiliary objective: the paper's squared error, or another bound on the discriminator's logits."""
        double_q: bool = False
        """The online network chooses the action whose value the target network gives."""
        learning_rate: PositiveFloat = 1e-3
        """Adam's learning rate."""
        batch_size: Annotated[int, Field(ge=2)] = 32
        """Transitions an update."""
        buffer_size: PositiveInt = 100_000
        """Transitions that are remembered."""
        gamma: Fraction = 0.99
        """Discount a step."""
        learning_starts: NonNegativeInt = 100
        """Steps of random actions before the first update."""
        train_freq: PositiveInt = 1
        """Steps of every environment between updates."""
        gradient_steps: Annotated[int, Field(ge=-1)] = 1
        """Updates after each such interval; -1: as many as there were transitions."""
        target_update_interval: PositiveInt = 200
        """Environment steps between copies of the Q network to its target."""
        exploration_fraction: Annotated[float, Field(gt=0, le=1)] = 0.3
        """Share of the steps over which the probability of a random action falls from 1."""
        exploration_final_eps: Fraction = 0.05
        """That probability afterwards."""
        hidden: PositiveInt = 64
        """Units of the layer before the embedding; images have NatureCNN's layers instead."""
        embedding: PositiveInt = 64
        """Dimensions of f(s, a)."""
        discriminator: PositiveInt = 32
        """Hidden units of the discriminator."""
        envs: PositiveInt = 1
        """Environments that are stepped together."""
        save_every: PositiveInt = 1000
        """Environment steps between checkpoints: what a killed run repeats at most."""

    revision: ClassVar[int] = 1
    measure = staticmethod(environments.spec)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self.agent: RCRLDQN | None = None
        self.episodes: list[dict[str, float]] = []
        """Ended episodes of training: step, return, length."""
        self.metrics: list[dict[str, float]] = []
        """Means over the updates of about 100 steps: step, loss, td_loss, aux_loss, epsilon."""

    def fit(
        self,
        data: environments.Environment,
        *,
        seed: int = 0,
        out: str | Path | None = None,
        resume: bool = False,
        accelerator: str = "auto",
        devices: Any = 1,
        precision: str = "32-true",
        logger: str = "tensorboard",
        progress: bool = True,
        callbacks: Sequence[BaseCallback] = (),
    ) -> Self:
        """Train an agent in `data`; with `out`, keep episodes, metrics, checkpoints and weights there.

        `resume=True` goes on from the last checkpoint in `out`; the episodes that were under way are left out.
        """
        for name, value, allowed in (("devices", devices, (1, "1", "auto")), ("precision", precision, ("32-true",))):
            if value not in allowed:
                raise UsageError(f"{name} {value!r}: gen-rl trains on one device in 32-true; allowed: {allowed[0]}")
        if accelerator not in DEVICES:
            raise UsageError(f"accelerator {accelerator!r}: must be one of {', '.join(DEVICES)}")
        folder = Path(out) if out else None
        checkpoint = None
        if folder:
            checkpoint = state.last(folder / "checkpoints")
            if (checkpoint or (folder / runs.WEIGHTS).exists()) and not resume:
                raise UsageError(f"{folder} holds a run already; choose another folder, or go on with resume=True")
            if (folder / runs.WEIGHTS).exists():
                self._restore(folder)
                return self
            folder.mkdir(parents=True, exist_ok=True)
        self.agent = agent = self._agent(data.vec(self.config.envs, seed), seed=seed, device=DEVICES[accelerator])
        if checkpoint:
            state.restore(agent, checkpoint)
        diary = Diary(self, agent, folder, logger, progress)
        try:
            agent.learn(
                self.config.steps - agent.num_timesteps,
                callback=[diary, *callbacks],
                log_interval=None,  # pyright: ignore[reportArgumentType]
                reset_num_timesteps=checkpoint is None,
            )
        finally:
            diary.close()
            agent.env.close()  # pyright: ignore[reportOptionalMemberAccess]
        if folder:
            self.save(folder)
        return self

    def _agent(self, env: Any, space: Any = None, actions: int = 0, **options: Any) -> RCRLDQN:
        """The agent in `env`; without one, of these spaces, to predict."""
        c, space = self.config, space or env.observation_space
        image = is_image_space(space) and sorted(space.shape)[1] >= SMALLEST_IMAGE
        agent = RCRLDQN(
            "CnnPolicy" if image else "MlpPolicy",
            env,
            aux_coef=c.aux_coef, positives=c.positives, threshold=c.threshold, bound=c.bound, double_q=c.double_q,
            learning_rate=c.learning_rate, batch_size=c.batch_size, buffer_size=c.buffer_size if env else 1,
            gamma=c.gamma, learning_starts=c.learning_starts, train_freq=c.train_freq, gradient_steps=c.gradient_steps,
            target_update_interval=c.target_update_interval, exploration_fraction=c.exploration_fraction,
            exploration_final_eps=c.exploration_final_eps,
            policy_kwargs={
                "net_arch": [] if image else [c.hidden],
                "embedding_dim": c.embedding,
                "discriminator_dim": c.discriminator,
            },
            _init_setup_model=env is not None,
            **options,
        )  # fmt: skip
        if env is None:
            agent.observation_space, agent.action_space, agent.n_envs = space, spaces.Discrete(actions), 1
            agent._setup_model()
        return agent

    def predict(self, observation: NDArray[Any]) -> NDArray[np.int64]:
        """The greedy action in one observation, or in each of several."""
        if self.agent is None:
            raise UsageError("this RCRL has no agent yet: fit it, or load a run")
        return self.agent.predict(observation, deterministic=True)[0]

    def save(self, folder: str | Path) -> None:
        """Write weights, settings, episodes and metrics; other keys of `config.toml` are kept."""
        if self.agent is None:
            raise UsageError("this RCRL has no agent yet, so there is nothing to save")
        path, space, policy = Path(folder), self.agent.observation_space, self.agent.policy
        assert isinstance(space, spaces.Box) and isinstance(self.agent.action_space, spaces.Discrete)
        spec = {
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _short(space.low),
            "high": _short(space.high),
            "actions": int(self.agent.action_space.n),
        }
        runs.update_header(path, type(self), config=self.config.model_dump(), spec=spec)
        runs.write_rows(path / EPISODES, self.episodes)
        runs.write_rows(path / runs.METRICS, self.metrics)
        weights.write(path / runs.WEIGHTS, policy.state_dict())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The agent of a run folder, ready to predict, with its episodes and metrics. No pickle is read."""
        header = runs.header_of(Path(folder), cls)
        model = cls(configs.parse(cls.Config, header.get("config", {}), str(folder)))
        model._restore(Path(folder))
        return model

    def _restore(self, folder: Path) -> None:
        spec = runs.header_of(folder, type(self)).get("spec")
        if not spec:
            raise weights.unfinished(folder)
        shape = tuple(spec["shape"])
        dtype = np.dtype(spec["dtype"])
        low, high = (np.resize(np.array(spec[end], dtype), shape) for end in ("low", "high"))
        space = spaces.Box(low, high, shape, dtype.type)
        self.agent = self._agent(None, space, spec["actions"], device="cpu")
        weights.restore(self.agent.policy, folder)
        self.episodes, self.metrics = (runs.read_rows(folder / name) for name in (EPISODES, runs.METRICS))


def _short(bound: NDArray[Any]) -> Any:
    """One number where all are equal, as in images; else all of them."""
    return bound.flat[0].item() if (bound == bound.flat[0]).all() else bound.ravel().tolist()
