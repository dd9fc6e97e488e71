"""CE-GZSL: its losses against naive forms, where gradients go, its schedule, degenerate batches, learning."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn

from gen_core.estimators import BOUNDS, Match
from gen_core.losses import sup_con
from gen_zsl import CEGZSL, RidgePrototypes
from gen_zsl.networks import Comparator, Critic, Generator, Projection
from gen_zsl.protocols import gzsl

CPU = {"accelerator": "cpu", "progress": False}
TINY = {
    "hidden": 16, "noise": 4, "embedding": 8, "projection": 5, "comparator": 7, "batch_size": 32,
    "learning_rate": 1e-3, "epochs": 2, "syn_num": 8, "final_epochs": 2, "zsl_epochs": 2, "final_batch": 32,
}  # fmt: skip


def ready(data, cls=CEGZSL, seed=0, **config):
    """A model at its start with its training part and optimisers, and a plain `descend`."""
    model = cls(
        cls.Config(**{name: value for name, value in {**TINY, **config}.items() if name in cls.Config.model_fields})
    )
    model.prepare(model.measure(data), seed)
    model.training_data, model.logged = data, {}
    model.on_fit_start()
    made = model.configure_optimizers()
    model.optimizers = lambda: made[0] if isinstance(made, tuple) else made
    model.log_dict = model.logged.update
    model._trainer = SimpleNamespace(world_size=1, strategy=None)
    model.manual_backward = lambda loss, **given: loss.backward(**given)
    return model


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(module, before):
    return any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- the losses


def wave(labels):
    z = torch.sin(0.37 * torch.arange(32, dtype=torch.float64).view(8, 4))
    return F.normalize(z), torch.tensor(labels)


@pytest.mark.parametrize(
    ("labels", "tau", "value"),
    [
        ([0, 0, 1, 1, 2, 2, 3, 3], 0.1, 4.906438287),
        ([0, 0, 1, 1, 2, 2, 3, 3], 0.5, 1.703715305),
        ([0, 0, 1, 1, 1, 2, 3, 4], 0.1, 7.723986106),
        ([0, 0, 1, 1, 1, 2, 3, 4], 0.5, 2.282405383),
        (list(range(8)), 0.1, 0.0),
    ],
)
def test_instance_loss_worked(small, labels, tau, value):
    model = ready(small, tau_ins=tau).double()
    model.projection = nn.Identity()
    z, y = wave(labels)
    z.requires_grad_()
    loss = model.instance(z, y)
    assert loss.item() == pytest.approx(value, abs=2e-9)
    assert sup_con(z, y, tau, normalize=False) == loss
    (grad,) = torch.autograd.grad(loss, z)
    assert grad.isfinite().all() and bool(grad.any()) == (value > 0)


def naive(comparator, h, a):
    pairs = torch.cat([h.repeat_interleave(len(a), 0), a.repeat(len(h), 1)], 1)
    return comparator.last(F.leaky_relu(comparator.first(pairs), 0.2)).view(len(h), len(a))


@pytest.mark.parametrize("tile", [1, 50, 2**17])
def test_the_split_comparator_equals_the_naive_one(monkeypatch, tile):
    monkeypatch.setattr("gen_zsl.networks.TILE", tile)
    torch.manual_seed(0)
    comparator = Comparator(5, 3, 9).double()
    for weight in comparator.parameters():
        nn.init.normal_(weight)
    h, a = torch.randn(7, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    h.requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    losses, gradients = [], []
    for form in (comparator(h, a), naive(comparator, h, a)):
        losses.append(F.cross_entropy(form / 0.1, y))
        gradients.append(torch.autograd.grad(losses[-1], [h, *comparator.parameters()]))
    torch.testing.assert_close(comparator(h, a), naive(comparator, h, a), rtol=0, atol=1e-12)
    torch.testing.assert_close(*losses, rtol=0, atol=1e-10)
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    single = Comparator(5, 3, 9)
    single.load_state_dict(comparator.state_dict())
    torch.testing.assert_close(single(h.float(), a.float()), naive(single, h.float(), a.float()), rtol=0, atol=1e-5)


def test_the_comparator_passes_gradcheck_twice():
    torch.manual_seed(1)
    comparator = Comparator(3, 2, 4).double()
    nn.init.normal_(comparator.first.weight)
    h, a = torch.randn(3, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(comparator, (h.requires_grad_(), a.requires_grad_()))
    assert torch.autograd.gradgradcheck(comparator, (h, a))


def test_class_loss_is_cross_entropy_over_the_seen(small):
    model = ready(small, tau_cls=0.3).double()
    model.seen_attributes = model.seen_attributes.double()
    h, y = torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 14, 3, 3, 7, 1])
    scores = naive(model.comparator, h, model.seen_attributes) / 0.3
    expected = -(scores.gather(1, y[:, None])[:, 0] - scores.logsumexp(1)).mean()
    torch.testing.assert_close(model.classes(h, y), expected, rtol=0, atol=1e-10)
    assert torch.equal(model.seen, small.seen)
    assert torch.equal(model.seen_attributes.float(), small.attributes[small.seen])


@pytest.mark.parametrize("bound", ["infonce", "dv", "nwj", "tuba", "jsd", "smile", "interpolated", "nce"])
def test_other_bounds_on_the_instances(small, bound):
    model = ready(small, bound=bound, tau_ins=0.5)
    h, y = torch.randn(9, 8), torch.tensor([0, 0, 1, 1, 2, 2, 2, 5, 6])
    z = model.projection(h)
    expected = -BOUNDS[bound](z @ z.T / 0.5, Match(y, skip=0))
    torch.testing.assert_close(model.instance(h, y), expected, rtol=1e-4, atol=1e-5)
    for lonely in (torch.arange(9), torch.zeros(9, dtype=torch.long)):  # no positive; no negative
        assert model.instance(h, lonely).item() == 0
    sizes = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in model.optimizers()]
    paper = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in ready(small).optimizers()]
    assert sizes == [paper[0] + 2, paper[1]]  # the scale and the offset are learnt with the critic's side


def test_networks_are_the_papers():
    g, d, h = Generator(3, 2, 6, 4), Critic(4, 2, 6), Projection(5, 3)
    x = g(torch.randn(8, 3), torch.randn(8, 2))
    assert x.shape == (8, 4) and bool((x >= 0).all())
    assert d(x, torch.randn(8, 2)).shape == (8,)
    torch.testing.assert_close(h(torch.randn(8, 5)).norm(dim=1), torch.ones(8))
    big = Generator(100, 100, 500, 300).net
    assert [type(layer).__name__ for layer in big] == ["Linear", "LeakyReLU", "Linear", "ReLU"]
    assert big[1].negative_slope == 0.2
    assert big[0].weight.std().item() == pytest.approx(0.02, rel=0.05) and not big[0].bias.any()


def test_defaults_are_the_papers_for_awa2():
    c = CEGZSL.Config()
    assert (c.hidden, c.embedding, c.projection, c.comparator, c.batch_size) == (4096, 2048, 512, 2048, 4096)
    assert (c.w_ins, c.w_cls, c.tau_ins, c.tau_cls, c.learning_rate) == (1e-3, 1e-3, 0.1, 0.1, 1e-4)
    assert (c.critic_steps, c.penalty, c.syn_num, c.decay, c.decay_every) == (5, 10.0, 2400, 0.99, 10)


# --- one iteration


def test_gradients_stay_on_their_side(small):
    model = ready(small)
    critic_side = [model.critic, model.embedding, model.projection, model.comparator]
    steps = []
    real = model.descend

    def descend(optimizer, loss):
        before = {id(part): weights(part) for part in [*critic_side, model.generator]}
        grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        real(optimizer, loss)
        changed = [
            name
            for name, p in model.named_parameters()
            if p.grad is not None and (grads[name] is None or not torch.equal(p.grad, grads[name]))
        ]
        sides = {name.partition(".")[0] for name in changed}
        steps.append((sides, [moved(part, before[id(part)]) for part in [*critic_side, model.generator]]))

    model.descend = descend
    model.training_step((model.x, model.y), 0)
    assert len(steps) == 6
    for sides, changed in steps[:5]:
        assert sides == {"critic", "embedding", "projection", "comparator"} and changed == [True] * 4 + [False]
    assert steps[5] == ({"generator"}, [False] * 4 + [True])
    assert set(model.logged) == {"loss", "distance", "instance", "class"}


def critic_losses(model):
    """The loss of each critic step and of the generator step, without any step being done."""
    found = []
    model.descend = lambda optimizer, loss: found.append(loss)
    torch.manual_seed(5)
    model.training_step((model.x, model.y), 0)
    return found


def test_adversarial_and_contrastive_gradients_do_not_mix_in_the_critic_step(small):
    full, bare = ready(small), ready(small, w_ins=0, w_cls=0)
    of_full, of_bare = (torch.autograd.grad(critic_losses(m)[0], list(m.critic.parameters())) for m in (full, bare))
    for one, other in zip(of_full, of_bare, strict=True):  # D sees no contrast
        torch.testing.assert_close(one, other)
    loss = critic_losses(full)[0]
    h = full.embedding(full.x[(torch.manual_seed(5), torch.randperm(len(full.x))[:32])[1]])
    y = full.y[(torch.manual_seed(5), torch.randperm(len(full.x))[:32])[1]]
    found = torch.autograd.grad(loss, list(full.embedding.parameters()))
    expected = torch.autograd.grad(full.instance(h, y) + full.classes(h, y), list(full.embedding.parameters()))
    for one, other in zip(found, expected, strict=True):  # E sees no adversary, and both terms with weight 1
        torch.testing.assert_close(one, other)


def test_the_generator_step_in_its_own_words(small):
    """The last batch, fresh noise, 2B anchors of which the real ones are constants."""
    model = ready(small, w_ins=0.5, w_cls=0.25)
    loss = critic_losses(model)[5]
    torch.manual_seed(5)
    for _ in range(5):
        rows = torch.randperm(len(model.x))[:32]
        torch.randn(32, 4)
        torch.rand(32)
    x, y, a = model.x[rows], model.y[rows], model.attributes[model.seen][model.y[rows]]
    fake = model.generator(torch.randn(32, 4), a)
    z_fake, z_real = (model.projection(model.embedding(part)) for part in (fake, x))
    instance = sup_con(torch.cat([z_fake, z_real.detach()]), y.repeat(2), 0.1)
    scores = naive(model.comparator, model.embedding(fake), model.seen_attributes) / 0.1
    expected = -model.critic(fake, a).mean() + 0.5 * instance + 0.25 * F.cross_entropy(scores, y)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, list(model.generator.parameters()))
    for one, other in zip(found, torch.autograd.grad(expected, list(model.generator.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", ["w_ins", "w_cls"])
def test_the_generators_gradient_depends_on_each_weight(small, weight):
    grads = []
    for value in (0.1, 1.0):
        model = ready(small, **{weight: value})
        grads.append(torch.autograd.grad(critic_losses(model)[5], list(model.generator.parameters()))[0])
    assert (grads[0] - grads[1]).abs().max() > 1e-8


@pytest.mark.parametrize(("weight", "part"), [("w_ins", "projection"), ("w_cls", "comparator")])
def test_a_weight_of_zero_takes_the_term_out(small, weight, part):
    model = ready(small, **{weight: 0})
    before = weights(getattr(model, part))
    model.training_step((model.x, model.y), 0)
    assert not moved(getattr(model, part), before)


def test_batches_of_any_size(small):
    for size in (1, 7, len(small.trainval), 10_000):
        model = ready(small, batch_size=size)
        x, a, y = model.draw(model.x, model.y)
        assert len(x) == len(a) == len(y) == min(size, len(small.trainval))
        model.training_step((model.x, model.y), 0)
        assert all(value.isfinite().all() for value in model.state_dict().values())
    rows = torch.cat([model.x[:, :1], torch.arange(len(model.x))[:, None]], 1)
    model.config = model.config.model_copy(update={"batch_size": 50})
    drawn = [model.draw(rows, model.y)[0][:, 1].tolist() for _ in range(2)]
    assert all(len(set(part)) == 50 for part in drawn) and set(drawn[0]) & set(drawn[1])  # anew, without replacement


def test_an_epoch_and_the_decay(small):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append((trainer.current_epoch, [o.param_groups[0]["lr"] for o in pl_module.optimizers()]))

    config = CEGZSL.Config(**{**TINY, "epochs": 5, "decay_every": 2, "decay": 0.5})
    CEGZSL(config).fit(small, callbacks=[Watch()], **CPU)
    steps = -(-len(small.trainval) // 32)
    assert [sum(epoch == e for epoch, _ in seen) for e in range(5)] == [steps] * 5
    for epoch, rates in seen:
        assert rates == [1e-3 * 0.5 ** (epoch // 2)] * 2


def test_scaling_knows_the_training_rows_only(small):
    model = ready(small)
    assert model.x.min() == 0 and model.x.max() == 1
    shifted = dataclasses.replace(small, features=small.features.clone())
    shifted.features[small.test_seen] *= 100
    other = ready(shifted)
    assert torch.equal(other.low, model.low) and torch.equal(other.span, model.span)
    assert model.scaled(shifted.features[small.test_seen]).max() > 1


# --- learning


LEARN = {
    "hidden": 64, "noise": 4, "embedding": 32, "projection": 16, "comparator": 32, "batch_size": 32, "epochs": 60,
    "learning_rate": 2e-3, "w_ins": 0.02, "w_cls": 0.02, "syn_num": 8, "final_batch": 32, "final_rate": 5e-3,
    "final_epochs": 40, "zsl_epochs": 20,
}  # fmt: skip


def test_it_learns_unseen_classes_from_their_attributes(small):
    run = SimpleNamespace(model=CEGZSL(CEGZSL.Config(**LEARN)).fit(small, **CPU), data=small, seed=0, curves={})
    found = gzsl(run)
    assert found["S"] > 50 and found["T1"] > 60  # chance: 5 and 20
    run.model = RidgePrototypes().fit(small)
    assert found["H"] > gzsl(run)["H"] > 0


def test_own_networks_take_the_place_of_ours(small):
    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(12, 8)

        def forward(self, x):
            return self.net(x).tanh()

    net = Embed()
    model = CEGZSL(CEGZSL.Config(**TINY), embedding=net).fit(small, **CPU)
    assert model.embedding is net
    assert model.embed(small).shape == (len(small.features), 8)
    assert model.embed(small).abs().max() <= 1
    torch.testing.assert_close(model.embed(small), net(model.scaled(small.features)).detach())


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("bound", ["paper", "jsd"])
def test_other_precisions_learn_too(small, precision, bound):
    config = CEGZSL.Config(**TINY | {"epochs": 30, "final_epochs": 60, "final_rate": 5e-3, "bound": bound})
    model = CEGZSL(config).fit(small, precision=precision, **CPU)
    found = model.scores(small.features)
    assert found.dtype == torch.float32 and bool(found.isfinite().all())
    assert gzsl(SimpleNamespace(model=model, data=small, seed=0, curves={}))["S"] > 30  # chance: 5
