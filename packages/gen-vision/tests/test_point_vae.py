"""Point clouds: the shapes, own .npz files, the networks of PointVAE, its terms, CR-VAE over it, refusals."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gen_core.harness.errors import Diverged, LabelsMissing, UsageError
from gen_core.harness.recipes import load as recipe
from gen_core.losses.geometry import chamfer
from gen_vision import CRVAE, NCPVAE, VAE, PointVAE, RawPixels, SimCLR, data, pictures, protocols
from gen_vision.clouds import CloudAugment, Clouds, plotted, shapes
from gen_vision.data import Images
from gen_vision.methods.vae.point_vae import Folding, SetEncoder, covariances, nearest, pooled
from gen_vision.registry import DOMAIN

CPU = {"accelerator": "cpu", "progress": False}
SIZES = {"points": 64, "classes": 8}


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def everything() -> Clouds:
    return shapes()


@pytest.fixture(scope="module")
def small(everything: Clouds) -> Clouds:
    """A sixteenth of the set, 64 points a cloud, as fast tests need."""
    assert everything.test is not None
    train, test = everything.take(slice(None, None, 16)), everything.test.take(slice(None, None, 10))
    cut = [Clouds(part.points[:, :64].contiguous(), part.labels, part.classes) for part in (train, test)]
    return Clouds(cut[0].points, cut[0].labels, cut[0].classes, test=cut[1])


def built(**config: object) -> PointVAE:
    model = PointVAE(PointVAE.Config(**({"hidden": 8, "latent": 4, "neighbours": 6} | config)))  # type: ignore[arg-type]
    model.prepare(SIZES, seed=1)
    return model


def silent(model: CRVAE) -> CRVAE:
    model.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    return model


# --- data


def test_shapes(everything: Clouds) -> None:
    again = data.load("shapes-3d")
    assert isinstance(again, Clouds) and again.test is not None and again.labels is not None
    assert (len(again), len(again.test)) == (1600, 400)
    assert data.checksum(again) == data.checksum(everything) != data.checksum(again.test)
    spec = data.spec(again)
    assert spec == {"points": 256, "classes": 8} and data.pixels(again) is again.points
    assert again.labels.bincount().tolist() == [200] * 8 and data.ids(again)[:2] == ["0", "1"]
    assert again.points.mean(1).abs().max() < 1e-4
    torch.testing.assert_close(again.points.norm(dim=2).max(1).values, torch.ones(1600), atol=1e-4, rtol=0)
    both = torch.cat([again.points, again.test.points]).flatten(1)
    assert len(both.unique(dim=0)) == 2000
    train, test = data.split(again)
    assert train is again and test is again.test
    bare = Clouds(again.points, again.labels)
    train, test = data.split(bare)
    assert (len(train), len(test)) == (1280, 320)
    picture = plotted(again.points[:2], side=40)
    assert picture.shape == (2, 3, 40, 40) and picture.min() < 0.8 and picture.max() == 1


def test_points_lie_on_their_surfaces(everything: Clouds) -> None:
    """Sections across the vertical axis, which the turn about it leaves: the bodies stand upright."""
    labels, names = everything.labels, everything.classes
    assert labels is not None
    for points in everything.points[labels == names.index("cylinder")][:20].double():
        low, high = points[:, 2].aminmax()
        ends = ((points[:, 2] - low) < 1e-4) | ((high - points[:, 2]) < 1e-4)
        wall = points[~ends]
        assert 20 < ends.sum() < 200
        design = torch.cat([2 * wall[:, :2], torch.ones(len(wall), 1).double()], 1)  # |x - c|^2 = r^2 is linear in c
        square = wall[:, :2].square().sum(1)
        solved = torch.linalg.lstsq(design, square[:, None]).solution
        assert (design @ solved - square[:, None]).abs().max() < 1e-3
    for points in everything.points[labels == names.index("torus")][:20].double():
        radius, level = points[:, :2].norm(dim=1), points[:, 2]
        assert radius.min() > 0.2 and 0.1 < level.abs().max() < 0.4
    for points in everything.points[labels == names.index("prism")][:20]:
        assert ((points[:, 2].max() - points[:, 2]) < 1e-4).sum() > 5  # both ends are level
        assert ((points[:, 2] - points[:, 2].min()) < 1e-4).sum() > 5


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_own_clouds(tmp_path: Path) -> None:
    points = 30 + 5 * np.random.default_rng(0).normal(size=(7, 20, 3))
    found = data.load(save(tmp_path / "own.npz", points=points, labels=np.arange(7) % 2))
    assert isinstance(found, Clouds) and found.labels is not None
    assert data.spec(found) == {"points": 20, "classes": 2} and found.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    centred = points - points.mean(1, keepdims=True)
    wanted = centred / np.linalg.norm(centred, axis=2).max(1)[:, None, None]
    np.testing.assert_allclose(found.points.numpy(), wanted, atol=2e-5)
    bare = data.load(save(tmp_path / "bare.npz", points=points.astype(np.float16)))
    assert data.spec(bare)["classes"] == 0
    with pytest.raises(LabelsMissing, match="array `labels`"):
        data.split(bare)
    with pytest.raises(UsageError, match="no class has the 5 clouds"):
        data.split(found)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"cloud": np.ones((2, 3, 3))}, "has no array `points`; found cloud"),
        ({"points": np.ones((2, 3))}, r"points must be numbers \(n, p, 3\), got float64 \(2, 3\)"),
        ({"points": np.ones((2, 5, 2))}, r"points must be numbers \(n, p, 3\)"),
        ({"points": np.ones((0, 5, 3))}, r"points must be numbers \(n, p, 3\)"),
        ({"points": np.full((2, 5, 3), "a")}, r"points must be numbers \(n, p, 3\)"),
        ({"points": np.array([[None]])}, "not a readable .npz file"),
        ({"points": np.full((2, 5, 3), np.nan)}, "points must be finite"),
        ({"points": np.stack([np.eye(3), np.ones((3, 3))])}, "cloud 1 has all its points in one place"),
        ({"points": np.eye(3)[None], "labels": np.zeros(2, int)}, r"labels must be int64 \(1,\)"),
        ({"points": np.eye(3)[None], "labels": np.zeros(1)}, r"labels must be integers \(1,\), got float64"),
        ({"points": np.eye(3)[None], "labels": np.array([-1])}, "labels must be class indices from 0 on, got -1"),
    ],
)
def test_npz_errors(arrays: dict[str, np.ndarray], match: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        data.load(save(tmp_path / "own.npz", **arrays))
    assert "own.npz" in str(caught.value)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UsageError, match=r"x\.npz: not a readable \.npz file"):
        data.load(tmp_path / "x.npz")
    np.save(tmp_path / "y.npy", np.eye(3))
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")  # an array that calls itself an archive
    with pytest.raises(UsageError, match=r"y\.npz: not a readable \.npz file"):
        data.load(tmp_path / "y.npz")
    with pytest.raises(UsageError, match="no such folder"):
        data.load(tmp_path / "none.npz")


def test_bad_clouds() -> None:
    points = torch.zeros(2, 5, 3)
    for wrong in (points.double(), points[0], points[:, :, :2], points[:0]):
        with pytest.raises(ValueError, match="points must be a non-empty float32"):
            Clouds(wrong)
    with pytest.raises(ValueError, match="below the number of classes 1, got 1"):
        Clouds(points, torch.arange(2), ("a",))
    with pytest.raises(ValueError, match="one name for each of 2 clouds, got 1"):
        Clouds(points, ids=("a",))
    with pytest.raises(ValueError, match="test clouds must have the shape"):
        Clouds(points, test=Clouds(points[:, :4]))


# --- transformation


def test_augmentation_turns_scales_and_shakes() -> None:
    torch.manual_seed(0)
    clouds = torch.randn(400, 50, 3, generator=gen(1))
    changed = CloudAugment()(clouds)
    # the least-squares map of each cloud to its image: a turn about the third axis, times a factor
    found = torch.linalg.lstsq(clouds.double(), changed.double()).solution
    factor = found[:, 2, 2]
    assert (found[:, 2, :2].abs() < 0.03).all() and (found[:, :2, 2].abs() < 0.03).all()
    turn = found[:, :2, :2] / factor[:, None, None]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(2).double().expand(400, 2, 2), atol=0.06, rtol=0)
    assert 0.78 < factor.min() < 0.83 and 1.22 < factor.max() < 1.27
    angle = torch.atan2(turn[:, 0, 1], turn[:, 0, 0])
    assert angle.min() < -3 and angle.max() > 3 and abs(angle.cos().mean()) < 0.15
    noise = changed - clouds @ found.float()
    assert 0.018 < noise.std() < 0.0205
    bare = CloudAugment()(torch.zeros(400, 50, 3))
    assert bare.abs().max() == torch.tensor(0.05) and bare.std(0).min() > 0.015


# --- networks


def test_nearest_and_covariances_against_brute_force() -> None:
    points = torch.randn(2, 12, 3, generator=gen(0), dtype=torch.float64)
    index = nearest(points, 5)
    found = covariances(points, index)
    for n, cloud in enumerate(points.numpy()):
        for i, here in enumerate(cloud):
            order = np.argsort(((cloud - here) ** 2).sum(1))[:5]
            assert set(index[n, i].tolist()) == set(order.tolist()) and i in order
            wanted = np.cov(cloud[order].T, bias=True)
            np.testing.assert_allclose(found[n, i].numpy(), wanted.reshape(-1), atol=1e-12)
    assert nearest(points, 50).shape == (2, 12, 12)


def test_pooling_against_a_gather() -> None:
    points = torch.randn(3, 10, 3, generator=gen(0))
    index = nearest(points, 4)
    features = torch.randn(3, 10, 6, generator=gen(1)).requires_grad_()
    wanted = torch.stack([features[n][index[n]].amax(1) for n in range(3)])
    found = pooled(features, index)
    assert torch.equal(found, wanted)
    weight = torch.randn(3, 10, 6, generator=gen(2))
    grads = [torch.autograd.grad((out * weight).sum(), features)[0] for out in (found, wanted)]
    torch.testing.assert_close(*grads)


def test_encoder_sees_a_set() -> None:
    encoder = SetEncoder(6, 8, 4).double()
    points = torch.randn(3, 40, 3, generator=gen(0), dtype=torch.float64)
    code = encoder(points)
    order = torch.randperm(40, generator=gen(1))
    torch.testing.assert_close(encoder(points[:, order]), code, atol=1e-10, rtol=0)
    alone = torch.cat([encoder(points[k : k + 1]) for k in range(3)])  # no cloud sees another
    torch.testing.assert_close(alone, code, atol=1e-10, rtol=0)
    moved = points.clone()
    moved[:, 0] += 0.5
    assert (encoder(moved) - code).abs().max() > 1e-6
    assert encoder(points[:, :3]).shape == (3, 8)  # fewer points than neighbours


def test_folding_by_hand() -> None:
    decoder = Folding(3, 5, 2)
    line = [-1.0, 0.0, 1.0]
    assert decoder.grid.tolist() == [[x, y] for x in line for y in line]
    z = torch.randn(2, 2, generator=gen(0))

    def folded(fold: nn.Module, code: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The perceptron of [code, place], with the first layer's two parts as one matrix."""
        first = torch.cat([fold.code.weight, fold.place.weight], 1)
        h = (first @ torch.cat([code, place]) + fold.code.bias).relu()
        return fold.rest(h)

    wanted = [[folded(decoder.second, c, folded(decoder.first, c, g)) for g in decoder.grid] for c in z]
    torch.testing.assert_close(decoder(z), torch.stack([torch.stack(rows) for rows in wanted]))


# --- the model


def test_terms_add_up() -> None:
    model, x = built(weight=7.0), torch.randn(5, 64, 3, generator=gen(0))
    found = model.infer(x)
    terms = model.terms(x, found)
    assert set(terms) == {"reconstruction", "kl"}
    mean, log_variance = (t.double() for t in model.posterior(x))
    kl = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1).mean()
    assert terms["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    square = (found.parameters.double()[:, :, None] - x.double()[:, None]).square().sum(3)
    energy = square.amin(2).mean(1) + square.amin(1).mean(1)
    assert terms["reconstruction"].item() == pytest.approx(7 * 64 * energy.mean().item(), rel=1e-5)
    logged: dict[str, torch.Tensor] = {}
    model.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign,assignment]
    assert model.total(terms).item() == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-6)
    assert logged["elbo"].item() == pytest.approx(-logged["loss"].item(), rel=1e-6)
    with pytest.raises(Diverged, match="reconstruction became NaN"):
        model.terms(x, found._replace(parameters=found.parameters * math.nan))


def test_sample_reconstruct_and_traverse(small: Clouds) -> None:
    model = built()
    drawn = model.sample(5, seed=3, batch_size=2)
    assert drawn.shape == (5, 64, 3) and torch.equal(drawn, model.sample(5, seed=3, batch_size=2))
    assert not torch.equal(drawn, model.sample(5, seed=4, batch_size=2))
    made = model.reconstruct(small)
    assert made.shape == small.points.shape
    torch.testing.assert_close(made, model.reconstruct(small.points, batch_size=7))
    torch.testing.assert_close(made, model.decoder(model(small.points)).detach())
    assert model.embed(small).shape == (100, 4)
    assert model.traverse(small.points[0], dims=3, steps=5).shape == (3, 5, 64, 3)
    other = PointVAE(PointVAE.Config(hidden=4, latent=2))
    other.prepare({"points": 50, "classes": 0})
    assert other.sample(1).shape == (1, 49, 3) and other.reconstruct(torch.randn(2, 50, 3)).shape == (2, 49, 3)


def test_there_is_no_likelihood(small: Clouds) -> None:
    model = built()
    with pytest.raises(UsageError, match="an energy and no likelihood"):
        model.log_weights(small.points[:2], 3)
    with pytest.raises(UsageError, match="an energy and no likelihood"):
        model.sample(2, mean=False)
    for protocol in (protocols.likelihood, protocols.consistency, protocols.generation):
        with pytest.raises(UsageError, match="is of images; for point clouds: clouds"):
            protocol(SimpleNamespace(model=model, data=small, seed=0, facts={}))


def test_own_networks_are_checked() -> None:
    PointVAE(PointVAE.Config(latent=4), encoder=SetEncoder(3, 4, 4)).prepare(SIZES)
    with pytest.raises(UsageError, match=r"encoder: must map .* gave .*\(2, 10\)"):
        PointVAE(PointVAE.Config(latent=4), encoder=SetEncoder(3, 4, 5)).prepare(SIZES)
    with pytest.raises(UsageError, match="decoder: must map"):
        PointVAE(PointVAE.Config(latent=4), decoder=Folding(7, 4, 4)).prepare(SIZES)


def test_it_learns_keeps_its_weights_and_is_evaluated(small: Clouds, tmp_path: Path) -> None:
    config = PointVAE.Config(latent=8, epochs=60, batch_size=20, learning_rate=3e-3, neighbours=8, weight=200)
    untrained = PointVAE(config)
    untrained.prepare(data.spec(small), seed=0)
    test = small.test
    assert test is not None
    model = PointVAE(config).fit(small, seed=0, out=tmp_path / "run", logger="none", **CPU)
    before, after = (float(chamfer(m.reconstruct(test), test.points)) for m in (untrained, model))
    fixed = small.points[:1].expand(len(test), -1, -1)  # one answer for all, as a collapsed code gives
    assert after < 0.3 * before  # measured 0.12
    assert after < 0.8 * float(chamfer(model.reconstruct(fixed), test.points))  # measured 0.64
    shown = model.pictures(small)
    assert set(shown) == {"samples", "reconstructions"} and all(picture.ndim == 3 for picture in shown.values())
    loaded = PointVAE.load(tmp_path / "run")
    assert torch.equal(loaded.embed(test), model.embed(test))
    run = SimpleNamespace(model=model, data=small, seed=0)
    metrics = protocols.clouds(run)
    assert set(metrics) == {"accuracy", "inconsistency", "chamfer"} and metrics == protocols.clouds(run)
    assert metrics["accuracy"] > 25 and metrics["chamfer"] == pytest.approx(after, rel=1e-6)
    protocols.figures(run, tmp_path)
    assert (tmp_path / "reconstructions.png").stat().st_size > 1000


# --- CR-VAE over it


def test_cr_of_the_identity_is_twice_the_base(small: Clouds) -> None:
    model = silent(CRVAE(CRVAE.Config(consistency=0.7), vae=built(), transform=nn.Identity()))
    model.prepare(data.spec(small))
    x = small.points[:6]
    assert torch.equal(model.changed(x), x)
    noise = torch.randn(6, 4, generator=gen(0))
    shared = lambda like: noise.repeat(len(like) // 6, 1)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", shared)
        base = torch.stack(list(model.base.terms(x, model.base.infer(x)).values())).sum()
        twice = model.objective(x, x)
    assert twice.item() == pytest.approx(2 * base.item(), rel=1e-6)
    logged: dict[str, torch.Tensor] = {}
    model.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign,assignment]
    model.objective(x, x)
    assert logged["inconsistency"].item() == 0
    model.objective(x, CloudAugment()(x))
    assert logged["inconsistency"].item() > 0
    assert logged["consistency"].item() == pytest.approx(0.7 * logged["inconsistency"].item(), rel=1e-6)


def test_cr_chooses_by_the_data(small: Clouds) -> None:
    model = CRVAE()
    model.prepare(data.spec(small))
    assert isinstance(model.vae, PointVAE) and isinstance(model.transform, CloudAugment)
    images = CRVAE()
    images.prepare({"channels": 1, "height": 8, "width": 8, "classes": 10})
    assert not isinstance(images.vae, PointVAE) and not isinstance(images.transform, CloudAugment)
    with pytest.raises(UsageError, match="rotation, flip: of images"):
        CRVAE(CRVAE.Config(rotation=90, flip=True)).prepare(data.spec(small))
    # the range is the likelihood's matter: clouds may leave [0, 1], images may not, and nothing may be NaN
    spread = CRVAE(vae=built(), transform=nn.Hardtanh(-3, 3))
    spread.prepare(data.spec(small))
    assert torch.equal(spread.changed(2 * small.points), 2 * small.points)
    spread.transform = nn.Threshold(2.0, math.nan)
    with pytest.raises(UsageError, match="gave values from nan"):
        spread.changed(small.points)
    images.transform = nn.Hardtanh(-3, 3)
    with pytest.raises(UsageError, match=r"transform: must stay in \[0, 1\], gave values from 0 to 2"):
        images.changed(torch.tensor([0.0, 2.0]).view(1, 1, 1, 2))


def test_cr_trains_and_makes_codes_more_alike(small: Clouds) -> None:
    found = {}
    for weight in (0.0, 3.0):
        config = PointVAE.Config(
            hidden=16, latent=8, epochs=30, batch_size=20, learning_rate=5e-3, neighbours=8, weight=200
        )
        base = PointVAE(config)
        model = CRVAE(CRVAE.Config(consistency=weight), vae=base).fit(small, seed=0, **CPU)
        found[weight] = protocols.clouds(SimpleNamespace(model=model, data=small, seed=0))["inconsistency"]
    assert found[3.0] < 0.7 * found[0.0]


def test_images_and_clouds_do_not_meet(small: Clouds) -> None:
    digits = data.load("digits")
    for method in (VAE, SimCLR):
        with pytest.raises(UsageError, match="point clouds, where images are needed"):
            method().fit(small, **CPU)
    with pytest.raises(UsageError, match="point clouds, where images are needed"):
        RawPixels().embed(small)
    with pytest.raises(UsageError, match="point clouds, where images are needed"):
        CRVAE(vae=VAE()).fit(small, **CPU)
    for model in (PointVAE(), CRVAE(vae=PointVAE())):
        with pytest.raises(UsageError, match=r"needs point clouds.*, got"):
            model.fit(digits, **CPU)
    model = built()
    for wrong in (digits, digits.images[:2], torch.zeros(2, 64, 2), torch.zeros(64, 3)):
        with pytest.raises(UsageError, match=r"needs point clouds.*, got"):
            model.reconstruct(wrong)
    flat = VAE()
    flat.prepare(data.spec(digits))
    with pytest.raises(UsageError, match=r"the model is of images .*, got shape \(100, 64, 3\)"):
        flat.embed(small)
    with pytest.raises(UsageError, match="protocol clouds: the data are images"):
        protocols.clouds(SimpleNamespace(model=flat, data=digits, seed=0))


def test_clouds_are_drawn_as_pictures(small: Clouds, tmp_path: Path) -> None:
    pictures.samples(small.points[:20], tmp_path / "samples.png")
    assert Image.open(tmp_path / "samples.png").size == (4 * 162 + 2, 4 * 162 + 2)  # 16 of them
    shown = np.asarray(Image.open(tmp_path / "samples.png").convert("L"))
    assert len(np.unique(shown)) > 10
    pictures.reconstructions(small.points[:2], small.points[2:4], tmp_path / "pairs.png")
    assert Image.open(tmp_path / "pairs.png").size == (2 * 162 + 2, 2 * 162 + 2)


def test_ncp_vae_refuses_a_base_of_clouds() -> None:
    images = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(UsageError, match=r"was trained on images of .* the data has \(1, 8, 8\)"):
        NCPVAE(vae=built()).prepare(data.spec(images))


def test_the_recipe() -> None:
    name, found = recipe(DOMAIN, "cr-vae/shapes-3d")
    assert name == "shapes-3d" and found.given["vae"].method == "point-vae" and not found.given["vae"].train
    assert found.baselines["vae-aug"].config == {"consistency": 0.0}
    assert found.baselines["point-vae"].config == found.given["vae"].config  # written twice
