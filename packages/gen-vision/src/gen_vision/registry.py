"""What gen-vision announces: methods by dotted name and data sets in one line each. Imports nothing heavy."""

from gen_core.harness.registry import Dataset, Domain

_MNIST = (
    "Fetch it once with torchvision: torchvision.datasets.MNIST(root='$GEN_DATA/mnist', download=True), "
    "or place the four uncompressed IDX files in mnist/MNIST/raw."
)
_CIFAR10 = (
    "Fetch it once with torchvision: torchvision.datasets.CIFAR10(root='$GEN_DATA/cifar10', download=True), "
    "or place the python version's files in cifar10/cifar-10-batches-py."
)

DOMAIN = Domain(
    name="vision",
    package="gen_vision",
    summary="Generative, contrastive and self-supervised learning of images",
    methods={
        "simclr": "gen_vision.methods.contrastive.simclr:SimCLR",
        "vae": "gen_vision.methods.vae.vae:VAE",
        "beta-vae": "gen_vision.methods.vae.beta_vae:BetaVAE",
        "iwae": "gen_vision.methods.vae.iwae:IWAE",
        "cr-vae": "gen_vision.methods.vae.cr_vae:CRVAE",
        "hierarchical-vae": "gen_vision.methods.vae.hierarchical:HierarchicalVAE",
        "point-vae": "gen_vision.methods.vae.point_vae:PointVAE",
        "ncp-vae": "gen_vision.methods.vae.ncp_vae:NCPVAE",
        "gaussian-mixture-prior": "gen_vision.methods.baselines.gaussian_mixture_prior:GaussianMixturePrior",
        "two-stage-vae": "gen_vision.methods.baselines.two_stage_vae:TwoStageVAE",
        "raw-pixels": "gen_vision.methods.baselines.raw:RawPixels",
        "supervised": "gen_vision.methods.baselines.supervised:Supervised",
    },
    datasets={
        "digits": Dataset("scikit-learn's digits: 1,352 + 445 grey images of 8 x 8, 10 classes", embedded=True),
        "mnist": Dataset("MNIST: 60,000 + 10,000 grey images of 28 x 28, 10 classes", path="mnist", how=_MNIST),
        "mnist-10k": Dataset("MNIST, the first 10,000 training and all test images", path="mnist", how=_MNIST),
        "mnist-binary": Dataset(
            "MNIST, 50,000 training and all test images, each pixel drawn once as a bit", path="mnist", how=_MNIST
        ),
        "cifar10": Dataset("CIFAR-10: 50,000 + 10,000 RGB images of 32 x 32, 10 classes", path="cifar10", how=_CIFAR10),
        "cifar10-4k": Dataset("CIFAR-10, the first 4,000 training, 2,000 test images", path="cifar10", how=_CIFAR10),
        "shapes-3d": Dataset(
            "generated surfaces: 1,600 + 400 clouds of 256 points in space, 8 classes of bodies", embedded=True
        ),
    },
    demo="simclr/digits",
    verbs=("embed", "sample", "reconstruct"),
    protocol_default="knn",
    engines=("torchvision", "kornia"),
)


def main() -> None:
    """The command `gen-vision`."""
    from gen_core.harness.cli import run

    run(DOMAIN)
