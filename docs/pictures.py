"""Draw what VAEs make of digits and of point clouds, for docs/vision.md. Needs GEN_DATA; some ten minutes.

python docs/pictures.py

The VAE and the prior on it are seed 0 of the recipe `ncp-vae/mnist`, the point clouds seed 0 of `cr-vae/shapes-3d`.
"""

from pathlib import Path
from typing import Any

from gen_core.harness import recipes, report
from gen_vision import NCPVAE, VAE, PointVAE, data, pictures
from gen_vision.clouds import spread
from gen_vision.registry import DOMAIN

OUT = Path(__file__).parent / "figures" / "vision-vae"


def digits() -> None:
    """Reconstructions, a traversal, and samples of the base prior and of NCP-VAE."""
    arm = recipes.arms(DOMAIN, recipes.load(DOMAIN, "ncp-vae/mnist")[1])["ncp-vae"]
    images: Any = data.load("mnist")
    vae = VAE(VAE.Config(**arm.given["vae"].config)).fit(images, seed=0, accelerator="cpu")
    prior = NCPVAE(NCPVAE.Config(**arm.config), vae=vae).fit(images, seed=0, accelerator="cpu")
    few = images.test.images[:24]
    pictures.reconstructions(data.unit(few), vae.reconstruct(few), OUT / "reconstructions.png")
    for name, m in (("samples-base", 1), ("samples-ncp", 500)):
        pictures.samples(prior.sample(64, proposals=m), OUT / f"{name}.png")
    pictures.samples(data.unit(images.test.images[:64]), OUT / "digits.png")
    swept = vae.traverse(data.unit(images.test.images[0]), dims=6)
    report.picture(pictures.grid(swept.flatten(0, 1), swept.shape[1]), OUT / "traversal.png")


def shapes() -> None:
    """Point clouds above their reconstructions."""
    arm = recipes.arms(DOMAIN, recipes.load(DOMAIN, "cr-vae/shapes-3d")[1])["point-vae"]
    clouds: Any = data.load("shapes-3d")
    vae = PointVAE(PointVAE.Config(**arm.config)).fit(clouds, seed=0, accelerator="cpu")
    few = spread(clouds.test.points)
    pictures.reconstructions(few, vae.reconstruct(few), OUT / "clouds.png")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    digits()
    shapes()


if __name__ == "__main__":
    main()
