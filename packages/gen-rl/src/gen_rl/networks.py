"""Q networks on an embedding of state and action, as policies of stable-baselines3's DQN."""

from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn


class StateActionQNetwork(QNetwork):
    """Q(s, a) = v . f(s, a) + b with f(s, a) = relu(U h(s) + E a); h is the extractor and the layers of `net_arch`."""

    def __init__(self, *args: Any, embedding_dim: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        actions = int(self.action_space.n)
        self.embedding_dim = embedding_dim
        self.q_net = nn.Sequential(*create_mlp(self.features_dim, embedding_dim, self.net_arch, self.activation_fn))
        self.action = nn.Embedding(actions, embedding_dim)  # E on one-hot actions, and starts like such a layer
        nn.init.uniform_(self.action.weight, -(actions**-0.5), actions**-0.5)
        self.head = nn.Linear(embedding_dim, 1)

    def state(self, obs: PyTorchObs) -> Tensor:
        """U h(s), (B, d)."""
        return self.q_net(self.extract_features(obs, self.features_extractor))

    def embed(self, obs: PyTorchObs, action: Tensor) -> Tensor:
        """f(s, a), (B, d), for actions (B,) or (B, 1)."""
        return torch.relu(self.state(obs) + F.embedding(action.long().flatten(), self.action.weight))

    def forward(self, obs: PyTorchObs) -> Tensor:
        """Q of every action, (B, actions)."""
        return self.head(torch.relu(self.state(obs)[:, None] + self.action.weight)).squeeze(-1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"embedding_dim": self.embedding_dim}


class Discriminator(nn.Module):
    """A perceptron with one hidden layer on [f(x); f(x')]: the logit of "their returns differ".

    It has no biases, since f has constant parts of its own: SB3's optimiser takes its time by the tensor.
    """

    def __init__(self, embedding_dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.empty(hidden, 2 * embedding_dim))
        self.out = nn.Parameter(torch.empty(1, hidden))
        for weight in (self.hidden, self.out):  # as nn.Linear starts
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)

    def forward(self, pairs: Tensor) -> Tensor:
        """(P, 2 d) -> logits (P, 1)"""
        return F.linear(torch.relu(F.linear(pairs, self.hidden)), self.out)


class StateActionPolicy(DQNPolicy):
    """DQN's policy with that Q network, and beside it the discriminator of pairs.

    The discriminator is a part of the policy and not of the Q network: it is saved, moved, clipped and optimised with
    it, and the target network has no copy. SB3's own DQN takes this policy too and leaves the discriminator alone.

    Args:
        net_arch: layers of h after the features extractor (default: one of 64, none after NatureCNN).
        optimizer_kwargs: of the optimiser; Adam's default is the fused form, which saves a tenth of an update.
        embedding_dim: dimensions of f(s, a).
        discriminator_dim: hidden units of the discriminator.
    """

    q_net: StateActionQNetwork  # pyright: ignore[reportIncompatibleVariableOverride]
    q_net_target: StateActionQNetwork  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        embedding_dim: int = 64,
        discriminator_dim: int = 32,
    ) -> None:
        self.embedding_dim, self.discriminator_dim = embedding_dim, discriminator_dim
        if net_arch is None:
            net_arch = [] if features_extractor_class is NatureCNN else [64]
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = {"fused": True}
        super().__init__(
            observation_space, action_space, lr_schedule, net_arch, activation_fn, features_extractor_class,
            features_extractor_kwargs, normalize_images, optimizer_class, optimizer_kwargs,
        )  # fmt: skip

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.discriminator = Discriminator(self.embedding_dim, self.discriminator_dim)
        learnt = [*self.q_net.parameters(), *self.discriminator.parameters()]
        options: dict[str, Any] = {"lr": lr_schedule(1), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(learnt, **options)

    def make_q_net(self) -> StateActionQNetwork:
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return StateActionQNetwork(**net_args, embedding_dim=self.embedding_dim).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"embedding_dim": self.embedding_dim, "discriminator_dim": self.discriminator_dim}
        return super()._get_constructor_parameters() | own


class StateActionCnnPolicy(StateActionPolicy):
    """The same for images, on NatureCNN."""

    def __init__(self, *args: Any, features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN, **kwargs: Any):
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)
