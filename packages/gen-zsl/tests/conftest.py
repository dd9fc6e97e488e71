"""Small data and helpers that several test files use."""

import numpy as np
import pytest
import torch

from gen_zsl.data import ZeroShot


@pytest.fixture(scope="session")
def small():
    """20 classes, 15 seen and 5 unseen; 12 features are a linear map of 6 attributes, and noise. 12 rows a class."""
    return clusters()


def clusters(seed=0, rows=12):
    draw = torch.Generator().manual_seed(seed)
    attributes = torch.randn(20, 6, generator=draw)
    labels = torch.arange(20).repeat_interleave(rows)
    centres = (attributes @ torch.randn(6, 12, generator=draw)).relu()
    features = (centres[labels] + 0.5 * torch.randn(len(labels), 12, generator=draw)).relu()
    unseen, test = labels % 4 == 3, torch.arange(len(labels)) % rows >= rows - rows // 3
    val = labels % 4 == 0
    return ZeroShot(
        features=features,
        labels=labels,
        attributes=attributes,
        classes=tuple(f"kind {number}" for number in range(20)),
        trainval=(~unseen & ~test).nonzero()[:, 0],
        test_seen=(~unseen & test).nonzero()[:, 0],
        test_unseen=unseen.nonzero()[:, 0],
        train=(~unseen & ~test & ~val).nonzero()[:, 0],
        val=(~unseen & ~test & val).nonzero()[:, 0],
        ids=tuple(f"row {number}" for number in range(len(labels))),
    )


@pytest.fixture
def mat():
    """The variables of the two files of a small xlsa17 folder: 60 images of 8 features, 6 classes, 4 attributes."""
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 6
    x, place = draw.random((60, 8)), np.arange(60) // 6
    unseen = labels >= 4

    def cell(texts):
        found = np.empty((len(texts), 1), dtype=object)
        found[:, 0] = texts
        return found

    def loc(mask):
        return (mask.nonzero()[0] + 1)[:, None].astype("uint16")

    images = {
        "features": x.T,
        "labels": (labels + 1)[:, None].astype("uint8"),
        "image_files": cell([f"i{n}" for n in range(60)]),
    }
    splits = {
        "att": draw.random((4, 6)) + 0.1,
        "allclasses_names": cell(["antelope", "grizzly+bear", "killer+whale", "beaver", "dalmatian", "ox"]),
        "trainval_loc": loc(~unseen & (place < 7)),
        "test_seen_loc": loc(~unseen & (place >= 7)),
        "test_unseen_loc": loc(unseen),
        "train_loc": loc((labels < 3) & (place < 8)),  # one row a class is in test_seen, as in the official files
        "val_loc": loc((labels == 3) & (place < 8)),
    }
    return images, splits
