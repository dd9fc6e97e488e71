"""Point clouds in memory: generated shapes and the user's own, float32 (n, p, 3), the third axis up.

Every cloud is centred on the mean of its points and scaled so that its farthest point has distance 1.
"""

import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gen_core.harness.errors import UsageError

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]


@dataclass(frozen=True, eq=False)
class Clouds:
    """A set of point clouds with, where they are known, labels, class names, names of the rows and a test part."""

    points: Tensor
    """float32, (n, p, 3)."""
    labels: Tensor | None = None
    """int64, (n,), class indices."""
    classes: tuple[str, ...] = ()
    """Class names by index."""
    ids: tuple[str, ...] | None = None
    """One name a row."""
    test: "Clouds | None" = None

    def __post_init__(self) -> None:
        shape = tuple(self.points.shape)
        if self.points.dtype != torch.float32 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"points must be a non-empty float32 (n, p, 3), got {self.points.dtype} {shape}")
        check_rows("clouds", len(self), self.labels, self.classes, self.ids)
        if self.test is not None and self.test.points.shape[1:] != self.points.shape[1:]:
            raise ValueError(f"test clouds must have the shape {shape[1:]}, got {tuple(self.test.points.shape[1:])}")

    def __len__(self) -> int:
        return self.points.shape[0]

    def take(self, rows: Tensor | slice) -> "Clouds":
        """The clouds of these rows, without a test part."""
        index = torch.arange(len(self))[rows]
        names = None if self.ids is None else tuple(self.ids[row] for row in index.tolist())
        return Clouds(self.points[rows], None if self.labels is None else self.labels[rows], self.classes, names)

    @property
    def images(self) -> NoReturn:
        """What methods and protocols of images ask for."""
        raise UsageError(_NO_IMAGES)


_NO_IMAGES = "data: point clouds, where images are needed; methods of clouds: point-vae, and cr-vae over it"


class Sizes(dict[str, int]):
    """Sizes of clouds, {"points": p, "classes": k}: a method that asks for the sizes of images is told so."""

    def __missing__(self, key: str) -> NoReturn:
        raise UsageError(_NO_IMAGES)


def check_rows(
    what: str, rows: int, labels: Tensor | None, classes: tuple[str, ...], ids: tuple[str, ...] | None
) -> None:
    """Refuse labels, class names and names of rows that do not belong to so many rows.

    Raises:
        ValueError: labels that are no int64 (rows,), that are negative or have no class name; too few or many ids.
    """
    if labels is not None and (labels.dtype != torch.int64 or labels.shape != (rows,)):
        raise ValueError(f"labels must be int64 ({rows},), got {labels.dtype} {tuple(labels.shape)}")
    if labels is not None and (low := int(labels.min())) < 0:
        raise ValueError(f"labels must be class indices from 0 on, got {low}")
    if labels is not None and classes and (top := int(labels.max())) >= len(classes):
        raise ValueError(f"labels must be below the number of classes {len(classes)}, got {top}")
    if ids is not None and len(ids) != rows:
        raise ValueError(f"ids must have one name for each of {rows} {what}, got {len(ids)}")


def from_npz(path: str | os.PathLike[str]) -> Clouds:
    """The user's clouds: arrays `points` (n, p, 3), in any unit, and where they are known `labels` (n,) from 0 on.

    Raises:
        UsageError: no such file, no .npz, an array that is missing or does not fit, a cloud of one place only.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("points", "labels") if name in file.files}
            names = file.files
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: not a readable .npz file ({error})") from error
    if "points" not in found:
        raise UsageError(f"{path}: has no array `points`; found {', '.join(names) or 'none'}")
    points, labels = found["points"], found.get("labels")
    if points.dtype.kind not in "fiu" or points.ndim != 3 or points.shape[2] != 3 or 0 in points.shape:
        raise UsageError(f"{path}: points must be numbers (n, p, 3), got {points.dtype} {points.shape}")
    if not np.isfinite(points).all():
        raise UsageError(f"{path}: points must be finite, got NaN or infinite coordinates")
    if labels is not None and labels.dtype.kind not in "iu":
        raise UsageError(f"{path}: labels must be integers ({len(points)},), got {labels.dtype} {labels.shape}")
    flat = np.ptp(points, axis=1).max(1) == 0
    if flat.any():
        raise UsageError(f"{path}: cloud {int(flat.argmax())} has all its points in one place")
    target = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    try:
        return Clouds(_tensor(points.astype(np.float64)), target)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _tensor(points: Array) -> Tensor:
    """Clouds centred and scaled, float32; multiples of 2^-16, so that no processor's sine shows in the checksum."""
    points = points - points.mean(1, keepdims=True)
    points = points / np.sqrt((points**2).sum(2)).max(1)[:, None, None]
    return torch.from_numpy((np.rint(points * 2**16) / 2**16).astype(np.float32))


# ------------------------------------------------------------------------------------------------ generated shapes


def shapes() -> Clouds:
    """Surfaces of eight kinds of bodies, 200 training and 50 test clouds a kind, 256 points each; one fixed set.

    Proportions are random, points are uniform on the surface, the body stands upright and is turned about the vertical
    axis by a random angle.
    """
    train, test = (_sampled(np.random.default_rng(seed), count) for seed, count in ((0, 200), (1, 50)))
    return replace(train, test=test)


def _sampled(generator: np.random.Generator, count: int, points: int = 256) -> Clouds:
    found: list[Array] = []
    for draw in _BODIES.values():
        for _ in range(count):
            body = draw(generator, points)
            angle = generator.uniform(0, 2 * math.pi)
            cos, sin = math.cos(angle), math.sin(angle)
            found.append(body @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]))
    labels = torch.arange(len(_BODIES)).repeat_interleave(count)
    return Clouds(_tensor(np.stack(found)), labels, tuple(_BODIES))


def _ellipsoid(generator: np.random.Generator, n: int) -> Array:
    """Semi-axes within 0.5 and 1."""
    axes = generator.uniform(0.5, 1, 3)
    rows = generator.normal(size=(16 * n, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    stretch = np.linalg.norm(rows / axes, axis=1)  # of the area, up to a factor
    return (rows * axes)[_kept(generator, stretch, n)]


def _torus(generator: np.random.Generator, n: int) -> Array:
    """Radius 1 about the vertical axis, of the tube 0.2 to 0.45."""
    tube = generator.uniform(0.2, 0.45)
    about, around = generator.uniform(0, 2 * math.pi, (2, 16 * n))
    out = 1 + tube * np.cos(around)
    chosen = _kept(generator, out, n)
    rows = np.stack([out * np.cos(about), out * np.sin(about), tube * np.sin(around)], 1)
    return rows[chosen]


def _kept(generator: np.random.Generator, weight: Array, n: int) -> NDArray[np.intp]:
    """The first n candidates that are accepted, each with a probability in proportion to its weight."""
    return np.flatnonzero(generator.uniform(0, weight.max(), len(weight)) < weight)[:n]


def _round(generator: np.random.Generator, n: int, taper: float) -> Array:
    """A cylinder (taper 0) or a cone (taper 1), ends included: radius 1, height 1 to 3."""
    height = generator.uniform(1, 3)
    slant = math.hypot(height, taper)
    areas = np.array([math.pi * (2 - taper) * slant, math.pi, math.pi * (1 - taper)])
    side, bottom, _ = generator.multinomial(n, areas / areas.sum())
    angle, share = generator.uniform(0, 2 * math.pi, n), generator.uniform(0, 1, n)
    along = 1 - np.sqrt(share) if taper else share  # up the side; what is left of the radius thins a cone out
    radius: Array = np.where(np.arange(n) < side, 1 - taper * along, np.sqrt(share))
    level: Array = np.where(np.arange(n) < side, height * along, np.where(np.arange(n) < side + bottom, 0, height))
    rows: Array = np.stack([radius * np.cos(angle), radius * np.sin(angle), level], 1)
    return rows


def _cylinder(generator: np.random.Generator, n: int) -> Array:
    return _round(generator, n, 0.0)


def _cone(generator: np.random.Generator, n: int) -> Array:
    return _round(generator, n, 1.0)


def _cuboid(generator: np.random.Generator, n: int) -> Array:
    """Sides within 0.5 and 1."""
    sides = generator.uniform(0.5, 1, 3)
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
    return _faces(generator, corners * sides, [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], n)


def _prism(generator: np.random.Generator, n: int) -> Array:
    """On a regular triangle of radius 1, height 1 to 2.5."""
    base = _polygon(3)
    corners = np.concatenate([base, base + [0, 0, generator.uniform(1, 2.5)]])
    sides = [t for a, b in ((0, 1), (1, 2), (2, 0)) for t in ((a, b, b + 3), (a, b + 3, a + 3))]
    return _faces(generator, corners, [(0, 1, 2), (3, 4, 5), *sides], n)


def _pyramid(generator: np.random.Generator, n: int) -> Array:
    """On a square of radius 1, height 0.8 to 2."""
    corners = np.concatenate([_polygon(4), [[0, 0, generator.uniform(0.8, 2)]]])
    return _faces(generator, corners, [(0, 1, 2), (0, 2, 3), *((a, (a + 1) % 4, 4) for a in range(4))], n)


def _tetrahedron(generator: np.random.Generator, n: int) -> Array:
    """On a regular triangle of radius 1, height 0.8 to 2."""
    corners = np.concatenate([_polygon(3), [[0, 0, generator.uniform(0.8, 2)]]])
    return _faces(generator, corners, [(0, 1, 2), (0, 1, 3), (1, 2, 3), (2, 0, 3)], n)


def _polygon(count: int) -> Array:
    angle = np.arange(count) * 2 * math.pi / count
    return np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], 1)


def _faces(generator: np.random.Generator, corners: Array, triangles: list[tuple[int, int, int]], n: int) -> Array:
    """Points that are uniform on the triangles (Osada et al. 2002)."""
    a, b, c = (corners[[t[k] for t in triangles]] for k in range(3))
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = generator.choice(len(triangles), n, p=areas / areas.sum())
    u, v = np.sqrt(generator.uniform(0, 1, (n, 1))), generator.uniform(0, 1, (n, 1))
    return (1 - u) * a[chosen] + u * (1 - v) * b[chosen] + u * v * c[chosen]


_BODIES: dict[str, Draw] = {
    "ellipsoid": _ellipsoid,
    "cuboid": _cuboid,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "pyramid": _pyramid,
    "prism": _prism,
    "tetrahedron": _tetrahedron,
}


# ---------------------------------------------------------------------------------------- transformation, pictures


class CloudAugment(nn.Module):
    """Clouds (b, p, 3) turned, scaled and shaken; each draws its own numbers, from torch's global generator.

    A rotation about the vertical axis by any angle (the shapes stand upright, and no angle is privileged), a factor
    from U(0.8, 1.25) for all three axes, and for each coordinate noise from N(0, 0.02^2) cut off at 0.05.
    """

    def forward(self, clouds: Tensor) -> Tensor:
        angle = torch.rand(len(clouds), device=clouds.device, dtype=clouds.dtype) * 2 * math.pi
        factor = 0.8 + 0.45 * torch.rand_like(angle)
        cos, sin, zero = factor * angle.cos(), factor * angle.sin(), torch.zeros_like(angle)
        turn = torch.stack([cos, sin, zero, -sin, cos, zero, zero, zero, factor], 1).view(-1, 3, 3)
        return clouds @ turn + (0.02 * torch.randn_like(clouds)).clamp(-0.05, 0.05)


def spread(clouds: Tensor, count: int = 4) -> Tensor:
    """Clouds at even distances from the first to the last, which in a set ordered by class are of several classes."""
    return clouds[torch.linspace(0, len(clouds) - 1, min(count, len(clouds))).long()]


def plotted(clouds: Tensor, side: int = 160) -> Tensor:
    """Clouds (n, p, 3) as pictures (n, 3, side, side) in [0, 1], points seen from above at a slant; by matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found: list[Tensor] = []
    for points in clouds.detach().cpu().numpy():
        figure = Figure(figsize=(side / 100, side / 100), dpi=100)
        canvas = FigureCanvasAgg(figure)
        axes: Any = figure.add_axes((0, 0, 1, 1), projection="3d")
        axes.scatter(*points.T, s=2, c=points[:, 2], cmap="viridis", linewidths=0)
        axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8), box_aspect=(1, 1, 1))
        axes.view_init(25, 35)
        axes.set_axis_off()
        canvas.draw()
        found.append(torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3].copy()))
    return torch.stack(found).permute(0, 3, 1, 2) / 255
