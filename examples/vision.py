"""NT-Xent in a loop of your own: digits, two noisy shifted views, and what the representation is worth.

python examples/vision.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from gen_core.evaluation.probe import few_label
from gen_core.losses import nt_xent


def view(x: torch.Tensor) -> torch.Tensor:
    """A random affine map of each image, and noise."""
    angle = 0.5 * (torch.rand(len(x)) - 0.5)
    scale = 0.8 + 0.4 * torch.rand(len(x))
    shift = 0.4 * (torch.rand(len(x), 2) - 0.5)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
    maps = torch.cat([scale[:, None, None] * rotation, shift[:, :, None]], 2)
    grid = nn.functional.affine_grid(maps, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False) + 0.1 * torch.randn_like(x)


def main(epochs: int = 30) -> tuple[float, float]:
    """Few-label accuracy in percent, two labels a class: of the pixels, and of what was learnt from no label."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
    train, test = slice(0, 1200), slice(1200, None)

    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip
    head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1200).split(200):
            batch = x[train][rows]
            loss = nt_xent(head(encoder(view(batch))), head(encoder(view(batch))), temperature=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    encoder.eval()
    with torch.no_grad():
        z = encoder(x)
    raw = few_label(x[train].flatten(1), y[train], x[test].flatten(1), y[test], per_class=2, seed=0)
    learnt = few_label(z[train], y[train], z[test], y[test], per_class=2, seed=0)
    print(f"few-label accuracy, 2 labels a class: pixels {raw:.1f} %, learnt {learnt:.1f} %")
    return raw, learnt


if __name__ == "__main__":
    main()
