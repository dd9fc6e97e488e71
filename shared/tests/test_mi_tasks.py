"""The 40 tasks: their information derived in other ways, their maps undone, their margins."""

import numpy as np
import pytest
from scipy import integrate, linalg, stats

from gen_core.testing.mi_tasks import TASKS, mixture_quantile, spiral, swiss_roll, wiggly_x, wiggly_y

PUBLISHED = {  # nats, as the benchmark's package reports them
    "1v1-normal-0.75": 0.413339,
    "1v1-additive-0.1": 1.709438,
    "1v1-additive-0.75": 0.333333,
    "student-identity-1-1-1": 0.224171,
    "multinormal-dense-2-2-0.5": 0.293893,
    "multinormal-dense-3-3-0.5": 0.413339,
    "multinormal-dense-5-5-0.5": 0.592812,
    "multinormal-dense-25-25-0.5": 1.292184,
    "multinormal-dense-50-50-0.5": 1.624265,
    "student-identity-2-2-1": 0.431946,
    "student-identity-2-2-2": 0.193147,
    "student-identity-3-3-2": 0.290922,
    "student-identity-3-3-3": 0.178712,
    "student-identity-5-5-2": 0.448151,
    "student-identity-5-5-3": 0.298544,
} | {f"multinormal-sparse-{d}-{d}-2-2.0": 1.021651 for d in (2, 3, 5, 25)}
MAPS = ("normal_cdf-", "half_cube-", "wiggly-", "asinh-", "spiral-", "swissroll_x-")


def source(name):
    """The task whose samples were mapped."""
    name = name.replace("bimodal", "normal")
    while name.startswith(MAPS):
        name = name.split("-", 1)[1]
    return name


def test_there_are_40():
    assert len(TASKS) == 40
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_published_value_which_maps_leave_alone(name):
    assert TASKS[name].mutual_information == pytest.approx(PUBLISHED[source(name)], abs=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_samples(name):
    task = TASKS[name]
    x, y = task.sample(50, seed=3)
    assert x.shape == (50, task.dim_x) and y.shape == (50, task.dim_y)
    assert x.dtype == y.dtype == np.float64
    assert np.isfinite(x).all() and np.isfinite(y).all()
    again, other = task.sample(50, seed=3), task.sample(50, seed=4)
    assert np.array_equal(again[0], x) and np.array_equal(again[1], y)
    assert not np.array_equal(other[0], x)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        task.sample(0)


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith(("1v1-normal", "multinormal"))])
def test_normal_by_entropies_of_the_covariance_that_samples_show(name):
    task = TASKS[name]
    x, y = task.sample(20_000, seed=0)
    sample = np.corrcoef(np.hstack([x, y]).T)
    levels = {"dense": (0.5, 1.0), "sparse": (0.0, 0.8, 1.0), "normal": (0.75, 1.0)}[name.split("-")[1]]
    truth = np.array(levels)[np.abs(sample[..., None] - levels).argmin(-1)]
    assert np.abs(sample - truth).max() < 0.04
    d = task.dim_x
    parts = [stats.multivariate_normal(cov=c).entropy() for c in (truth[:d, :d], truth[d:, d:], truth)]
    assert parts[0] + parts[1] - parts[2] == pytest.approx(task.mutual_information, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("student")])
def test_student_by_monte_carlo_of_the_log_ratio(name):
    task = TASKS[name]
    dof, d = float(name.rsplit("-", 1)[1]), task.dim_x
    x, y = task.sample(100_000, seed=0)
    both, one = (stats.multivariate_t(np.zeros(k), np.eye(k), dof) for k in (2 * d, d))
    ratio = both.logpdf(np.hstack([x, y])) - one.logpdf(x) - one.logpdf(y)
    assert ratio.mean() == pytest.approx(task.mutual_information, abs=4 * ratio.std() / 100_000**0.5)
    assert ratio.std() < 1.5


@pytest.mark.parametrize("epsilon", [0.1, 0.75])
def test_additive_by_integration_of_the_entropy_of_y(epsilon):
    def density(y):
        return max(0.0, min(1.0, y + epsilon) - max(0.0, y - epsilon)) / (2 * epsilon)

    def term(y):
        p = density(y)
        return -p * np.log(p) if p > 0 else 0.0

    corners = sorted([epsilon, 1 - epsilon])
    entropy = integrate.quad(term, -epsilon, 1 + epsilon, points=corners, limit=200)[0]
    task = TASKS[f"1v1-additive-{epsilon}"]
    assert entropy - np.log(2 * epsilon) == pytest.approx(task.mutual_information, abs=1e-7)
    x, y = task.sample(20_000, seed=0)
    assert stats.kstest(x[:, 0], "uniform").pvalue > 1e-3
    assert stats.kstest((y - x)[:, 0], stats.uniform(-epsilon, 2 * epsilon).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", [name for name in TASKS if "asinh" in name or "half_cube" in name])
def test_margins_that_can_be_undone(name):
    undo = np.sinh if "asinh" in name else lambda v: np.sign(v) * np.abs(v) ** (2 / 3)
    for mapped, plain in zip(TASKS[name].sample(200, 1), TASKS[source(name)].sample(200, 1), strict=True):
        np.testing.assert_allclose(undo(mapped), plain, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in TASKS if "normal_cdf" in name and "spiral" not in name])
def test_uniform_margins(name):
    x, y = TASKS[name].sample(5000, 0)
    for column in ([] if "swiss" in name else list(x.T)) + list(y.T):
        assert stats.kstest(column, "uniform").pvalue > 1e-4


def test_bimodal_margins():
    x, y = TASKS["1v1-bimodal-0.75"].sample(20_000, 0)
    for column, (weight, low, high) in ((x, (0.3, 0, 5)), (y, (0.5, -1, 3))):
        cdf = lambda t, w=weight, a=low, b=high: w * stats.norm.cdf(t, a) + (1 - w) * stats.norm.cdf(t, b)  # noqa: E731
        assert stats.kstest(column[:, 0], cdf).pvalue > 1e-3
    z = np.linspace(-4, 4, 41)[:, None]
    back = stats.norm.ppf(
        0.3 * stats.norm.cdf(mixture_quantile(0.3, 0, 5)(z)) + 0.7 * stats.norm.cdf(mixture_quantile(0.3, 0, 5)(z), 5)
    )
    np.testing.assert_allclose(back, z, atol=1e-8)


def test_wiggles_are_bijections():
    t = np.linspace(-8, 8, 20_001)
    for wiggle in (wiggly_x, wiggly_y):
        assert (np.diff(wiggle(t)) > 0).all()
    x, y = TASKS["wiggly-1v1-normal-0.75"].sample(2, 5)
    a, b = TASKS["1v1-normal-0.75"].sample(2, 5)
    u, v = a[1, 0], b[1, 0]
    assert x[1, 0] == pytest.approx(u + 0.4 * np.sin(u) + 0.2 * np.sin(1.7 * u + 1) + 0.03 * np.sin(3.3 * u - 2.5))
    assert y[1, 0] == pytest.approx(
        v - 0.4 * np.sin(0.4 * v) + 0.17 * np.sin(1.3 * v + 3.5) + 0.02 * np.sin(4.3 * v - 2.5)
    )


def test_swiss_roll_is_undone_by_its_radius():
    x = np.linspace(0, 1, 200)[:, None]
    radius = np.linalg.norm(swiss_roll(x), axis=1) * 21
    np.testing.assert_allclose((radius / (1.5 * np.pi) - 1) / 2, x[:, 0], atol=1e-12)
    rolled, y = TASKS["swissroll_x-normal_cdf-1v1-normal-0.75"].sample(50, 0)
    plain, same = TASKS["normal_cdf-1v1-normal-0.75"].sample(50, 0)
    np.testing.assert_allclose(rolled, swiss_roll(plain))
    np.testing.assert_array_equal(y, same)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("dim", [3, 5])
def test_spiral_is_the_matrix_exponential_and_can_be_undone(first, dim):
    v = np.random.default_rng(dim).normal(size=(20, dim))
    generator = np.zeros((dim, dim))
    generator[first, first + 1], generator[first + 1, first] = -1, 1
    expected = np.array([linalg.expm(generator * (row @ row) / dim) @ row for row in v])
    turned = spiral(first)(v)
    np.testing.assert_allclose(turned, expected, atol=1e-12)
    back = np.array([linalg.expm(-generator * (row @ row) / dim) @ row for row in turned])
    np.testing.assert_allclose(back, v, atol=1e-12)


def test_spirals_turn_x_and_y_in_their_own_planes():
    name = "spiral-multinormal-sparse-5-5-2-2.0"
    (x, y), (a, b) = TASKS[name].sample(30, 0), TASKS[source(name)].sample(30, 0)
    np.testing.assert_array_equal(x[:, 2:], a[:, 2:])
    np.testing.assert_array_equal(y[:, [0, 3, 4]], b[:, [0, 3, 4]])
    assert not np.isclose(x[:, :2], a[:, :2]).all(1).any()
    assert not np.isclose(y[:, 1:3], b[:, 1:3]).all(1).any()
