"""Solutions that flows are compared with: of all matrices that fit the data, the one of least norm."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saddleflow._backend.arguments import number, optional, takes, text
from saddleflow._backend.checks import require
from saddleflow.problem.costs import ROUNDING, Cost, MatrixCompletion, MeanSquaredError, Scaled, SquaredError
from saddleflow.problem.measurements import LinearMeasurements, gram_inverse, measured_rows

# Rounds of iterative refinement: the Gram matrix squares the condition of the measurements.
REFINEMENTS = 3


def minimum_norm_solution(cost: Any) -> Float[np.ndarray, "n_out n_in"]:
    """The minimiser of a quadratic cost with the least Frobenius norm: where the flow of one layer from zero ends.

    >>> cost = sf.MeanSquaredError([[1.0], [2.0]], [[5.0]])  # one sample of two inputs
    >>> sf.minimum_norm_solution(cost).tolist()
    [[1.0, 2.0]]

    Args:
        cost: a `MatrixCompletion`, `MeanSquaredError`, `LinearMeasurements` or `SquaredError`, or c times one.

    Raises:
        ValueError: a cost of another kind.
    """
    cost = _unscaled(cost)
    if isinstance(cost, MatrixCompletion):
        return np.where(cost.observed, cost.target, 0.0)
    if isinstance(cost, SquaredError):
        return np.asarray(cost.targets)
    if isinstance(cost, MeanSquaredError):
        root, aim = (np.asarray(part) for part in (cost.train_set.root, cost.train_set.aim))
        return aim @ np.linalg.pinv(root, rcond=ROUNDING)
    assert isinstance(cost, LinearMeasurements)
    measure, aim = cost.train_set.curvature, np.asarray(cost.train_set.aim)
    inverse = gram_inverse(measure, cost.shape)[0] if cost.inverse is None else np.asarray(cost.inverse)
    matrix = np.zeros(cost.shape)
    for _ in range(REFINEMENTS):
        left = aim - np.asarray(measure.root(matrix))
        matrix = matrix + np.asarray(measure.adjoint(jnp.asarray(inverse @ left)))
    return matrix


@takes(tolerance=number(least=0.0), solver=optional(text))
def nuclear_norm_solution(
    cost: Any, *, tolerance: float = 0.0, solver: str | None = None, **options: Any
) -> Float[np.ndarray, "n_out n_in"]:
    """The matrix of least nuclear norm that meets the equations of a cost, by cvxpy (`saddleflow[references]`).

    The convex baseline of matrix completion and sensing (Recht, Fazel and Parrilo 2010): a semidefinite program of
    size n_out + n_in, seconds for 20 x 20 and minutes for 100 x 100, there best with `solver="SCS"`.

    ::

        baseline = sf.nuclear_norm_solution(cost, tolerance=1e-3)
        print(float(cost.test(baseline)))

    Args:
        cost: a `MatrixCompletion`, `MeanSquaredError` or `LinearMeasurements`, or c times one.
        tolerance: how far each equation may be off, in units of its value: entries of the target, the b_i. Where
            equations are condensed (`MeanSquaredError`, and more measurements than entries), the root of the mean
            squared error, before any factor c.
        solver: name of a solver that cvxpy knows; None: its choice, CLARABEL.
        options: handed to `cvxpy.Problem.solve`.

    Returns:
        The matrix, to the accuracy of the solver (about 1e-8 of CLARABEL's, 1e-4 of SCS's).

    Raises:
        ValueError: a cost of another kind; a tolerance that is negative, or that no matrix meets.
        ImportError: cvxpy is not installed.
    """
    cost = _unscaled(cost)
    cvxpy = _cvxpy()
    matrix = cvxpy.Variable(cost.shape)
    off, most, each = _equations(cvxpy, cost, matrix, tolerance)
    size = cvxpy.norm_inf if each else cvxpy.norm2
    constraint = size(off) <= most if most > 0 else off == 0
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.normNuc(matrix)), [constraint])
    problem.solve(solver=solver, **options)
    met = problem.status in ("optimal", "optimal_inaccurate")
    require(met, "tolerance", "let some matrix meet the equations", tolerance, f"The solver says {problem.status!r}.")
    return np.asarray(matrix.value)


def _equations(cvxpy: Any, cost: Cost, matrix: Any, tolerance: float) -> tuple[Any, float, bool]:
    """What is to be small, as a vector, how small, and whether each of its entries is meant."""
    flat = cvxpy.vec(matrix, order="C")
    if isinstance(cost, MatrixCompletion):
        places = np.flatnonzero(np.asarray(cost.observed))
        return flat[places] - np.asarray(cost.target).ravel()[places], tolerance, True
    if isinstance(cost, SquaredError):
        return flat - np.asarray(cost.targets).ravel(), tolerance, True
    if isinstance(cost, MeanSquaredError):
        samples = cost.train_set
        off = cvxpy.vec(matrix @ np.asarray(samples.root) - np.asarray(samples.aim), order="C")
        return off, _within(tolerance, float(samples.floor)), False
    assert isinstance(cost, LinearMeasurements)
    samples = cost.train_set
    rows, aim = measured_rows(samples.curvature, cost.shape), np.asarray(samples.aim)
    if samples.condensed:
        return math.sqrt(0.5) * (rows @ flat - aim), _within(tolerance, float(samples.floor)), False
    scale = math.sqrt(len(aim) / 2)
    return scale * rows @ flat - scale * aim, tolerance, True


def _within(tolerance: float, floor: float) -> float:
    """What the condensed equations may be off, where all are `floor` off in the mean square anyhow."""
    expected = f"be at least {math.sqrt(floor):.6g}, the least root of the mean squared error"
    # what noise-free data are off by rounding is no floor
    require(floor <= max(tolerance**2, 1e-20), "tolerance", expected, tolerance)
    return math.sqrt(max(tolerance**2 - floor, 0.0))


def _unscaled(cost: Any) -> Cost:
    """A quadratic cost without its factor."""
    cost = cost.cost if isinstance(cost, Scaled) else cost
    kinds = MatrixCompletion, MeanSquaredError, SquaredError, LinearMeasurements
    require(isinstance(cost, kinds), "cost", "be one of linear equations", type(cost).__name__, "See docs/costs.md.")
    return cost


def _cvxpy() -> Any:
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError("nuclear_norm_solution needs cvxpy: pip install 'saddleflow[references]'.") from error
    return cvxpy
