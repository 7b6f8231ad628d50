"""SciPy's DOP853 on a law for the end-to-end matrix, the one numerical solver of this package."""

from collections.abc import Callable

import numpy as np
import scipy
from jaxtyping import Float


def integrate(
    name: str,
    velocity: Callable[[Float[np.ndarray, "n_out n_in"]], Float[np.ndarray, "n_out n_in"]],
    initial: Float[np.ndarray, "n_out n_in"],
    times: Float[np.ndarray, " time"],
    *,
    rtol: float,
    atol: float,
) -> Float[np.ndarray, "time n_out n_in"]:
    """The matrix at ascending times (0 and repeated ones among them); RuntimeError, with the name, if it gives up."""

    def flat_velocity(_: float, flat: np.ndarray) -> np.ndarray:
        return velocity(flat.reshape(initial.shape)).ravel()

    # solve_ivp wants t_eval strictly ascending inside its span, and a span that is not empty.
    moments, place = np.unique(np.append(0.0, times), return_inverse=True)
    if moments.size == 1:
        return np.repeat(initial[None], times.size, axis=0)
    span = (0.0, moments[-1])
    how = {"method": "DOP853", "t_eval": moments, "rtol": rtol, "atol": atol}
    solution = scipy.integrate.solve_ivp(flat_velocity, span, initial.ravel(), **how)
    if not solution.success:
        raise RuntimeError(f"the integration of {name} stopped early: {solution.message}")
    return solution.y.T[place[1:]].reshape(-1, *initial.shape)
