"""The independent solution that the closed forms are compared with: the flow of the layers, step by step."""

from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest
from scipy.integrate import solve_ivp


def _product(layers, size):
    return reduce(lambda below, layer: layer @ below, layers, np.eye(size))


@pytest.fixture
def layerwise_flow() -> Callable:
    """Return a function of layers, cost gradient and times: layers and end-to-end matrices at the times.

    It integrates dW_l/dt = -M_l^T G N_l^T, written out, to near rounding.
    """

    def integrate(layers, cost_gradient, times):
        shapes = [layer.shape for layer in layers]
        ends = np.cumsum([layer.size for layer in layers])[:-1]
        n_in = shapes[0][1]

        def unpack(flat):
            return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]

        def velocity(_, flat):
            layers = unpack(flat)
            gradient = cost_gradient(_product(layers, n_in))
            return -np.concatenate(
                [
                    (
                        _product(layers[index + 1 :], layers[index].shape[0]).T
                        @ gradient
                        @ _product(layers[:index], n_in).T
                    ).ravel()
                    for index in range(len(layers))
                ]
            )

        start = np.concatenate([layer.ravel() for layer in layers])
        solution = solve_ivp(velocity, (0.0, times[-1]), start, method="DOP853", t_eval=times, rtol=1e-12, atol=1e-16)
        assert solution.success, solution.message
        states = [unpack(flat) for flat in solution.y.T]
        return states, np.array([_product(state, n_in) for state in states])

    return integrate
