import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saddleflow.flow import crossings


def test_the_first_row_at_a_level_is_found():
    values = np.array([3.0, 2.0, 2.5, 1.0])
    assert [crossings.first_row(values, level) for level in (4.0, 2.7, 2.0, 1.5, 0.5)] == [0, 1, 1, 3, None]


def test_between_rows_by_a_straight_line():
    time, values = np.array([0.0, 1.0, 3.0]), np.array([4.0, 2.0, 1.0])
    found = [crossings.time_at_level(time, values, level) for level in (5.0, 3.0, 2.0, 1.5, 1.0, 0.0)]
    assert found == [0.0, 0.5, 1.0, 2.0, 3.0, np.inf]
    # what rises falls with both signs turned
    assert crossings.time_at_level(time, -np.array([0.0, 1.0, 5.0]), -3.0) == 2.0
    traced = jax.jit(crossings.linear)(jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0]), 1.5)
    assert float(traced) == 2.0


def test_between_rows_by_values_and_slopes():
    """A cubic is its own interpolant, whatever the step."""

    def value(t):
        return 5.0 - t - t**3

    ends = np.array([0.2, 1.4])
    for exact in (0.3, 1.0, 1.3):
        after = crossings.cubic(1.2, value(ends), -1 - 3 * ends**2, value(exact))
        assert ends[0] + after == pytest.approx(exact, rel=1e-11)


def test_ends_are_roots_where_rounding_turns_their_sign():
    assert crossings.root(lambda part: -1e-17 - part) == 0.0
    assert crossings.root(lambda part: 1.0 - part + 1e-16) == 1.0
    assert crossings.root(lambda part: 0.25 - part) == pytest.approx(0.25)
