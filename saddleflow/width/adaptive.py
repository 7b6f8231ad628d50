"""The flow of a reduced network: bases grown along pilot runs, the error of A estimated by larger bases.

A pilot at a loose tolerance shows into which directions the activity leaks, and the bases grow by those, until no
leak is above a threshold. The run proper is then repeated in bases that hold smaller leaks too. The distance of the
two is the error of the smaller one, but for the error of the larger; truncation acts at second order (through the
neural tangent kernel, to which a leak adds its square), so a threshold four times smaller leaves little of it.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from saddleflow._backend.arrays import on_device
from saddleflow._backend.checks import is_concrete, require
from saddleflow.flow import observables as obs
from saddleflow.flow.arguments import FlowOptions
from saddleflow.flow.solve import solve
from saddleflow.flow.state import StopReason
from saddleflow.flow.trajectory import Trajectory
from saddleflow.problem import geometry
from saddleflow.problem.costs import Cost
from saddleflow.problem.network import DeepLinearNetwork, num_parameters
from saddleflow.problem.symmetry import include
from saddleflow.width.projected import ProjectedNetwork, ReducedNetwork, Snapshots, reduce_width, span

# A pilot is to show directions, not numbers: its tolerance, and its rows, which become snapshots, are coarse.
PILOT_RTOL = 1e-3
PILOT_ROWS = 64

# A pilot goes on to this share of the target cost, so that the bases hold what the run reaches until it ends.
PILOT_SHARE = 0.9

# Two runs are compared at so many times: enough to meet the peak of their distance, which an escape makes wide.
CHECK_ROWS = 200

# Pilots and checks at most: leaks fall with every round, and one that asks for more will not meet its tolerance.
MAX_ROUNDS = 40

# The runs are solved to this share of the tolerance, lest the solver's error hide the reduction's.
SOLVER_SHARE = 3e-2

# Errors fall faster than leaks: leak ~ (error / |A|)^(2/3) in measurements, give or take a factor of 4.
LEAK_POWER = 2 / 3

# The larger bases hold leaks this much smaller; the estimate is SAFETY times the distance.
FINER = 0.25
SAFETY = 2.0

# Small networks are padded with dead neurons to one of these widths: few shapes, few compilations.
PADDED = (16, 64, 128, 192, *(2**i for i in range(8, 16)))

# A pilot has leaks taken down to this share of its largest, lest early and inexact flows choose too many directions.
GRADUAL = 0.05

# Growth by less than this share of the directions needs no further pilot: the check looks at the leaks it leaves.
LAST = 0.05

# Leaks below this share of the activity are rounding.
EXACT_LEAK = 1e-13

# An exact flow is solved in the columns that A ever has where those are below this share of all.
NARROW = 0.5

# A basis of inputs further than this from the span of another is a basis of other inputs.
FOREIGN = 1e-8

# A small network with more than this share of the full one's parameters saves nothing.
WORTHWHILE = 0.5


def reduce_where_smaller(
    cost: Cost, network: DeepLinearNetwork | ReducedNetwork, mode: str | None
) -> DeepLinearNetwork | ReducedNetwork:
    """What `gradient_flow(reduce_width=mode)` runs on: a reduction for "auto", where the start's is smaller."""
    require(mode in (None, "auto"), "reduce_width", 'be None or "auto"', mode, "Or pass sf.reduce_width(network).")
    if mode is None or isinstance(network, ReducedNetwork) or not is_concrete(network.layers[0]):
        return network
    if network.depth == 1:  # nothing hidden
        return network
    reduced = reduce_width(network, cost=cost)
    return network if _saves_nothing(reduced) else reduced


def solve_reduced(cost: Any, reduced: ReducedNetwork, options: FlowOptions) -> Trajectory:
    """The flow of a reduced network, enlarged until the estimated error is below its tolerance.

    Args:
        cost: the cost, a function of the end-to-end matrix.
        reduced: the reduced start.
        options: of the flow.

    Returns:
        The trajectory in the smallest bases that met the tolerance. Its `reduced` is the reduction that ran, its
        `stats` hold reduction_error_estimate (sup over time of |A - A_full|_F), reduction_time_shift and
        reduction_error_modulo_shift (at the time of the largest error: its part along dA/dt, as a shift in time, and
        the largest error across dA/dt), reduction_rounds (pilots and checks), num_pilots, num_pilot_steps and
        pilot_seconds. Errors are in the units of A. Where nothing leaks at the start, one run at rtol is all, and its
        error zero. Where `max_seconds` ran out the trajectory is the best so far, with a warning: a run that was
        checked, else an unfinished one or a pilot, of unknown error (infinite).

    Raises:
        ValueError: a cost that is not a `Cost`, or sees other inputs than the one that the width was reduced for; an
            observable or stop that needs layers which were never drawn.
    """
    require(
        isinstance(cost, Cost),
        "cost",
        "be a saddleflow.Cost, a function of the end-to-end matrix, where the width is reduced",
        type(cost).__name__,
        "A cost that depends on the layers sees directions that the reduction leaves out: pass the full network.",
    )
    _check_inputs(cost, reduced)
    asked = options.observables
    _handed(reduced, asked, options.stop)  # refuses before any work is done
    share = 10 * options.rtol if reduced.tolerance is None else reduced.tolerance
    checks, snapshots, pilots = 0, None, _Pilots()
    threshold = min(0.1, share**LEAK_POWER)
    checked = None  # the last run whose error is known
    if reduced.is_complete:
        return _exact(cost, reduced, options, checks, pilots)
    while True:
        if snapshots is not None:
            reduced = _closed(reduced, snapshots, threshold)
        reduced, snapshots, scale = _grow(cost, reduced, threshold, options, pilots)
        if snapshots is None:
            changes = _handed(reduced, asked, options.stop)
            main = solve(cost, _padded(reduced, reduced), replace(options, **changes))
            return _report(main, reduced, asked, _UNKNOWN, checks, pilots)
        if time.perf_counter() > options.deadline:
            return _out_of_time(checked or pilots.last(options), share, scale, asked, checks, pilots)
        if isinstance(reduced, ProjectedNetwork) and _saves_nothing(reduced):
            whole = [np.eye(width) for width in reduced.hidden_widths]
            whole = ProjectedNetwork.of(reduced.layers, whole, reduced.tolerance)
            return _report(solve(cost, whole.network, options), whole, asked, _EXACT, checks, pilots)
        larger = _finer(reduced, snapshots, threshold)
        if larger is None:
            return _exact(cost, reduced, options, checks, pilots)
        changes = _handed(reduced, asked, options.stop)
        changes["rtol"] = max(min(options.rtol, SOLVER_SHARE * share), 1e-13)
        main = solve(cost, _padded(reduced, larger), replace(options, **changes))
        if main.stop_reason == "max_seconds":
            return _out_of_time(checked or (main, reduced, _UNKNOWN), share, scale, asked, checks, pilots)
        errors = _distance(cost, _padded(larger, larger), main, replace(options, **changes))
        checks += 1
        rounds = checks + pilots.count
        expired = time.perf_counter() > options.deadline
        failed = main.stop_reason in ("non_finite", "step_size_underflow", "max_steps")
        met = errors[0] <= share * scale
        if met or expired or failed or rounds >= MAX_ROUNDS:
            if not met:
                ended = f"the run ended with {main.stop_reason!r}" if failed else f"{rounds} rounds did not do"
                _warn(errors[0] / scale, share, "max_seconds ran out" if expired else ended)
            return _report(main, reduced, asked, errors, checks, pilots)
        checked = main, reduced, errors
        threshold *= min(0.5, (0.5 * share * scale / errors[0]) ** LEAK_POWER)


def _check_inputs(cost: Cost, reduced: ReducedNetwork) -> None:
    """Refuse a cost that sees inputs which the reduction has taken for unseen."""
    if reduced.inputs is None:
        return
    basis, known = cost.input_basis, np.asarray(reduced.inputs)
    seen = np.eye(len(known)) if basis is None else np.asarray(basis)
    outside = float(np.linalg.norm(seen - known @ (known.T @ seen), 2))
    require(
        outside < FOREIGN,
        "cost",
        f"see no inputs but those, in {known.shape[1]} directions, of the cost that the width was reduced for",
        f"one of inputs with a share {outside:.2g} outside of them",
        "Reduce the width for this one: sf.reduce_width(network, cost=cost).",
    )


def _exact(cost: Cost, reduced: ReducedNetwork, options: FlowOptions, checks: int, pilots: "_Pilots") -> Trajectory:
    """The one run of a reduction that nothing leaks out of."""
    changes = _handed(reduced, options.observables, options.stop)
    bare = not options.observables and options.stop is None  # else functions are to see all columns
    main = _solve_narrow(cost, reduced, options) if bare else None
    main = main or solve(cost, reduced.network, replace(options, **changes))
    return _report(main, reduced, options.observables, _EXACT, checks, pilots)


def _solve_narrow(cost: Cost, reduced: ReducedNetwork, options: FlowOptions) -> Trajectory | None:
    """The run in the columns that A ever has, where those are few: inputs that are seen, and what W_1 does to others.

    None: they are not, or the cost has no restriction to them.
    """
    if reduced.inputs is None:
        return None
    basis = span(np.asarray(reduced.inputs), np.asarray(reduced.network.layers[0]).T)
    narrow = cost.restricted(basis) if basis.shape[1] < NARROW * len(basis) else None
    if narrow is None:
        return None

    def first_by(network: DeepLinearNetwork, factor: np.ndarray) -> DeepLinearNetwork:
        first, *rest = network.layers
        return eqx.tree_at(lambda n: n.layers, network, (on_device(np.asarray(first) @ factor), *rest))

    run = solve(narrow, first_by(reduced.network, basis), options)
    networks = None if run.networks is None else first_by(run.networks, basis.T)
    return replace(
        run,
        cost=cost,
        end_to_end=run.end_to_end @ basis.T,
        network=first_by(run.network, basis.T),
        networks=networks,
        dips=None if run.dips is None else (run.dips[0], first_by(run.dips[1], basis.T)),
        configuration=run.configuration | {"shape": list(cost.shape)},
    )


_EXACT = (0.0, 0.0, 0.0)
_UNKNOWN = (np.inf, np.nan, np.nan)


def _warn(error: float, tolerance: float, why: str) -> None:
    """Both as shares of the largest |A|_F."""
    warnings.warn(
        f"the reduced flow's estimated error, {error:.2g} of the largest |A|_F, is above its tolerance "
        f"{tolerance:.2g}: {why}. "
        "Give it more time, a larger tolerance, or the full network.",
        stacklevel=4,
    )


@dataclass
class _Pilots:
    """What the pilots of a reduced run have cost."""

    count: int = 0
    num_steps: int = 0
    seconds: float = 0.0
    newest: tuple[Trajectory, ReducedNetwork] | None = None

    def add(self, pilot: Trajectory, reduced: ReducedNetwork) -> None:
        """One more pilot, with the reduction that it ran in."""
        self.count += 1
        self.num_steps += pilot.stats["num_steps"]
        self.seconds += pilot.stats["seconds"]
        self.newest = pilot, reduced

    def last(self, options: FlowOptions) -> "_Run":
        """The last pilot as a run: its rows are its own, and nothing is known of its error."""
        assert self.newest is not None
        pilot, reduced = self.newest
        networks = pilot.networks if options.save_networks else None
        return replace(pilot, networks=networks, stop_reason=StopReason.max_seconds.name), reduced, _UNKNOWN


# A run, the reduction that it ran in, what is known of its error.
_Run = tuple[Trajectory, ReducedNetwork, tuple[float, float, float]]


def _out_of_time(run: _Run, share: float, scale: float, asked: Any, checks: int, pilots: _Pilots) -> Trajectory:
    """The best run there is where the budget has run out."""
    main, reduced, errors = run
    _warn(errors[0] / scale, share, "max_seconds ran out")
    asked = {name: asked[name] for name in main.observables}  # a pilot has none
    return _report(main, reduced, asked, errors, checks, pilots)


def _grow(
    cost: Cost, reduced: ReducedNetwork, threshold: float, options: FlowOptions, pilots: _Pilots
) -> tuple[ReducedNetwork, Snapshots | None, float]:
    """Pilot runs and growth, until no leak is above the threshold.

    Returns:
        The grown network, the last pilot's snapshots (None where it held no finite row), the largest |A|_F met.
    """
    t1 = options.t1 if options.save_at is None else float(options.save_at[-1]) or None
    first = pilots.count
    while True:
        changes = {
            "rtol": max(options.rtol, PILOT_RTOL),
            "t1": t1,
            "target_cost": None if options.target_cost is None else PILOT_SHARE * options.target_cost,
            "save_at": None,
            "phase": f"pilot {pilots.count + 1}",
            "observables": None,
            "stop": _handed(reduced, {}, options.stop)["stop"],
            "save_networks": True,
            "max_saves": PILOT_ROWS,
            "saves_per_step": 1,
        }
        pilot = solve(cost, _padded(reduced, reduced), replace(options, **changes))
        pilots.add(pilot, reduced)
        finite = np.isfinite(pilot.end_to_end).all(axis=(1, 2))
        assert pilot.networks is not None
        small = _cut(pilot.networks, reduced)
        if not finite.any():  # an overflow at the start: nothing to grow along
            return reduced, None, np.inf
        snapshots = Snapshots(reduced.seen([np.asarray(layer)[finite] for layer in small.layers]))
        scale = max(float(np.linalg.norm(pilot.end_to_end[finite], axis=(1, 2)).max()), np.finfo(float).tiny)
        grown = _closed(reduced, snapshots, threshold)
        expired = time.perf_counter() > options.deadline
        if grown is reduced or pilots.count - first >= MAX_ROUNDS or expired:
            return reduced, snapshots, scale
        fresh = sum(grown.reduced_widths) - sum(reduced.reduced_widths)
        snapshots = snapshots.within(reduced, grown)
        reduced = grown
        settled = fresh < LAST * sum(reduced.reduced_widths)
        if settled or (isinstance(reduced, ProjectedNetwork) and _saves_nothing(reduced)):
            return reduced, snapshots, scale


def _closed(reduced: ReducedNetwork, snapshots: Snapshots, threshold: float) -> ReducedNetwork:
    """Grow by the leaks of a pilot above the threshold, by what leaks out of those, and so on through all layers."""
    leaks = reduced.leaks(snapshots)
    threshold = max(threshold, GRADUAL * max(float(s.max(initial=0.0)) for _, s in leaks))
    for _ in range(reduced.depth):
        grown = reduced.grow(leaks, threshold)
        if grown is reduced or (isinstance(grown, ProjectedNetwork) and _saves_nothing(grown)):
            return grown
        snapshots = snapshots.within(reduced, grown)
        reduced, leaks = grown, grown.leaks(snapshots)
    return reduced


def _finer(reduced: ReducedNetwork, snapshots: Snapshots, threshold: float) -> ReducedNetwork | None:
    """The reduction in larger bases, for comparison; None where nothing leaks at all."""
    leaks = reduced.leaks(snapshots)
    while not reduced.is_complete:
        threshold *= FINER
        larger = reduced.grow(leaks, threshold)
        if larger is not reduced:
            return larger
        if threshold < EXACT_LEAK:
            return None
    return None


def _distance(cost: Cost, start: DeepLinearNetwork, main: Trajectory, options: FlowOptions):
    """`SAFETY` times the largest distance from the flow in larger bases; time shift; the largest across dA/dt."""
    last = main.time[-1]
    if not last > 0:
        return _EXACT
    rows = np.round(np.linspace(0, len(main.time) - 1, CHECK_ROWS)).astype(int)
    changes = {
        "save_at": main.time[rows],
        "t1": None,
        "target_cost": None,  # the two are compared until the run's end
        "phase": "check",
        "observables": {"velocity": _velocity},
        "stop": None,
        "save_networks": False,
    }
    check = solve(cost, start, replace(options, **changes))
    covered = rows[: len(check.time)]
    if len(covered) == 0 or check.time[-1] < last or not np.isfinite(main.end_to_end).all():
        return _UNKNOWN  # one of the two failed: nothing is known of the error
    difference = main.end_to_end[covered] - check.end_to_end
    velocity = check.observables["velocity"]
    speed = np.sum(velocity**2, axis=(1, 2))
    along = np.sum(difference * velocity, axis=(1, 2))
    shift = np.divide(along, speed, out=np.zeros_like(along), where=speed > 0)
    distance = np.linalg.norm(difference, axis=(1, 2))
    across = np.linalg.norm(difference - shift[:, None, None] * velocity, axis=(1, 2))
    return SAFETY * float(distance.max()), float(shift[distance.argmax()]), SAFETY * float(across.max())


def _velocity(cost: Cost, network: DeepLinearNetwork) -> Array:
    """`dA/dt`."""
    return -geometry.neural_tangent_kernel(network, cost.gradient(network.end_to_end()))


def _handed(reduced: ReducedNetwork, asked: Mapping[str, obs.Observable], stop: Any) -> dict[str, Any]:
    """Observables and stop as functions of the small network, which is all that a run sees."""
    through = {name: _through(reduced, name, function) for name, function in asked.items()}
    return {"observables": through, "stop": None if stop is None else _through(reduced, "stop", stop)}


def _through(reduced: ReducedNetwork, name: str, function: Any) -> Any:
    if function in _CORRECTIONS or getattr(function, "through_products", False):
        return function
    if isinstance(reduced, ProjectedNetwork):
        return lambda first, network: function(first, reduced.expand(_cut(network, reduced)))
    raise ValueError(
        f"`{name}` needs the full layers, but those of a sampled network were never drawn. Where it depends on the "
        "network only through end_to_end, partial products or the gradient, say so: "
        "saddleflow.flow.observables.through_products(function). Otherwise reduce a given network: "
        "sf.reduce_width(sf.gaussian(...))."
    )


# What the frozen part adds to an observable of the small network.
_CORRECTIONS: dict[Any, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    obs.parameter_norm: lambda values, frozen: np.sqrt(values**2 + frozen.sum()),
    obs.layer_norms: lambda values, frozen: np.sqrt(values**2 + frozen),
}


def _report(main: Trajectory, reduced: ReducedNetwork, asked, errors, checks: int, pilots: _Pilots) -> Trajectory:
    """The trajectory in terms of the full network, with what is known of the error."""
    frozen = np.asarray(reduced.frozen_squares)
    estimate, shift, across = (float(number) for number in errors)
    norm = float(np.sqrt(main.configuration["start_norm"] ** 2 + frozen.sum()))
    return replace(
        main,
        observables={
            name: _CORRECTIONS[asked[name]](values, frozen) if asked[name] in _CORRECTIONS else values
            for name, values in main.observables.items()
        },
        network=_cut(main.network, reduced),
        networks=None if main.networks is None else _cut(main.networks, reduced),
        stats=main.stats
        | {
            "reduction_error_estimate": estimate,
            "reduction_time_shift": shift,
            "reduction_error_modulo_shift": across,
            "reduction_rounds": checks + pilots.count,
            "num_pilots": pilots.count,
            "num_pilot_steps": pilots.num_steps,
            "pilot_seconds": pilots.seconds,
        },
        configuration=main.configuration
        | {
            "width": reduced.width,
            "num_parameters": num_parameters(reduced.sizes),
            "reduced_widths": list(reduced.reduced_widths),
            "start_norm": norm,
        },
        reduced=replace(reduced, error_estimate=estimate),
    )


def _padded(reduced: ReducedNetwork, like: ReducedNetwork) -> DeepLinearNetwork:
    """The small network with dead neurons up to a common width that holds `like`, a larger one of its kind."""
    largest = max(like.reduced_widths)
    width = next((pad for pad in PADDED if pad >= largest), largest)
    return include(
        reduced.network,
        tuple(max(m, min(width, n)) for m, n in zip(like.reduced_widths, like.hidden_widths, strict=True)),
    )


def _cut(network: DeepLinearNetwork, reduced: ReducedNetwork) -> DeepLinearNetwork:
    """Without the dead neurons; leading time axes stay."""
    # numpy compiles nothing for a new shape
    layers = [np.asarray(layer) if is_concrete(layer) else layer for layer in network.layers]
    cut = [
        layer[..., : small.shape[0], : small.shape[1]]
        for layer, small in zip(layers, reduced.network.layers, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(reduced.network), list(map(on_device, cut)))


def _saves_nothing(reduced: ReducedNetwork) -> bool:
    return reduced.network.num_parameters > WORTHWHILE * num_parameters(reduced.sizes)
