"""Segments and pairs: the worked examples, and that no pair crosses a segment, an environment or the write head."""

import numpy as np
import pytest
from stable_baselines3.common.buffers import ReplayBuffer


def segments(buffer, length, env=0):
    """(start, end) of the segment of each live row, None while it is open."""
    rows = [(int(buffer.lo[t, env]), int(buffer.hi[t, env])) for t in range(length)]
    return [(lo, hi if hi <= buffer.steps else None) for lo, hi in rows]


def test_sparse_rewards_end_a_segment_and_so_does_the_episode(buffer_of, feed):
    buffer = buffer_of()
    rewards = np.array([0, 0, 1, 0, -1, 0, 0, 0, 0.0])
    dones = np.arange(9) == 6
    feed(buffer, rewards, dones)
    assert segments(buffer, 9) == [(0, 3)] * 3 + [(3, 5)] * 2 + [(5, 7)] * 2 + [(7, None)] * 2


def test_the_threshold_closes_after_the_step_that_reaches_it(buffer_of, feed):
    buffer = buffer_of(threshold=1.0)
    feed(buffer, np.array([0.5, 0.4, 0.3, 0.9, 0.2, 0.1]), np.zeros(6, dtype=bool))
    assert segments(buffer, 6) == [(0, 3)] * 3 + [(3, 5)] * 2 + [(5, None)]


def test_negative_rewards_count_by_their_size(buffer_of, feed):
    buffer = buffer_of(threshold=1.0)
    feed(buffer, np.array([-0.5, -0.5, 0.1]), np.zeros(3, dtype=bool))
    assert segments(buffer, 3) == [(0, 2)] * 2 + [(2, None)]


@pytest.mark.parametrize("threshold", [None, 7.0])
@pytest.mark.parametrize("frugal", [False, True])
def test_every_pair_is_of_one_segment_and_alive(buffer_of, feed, threshold, frugal):
    """3 environments, 200 rows each, 1,000 steps; rewards, ends and segments recomputed from scratch here."""
    saving = {"optimize_memory_usage": True, "handle_timeout_termination": False} if frugal else {}
    buffer = buffer_of(600, 3, threshold=threshold, **saving)
    generator = np.random.default_rng(1)
    rewards = np.where(generator.random((1000, 3)) < 0.15, generator.normal(2.0, 2.0, (1000, 3)), 0.0)
    dones = generator.random((1000, 3)) < 0.08
    feed(buffer, rewards, dones)
    number, last = np.zeros((1000, 3), dtype=int), 0
    for env in range(3):
        last, total = last + 1, 0.0
        for t in range(1000):
            number[t, env] = last
            total += abs(np.float32(rewards[t, env]))
            if dones[t, env] or (rewards[t, env] != 0 if threshold is None else total >= threshold):
                last, total = last + 1, 0.0
    oldest = 1000 - 200 + frugal
    np.random.seed(0)
    seen, without = set(), 0
    for _ in range(300):
        buffer.sample(64)
        drawn = buffer.drawn.copy()
        anchors, positives = buffer.draw_pairs()
        own = drawn if anchors is None else drawn[anchors]
        times = [oldest + (row // 3 - oldest) % 200 for row in (own, positives)]
        assert (own % 3 == positives % 3).all()
        assert min(times[0].min(), times[1].min()) >= oldest
        assert (number[times[0], own % 3] == number[times[1], positives % 3]).all()
        assert (times[0] != times[1]).all()
        # a row without a partner is left out, and no other
        ours = number[oldest + (drawn // 3 - oldest) % 200, drawn % 3]
        alone = [np.sum(number[oldest:] == segment) == 1 for segment in ours]
        kept = np.arange(64) if anchors is None else np.unique(anchors)
        assert set(kept) == set(np.flatnonzero(~np.array(alone)))
        seen |= set(zip(times[0] - times[1], strict=True))
        without += sum(alone)
    assert without > 0
    assert len(seen) > 10  # before and after, near and far


def test_partners_are_uniform_over_the_others(buffer_of, feed):
    buffer = buffer_of(threshold=5.0)
    feed(buffer, np.ones(5), np.zeros(5, dtype=bool))
    buffer.drawn = np.full(20_000, 1)
    _, positives = buffer.draw_pairs()
    counts = np.bincount(positives, minlength=5)
    assert counts[1] == 0
    assert abs(counts[[0, 2, 3, 4]] - 5000).max() < 250  # 4 standard deviations


def test_a_batch_without_pairs(buffer_of, feed):
    buffer = buffer_of()
    feed(buffer, np.ones(20), np.zeros(20, dtype=bool))
    batch = buffer.sample(8)
    anchors, positives = buffer.draw_pairs()
    assert len(anchors) == len(positives) == 0
    assert len(buffer.sample_pairs().observations) == len(batch.observations)


def test_rows_without_a_partner_give_way_to_others(buffer_of, feed):
    buffer = buffer_of(threshold=3.0)
    feed(buffer, np.ones(4), np.zeros(4, dtype=bool))  # {0, 1, 2}, {3 open}
    buffer.drawn = np.array([3, 0, 3, 2, 3])
    anchors, positives = buffer.draw_pairs()
    assert anchors.tolist() == [1, 3, 1, 3, 1]
    assert set(positives) <= {0, 1, 2}
    pairs = buffer.sample_pairs()
    assert pairs.observations[:5, 0].tolist() == [3, 0, 3, 2, 3]
    assert len(pairs.observations) == len(pairs.actions) == 10


def test_shuffled_positives_are_uniform(buffer_of, feed):
    buffer = buffer_of(10, positives="shuffled")
    feed(buffer, np.zeros(25), np.zeros(25, dtype=bool))
    buffer.sample(20_000)
    anchors, positives = buffer.draw_pairs()
    assert anchors is None
    assert abs(np.bincount(positives, minlength=10) - 2000).max() < 200


def test_returns_are_filled_in_backwards_and_only_for_whole_episodes(buffer_of, feed):
    buffer = buffer_of(20, positives="return", gamma=0.5)
    feed(buffer, np.array([1.0, 0, 2]), np.array([False, False, True]))
    feed(buffer, np.array([4.0, 4]), np.array([False, True]), truncated=True)
    feed(buffer, np.array([8.0]), np.array([False]))
    assert buffer.returns[:3, 0].tolist() == [1.5, 1.0, 2.0]
    assert np.isnan(buffer.returns[3:, 0]).all()
    buffer.drawn = np.arange(6)
    anchors, positives = buffer.draw_pairs()
    assert set(anchors) == {0, 1, 2}
    assert set(positives) <= {0, 1, 2}
    assert (positives != buffer.drawn[anchors]).all()


def test_positives_by_return_are_near_and_alive(buffer_of, feed):
    buffer = buffer_of(800, 2, positives="return", gamma=0.9)
    generator = np.random.default_rng(0)
    dones = generator.random((1500, 2)) < 0.1
    feed(buffer, generator.random((1500, 2)), dones)
    np.random.seed(0)
    returns = buffer.returns.ravel()
    spread = np.nanstd(returns)
    for _ in range(50):
        buffer.sample(32)
        anchors, positives = buffer.draw_pairs()
        own = buffer.drawn if anchors is None else buffer.drawn[anchors]
        gap = np.abs(returns[own] - returns[positives])
        assert not np.isnan(gap).any()
        assert np.median(gap) < 0.1 * spread


def test_the_host_sees_sb3s_samples_and_no_other_draw(buffer_of, feed):
    ours = buffer_of(50, 2, threshold=3.0)
    theirs = ReplayBuffer(50, ours.observation_space, ours.action_space, "cpu", 2)
    generator = np.random.default_rng(0)
    for buffer in (ours, theirs):
        buffer.steps = 0
        generator = np.random.default_rng(0)
        for _ in range(70):
            obs = generator.random((2, 2)).astype(np.float32)
            done = generator.random(2) < 0.1
            infos = [{"TimeLimit.truncated": bool(done[0])}, {}]
            buffer.add(obs, obs + 1, generator.integers(3, size=2), generator.random(2), done, infos)
    samples = []
    for buffer in (ours, theirs):
        np.random.seed(3)
        for _ in range(5):
            sample = buffer.sample(16)
            if buffer is ours:
                buffer.sample_pairs()
        samples.append((sample, np.random.random()))
    assert samples[0][1] == samples[1][1]
    for ours_part, theirs_part in zip(*(sample for sample, _ in samples), strict=True):
        if theirs_part is not None:
            assert ours_part.dtype == theirs_part.dtype
            assert ours_part.equal(theirs_part)


def test_reset_forgets_the_segments(buffer_of, feed):
    buffer = buffer_of(threshold=3.0)
    feed(buffer, np.ones(50), np.zeros(50, dtype=bool))
    buffer.reset()
    feed(buffer, np.ones(3), np.zeros(3, dtype=bool))
    assert segments(buffer, 3) == [(0, 3)] * 3


def test_an_interruption_ends_what_is_open(buffer_of, feed):
    buffer = buffer_of(positives="return", threshold=100.0)
    feed(buffer, np.ones(4), np.zeros(4, dtype=bool))
    buffer.interrupt()
    feed(buffer, np.ones(2), np.array([False, True]))
    assert segments(buffer, 6) == [(0, 4)] * 4 + [(4, 6)] * 2
    assert np.isnan(buffer.returns[:4]).all()
    assert not np.isnan(buffer.returns[4:6]).any()
