"""A run described and a run on its way: why runs end, the method, the numbers, the state between two steps."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Literal

import diffrax
import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree

from saddleflow.flow.clock import Clock
from saddleflow.flow.dips import Dips
from saddleflow.flow.graded import Frame
from saddleflow.flow.grinding import Grinding
from saddleflow.flow.growth import Growth
from saddleflow.flow.landscape import Parameters
from saddleflow.flow.observables import Observable
from saddleflow.solvers import NDF, CountingSolver, NDFState, Work


class StopReason(IntEnum):
    """Why a flow, or a gradient descent, ended.

    The number is what arrays and stores hold; the name is what `Trajectory.stop_reason` and datasets say. Each member
    has a `meaning`, one sentence.

    >>> sf.StopReason(1).name
    'converged'
    >>> sf.StopReason.max_steps.meaning
    'The steps allowed are used up.'
    """

    meaning: str

    def __new__(cls, code: int, meaning: str):
        """A member: a number with a sentence."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    running = 0, "The flow goes on; no result ever says so."
    converged = (
        1,
        "grad C(A) is zero to gradient_tolerance or to rounding: a minimum of the convex C, to that tolerance.",
    )
    t1 = 2, "The end of the time interval is reached."
    max_steps = 3, "The steps allowed are used up."
    step_size_underflow = 4, "No step is short enough for the tolerance."
    non_finite = 5, "The cost or its gradient is not finite."
    stop = 6, "The function `stop` has turned true."
    max_seconds = 7, "The wall-clock budget is used up."
    stationary_saddle = 8, "The gradient in theta is zero up to rounding, but grad C(A) is not."
    below_resolution = 9, "Rounding would decide the next escape."
    diverges = 10, "C falls towards its infimum while A grows without bound."
    stationary = 11, "The gradient in theta is zero up to rounding, and the Hessian has no direction that leads down."
    not_smooth = 12, "Steps fail at jumps of the gradient again and again: take a smooth activation (sf.activations)."
    target_cost = 13, "The train cost has fallen to `target_cost`."
    num_steps = 14, "The steps of a gradient descent are done."
    unstable = 15, "The loss of a gradient descent has grown without bound: its learning rate is too large."


Row = dict[str, Any]


class Method(eqx.Module):
    """How to step and what to record: the part of a run that is compiled in."""

    solver: diffrax.AbstractAdaptiveSolver
    observables: dict[str, Observable] = eqx.field(static=True)
    stop: Callable[[Array, Any], Bool[Array, ""]] | None  # a function, or a module with arrays in it
    save_networks: bool = eqx.field(static=True)
    graded: bool = eqx.field(static=True)  # turn into graded coordinates every REGRADE steps
    capacity: int = eqx.field(static=True)  # rows held at most, where the solver's own steps are saved
    saves_per_step: int = eqx.field(static=True)  # rows of a step then, the last at its end
    num_dips: int = eqx.field(static=True)  # networks kept at most from where the gradient norm dips; 0: none
    tail_solver: NDF | None = None  # takes over on long tails; None: nobody does
    turns: Literal["plain", "tail", "both"] = eqx.field(static=True, default="both")  # whose steps are compiled in
    # products of a step from which on later ones invert their stiff part; None: they all do, or none
    price: float | None = eqx.field(static=True, default=None)
    inverts: bool = eqx.field(static=True, default=False)  # where that has a price: whether the steps compiled in do


class Settings(eqx.Module):
    """The numbers of a run, all traced: another tolerance or end needs no compilation."""

    rtol: Float[Array, ""]
    atol: Float[Array, "*entries"]  # one number, or one for every parameter of a vector of them
    t1: Float[Array, ""]
    save_at: Float[Array, " times"] | None  # None: save the solver's own steps
    max_steps: Int[Array, ""]
    gradient_tolerance: Float[Array, ""]  # converged where |grad C(A)|_F is at most this; negative: never
    target_cost: Float[Array, ""] | None = None  # the run ends where the loss is at most this; None: nowhere
    max_rows: Int[Array, ""] | None = (
        None  # rows kept at most, or times asked for; None: as many as there is room for
    )


class FlowState(eqx.Module):
    """One trajectory on its way: what a later burst needs to go on, and the rows recorded so far."""

    parameters: Parameters  # in the frame
    frame: Frame | None  # None: the coordinates of the start
    clock: Clock
    step_size: Float[Array, ""]
    dips: Dips | None
    growth: Growth
    grinding: Grinding | None  # None: jumps of the gradient are not looked for
    solver_state: PyTree
    controller_state: PyTree
    num_accepted: Int[Array, ""]
    num_rejected: Int[Array, ""]
    consecutive_rejections: Int[Array, ""]
    unmoved: Int[Array, ""]  # accepted steps in a row that moved nothing, those after a rejection
    met_non_finite: Bool[Array, ""]  # at the last rejection
    calm: Int[Array, ""]  # stiff steps in a row, each a short move: a tail, if there are many
    on_tail: Bool[Array, ""]  # the tail solver's turn
    jumped: Bool[Array, ""]  # since the solver's last step another one has moved the network
    tail_state: NDFState | None  # the tail solver's; of order 0 where it has no past
    inverts_from: Float[Array, ""] | None  # steps so long are to invert their stiff part; None: that has no price
    strained: Int[Array, ""]  # turns into graded coordinates in a row that found rounding at work
    reason: Int[Array, ""]  # a `StopReason`
    rows: Row
    num_rows: Int[Array, ""]
    stride: Int[Array, ""]  # every stride-th of the places where a step could be saved is a row

    @property
    def time(self) -> Float[Array, ""]:
        """Physical time."""
        return self.clock.time

    @property
    def num_steps(self) -> Int[Array, ""]:
        """Steps tried, accepted or not."""
        return self.num_accepted + self.num_rejected

    def work(self, method: Method) -> Work | None:
        """What the steps have cost; None for a solver that does not tell."""
        if not isinstance(method.solver, CountingSolver):
            return None
        work = method.solver.work(self.solver_state)
        return work if self.tail_state is None else work + self.tail_state.work

    def plain_parameters(self) -> Parameters:
        """The parameters in the coordinates of the start."""
        return self.parameters if self.frame is None else self.frame.undo(self.parameters)
