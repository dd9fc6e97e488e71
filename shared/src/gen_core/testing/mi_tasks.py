"""The 40 tasks of the benchmark of mutual-information estimators "Beyond Normal", in numpy.

Czyz, Grabowski, Vogt, Beerenwinkel and Marx, "Beyond Normal: On the Evaluation of Mutual Information Estimators",
NeurIPS 2023 (arXiv 2306.11078). Names are those of the benchmark's package, which needs jax; distributions and true
values are the same, the samples are not.

Most tasks are samples whose mutual information is known in closed form, sent through bijections of x and of y, which
leave it as it is.

    >>> task = TASKS["spiral-multinormal-sparse-3-3-2-2.0"]
    >>> x, y = task.sample(1000, seed=0)
    >>> x.shape, y.shape, round(task.mutual_information, 6)
    ((1000, 3), (1000, 3), 1.021651)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Sampler = Callable[[int, np.random.Generator], tuple[Array, Array]]
Map = Callable[[Array], Array]


@dataclass(frozen=True)
class Task:
    """A joint distribution of x and y whose mutual information is known.

    Args:
        name: as in `TASKS`.
        dim_x: columns of x.
        dim_y: columns of y.
        mutual_information: in nats.
        sampler: (n, generator) -> x (n, dim_x) and y (n, dim_y).
    """

    name: str
    dim_x: int
    dim_y: int
    mutual_information: float
    sampler: Sampler

    def sample(self, n: int, seed: int = 0) -> tuple[Array, Array]:
        """Draw n independent pairs: x (n, dim_x) and y (n, dim_y), float64; the same for the same n and seed.

        Raises:
            ValueError: n below 1.

        Examples:
            >>> x, y = TASKS["1v1-normal-0.75"].sample(20_000, seed=0)
            >>> f"{np.corrcoef(x[:, 0], y[:, 0])[0, 1]:.2f}"
            '0.75'
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return self.sampler(n, np.random.default_rng(seed))


# ------------------------------------------------------------------------------------------------- exact information


def normal_information(covariance: Array, dim_x: int) -> float:
    """-1/2 log( det S / (det S_x det S_y) ) of a normal distribution whose first `dim_x` coordinates are x.

    Examples:
        >>> f"{normal_information(np.array([[1.0, 0.75], [0.75, 1.0]]), 1):.6f}"
        '0.413339'
    """
    whole, x, y = (
        np.linalg.slogdet(c)[1] for c in (covariance, covariance[:dim_x, :dim_x], covariance[dim_x:, dim_x:])
    )
    return float(x + y - whole) / 2


def student_information(dim_x: int, dim_y: int, dof: float) -> float:
    """Student-t with identity dispersion: h(v) + h(v + m + n) - h(v + m) - h(v + n), h(u) = lgamma(u/2) - u/2 psi(u/2).

    x and y are uncorrelated and yet dependent: they share their scale.

    Examples:
        >>> f"{student_information(1, 1, 1):.6f}"
        '0.224171'
    """
    from scipy.special import psi  # pyright: ignore

    def h(u: float) -> float:
        return math.lgamma(u / 2) - u / 2 * float(psi(u / 2))  # pyright: ignore[reportUnknownArgumentType]

    return h(dof) + h(dof + dim_x + dim_y) - h(dof + dim_x) - h(dof + dim_y)


def additive_information(epsilon: float) -> float:
    """y = x + noise, x uniform on [0, 1] and the noise on [-epsilon, epsilon].

    Examples:
        >>> f"{additive_information(0.1):.6f} {additive_information(0.75):.6f}"
        '1.709438 0.333333'
    """
    return epsilon - math.log(2 * epsilon) if epsilon <= 0.5 else 1 / (4 * epsilon)


# --------------------------------------------------------------------------------------------------------- the draws


def normal(covariance: Array, dim_x: int) -> Sampler:
    root = np.linalg.cholesky(covariance)

    def draw(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        z = rng.standard_normal((n, len(root))) @ root.T
        return z[:, :dim_x], z[:, dim_x:]

    return draw


def student(dim_x: int, dim_y: int, dof: float) -> Sampler:
    def draw(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        z = rng.standard_normal((n, dim_x + dim_y)) / np.sqrt(rng.chisquare(dof, (n, 1)) / dof)
        return z[:, :dim_x], z[:, dim_x:]

    return draw


def additive(epsilon: float) -> Sampler:
    def draw(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x = rng.uniform(0, 1, (n, 1))
        return x, x + rng.uniform(-epsilon, epsilon, (n, 1))

    return draw


def mapped(sampler: Sampler, of_x: Map, of_y: Map) -> Sampler:
    def draw(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        x, y = sampler(n, rng)
        return of_x(x), of_y(y)

    return draw


# --------------------------------------------------------------------------------------------------------- the maps


def normal_cdf(x: Array) -> Array:
    from scipy.special import ndtr  # pyright: ignore

    return np.asarray(ndtr(x))


def half_cube(x: Array) -> Array:
    return x * np.sqrt(np.abs(x))


def wiggly_x(x: Array) -> Array:
    return x + 0.4 * np.sin(x) + 0.2 * np.sin(1.7 * x + 1) + 0.03 * np.sin(3.3 * x - 2.5)


def wiggly_y(y: Array) -> Array:
    return y - 0.4 * np.sin(0.4 * y) + 0.17 * np.sin(1.3 * y + 3.5) + 0.02 * np.sin(4.3 * y - 2.5)


def swiss_roll(x: Array) -> Array:
    """Uniform margins (n, 1) onto a spiral in the plane (n, 2)."""
    t = 1.5 * np.pi * (1 + 2 * x)
    return np.hstack([t * np.cos(t), t * np.sin(t)]) / 21


def spiral(first: int) -> Map:
    """v -> expm(A |v|^2 / dim) v, A turning in the plane of the coordinates `first` and `first` + 1."""

    def turn(v: Array) -> Array:
        angle = (v**2).sum(1) / v.shape[1]
        a, b = v[:, first], v[:, first + 1]
        turned = v.copy()
        turned[:, first] = np.cos(angle) * a - np.sin(angle) * b
        turned[:, first + 1] = np.sin(angle) * a + np.cos(angle) * b
        return turned

    return turn


def mixture_quantile(weight: float, low: float, high: float) -> Map:
    """Normal margins to those of weight N(low, 1) + (1 - weight) N(high, 1): inverse CDF of Phi(z), by bisection."""
    from scipy.special import ndtr  # pyright: ignore

    def quantile(z: Array) -> Array:
        p = np.asarray(ndtr(z))
        left, right = z + low, z + high  # the quantile lies between those of the two components
        for _ in range(60):
            middle = (left + right) / 2
            below = weight * ndtr(middle - low) + (1 - weight) * ndtr(middle - high) < p
            left, right = np.where(below, middle, left), np.where(below, right, middle)
        return (left + right) / 2

    return quantile


# -------------------------------------------------------------------------------------------------------- the 40 tasks


def _dense(dim: int) -> Array:
    return np.full((2 * dim, 2 * dim), 0.5) + 0.5 * np.eye(2 * dim)


def _two_pairs(dim: int) -> Array:
    covariance = np.eye(2 * dim)
    for k in (0, 1):
        covariance[k, dim + k] = covariance[dim + k, k] = 0.8
    return covariance


def _tasks() -> list[Task]:
    tasks: list[Task] = []

    def add(name: str, dim_x: int, dim_y: int, information: float, sampler: Sampler) -> None:
        tasks.append(Task(name, dim_x, dim_y, information, sampler))

    def same(x: Array) -> Array:
        return x

    pair = np.array([[1.0, 0.75], [0.75, 1.0]])
    known, draw = normal_information(pair, 1), normal(pair, 1)
    uniform = mapped(draw, normal_cdf, normal_cdf)
    margins = mixture_quantile(0.3, 0.0, 5.0), mixture_quantile(0.5, -1.0, 3.0)
    add("1v1-normal-0.75", 1, 1, known, draw)
    add("normal_cdf-1v1-normal-0.75", 1, 1, known, uniform)
    add("1v1-bimodal-0.75", 1, 1, known, mapped(draw, *margins))
    add("wiggly-1v1-normal-0.75", 1, 1, known, mapped(draw, wiggly_x, wiggly_y))
    add("half_cube-1v1-normal-0.75", 1, 1, known, mapped(draw, half_cube, half_cube))
    for epsilon in (0.1, 0.75):
        add(f"1v1-additive-{epsilon}", 1, 1, additive_information(epsilon), additive(epsilon))
    add("student-identity-1-1-1", 1, 1, student_information(1, 1, 1), student(1, 1, 1))
    add(
        "asinh-student-identity-1-1-1",
        1,
        1,
        student_information(1, 1, 1),
        mapped(student(1, 1, 1), np.arcsinh, np.arcsinh),
    )
    add("swissroll_x-normal_cdf-1v1-normal-0.75", 2, 1, known, mapped(uniform, swiss_roll, same))

    for d in (2, 3, 5, 25, 50):
        add(f"multinormal-dense-{d}-{d}-0.5", d, d, normal_information(_dense(d), d), normal(_dense(d), d))
    for d in (2, 3, 5, 25):
        covariance = _two_pairs(d)
        add(f"multinormal-sparse-{d}-{d}-2-2.0", d, d, normal_information(covariance, d), normal(covariance, d))
    for d, dof in ((2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3)):
        add(f"student-identity-{d}-{d}-{dof}", d, d, student_information(d, d, dof), student(d, d, dof))

    spirals = spiral(0), spiral(1)
    for d in (3, 5, 25):
        information = normal_information(_two_pairs(d), d)
        draw, name = normal(_two_pairs(d), d), f"multinormal-sparse-{d}-{d}-2-2.0"
        uniform = mapped(draw, normal_cdf, normal_cdf)
        add(f"normal_cdf-{name}", d, d, information, uniform)
        add(f"half_cube-{name}", d, d, information, mapped(draw, half_cube, half_cube))
        add(f"spiral-{name}", d, d, information, mapped(draw, *spirals))
        add(f"spiral-normal_cdf-{name}", d, d, information, mapped(uniform, *spirals))
    for d, dof in ((2, 1), (3, 2), (5, 2)):
        sampler = mapped(student(d, d, dof), np.arcsinh, np.arcsinh)
        add(f"asinh-student-identity-{d}-{d}-{dof}", d, d, student_information(d, d, dof), sampler)
    return tasks


TASKS: dict[str, Task] = {task.name: task for task in _tasks()}
"""The 40 tasks by name."""
