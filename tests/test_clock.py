import jax.numpy as jnp
import numpy as np
import pytest

from saddleflow.flow.clock import FINEST_STEP, Clock, SegmentedTime


def test_a_burst_after_a_huge_plateau_is_resolved():
    """A plateau of 1e90, then steps of order one: float64 holds neither their sum nor their differences."""
    clock = Clock.start().tick(jnp.asarray(1e90), jnp.asarray(0.5))
    rows = [clock]
    for step in (0.5, 0.25, 0.125):
        rows.append(rows[-1].tick(jnp.asarray(step), jnp.asarray(0.1)))
    assert [int(row.segment) for row in rows] == [1, 1, 1, 1]
    time = SegmentedTime(
        np.array([int(row.segment) for row in rows]),
        np.array([float(row.within) for row in rows]),
        np.asarray(rows[-1].durations),
    )
    np.testing.assert_array_equal(time.steps, [0.5, 0.25, 0.125])
    np.testing.assert_array_equal(time.since(1, 0.25), [-0.75, -0.25, 0.0, 0.125])
    np.testing.assert_array_equal(time.time, [1e90] * 4)


def test_segments_end_only_where_digits_would_be_lost():
    clock = Clock.start().tick(jnp.asarray(1.0), jnp.asarray(2 * FINEST_STEP))
    assert int(clock.segment) == 0
    clock = clock.tick(jnp.asarray(1.0), jnp.asarray(FINEST_STEP))
    assert int(clock.segment) == 1
    assert float(clock.time) == 2.0
    assert float(clock.within) == 0.0


def test_differences_across_segments():
    time = SegmentedTime(np.array([0, 0, 1, 3]), np.array([0.0, 4.0, 1.0, 2.0]), np.array([10.0, 5.0, 7.0, 0.0]))
    assert time.between(0, 1) == 4
    assert time.between(1, 2) == 6 + 1
    assert time.between(1, 3) == 6 + 5 + 7 + 2
    assert time.between(3, 1) == -20
    np.testing.assert_allclose(time.time, [0, 4, 11, 24])
    np.testing.assert_allclose(time.since(1), [-4, 0, 7, 20])


@pytest.mark.parametrize("row", [0, 3])
def test_since_agrees_with_plain_differences(row):
    time = SegmentedTime(np.array([0, 0, 1, 3]), np.array([0.0, 4.0, 1.0, 2.0]), np.array([10.0, 5.0, 7.0, 0.0]))
    np.testing.assert_allclose(time.since(row), time.time - time.time[row])
