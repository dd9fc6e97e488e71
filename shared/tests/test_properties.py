"""What holds for any scores and any embeddings, searched for counter-examples by hypothesis."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_core.estimators import BOUNDS, Match, Pairs, club, dv, infonce, jsd, l1out, nwj, smile
from gen_core.losses import alignment, barlow_twins, info_nce, mmd, nt_xent, sliced_wasserstein, sup_con, vicreg

settings.register_profile("gen", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("gen")

sizes = st.integers(2, 9)
seeds = st.integers(0, 2**20)
scales = st.floats(1e-3, 50)


def draw(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def order(seed, n):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("bound", [*sorted(BOUNDS), "club", "l1out"])
@given(n=sizes, seed=seeds, scale=st.floats(1e-3, 20))
def test_the_order_of_the_samples_does_not_matter(bound, n, seed, scale):
    f, p = draw(seed, n, n, scale=scale), order(seed, n)
    value = {"club": club, "l1out": l1out}.get(bound) or BOUNDS[bound]
    close(value(f[p][:, p]), value(f))


@pytest.mark.parametrize("bound", ["dv", "infonce"])
@given(n=sizes, seed=seeds, shift=st.floats(-300, 300))
def test_a_common_shift_of_the_scores_does_not_matter(bound, n, seed, shift):
    f = draw(seed, n, n)
    close(BOUNDS[bound](f + shift), BOUNDS[bound](f))


@given(n=sizes, seed=seeds, shift=st.floats(0.2, 3))
def test_nwj_is_not_shift_invariant(n, seed, shift):
    f = draw(seed, n, n)
    best = f - (f.flatten()[1:].view(n - 1, n + 1)[:, :n].logsumexp((0, 1)) - math.log(n * (n - 1)) - 1)
    close(nwj(best), dv(f))  # the shift at which nwj is largest: there the two meet
    assert nwj(best + shift) < dv(f)
    assert nwj(best - shift) < dv(f)


@given(n=sizes, seed=seeds, scale=scales)
def test_order_of_the_bounds(n, seed, scale):
    f = draw(seed, n, n, scale=scale)
    assert nwj(f) <= dv(f) + 1e-9
    assert infonce(f) <= math.log(n) + 1e-9
    assert jsd(f) <= 0
    assert smile(f, clip=math.inf) == dv(f)


@pytest.mark.parametrize("bound", ["dv", "nwj", "jsd", "smile", "tuba", "nce"])
@given(n=sizes, m=sizes, seed=seeds)
def test_pairs_say_what_a_matrix_says(bound, n, m, seed):
    f = draw(seed, n, m)
    mask = draw(seed + 1, n, m) > 0
    mask[0, 0], mask[-1, -1] = True, False
    close(BOUNDS[bound](Pairs(f[mask], f[~mask])), BOUNDS[bound](f, mask))


@pytest.mark.parametrize("bound", sorted(BOUNDS))
@given(n=st.integers(3, 9), seed=seeds)
def test_labels_say_what_a_mask_says(bound, n, seed):
    f = draw(seed, n, n)
    labels = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed))
    mask = labels[:, None] == labels
    if bool((~mask).any(1).all()):
        close(BOUNDS[bound](f, Match(labels)), BOUNDS[bound](f, mask))


# ------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("loss", [nt_xent, info_nce, alignment, barlow_twins, vicreg])
@given(n=st.integers(3, 9), seed=seeds)
def test_the_order_of_the_batch_does_not_matter(loss, n, seed):
    a, b, p = draw(seed, n, 4), draw(seed + 1, n, 4), order(seed, n)
    close(loss(a[p], b[p]), loss(a, b), 1e-8)


@pytest.mark.parametrize("loss", [nt_xent, alignment, barlow_twins, vicreg])
@given(n=st.integers(3, 9), seed=seeds)
def test_the_views_can_be_swapped(loss, n, seed):
    a, b = draw(seed, n, 4), draw(seed + 1, n, 4)
    close(loss(b, a), loss(a, b), 1e-8)


@pytest.mark.parametrize("loss", [nt_xent, info_nce, alignment])
@given(n=sizes, seed=seeds, scale=st.floats(1e-4, 1e4))
def test_the_length_of_rows_does_not_matter(loss, n, seed, scale):
    a, b = draw(seed, n, 4), draw(seed + 1, n, 4)
    close(loss(a * scale, b / scale), loss(a, b), 1e-8)


@given(n=st.integers(2, 12), seed=seeds, tau=st.floats(0.02, 5))
def test_two_views_labelled_by_their_image_make_sup_con_nt_xent(n, seed, tau):
    a, b = draw(seed, n, 4), draw(seed + 1, n, 4)
    close(sup_con(torch.cat([a, b]), torch.arange(n).repeat(2), tau), nt_xent(a, b, tau), 1e-8)


@given(n=sizes, seed=seeds, factor=st.floats(0.1, 10))
def test_distances_of_a_sample_to_itself_and_their_units(n, seed, factor):
    x, y = draw(seed, n, 3), draw(seed + 1, n, 3)
    directions = draw(seed + 2, 5, 3)
    assert sliced_wasserstein(x, x, directions) == 0
    close(sliced_wasserstein(factor * x, factor * y, directions), factor**2 * sliced_wasserstein(x, y, directions))
    assert abs(mmd(x, x, bandwidth=1.0, unbiased=False)) < 1e-12
    close(mmd(factor * x, factor * y, bandwidth=factor), mmd(x, y, bandwidth=1.0))
