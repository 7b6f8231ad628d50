"""One problem for all steppers, and its programs: dy/dt = -H y - c y^3 on a pytree of twelve numbers.

A gradient system with minima beside saddles. Tolerances, ends and first steps are traced: a solver has one program.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from saddleflow.solvers import PredictiveController, Rosenbrock, Switching

DIM = 12
ZEROS = {"a": jnp.zeros((2, 3)), "b": (jnp.zeros(4), jnp.zeros(2))}
TREE = ravel_pytree(ZEROS)[1]


def flat(tree):
    return ravel_pytree(tree)[0]


def field(t, y, args):
    del t
    hessian, cubic = args
    y = flat(y)
    return TREE(-hessian @ y - cubic * y**3)


TERM = diffrax.ODETerm(field)


def solve(solver, hessian, cubic, start, first, t1, rtol, **arguments):
    saved = diffrax.SaveAt(ts=t1 * jnp.linspace(0, 1, 9), dense=True, solver_state=True)
    return diffrax.diffeqsolve(
        TERM,
        solver.with_tolerances(rtol, 1e-2 * rtol),
        0.0,
        t1,
        first,
        TREE(start),
        (hessian, cubic),
        stepsize_controller=PredictiveController(rtol=rtol, atol=1e-2 * rtol),
        **{"throw": False, "saveat": saved} | arguments,
    )


@jax.jit
def stiff(hessian, cubic, start, first, t1, rtol):
    return solve(Rosenbrock(), hessian, cubic, start, first, t1, rtol)


@jax.jit
def switching(hessian, cubic, start, first, t1, rtol):
    return solve(Switching(), hessian, cubic, start, first, t1, rtol)


def states(solution):
    return np.array(jax.vmap(flat)(solution.ys))


@eqx.filter_jit
def dense(solution, times):
    """The solution between its steps, as flat vectors."""
    return jax.vmap(lambda t: flat(solution.evaluate(t)))(times)
