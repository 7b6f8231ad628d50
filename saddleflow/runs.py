"""A run described and a run on its way: the method, the numbers, the state between two steps; why runs end."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree

from saddleflow.clock import Clock
from saddleflow.dips import Dips
from saddleflow.graded import Frame
from saddleflow.network import DeepLinearNetwork
from saddleflow.observables import Observable

# Reasons, by their code. "running" never leaves this package.
REASONS = (
    *("running", "converged", "t1", "max_steps", "step_size_underflow", "non_finite"),
    *("stop", "max_seconds", "stationary_saddle", "below_resolution"),
)
RUNNING, CONVERGED, T1, MAX_STEPS, UNDERFLOW, NON_FINITE = range(6)
STOP, MAX_SECONDS, STATIONARY, BELOW_RESOLUTION = range(6, 10)

Row = dict[str, Any]


class Method(eqx.Module):
    """How to step and what to record: the part of a run that is compiled in."""

    solver: diffrax.AbstractAdaptiveSolver
    observables: dict[str, Observable] = eqx.field(static=True)
    stop: Callable[[Array, DeepLinearNetwork], Bool[Array, ""]] | None  # a function, or a module with arrays in it
    save_networks: bool = eqx.field(static=True)
    graded: bool = eqx.field(static=True)  # turn into graded coordinates every REGRADE steps
    capacity: int = eqx.field(static=True)  # rows held at most, where the solver's own steps are saved
    saves_per_step: int = eqx.field(static=True)  # rows of a step then, the last at its end
    num_dips: int = eqx.field(static=True)  # networks kept at most from where the gradient norm dips; 0: none


class Settings(eqx.Module):
    """The numbers of a run, all traced: another tolerance or end needs no compilation."""

    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    t1: Float[Array, ""]
    save_at: Float[Array, " times"] | None  # None: save the solver's own steps
    max_steps: Int[Array, ""]
    gradient_tolerance: Float[Array, ""]  # converged where |grad C(A)|_F is at most this; negative: never


class FlowState(eqx.Module):
    """One trajectory on its way: what a later burst needs to go on, and the rows recorded so far."""

    network: DeepLinearNetwork  # in the frame
    frame: Frame | None  # None: the coordinates of the start
    clock: Clock
    step_size: Float[Array, ""]
    dips: Dips | None
    solver_state: PyTree
    controller_state: PyTree
    num_accepted: Int[Array, ""]
    num_rejected: Int[Array, ""]
    consecutive_rejections: Int[Array, ""]
    met_non_finite: Bool[Array, ""]  # at the last rejection
    strained: Int[Array, ""]  # turns into graded coordinates in a row that found rounding at work
    reason: Int[Array, ""]
    rows: Row
    num_rows: Int[Array, ""]
    stride: Int[Array, ""]  # every stride-th of the places where a step could be saved is a row

    @property
    def time(self) -> Float[Array, ""]:
        """Physical time."""
        return self.clock.time
