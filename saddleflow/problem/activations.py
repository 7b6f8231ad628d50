r"""Smooth activations within a stated distance of ReLU, leaky ReLU, the absolute value and hard tanh.

The gradient of a loss jumps where a preactivation of a kinked activation changes sign. There an adaptive solver
rejects step after step, and a flow that slides along such a surface is never done (`docs/kinks.md`). These functions
are smooth, and tend to the kinked ones as `epsilon`, the width of the softened kink in units of the preactivation,
goes to zero.

All of them are made of one function, `epsilon log(1 + exp(x / epsilon))` (softplus; Dugas et al., NIPS 2000), which
is the integral of the sigmoid of `x / epsilon`. Beside `(x + sqrt(x^2 + epsilon^2)) / 2` at the same distance from
ReLU it costs our solvers fewer steps, and it is ReLU to rounding 37 epsilon away from the kink, which that one
nowhere is.

**Scale.** For every c > 0, `relu(c x, c epsilon) = c relu(x, epsilon)`; likewise `leaky_relu` and `absolute`. So a
network that is scaled by c in one layer and by 1/c in the next computes the same function only if the epsilon between
them is scaled with it: a fixed epsilon breaks the homogeneity of ReLU networks, the less the smaller it is.

A network of smooth functions:

>>> from functools import partial
>>> activation = partial(sf.activations.relu, epsilon=1e-2)
>>> model = eqx.nn.MLP(5, "scalar", 10, 1, activation=activation, key=jax.random.key(0))
>>> model(jnp.zeros(5)).shape
()
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saddleflow._backend.arguments import number, takes
from saddleflow._backend.checks import is_concrete, require, require_positive

# Arrays, or single numbers.
Preactivation = Float[Array, "..."] | float
Number = Float[Array, ""] | float


@takes(epsilon=number(example="1e-2"))
def relu(x: Preactivation, epsilon: Number) -> Float[Array, "..."]:
    r"""A smooth ReLU, `epsilon log(1 + exp(x / epsilon))`.

    **Distance.** `0 < relu(x, epsilon) - max(x, 0) <= epsilon log 2 < 0.7 epsilon`. For the difference is
    `epsilon log(1 + exp(-|x| / epsilon))`: write `1 + exp(z) = exp(z) (1 + exp(-z))` where x > 0. It falls with |x|
    from `epsilon log 2` at x = 0, and is at most `epsilon exp(-|x| / epsilon)`: rounding of x where x > 37 epsilon.

    **Derivatives.** The first is the sigmoid of `x / epsilon`, between 0 and 1, and 1/2 at x = 0; the second, at most
    `1 / (4 epsilon)`. It is convex and increasing.

    Args:
        x: preactivations, of any shape.
        epsilon: width of the softened kink, in units of x.

    Returns:
        An array of the shape of x.

    Raises:
        ValueError: epsilon is not finite and positive.

    >>> sf.activations.relu(jnp.array([-1.0, 0.0, 1.0]), epsilon=1e-2).tolist()
    [3.7e-46, 0.00693, 1.0]
    """
    _check(epsilon)
    x = jnp.asarray(x)
    return jnp.maximum(x, 0) + _bump(x, epsilon)


@takes(epsilon=number(example="1e-2"), slope=number(example="0.01"))
def leaky_relu(x: Preactivation, epsilon: Number, slope: Number = 0.01) -> Float[Array, "..."]:
    """A smooth leaky ReLU, `slope x + (1 - slope) relu(x, epsilon)`.

    **Distance.** Between 0 and `(1 - slope) epsilon log 2` above `max(x, slope x)`, as that is
    `slope x + (1 - slope) max(x, 0)`. The derivative lies between slope and 1.

    Args:
        x: preactivations, of any shape.
        epsilon: width of the softened kink, in units of x.
        slope: the derivative on the far negative side, from 0 (`relu`) to 1 (the identity).

    Returns:
        An array of the shape of x.

    Raises:
        ValueError: epsilon is not finite and positive, or slope lies outside 0 to 1.

    >>> sf.activations.leaky_relu(jnp.array([-1.0, 1.0]), epsilon=1e-2, slope=0.1).tolist()
    [-0.1, 1.0]
    """
    _check(epsilon)
    if is_concrete(slope):
        require(0 <= float(slope) <= 1, "slope", "lie between 0 and 1", float(slope))
    x = jnp.asarray(x)
    return jnp.maximum(x, slope * x) + (1 - slope) * _bump(x, epsilon)


@takes(epsilon=number(example="1e-2"))
def absolute(x: Preactivation, epsilon: Number) -> Float[Array, "..."]:
    """A smooth absolute value, `2 epsilon log(2 cosh(x / (2 epsilon)))`.

    **Distance.** Between 0 and `2 epsilon log 2 < 1.4 epsilon` above |x|, as it is
    `relu(x, epsilon) + relu(-x, epsilon)`. The derivative is `tanh(x / (2 epsilon))`. It is even, convex,
    and positive at x = 0.

    Args:
        x: preactivations, of any shape.
        epsilon: width of the softened kink, in units of x.

    Returns:
        An array of the shape of x.

    Raises:
        ValueError: epsilon is not finite and positive.

    >>> sf.activations.absolute(jnp.array([-1.0, 0.0]), epsilon=1e-2).tolist()
    [1.0, 0.0139]
    """
    _check(epsilon)
    x = jnp.asarray(x)
    # not jnp.abs, whose derivative at zero JAX has as 1
    return jnp.maximum(x, -x) + 2 * _bump(x, epsilon)


@takes(epsilon=number(example="1e-2"))
def hard_tanh(x: Preactivation, epsilon: Number) -> Float[Array, "..."]:
    """A smooth `clip(x, -1, 1)`: `relu(x + 1, epsilon) - relu(x - 1, epsilon) - 1`.

    **Distance.** At most `epsilon log 2 < 0.7 epsilon`, above near x = -1 and below near x = 1: it is the difference
    of two distances between 0 and that. It is odd and increasing, and its derivative lies between 0 and 1.

    Args:
        x: preactivations, of any shape.
        epsilon: width of the softened kinks, in units of x; well below 1, or little of the hard tanh is left.

    Returns:
        An array of the shape of x.

    Raises:
        ValueError: epsilon is not finite and positive.

    >>> sf.activations.hard_tanh(jnp.array([-2.0, 0.0, 1.0]), epsilon=1e-2).tolist()
    [-1.0, 0.0, 0.99307]
    """
    _check(epsilon)
    x = jnp.asarray(x)
    # not as the difference of two ramps, in which a large x would swallow the ones
    return jnp.clip(x, -1, 1) + _bump(x + 1, epsilon) - _bump(x - 1, epsilon)


def _check(epsilon: Number) -> None:
    remedy = "It is the width of the softened kink: try 1e-2 times the size of the preactivations."
    require_positive("epsilon", epsilon, remedy)


def _bump(x: Float[Array, "..."], epsilon: Number) -> Float[Array, "..."]:
    """What softening adds to a ramp: `epsilon log(1 + exp(-|x| / epsilon))`."""
    return epsilon * _unit_bump(x / epsilon)


# Differentiated as it is written the bump would have a second derivative of zero at the kink. So its derivatives are
# spelled out, in one exponential that never overflows; together with the ramp's, 1/2 at zero as JAX has it, they are
# right there, too.
@jax.custom_jvp
def _unit_bump(z: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.log1p(jnp.exp(-jnp.abs(z)))


@jax.custom_jvp
def _slope(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of the bump: the sigmoid less the step."""
    small = jnp.exp(-jnp.abs(z))
    return -jnp.sign(z) * small / (1 + small)


@_unit_bump.defjvp
def _unit_bump_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    return _unit_bump(z), _slope(z) * dz


@_slope.defjvp
def _slope_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    small = jnp.exp(-jnp.abs(z))
    return _slope(z), small / (1 + small) ** 2 * dz
