"""The options of the verbs, one dataclass each: tyro makes flags and help from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gen_core.harness.errors import UsageError

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]


@dataclass(kw_only=True)
class Engine:
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute"""
    devices: int = 1
    """how many of them; more than one trains by data-parallel processes"""
    threads: int | None = None
    """threads a process (default: torch's own choice)"""
    precision: Precision = "32-true"
    """number format, by Lightning's name; gen-rl has 32-true alone"""

    def apply(self) -> None:
        """Set the threads; refuse devices that are not there."""
        if self.devices < 1:
            raise UsageError(f"--devices {self.devices}: must be at least 1")
        if self.threads is not None:
            if self.threads < 1:
                raise UsageError(f"--threads {self.threads}: must be at least 1")
            import torch

            torch.set_num_threads(self.threads)
        if self.device in ("cuda", "mps"):
            import torch

            backend = torch.cuda if self.device == "cuda" else torch.backends.mps
            if not backend.is_available():
                raise UsageError(f"--device {self.device}: there is none on this machine; allowed here: auto, cpu")
            if self.device == "cuda" and self.devices > torch.cuda.device_count():
                raise UsageError(f"--devices {self.devices}: this machine has {torch.cuda.device_count()}")


@dataclass(kw_only=True)
class List:
    """Methods, recipes and data sets of this domain."""

    json: bool = False
    """print one JSON object"""
    check: bool = False
    """validate every recipe without running it"""


@dataclass(kw_only=True)
class Train(Engine):
    """Train a method: `train METHOD[/RECIPE]`, or go on with a stopped run: `train --resume RUN`."""

    target: Positional[str] = ""
    """method, or method/recipe"""
    data: str | None = None
    """a registered data set or the path of your own data (default: the recipe's)"""
    seed: int = 0
    """of initialisation, order and noise"""
    out: Path | None = None
    """the run's folder (default: runs/METHOD-DATA-sSEED)"""
    config: Path | None = None
    """a TOML file of the method's fields, over the recipe's and below the flags"""
    logger: Literal["tensorboard", "csv", "mlflow", "wandb"] = "tensorboard"
    """where curves go beside metrics.jsonl; gen-rl has the first two"""
    resume: Path | None = None
    """a run folder to go on with"""


@dataclass(kw_only=True)
class Evaluate(Engine):
    """Evaluate a trained run again, by its own or another protocol."""

    run: Positional[Path]
    """run folder"""
    protocol: str | None = None
    """another protocol of this domain"""


@dataclass(kw_only=True)
class Reproduce:
    """Run a recipe's method and its baselines on the same seeds and splits, and say whether the claim holds."""

    target: Positional[str] = ""
    """method, or method/recipe (default: the method's first recipe, which needs no network)"""
    seeds: int | None = None
    """how many seeds (default: the recipe's)"""
    out: Path = Path("runs/reproduce")
    """folder for DOMAIN/METHOD/RECIPE.json and its cells"""
    json: Path | None = None
    """also write the record there"""
    jobs: int = 1
    """cells at a time"""
    shard: str | None = None
    """i/n: only the i-th share of the cells; give all shards one --out"""
    threads: int | None = None
    """threads a cell (default: 1)"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """where to compute"""
    precision: Precision = "32-true"
    """number format of the training, by Lightning's name; gen-rl has 32-true alone"""
    config: Path | None = None
    """a TOML file of the method's fields, over the recipe's and below the flags"""
    check: Path | None = None
    """run one seed of this record again and compare"""


@dataclass(kw_only=True)
class Embed(Engine):
    """Write the representation of data by a trained run: ids and vectors in one npz."""

    run: Positional[Path]
    """run folder"""
    data: str | None = None
    """a registered data set or your own data (default: the run's)"""
    out: Path = Path("embeddings.npz")
    """arrays `ids` (n,) and `vectors` (n, d)"""


@dataclass(kw_only=True)
class Sample(Engine):
    """New data from a trained run, as a picture or an array."""

    run: Positional[Path]
    """run folder"""
    n: Annotated[int, arg(aliases=["-n"])] = 64
    """how many"""
    seed: int = 0
    """of the draws"""
    out: Path = Path("samples.png")
    """a picture (png, jpg), or npz: array `samples` (n, ...)"""


@dataclass(kw_only=True)
class Reconstruct(Engine):
    """Data beside what a trained run makes of its code, as a picture or an array."""

    run: Positional[Path]
    """run folder"""
    data: str | None = None
    """a registered data set or your own data (default: the run's; of these the test part where there is one)"""
    n: Annotated[int, arg(aliases=["-n"])] = 32
    """how many, from the first on"""
    out: Path = Path("reconstructions.png")
    """a picture (png, jpg), or npz: arrays `ids` (n,), `originals` and `reconstructions` (n, ...)"""


@dataclass(kw_only=True)
class Recommend(Engine):
    """The items that a trained run ranks first for a user."""

    run: Positional[Path]
    """run folder"""
    user: str
    """the user's id in the data"""
    k: Annotated[int, arg(aliases=["-k"])] = 10
    """how many"""
    exclude_seen: bool = False
    """leave out what the user already has"""
    data: str | None = None
    """other data with that user's history, on the same items (default: the run's)"""
    json: bool = False
    """print one JSON object"""


@dataclass(kw_only=True)
class Predict(Engine):
    """The class that a trained run gives to each row of the data."""

    run: Positional[Path]
    """run folder"""
    data: str | None = None
    """a registered data set or your own data (default: the run's)"""
    out: Path | None = None
    """csv to write (default: the first rows are printed)"""


@dataclass(kw_only=True)
class Data:
    """Registered data sets: `data list`, or make one ready: `data prepare NAME`."""

    action: Positional[Literal["list", "prepare"]] = "list"
    name: Positional[str] = ""
    """data set"""


@dataclass(kw_only=True)
class Compare:
    """Runs side by side: the settings that differ, their metrics, their loss curves."""

    runs: Positional[tuple[Path, ...]]
    """run folders"""
    out: Path | None = None
    """also draw the loss curves into this png"""


@dataclass(kw_only=True)
class Demo:
    """One method of each installed domain against its own baseline: a table, then a page to look at."""

    out: Path = Path("runs/demo")
    """folder of the page"""
    seeds: int | None = None
    """seeds a method (default: each recipe's)"""
    jobs: int = 2
    """cells at a time"""


@dataclass(kw_only=True)
class Bounds:
    """Each method under each bound of mutual information that it takes: a matrix without a verdict."""

    out: Path = Path("runs/bounds")
    """folder of the runs; what is finished there is not run again"""
    json: Path | None = None
    """file of the matrix (default: bounds.json in that folder)"""
    jobs: int = 2
    """cells at a time"""


@dataclass(kw_only=True)
class ListAll:
    """The installed domains with their methods, recipes and data sets."""

    json: bool = False
    """print one JSON object"""
    check: bool = False
    """validate every recipe without running it"""
