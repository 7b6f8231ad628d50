"""A lane, one flow of a sweep, as arrays: the compiled programs that start it, step it in bursts and read its end.

A program has one slot or several; a slot holds one lane. All lanes of a program pass through the same compiled code
with the same number of slots, and nothing in it looks across slots: a lane's arithmetic depends neither on the lanes
beside it nor on its slot, its device or the order.
"""

import abc
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saddleflow._backend.checks import require
from saddleflow._backend.programs import compiled
from saddleflow.flow import loop
from saddleflow.flow.arguments import FlowOptions, settings_of
from saddleflow.flow.landscape import Landscape, NetworkLandscape, Parameters
from saddleflow.flow.models import leads_down
from saddleflow.flow.state import FlowState, Method, Settings, StopReason
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import layer_sizes, num_parameters
from saddleflow.problem.starts import gaussian
from saddleflow.solvers import Rosenbrock, Switching
from saddleflow.sweeps.results import LaneResult, spread


class Lane(eqx.Module):
    """What tells one lane from another of its program: arrays, all traced, so that none needs a compilation."""

    rtol: eqx.AbstractVar[Float[Array | np.ndarray, ""]]

    @abc.abstractmethod
    def start(self) -> tuple[Landscape, Any]:
        """The landscape and the parameters at the start; part of a compiled program."""

    @abc.abstractmethod
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of parameters, of entries of a Krylov vector, and of what a stiff step factorises."""

    @property
    @abc.abstractmethod
    def size_name(self) -> str:
        """How large it is, in words."""


def num_coordinates(sizes: Sequence[int]) -> int:
    """Entries of a Krylov vector of a network whose spaces have the sizes (n_0, ..., n_L)."""
    n_in, *widths, n_out = sizes
    compressed = len(widths) > 1 and min(widths) > n_in + n_out
    return (n_in + n_out) * sum(widths) if compressed else num_parameters(sizes)


class NetworkLane(Lane):
    """A deep linear network: its start is drawn within the program."""

    cost: Cost
    seed: Int[Array | np.ndarray, ""]
    alpha: Float[Array | np.ndarray, ""]
    rtol: Float[Array | np.ndarray, ""]
    depth: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    gamma: Float[Array | np.ndarray, ""] | None = None
    variance: Float[Array | np.ndarray, ""] | None = None

    def law(self) -> dict[str, Any]:
        """The law of theta_0, as arguments of `gaussian`: its sizes, and gamma or the variance."""
        sizes = {"depth": self.depth, "width": self.width, "shape": self.cost.shape}
        return sizes | {"gamma": self.gamma, "variance": self.variance}

    def start(self):
        """`alpha * theta_0(seed)`."""
        theta = gaussian(jax.random.key(self.seed), **self.law())
        return NetworkLandscape(self.cost), jax.tree.map(lambda layer: self.alpha * layer, theta)

    def sizes(self):
        """Of the layers; coordinates are compressed where that saves some."""
        sizes = layer_sizes(self.depth, self.width, self.cost.shape)
        return num_parameters(sizes), num_coordinates(sizes), 0

    @property
    def size_name(self):
        """By the width."""
        return f"at width {self.width}"


class Program(eqx.Module):
    """What the lanes of one compiled program have in common: the method, compiled in, and numbers, traced."""

    method: Method
    save_at: Float[Array | np.ndarray, " times"] | None
    t1: Float[Array | np.ndarray, ""]  # infinite: to a certified minimum
    max_steps: Int[Array | np.ndarray, ""]
    gradient_tolerance: Float[Array | np.ndarray, ""]
    target_cost: Float[Array | np.ndarray, ""] | None  # None: lanes have none
    num_rows: int = eqx.field(static=True)  # of a result


def with_turns(program: Program, turns: Literal["plain", "tail", "both"]) -> Program:
    """The program with other steps compiled in: see `Method.turns`."""
    return replace(program, method=replace(program.method, turns=turns))


class Running(eqx.Module):
    """A lane on its way, or one in every slot."""

    state: FlowState
    settings: Settings
    landscape: Landscape
    start: Parameters


def _start(lane: Lane, program: Program) -> Running:
    """The start of a lane. Every start of a sweep is made here."""
    landscape, parameters = lane.start()
    options = FlowOptions(
        rtol=lane.rtol,
        t1=program.t1,
        gradient_tolerance=program.gradient_tolerance,
        target_cost=program.target_cost,
    )
    settings = replace(settings_of(landscape, parameters, options), max_steps=jnp.asarray(program.max_steps))
    if program.save_at is not None:
        never = jnp.asarray(-1.0)  # converged: a lane goes on to the last of the times
        settings = replace(settings, save_at=jnp.asarray(program.save_at), gradient_tolerance=never)
    return Running(loop.start(landscape, parameters, settings, program.method), settings, landscape, parameters)


def _burst(
    running: Running, program: Program, num_steps: Int[Array, ""]
) -> tuple[Running, Bool[Array, ""], Int[Array, ""]]:
    """At most so many steps more; whether the lane still runs, and all the steps it has taken."""
    state = loop.advance(running.state, running.landscape, running.settings, program.method, num_steps)
    return replace(running, state=state), state.reason == StopReason.running, state.num_steps


def _result(running: Running, program: Program) -> LaneResult:
    state, landscape, method = running.state, running.landscape, program.method
    end = state.plain_parameters()
    rows, num_rows = state.rows, state.num_rows
    if program.save_at is None:
        last = loop.observe(landscape, end, state.clock, method)
        missing = loop.ends_between_rows(state.num_accepted, state.stride, method)
        rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]).at[num_rows].set(y), rows, last)
        rows = spread(rows, num_rows + missing, program.num_rows)
        num_rows = jnp.asarray(program.num_rows)
    work = state.work(method)
    return LaneResult(
        rows=rows | landscape.costs(rows),
        num_rows=num_rows,
        end_time=state.time,
        stop_reason=state.reason,
        num_accepted_steps=state.num_accepted,
        num_rejected_steps=state.num_rejected,
        balancedness_drift=landscape.drift(running.start, end),
        num_vector_field_evaluations=None if work is None else work.vector_fields,
        num_hessian_vector_products=None if work is None else work.products,
    )


begin = compiled(_start)
_shapes = eqx.filter_jit(_start)  # traced once, for what it would take; never compiled


@compiled
def advance(
    running: Running, program: Program, num_steps: Int[Array, ""]
) -> tuple[Running, Bool[Array, ""], Int[Array, ""], LaneResult]:
    """A lone lane after a burst: as `_burst` says, and its result, of no use before the end, but nearly free."""
    running, active, steps = _burst(running, program, num_steps)
    return running, active, steps, _result(running, program)


def _start_slot(lane: Lane, filled: Bool[Array, ""], program: Program) -> Running:
    running = _start(lane, program)
    reason = jnp.where(filled, running.state.reason, StopReason.stop)
    return replace(running, state=replace(running.state, reason=reason))


@compiled
def begin_slots(lanes: Lane, filled: Bool[Array | np.ndarray, " slots"], program: Program) -> Running:
    """The starts of a lane in every slot; those of empty slots have ended already."""
    batched = eqx.if_array(0)
    return eqx.filter_vmap(_start_slot, in_axes=(batched, batched, None))(lanes, filled, program)


@eqx.filter_jit
def refill_slots(running: Running, fresh: Running, filled: Bool[Array | np.ndarray, " slots"]) -> Running:
    """The lanes of all slots, with fresh ones in those that are to be filled."""
    arrays, others = eqx.partition(running, eqx.is_array)
    chosen = jax.tree.map(
        lambda old, new: jnp.where(filled.reshape(-1, *[1] * (old.ndim - 1)), new, old),
        arrays,
        eqx.filter(fresh, eqx.is_array),
    )
    return eqx.combine(chosen, others)


@compiled
def advance_slots(
    running: Running, program: Program, num_steps: Int[Array, ""]
) -> tuple[Running, Bool[Array, " slots"], Int[Array, " slots"]]:
    """The lanes of all slots after a burst: as `_burst` says."""
    return eqx.filter_vmap(_burst, in_axes=(eqx.if_array(0), None, None))(running, program, num_steps)


@compiled
def read_slots(running: Running, program: Program) -> Any:
    """The results of the lanes of all slots: a `LaneResult` with a leading axis."""
    return eqx.filter_vmap(_result, in_axes=(eqx.if_array(0), None))(running, program)


def side_by_side(lanes: Sequence[Lane], kind: Hashable) -> Lane:
    """Lanes of one program as one, arrays with a leading axis.

    Raises:
        ValueError: lanes of another signature than that of their program, `kind`.
    """
    require(
        all(signature(lane) == kind for lane in lanes),
        "init",
        "make models of one structure for all seeds",
        "several structures",
        "Pass slots=1, or let the structure depend on an argument of init other than the key.",
    )
    arrays, others = zip(*(eqx.partition(lane, eqx.is_array) for lane in lanes), strict=True)
    return eqx.combine(jax.tree.map(lambda *x: np.stack(x), *arrays), others[0])


def signature(tree: Any) -> Hashable:
    """Equal for trees that one compiled program can serve: structure, shapes and types of arrays, other leaves."""
    leaves, structure = jax.tree.flatten(tree)
    kinds = [(leaf.shape, str(leaf.dtype)) if eqx.is_array(leaf) else leaf for leaf in leaves]
    return structure, tuple(kinds)


def slot(running: Running, number: int) -> Running:
    """The lane in one of the slots."""
    return jax.tree.map(lambda x: x[number] if eqx.is_array(x) else x, running)


def finished(result: LaneResult, running: Running) -> LaneResult:
    """The result of a lane that has ended, in numpy; where it rests, by the Hessian there, of a saddle or not.

    Networks say that by themselves.
    """
    result = jax.device_get(result)
    landscape: Any = running.landscape
    if result.stop_reason == StopReason.stationary and leads_down(landscape, running.state.parameters):
        return replace(result, stop_reason=np.asarray(int(StopReason.stationary_saddle)))
    return result


def forecast_memory(lane: Lane, program: Program) -> int:
    """Bytes that a slot will need, foreseen from shapes before anything is compiled.

    The lane in five copies (old, new, selected, fresh, read at its end), the stages of a step, the Krylov basis and
    what is factorised.
    """
    state = eqx.filter_eval_shape(_shapes, lane, program)
    parameters, coordinates, factorised = lane.sizes()
    arrays = [x for x in jax.tree.leaves(state) if isinstance(x, jax.ShapeDtypeStruct)]
    size = 5 * sum(x.size * x.dtype.itemsize for x in arrays)
    solver = program.method.solver
    solver = solver.stiff if isinstance(solver, Switching) else solver  # its explicit steps need less
    if isinstance(solver, Rosenbrock):
        krylov = 2 * solver.max_krylov_dim * coordinates
        size += 8 * ((2 * solver.tableau.stages + 6) * parameters + krylov + 2 * factorised)
    else:
        size += 8 * 16 * parameters
    return size
