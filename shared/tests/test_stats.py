"""Intervals against scipy, known values, and their coverage."""

import math

import numpy as np
import pytest
import scipy.stats

from gen_core.evaluation import iqm, paired_interval


def sample(n, seed=0, shift=0.6):
    rng = np.random.default_rng(seed)
    seeds = rng.normal(size=n) * 3
    return 70 + seeds + shift + rng.normal(size=n), 70 + seeds + rng.normal(size=n)


@pytest.mark.parametrize("n", [2, 5, 19])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_student_t_against_scipy(n, level):
    a, b = sample(n)
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(level)
    gain, low, high, method = paired_interval(a, b, level=level)
    assert method == "student-t"
    assert gain == pytest.approx(np.mean(a) - np.mean(b), abs=1e-12)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_student_t_known_value():
    # differences 2, 1.5, 2.5: mean 2, s = .5, t_{2, .975} = 4.302653
    gain, low, high, _ = paired_interval([3.0, 4.0, 5.5], [1.0, 2.5, 3.0])
    assert (gain, low, high) == pytest.approx((2.0, 2 - 4.302653 * 0.5 / 3**0.5, 2 + 4.302653 * 0.5 / 3**0.5), abs=1e-6)


def test_lower_is_better_flips_the_sign():
    a, b = sample(8)
    for kind in ("student-t", "bootstrap", "iqm"):
        up, down = paired_interval(a, b, kind=kind), paired_interval(a, b, higher_is_better=False, kind=kind)
        assert down.gain == pytest.approx(-up.gain, abs=1e-12)
        assert down.low <= down.gain <= down.high
        assert (down.low, down.high) == pytest.approx((-up.high, -up.low), abs=1e-9)
    assert paired_interval([1.0, 1.1, 0.9], [2.0, 2.2, 1.9], higher_is_better=False).low > 0


def test_a_constant_baseline():
    a, _ = sample(7)
    of_a = scipy.stats.ttest_1samp(a, 69.0).confidence_interval(0.95)  # of the mean of a, not of the gain
    for b in (69.0, 69, np.float64(69), np.full(7, 69.0)):
        got = paired_interval(a, b)
        assert (got.low, got.high) == pytest.approx((of_a.low - 69, of_a.high - 69), abs=1e-9)


def test_auto_changes_at_twenty_seeds():
    assert paired_interval(*sample(19)).method == "student-t"
    assert paired_interval(*sample(20)).method == "bootstrap"
    assert paired_interval(*sample(20), kind="student-t").method == "student-t"
    assert paired_interval(*sample(5), kind="bootstrap").method == "bootstrap"
    assert paired_interval(*sample(40), kind="iqm").method == "iqm"


def test_bootstrap_against_scipy():
    a, b = sample(25)
    reference = scipy.stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis), paired=True, vectorized=True, method="percentile",
        n_resamples=20_000, random_state=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    gain, low, high, _ = paired_interval(a, b)
    width = reference.high - reference.low
    assert gain == pytest.approx(np.mean(a - b), abs=1e-12)
    assert low == pytest.approx(reference.low, abs=0.04 * width)
    assert high == pytest.approx(reference.high, abs=0.04 * width)
    # pairs are drawn together: seeds spread by 3 and the noise by 1.4, so unpaired would be over twice as wide
    assert width < 1.6


def test_bootstrap_of_two_seeds_is_exact():
    # means over draws of two differences 1 and 3: 1 (1/4), 2 (1/2), 3 (1/4)
    assert paired_interval([1.0, 3.0], 0.0, kind="bootstrap")[:3] == (2.0, 1.0, 3.0)
    assert paired_interval([1.0, 3.0], 0.0, kind="bootstrap", level=0.4)[:3] == (2.0, 2.0, 2.0)


def test_iqm_bootstrap_against_a_plain_loop():
    a, b = sample(12)
    a[0] += 500  # an outlier that the mean would follow
    gain, low, high, _ = paired_interval(a, b, kind="iqm")
    rng, values = np.random.default_rng(3), []
    for _ in range(4000):
        rows = rng.integers(0, 12, 12)
        values.append(scipy.stats.trim_mean(a[rows], 0.25) - scipy.stats.trim_mean(b[rows], 0.25))
    expected = np.quantile(values, [0.025, 0.975])
    assert gain == pytest.approx(scipy.stats.trim_mean(a, 0.25) - scipy.stats.trim_mean(b, 0.25), abs=1e-12)
    assert (low, high) == pytest.approx(tuple(expected), rel=0.1)
    assert gain < 5


def test_bootstrap_is_seeded():
    a, b = sample(30)
    assert paired_interval(a, b) == paired_interval(a, b, seed=0)
    assert paired_interval(a, b) != paired_interval(a, b, seed=1)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 11, 40])
def test_iqm_against_scipy(n):
    x = np.random.default_rng(n).normal(size=n)
    assert iqm(x) == pytest.approx(scipy.stats.trim_mean(x, 0.25), abs=1e-12)
    assert iqm(list(x)) == iqm(x[::-1])


@pytest.mark.parametrize("kind", ["auto", "bootstrap", "iqm"])
def test_one_seed_has_no_interval(kind):
    gain, low, high, _ = paired_interval([3.0], [2.0], kind=kind)
    assert gain == 1.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert not low > 0


@pytest.mark.parametrize("kind", ["student-t", "bootstrap", "iqm"])
def test_equal_differences_have_no_width(kind):
    a = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert paired_interval(a, a, kind=kind)[:3] == (0.0, 0.0, 0.0) or kind == "iqm"
    if kind != "iqm":
        assert paired_interval(a + 2, a, kind=kind)[:3] == (2.0, 2.0, 2.0)
    assert paired_interval(a + 2, a, kind=kind)[:3] == pytest.approx((2.0, 2.0, 2.0), abs=1e-12)


def test_coverage_of_the_student_interval():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        base = rng.normal(size=5) * 4
        _, low, high, _ = paired_interval(base + 1 + rng.normal(size=5), base)
        inside += low <= 1 <= high
    assert 925 <= inside <= 975  # 950 +- 3.6 sd


def test_bad_input():
    a, b = sample(5)
    with pytest.raises(ValueError, match="b must be one number or 5 values"):
        paired_interval(a, b[:4])
    with pytest.raises(ValueError, match="a must be a vector of finite numbers"):
        paired_interval([], [])
    with pytest.raises(ValueError, match="a must be a vector of finite numbers"):
        paired_interval([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="b must be a vector of finite numbers"):
        paired_interval(a, b[:, None])
    with pytest.raises(ValueError, match="b must be finite"):
        paired_interval(a, math.nan)
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            paired_interval(a, b, level=level)
    with pytest.raises(ValueError, match="kind must be 'auto', 'student-t', 'bootstrap' or 'iqm', got 'z'"):
        paired_interval(a, b, kind="z")
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        paired_interval(a, b, resamples=0)
    with pytest.raises(ValueError, match="values must be a vector of finite numbers"):
        iqm([])
