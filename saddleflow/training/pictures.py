"""The picture of a descent beside its flow."""

from typing import Any

import numpy as np

from saddleflow._backend.checks import require
from saddleflow.training.distance import distance_to_flow


def plot_descent(descent: Any, flow: Any) -> Any:
    """The distance to the flow above, the sharpness against 2 / learning rate below; returns the figure.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> descent = sf.gradient_descent(cost, start, optax.sgd(1e-2), num_steps=1000, observables=["sharpness"])
    >>> flow = sf.gradient_flow(cost, start, rtol=1e-8, save_at=descent.time)
    >>> sf.training.plot_descent(descent, flow).savefig("descent.png")

    Args:
        descent: a trajectory of `gradient_descent` with the observable "sharpness".
        flow: the flow at the same times, as `distance_to_flow` takes it.

    Raises:
        ValueError: no sharpness, or a flow at other times.
    """
    known = list(descent.observables)
    require("sharpness" in known, "descent", 'hold the observable "sharpness"', known, 'observables=["sharpness"]')
    distances = distance_to_flow(descent, flow)
    from saddleflow.flow import plotting  # and matplotlib with it

    rate = descent.configuration["learning_rate"]
    with plotting.style():
        figure, (top, bottom) = plotting.subplots(2, 1, sharex=True, figsize=(4.2, 4.2))
        top.semilogy(descent.time, np.where(distances > 0, distances, np.nan), color=plotting.BLUE)
        top.set_ylabel("distance to the flow")
        bottom.plot(descent.time, descent.observables["sharpness"], color=plotting.BLUE, label="sharpness")
        if rate is not None:
            bottom.axhline(2 / rate, color=plotting.MUTED, lw=0.7, ls=":", label="2 / learning rate")
        bottom.set_xlabel(f"t, {descent.time_unit}")
        bottom.legend()
    return figure
