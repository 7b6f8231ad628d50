"""The picture of a descent beside its flow."""

from typing import TYPE_CHECKING, Any

import numpy as np

from saddleflow import plotting
from saddleflow._backend.checks import require
from saddleflow.flow.pictures import stacked
from saddleflow.training.distance import distance_to_flow

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # loading matplotlib takes longer than most descents


def plot_descent(descent: Any, flow: Any, *, theme: str = "transparent", width: str = "screen") -> Figure:
    """The distance to the flow above, the sharpness against 2 / learning rate below; returns the figure.

    >>> cost = sf.MatrixCompletion.random(jax.random.key(0))
    >>> start = sf.gaussian(jax.random.key(1), depth=3, width=50, shape=cost.shape, gamma=1.5)
    >>> descent = sf.gradient_descent(cost, start, optax.sgd(1e-2), num_steps=1000, observables=["sharpness"])
    >>> flow = sf.gradient_flow(cost, start, rtol=1e-8, save_at=descent.time)
    >>> sf.training.plot_descent(descent, flow).savefig("descent.png")

    Args:
        descent: a trajectory of `gradient_descent` with the observable "sharpness".
        flow: the flow at the same times, as `distance_to_flow` takes it.
        theme: "transparent", "light" or "dark", as of `Trajectory.plot`.
        width: "column", "double", "screen" or "slide".

    Raises:
        ValueError: no sharpness, or a flow at other times; another theme or width.
    """
    known = list(descent.observables)
    require("sharpness" in known, "descent", 'hold the observable "sharpness"', known, 'observables=["sharpness"]')
    distances = distance_to_flow(descent, flow)
    rate = descent.configuration["learning_rate"]
    with plotting.style(theme, width):
        figure, (top, bottom) = plotting.subplots(2, 1, sharex=True, figsize=stacked(width))
        top.semilogy(descent.time, np.where(distances > 0, distances, np.nan), color=plotting.BLUE)
        top.set_ylabel("distance to the flow")
        bottom.plot(descent.time, descent.observables["sharpness"], color=plotting.BLUE)
        bottom.set_ylabel("sharpness")
        if rate is not None:
            plotting.draw_level(bottom, 2 / rate, "2 / learning rate")
            bottom.margins(y=0.12)
        bottom.set_xlabel(f"t, {descent.time_unit}")
    return figure
