"""What pythae's own VAE, trainer and likelihood give on the bits and with the settings of our `vae/mnist-binary`.

python benchmarks/vae_anchor.py [--json FILE]      needs pythae and GEN_DATA; twice 500 epochs take about 90 minutes

784-400-40 perceptrons, Adam at 1e-4, batches of 100, 200 importance samples of each test image: the network and the
settings of the script with which pythae publishes 89.78 nats. Once with a constant learning rate, as our recipe has it,
and once with the two decays of the script. Not as there: the bits are ours, and the last model is judged, not that of
the best epoch on a validation set.
"""

import argparse
import importlib.metadata
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from vision import BATCH, pythae_vae

from gen_vision import data

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "decayed": {
        "scheduler_cls": "MultiStepLR",
        "scheduler_params": {"milestones": [200, 350], "gamma": 10 ** (-1 / 5)},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from pythae.data.datasets import BaseDataset, DatasetOutput  # pyright: ignore
    from pythae.trainers import BaseTrainer, BaseTrainerConfig  # pyright: ignore
    from pythae.trainers.base_trainer import base_trainer  # pyright: ignore

    class Rows(BaseDataset):
        """Its data set, but a batch is one index operation: half of its time goes into stacking single images."""

        def __getitems__(self, indices: list[int]) -> Any:
            chosen = torch.tensor(indices)
            return DatasetOutput(data=self.data[chosen], labels=self.labels[chosen])

    def whole(batch: Any) -> Any:
        return batch

    base_trainer.collate_dataset_output = whole
    torch.set_num_threads(1)
    found = data.load("mnist-binary")
    assert isinstance(found, data.Images) and found.test is not None
    images, test = (data.unit(part.images, torch.float32) for part in (found, found.test))

    def nll(schedule: dict[str, Any]) -> float:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                num_epochs=options.epochs,
                learning_rate=1e-4,
                no_cuda=True,
                **schedule,
            )
            trainer = BaseTrainer(pythae_vae(), Rows(images, torch.zeros(len(images))), training_config=settings)
            trainer.train()
        model: Any = trainer.model.eval()
        with torch.no_grad():
            # Its name says NLL, its sign is that of log p(x).
            return -float(model.get_nll(test, n_samples=200))

    result: dict[str, Any] = {
        "pythae": importlib.metadata.version("pythae"),
        "torch": torch.__version__,
        "epochs": options.epochs,
        "nll": {},
        "seconds": {},
    }
    for name, schedule in SCHEDULES.items():
        start = time.perf_counter()
        result["nll"][name] = nll(schedule)
        result["seconds"][name] = time.perf_counter() - start
    print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
