"""RCRLDQN as a subclass of SB3's DQN: equal to it without the loss, and the loss itself."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from gen_core.estimators import BOUNDS
from gen_core.harness.errors import UsageError
from gen_core.losses import pair_mse
from gen_rl.sb3 import RCRLDQN, StateActionCnnPolicy, StateActionPolicy


def parameters(agent):
    return {name: value.clone() for name, value in agent.policy.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("envs", [1, 3])
def test_without_the_loss_it_is_sb3s_dqn_bit_for_bit(agent_of, envs):
    """300 steps, 250 updates and several target copies; own train() loop against SB3's, buffer against buffer."""
    found = []
    for cls, policy in ((DQN, StateActionPolicy), (RCRLDQN, "MlpPolicy")):
        options = {"aux_coef": 0.0} if cls is RCRLDQN else {}
        env = make_vec_env("CartPole-v1", envs)
        agent = agent_of(env, policy, cls, target_update_interval=60, gradient_steps=-1, **options)
        agent.learn(300)
        assert agent._n_updates >= 240
        found.append((parameters(agent), np.random.random(), torch.rand(1), agent.action_space.sample()))
    assert same(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_the_loss_leaves_the_hosts_random_numbers_alone(agent_of):
    after = []
    for coefficient in (0.0, 0.5):
        agent = agent_of(aux_coef=coefficient)
        agent.learn(150)
        after.append((np.random.random(), torch.rand(1).item()))
    assert after[0] == after[1]


def test_the_loss_changes_embedding_and_discriminator(agent_of):
    ends = {}
    for coefficient in (0.0, 0.5):
        agent = agent_of(aux_coef=coefficient)
        start = parameters(agent)
        agent.learn(150)
        ends[coefficient] = parameters(agent)
        moved = {name for name in start if not torch.equal(start[name], ends[coefficient][name])}
        assert ("discriminator.hidden" in moved) == ("discriminator.out" in moved) == bool(coefficient)
    assert not torch.equal(ends[0.0]["q_net.q_net.0.weight"], ends[0.5]["q_net.q_net.0.weight"])


@pytest.fixture
def logits():
    """The worked pairs: logits sin(0.37 i) of the same, cos(0.53 i) of different."""
    i = torch.arange(6, dtype=torch.float64)
    return (0.37 * i).sin(), (0.53 * i).cos()


def test_worked_values(logits):
    same, different = logits
    assert pair_mse(same.sigmoid(), different.sigmoid()).item() == pytest.approx(0.675119, abs=1e-6)
    assert pair_mse(different.sigmoid(), same.sigmoid()).item() != pytest.approx(0.675119, abs=1e-3)
    swapped = (1 - same.sigmoid()).square().mean() + different.sigmoid().square().mean()
    assert swapped.item() == pytest.approx(0.441451, abs=1e-6)


@pytest.mark.parametrize(("bound", "expected"), [("paper", 0.675119), ("nce", 1.760869)])
def test_pair_loss_gives_the_worked_values(agent_of, logits, bound, expected):
    """With a discriminator that hands on what it is given, through the agent's own arrangement of the pairs."""
    agent = agent_of(bound=bound)
    same, different = (value.float() for value in logits)

    def fixed(pairs):
        """Anchor i has (i, .); its positive (10 + i, .); its negative is the next anchor."""
        assert pairs[:6].tolist() == [[i, i, 10 + i, 10 + i] for i in range(6)]
        assert pairs[6:].tolist() == [[i, i, (i + 1) % 6, (i + 1) % 6] for i in range(6)]
        return torch.cat([same, different])[:, None]

    agent.policy.discriminator.forward = fixed
    embedded = torch.cat([torch.arange(6.0), 10 + torch.arange(6.0)])[:, None].repeat(1, 2)
    assert agent.pair_loss(embedded).item() == pytest.approx(expected, abs=1e-5)


def test_pair_loss_is_the_core_loss_with_its_gradient_through_both_arguments(agent_of):
    """Against a plain float64 derivation, with one row that has no partner."""
    agent = agent_of(policy_kwargs={"embedding_dim": 5, "discriminator_dim": 7})
    w = agent.policy.discriminator
    embedded = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    anchors = np.array([0, 2, 3, 0])
    loss = agent.pair_loss(embedded, anchors)
    found = torch.autograd.grad(loss, [embedded, w.hidden, w.out])
    f, hidden, out = (value.detach().double().requires_grad_() for value in (embedded, w.hidden, w.out))

    def probability(x, y):
        return torch.sigmoid((torch.cat([x, y]) @ hidden.T).clamp(min=0) @ out[0])

    same = torch.stack([probability(f[anchors[k]], f[4 + k]) for k in range(4)])
    different = torch.stack([probability(f[k], f[(k + 1) % 4]) for k in range(4)])
    expected = pair_mse(same, different)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for ours, theirs in zip(found, torch.autograd.grad(expected, [f, hidden, out]), strict=True):
        torch.testing.assert_close(ours, theirs.float())
    assert (found[0].abs().sum(1) > 0)[[0, 1, 2, 3, 4, 5, 6, 7]].all()


def test_the_joint_gradient_is_the_sum(agent_of):
    """One update with aux_coef c moves by the gradient of td + c * aux, under the clip."""
    agent = agent_of(aux_coef=0.7, policy_kwargs={"optimizer_class": torch.optim.SGD}, max_grad_norm=0.5)
    agent.learn(51)  # a first update, so that logger and buffer are there
    start = parameters(agent)
    state, pairs = np.random.get_state(), agent.replay_buffer.generator.bit_generator.state
    batch = agent.replay_buffer.sample(32)
    values, aux = agent._values(batch)
    loss = torch.nn.functional.smooth_l1_loss(values, agent._target(batch)) + 0.7 * aux
    learnt = dict(agent.policy.named_parameters())
    names = [name for name in learnt if "target" not in name]
    gradients = torch.autograd.grad(loss, [learnt[name] for name in names])
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
    assert norm > 0.5
    np.random.set_state(state)
    agent.replay_buffer.generator.bit_generator.state = pairs
    agent.train(1, 32)
    rate = agent.lr_schedule(agent._current_progress_remaining)
    for name, gradient in zip(names, gradients, strict=True):
        step = rate * gradient * 0.5 / norm
        torch.testing.assert_close(start[name] - step, learnt[name].detach())


def test_q_of_one_action_agrees_with_q_of_all(agent_of):
    q_net = agent_of("Acrobot-v1").policy.q_net
    obs, actions = torch.randn(7, 6), torch.arange(7) % 3
    embedded = q_net.embed(obs, actions)
    assert embedded.shape == (7, 64)
    expected = torch.relu(q_net.q_net(obs) + q_net.action.weight[actions])
    torch.testing.assert_close(embedded, expected)
    torch.testing.assert_close(q_net.head(embedded), q_net(obs).gather(1, actions[:, None]))
    assert torch.equal(embedded, q_net.embed(obs, actions[:, None].float()))


def test_the_target_network_has_no_discriminator_and_the_optimiser_has(agent_of):
    policy = agent_of().policy
    found = [name for name in policy.state_dict() if "discriminator" in name]
    assert found == ["discriminator.hidden", "discriminator.out"]
    held = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    wanted = {id(parameter) for parameter in [*policy.q_net.parameters(), *policy.discriminator.parameters()]}
    assert held == wanted
    assert len(policy.optimizer.param_groups) == 1


def test_double_q_takes_the_online_networks_choice(agent_of):
    agent = agent_of(double_q=True)
    agent.learn(120)
    batch = agent.replay_buffer.sample(64)
    with torch.no_grad():
        online, target = agent.q_net(batch.next_observations), agent.q_net_target(batch.next_observations)
    chosen = torch.tensor([target[i, int(online[i].argmax())] for i in range(64)])[:, None]
    expected = batch.rewards + (1 - batch.dones) * agent.gamma * chosen
    torch.testing.assert_close(agent._target(batch), expected)
    agent.double_q = False
    assert (agent._target(batch) >= expected - 1e-6).all()


@pytest.mark.parametrize("bound", [name for name in BOUNDS if name not in ("infonce", "interpolated")])
def test_every_bound_trains(agent_of, bound):
    agent = agent_of(bound=bound)
    agent.learn(80)
    assert math.isfinite(agent.logger.name_to_value["train/aux_loss"])


@pytest.mark.parametrize("positives", ["shuffled", "return"])
def test_every_kind_of_positives_trains(agent_of, positives):
    agent = agent_of(positives=positives)
    agent.learn(200)
    loss = agent.logger.name_to_value["train/aux_loss"]
    assert 0.2 < loss < 0.8


def test_save_and_load(agent_of, tmp_path):
    agent = agent_of(aux_coef=0.3, positives="shuffled", bound="jsd", double_q=True)
    agent.learn(120)
    agent.save(tmp_path / "agent")
    again = RCRLDQN.load(tmp_path / "agent", env=gymnasium.make("CartPole-v1"), device="cpu")
    assert same(parameters(agent), parameters(again))
    for name in ("aux_coef", "positives", "threshold", "bound", "double_q"):
        assert getattr(again, name) == getattr(agent, name)
    obs = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    assert (agent.predict(obs, deterministic=True)[0] == again.predict(obs, deterministic=True)[0]).all()
    before = agent.policy.optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(before, again.policy.optimizer.state_dict()["state"][0]["exp_avg"])
    again.learn(60)  # and it goes on learning
    assert not same(parameters(agent), parameters(again))


def test_the_replay_buffer_goes_through_sb3s_own_file(agent_of, tmp_path):
    agent = agent_of()
    agent.learn(60)
    agent.save_replay_buffer(tmp_path / "buffer")
    again = agent_of()
    again.load_replay_buffer(tmp_path / "buffer")
    assert (again.replay_buffer.lo == agent.replay_buffer.lo).all()
    again.learn(60)


def test_callbacks_and_normalised_vector_environments(agent_of):
    class Count(BaseCallback):
        calls = 0

        def _on_step(self):
            self.calls += 1
            return self.calls < 80

    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    agent, count = agent_of(env), Count()
    agent.learn(1000, callback=count)
    assert (count.calls, agent.num_timesteps) == (80, 160)
    assert set(np.unique(agent.replay_buffer.rewards[:70])) == {1.0}  # segments come from rewards as they are
    agent.replay_buffer.sample(16, env=env)
    pairs = agent.replay_buffer.sample_pairs(env=env)
    raw = agent.replay_buffer.sample_pairs()
    assert not torch.allclose(pairs.observations[:16], raw.observations[:16])


def test_images(agent_of):
    class Frames(gymnasium.Env):
        observation_space = spaces.Box(0, 255, (36, 40, 3), np.uint8)
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 1.0, False, False, {}

    agent = agent_of(Frames(), "CnnPolicy", learning_starts=10, threshold=4.0, buffer_size=40)
    assert isinstance(agent.policy, StateActionCnnPolicy)
    start = agent.policy.q_net.features_extractor.cnn[0].weight.clone()
    agent.learn(14)
    assert not torch.equal(start, agent.policy.q_net.features_extractor.cnn[0].weight)


class Spaces(gymnasium.Env):
    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action


BOX, TWO = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (Spaces(BOX, spaces.Box(-1, 1, (1,))), {}, "action space Box.*allowed: Discrete"),
        (Spaces(BOX, spaces.Discrete(2, start=1)), {}, "action space.*counted from 0"),
        (Spaces(spaces.Dict(a=BOX), TWO), {}, "observation space Dict.*allowed: Box"),
        (Spaces(BOX, TWO), {"aux_coef": -1}, "aux_coef = -1"),
        (Spaces(BOX, TWO), {"aux_coef": float("nan")}, "aux_coef = nan"),
        (Spaces(BOX, TWO), {"threshold": 0}, "threshold = 0"),
        (Spaces(BOX, TWO), {"positives": "segment"}, "positives 'segment'; nearest: segments"),
        (Spaces(BOX, TWO), {"bound": "infonce"}, "bound 'infonce'"),
        (Spaces(BOX, TWO), {"n_steps": 3}, "n_steps = 3"),
    ],
)
def test_what_is_refused(agent_of, env, options, message):
    with pytest.raises(UsageError, match=message):
        agent_of(env, **options)


def test_foreign_policies_and_buffers_are_refused(agent_of):
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.dqn.policies import DQNPolicy

    with pytest.raises(UsageError, match="policy = DQNPolicy"):
        agent_of(policy=DQNPolicy)
    with pytest.raises(UsageError, match="replay_buffer_class = ReplayBuffer"):
        agent_of(replay_buffer_class=ReplayBuffer)


def test_an_embedding_that_cannot_learn_is_refused(agent_of):
    from gen_rl.networks import StateActionQNetwork

    class Raw(StateActionQNetwork):
        def embed(self, obs, action):
            return self.extract_features(obs, self.features_extractor)  # SB3's Flatten: no parameters

    class RawPolicy(StateActionPolicy):
        def make_q_net(self):
            return Raw(**self._update_features_extractor(self.net_args, features_extractor=None), embedding_dim=4)

    with pytest.raises(UsageError, match="no trainable parameter"):
        agent_of(policy=RawPolicy)
    agent_of(policy=RawPolicy, aux_coef=0.0)


def test_rewards_that_leave_no_pairs_are_refused_by_name(agent_of):
    """CartPole's reward is never 0: without a threshold each step is a segment of its own."""
    with pytest.raises(UsageError, match="threshold = None: 100 updates met no two transitions"):
        agent_of(threshold=None).learn(300)
