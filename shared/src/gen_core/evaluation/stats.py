"""Confidence intervals of the gain of a method over its baseline, run on the same seeds."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[Any]


class Interval(NamedTuple):
    """A gain, in the metric's unit, above 0 where the method is better; `low` and `high` are nan from one seed."""

    gain: float
    low: float
    high: float
    method: str


def paired_interval(
    a: Values,
    b: Values | float,
    higher_is_better: bool = True,
    level: float = 0.95,
    kind: Literal["auto", "student-t", "bootstrap", "iqm"] = "auto",
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval:
    """Interval of the gain of `a` over `b`; seeds are paired, a[i] with b[i].

    - `student-t`: mean difference +- t_{n-1} s / sqrt(n), exact for normal differences.
    - `bootstrap`: percentile bootstrap of the mean difference, pairs drawn together.
    - `iqm`: the same of iqm(a) - iqm(b), for returns in reinforcement learning.
    - `auto`: `student-t` below 20 seeds, `bootstrap` from 20.

    Args:
        a: (n,) values of the method, one a seed.
        b: (n,) values of the baseline on the same seeds, or one number: a deterministic baseline.
        higher_is_better: False flips the sign, so that a gain above 0 is always an improvement.
        level: of the two-sided interval, in (0, 1).
        kind: see above.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        (gain, low, high, method): method is the kind that was used. With one seed low and high are nan (so that
        `low > 0` is False); with equal differences the interval has no width.

    Raises:
        ValueError: empty, NaN or infinite values, lengths that differ, level, kind or resamples out of range.

    Examples:
        >>> gain, low, high, method = paired_interval([3.0, 4.0, 5.5], [1.0, 2.5, 3.0])
        >>> f"{gain:.3f} [{low:.3f}, {high:.3f}] {method}"
        '2.000 [0.758, 3.242] student-t'
    """
    x = _values("a", a)
    y = np.full_like(x, _number(b)) if np.ndim(b) == 0 else _values("b", b)
    if len(x) != len(y):
        raise ValueError(f"b must be one number or {len(x)} values, as many as a, got {len(y)}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if kind not in ("auto", "student-t", "bootstrap", "iqm"):
        raise ValueError(f"kind must be 'auto', 'student-t', 'bootstrap' or 'iqm', got {kind!r}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not higher_is_better:
        x, y = -x, -y
    n, difference = len(x), x - y
    method = ("student-t" if n < 20 else "bootstrap") if kind == "auto" else kind
    gain = float(_iqm(x) - _iqm(y)) if method == "iqm" else float(difference.mean())
    if n == 1:
        return Interval(gain, math.nan, math.nan, method)
    if method == "student-t":
        from scipy.special import stdtrit  # pyright: ignore  # the t quantile, without the second that scipy.stats takes

        half = float(stdtrit(n - 1, (1 + level) / 2)) * float(difference.std(ddof=1)) / math.sqrt(n)
        return Interval(gain, gain - half, gain + half, method)
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    gains = _iqm(x[draws]) - _iqm(y[draws]) if method == "iqm" else difference[draws].mean(1)
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    return Interval(gain, float(low), float(high), method)


def iqm(values: Values) -> float:
    """Interquartile mean: the mean after floor(n / 4) values are cut at each end (Agarwal et al. 2021).

    Args:
        values: (n,).

    Raises:
        ValueError: empty, NaN or infinite values.

    Examples:
        >>> iqm([1.0, 2.0, 4.0, 100.0])
        3.0
    """
    return float(_iqm(_values("values", values)))


def _iqm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    cut = x.shape[-1] // 4
    return np.sort(x, axis=-1)[..., cut : x.shape[-1] - cut].mean(-1)


def _values(name: str, values: Values | float) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"{name} must be a vector of finite numbers, not empty, got {values!r}")
    return x


def _number(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"b must be finite, got {value}")
    return float(value)
