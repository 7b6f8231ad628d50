import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saddleflow as sf
from saddleflow.problem.geometry import norm

KEY = jax.random.key(0)
NETWORK = sf.gaussian(KEY, depth=4, width=(5, 3, 4), shape=(2, 6), variance=1.0)
ROTATIONS = [jax.random.orthogonal(jax.random.key(i), n) for i, n in enumerate((5, 3, 4))]


def test_rotation_keeps_matrix_norm_and_rotates_the_invariant():
    rotated = sf.rotate(NETWORK, ROTATIONS)
    np.testing.assert_allclose(rotated.end_to_end(), NETWORK.end_to_end(), rtol=1e-12)
    assert float(norm(rotated)) == pytest.approx(float(norm(NETWORK)), rel=1e-13)
    before, after = sf.balancedness(NETWORK), sf.balancedness(rotated)
    for d, e, o in zip(before, after, ROTATIONS, strict=True):
        np.testing.assert_allclose(e, o @ d @ o.T, atol=1e-12)


def test_inclusion_keeps_matrix_and_norm():
    wide = sf.include(NETWORK, (5, 7, 9))
    assert wide.width == (5, 7, 9)
    np.testing.assert_allclose(wide.end_to_end(), NETWORK.end_to_end(), rtol=1e-12)
    assert float(norm(wide)) == pytest.approx(float(norm(NETWORK)), rel=1e-13)


def test_balancedness_is_what_it_says():
    first, second = NETWORK.layers[:2]
    np.testing.assert_allclose(sf.balancedness(NETWORK)[0], second.T @ second - first @ first.T)
    assert [d.shape[0] for d in sf.balancedness(NETWORK)] == [5, 3, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sf.rotate(NETWORK, ROTATIONS[:2]), "`rotations` must hold 3 matrices"),
        (lambda: sf.rotate(NETWORK, ROTATIONS[::-1]), r"`rotations\[0\]` must have shape"),
        (lambda: sf.rotate(NETWORK, [2 * o for o in ROTATIONS]), r"`rotations\[0\]` must be orthogonal"),
        (lambda: sf.include(NETWORK, 4), "`width` must be at least the present width"),
        (lambda: sf.include(NETWORK, 0), "`width` must be an integer >= 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rotation_traces():
    rotated = jax.jit(lambda n, o: sf.rotate(n, [o, jnp.eye(3), jnp.eye(4)]))(NETWORK, ROTATIONS[0])
    np.testing.assert_allclose(rotated.end_to_end(), NETWORK.end_to_end(), rtol=1e-12)
