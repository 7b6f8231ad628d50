import jax
import pytest

import saddleflow as sf


@pytest.fixture
def small_cost() -> sf.MatrixCompletion:
    """Matrix completion 4x4 of rank 2, 12 of 16 entries observed."""
    return sf.MatrixCompletion.random(jax.random.key(1), shape=(4, 4), rank=2, observed=0.75)


@pytest.fixture
def small_network() -> sf.DeepLinearNetwork:
    """A start of depth 3 and width 6 that fits `small_cost`."""
    return sf.gaussian(jax.random.key(2), depth=3, width=6, shape=(4, 4), gamma=1.5)
