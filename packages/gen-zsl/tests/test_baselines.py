"""f-CLSWGAN and ridge prototypes: their formulas in other words, and that they learn."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from sklearn.kernel_ridge import KernelRidge

from gen_core.harness.errors import UsageError
from gen_zsl import FCLSWGAN, RidgePrototypes
from gen_zsl.data import load
from gen_zsl.generative import fit_softmax
from gen_zsl.networks import linear
from gen_zsl.protocols import gzsl

CPU = {"accelerator": "cpu", "progress": False}
CONFIG = {
    "hidden": 64, "noise": 4, "batch_size": 32, "epochs": 40, "learning_rate": 2e-3, "w_cls": 1.0, "syn_num": 8,
    "softmax_epochs": 200,
    "final_batch": 32, "final_rate": 5e-3, "final_epochs": 30, "zsl_epochs": 20,
}  # fmt: skip


def run_of(model, data):
    return SimpleNamespace(model=model, data=data, seed=0, curves={})


# --- the softmax


def test_the_softmax_is_logistic_regression():
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 4) + 2 * F.one_hot(y, 4)
    layer = linear(4, 3)
    fit_softmax(layer, x, y, epochs=400, batch_size=90, learning_rate=0.05)
    p = layer(x).softmax(1) - F.one_hot(y, 3)
    assert (p.T @ x / 90).abs().max() < 1e-2  # the gradient is gone: the optimum of a convex problem
    assert (layer(x).argmax(1) == y).float().mean() > 0.8


def test_the_softmax_starts_anew_and_leaves_no_gradient():
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    found = []
    for start in (0.0, 100.0):
        layer = linear(3, 2).requires_grad_(False)
        layer.weight.fill_(start)
        torch.manual_seed(0)
        fit_softmax(layer, x, y, epochs=2, batch_size=8)
        found.append(layer.weight.clone())
        assert layer.weight.grad is None and not layer.weight.requires_grad
    assert torch.equal(*found)


# --- f-CLSWGAN


def test_f_clswgan_learns(small):
    model = FCLSWGAN(FCLSWGAN.Config(**CONFIG)).fit(small, **CPU)
    test = small.test_seen
    guess = small.seen[model.known(model.scaled(small.features[test])).argmax(1)]
    assert (guess == small.labels[test]).float().mean() > 0.4  # the frozen softmax; chance: 0.07
    found = gzsl(run_of(model, small))
    assert found["S"] > 50 and found["T1"] > 40  # chance: 5 and 20
    fake = model.fake(model.attributes[model.seen].repeat_interleave(8, 0))
    right = model.known(fake).argmax(1) == torch.arange(len(model.seen)).repeat_interleave(8)
    assert right.float().mean() > 0.4  # chance: 0.07
    torch.testing.assert_close(model.embed(small), model.scaled(small.features))


def test_f_clswgans_generator_step(small):
    model = FCLSWGAN(FCLSWGAN.Config(**CONFIG | {"critic_steps": 1}))
    model.prepare(model.measure(small), 0)
    model.training_data = small
    model.on_fit_start()
    before = model.known.weight.clone()
    losses, logged = [], {}
    model.optimizers, model.log_dict = (lambda: (None, None)), logged.update
    model.descend = lambda optimizer, loss: losses.append(loss)
    torch.manual_seed(1)
    model.training_step((model.x, model.y), 0)
    torch.manual_seed(1)
    rows = torch.randperm(len(model.x))[:32]
    torch.randn(32, 4), torch.rand(32)
    a, y = model.attributes[model.seen][model.y[rows]], model.y[rows]
    fake = model.generator(torch.randn(32, 4), a)
    expected = -model.critic(fake, a).mean() + 1.0 * F.nll_loss(model.known(fake).log_softmax(1), y)
    torch.testing.assert_close(losses[1], expected)
    assert torch.equal(before, model.known.weight) and not model.known.weight.requires_grad
    assert set(logged) == {"loss", "distance", "class"}


# --- ridge


@pytest.mark.parametrize("strength", [0.1, 3.0])
def test_ridge_equals_scikit_learns_kernel_ridge(small, strength):
    model = RidgePrototypes(RidgePrototypes.Config(strengths=(strength,))).fit(small)
    rows = small.trainval
    means = torch.stack([small.features[rows][small.labels[rows] == kind].double().mean(0) for kind in small.seen])
    attributes = F.normalize(small.attributes.double())
    other = KernelRidge(alpha=strength, kernel="linear").fit(attributes[small.seen], means - means.mean(0))
    expected = torch.from_numpy(other.predict(attributes)).float()
    torch.testing.assert_close(model.prototypes, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.mean, means.mean(0).float())
    cosine = F.cosine_similarity(small.features[7] - model.mean, expected[3], dim=0)
    torch.testing.assert_close(model.scores(small.features[7:8])[0, 3], cosine, rtol=1e-4, atol=1e-5)


def test_ridge_chooses_on_validation_classes_alone(small):
    wide = RidgePrototypes(RidgePrototypes.Config(strengths=(1e-3, 0.1, 1e3)))
    chosen = wide.fit(small).strength
    spoilt = small.features.clone()
    spoilt[torch.cat([small.test_seen, small.test_unseen])] = 0
    assert wide.fit(dataclasses.replace(small, features=spoilt)).strength == chosen


def test_ridge_on_disk(small, tmp_path):
    model = RidgePrototypes().fit(small, out=tmp_path)
    loaded = RidgePrototypes.load(tmp_path)
    assert torch.equal(loaded.scores(small.features), model.scores(small.features))
    assert loaded.predict(small)["class"] == model.predict(small)["class"]
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match=r"model\.safetensors is missing or damaged"):
        RidgePrototypes.load(tmp_path)


def test_ridge_on_cifar100(gen_data):
    """Known for such prototypes on all 1,280 features: T1 about 35, H at most 12.7."""
    data = load("cifar100-zsl")
    found = gzsl(run_of(RidgePrototypes().fit(data), data))
    assert 30 < found["T1"] < 37 and 40 < found["S"] < 50 and 5 < found["H"] < 12.8
