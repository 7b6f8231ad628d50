"""The options of a flow: one object, checked once, and split into the numbers of the run and its method."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from saddleflow._backend.arguments import (
    MOST_STEPS,
    Reader,
    boolean,
    function,
    integer,
    number,
    optional,
    real_numbers,
    refuse,
)
from saddleflow._backend.arrays import on_device, on_host
from saddleflow._backend.checks import check_save_at, is_concrete, require, require_finite, require_positive
from saddleflow._backend.devices import check_room
from saddleflow._backend.meters import progress
from saddleflow._backend.programs import compiled
from saddleflow.flow import observables as obs
from saddleflow.flow.graded import is_tiny
from saddleflow.flow.landscape import Landscape, local_model
from saddleflow.flow.state import Method, Settings
from saddleflow.problem.costs import Cost, Scaled
from saddleflow.problem.network import DeepLinearNetwork
from saddleflow.problem.padding import padded_size
from saddleflow.solvers import MAX_ASYMMETRY, CountingSolver, Rosenbrock, Switching, asymmetry

# Pairs of matrices between which a cost is looked at for convexity (of large ones fewer, but one of each size), their
# sizes, and what rounding may make of it.
PAIRS_TRIED, MAX_NUMBERS_TRIED, SIZES_TRIED, MAX_EXCESS = 48, 2**20, (0.03, 0.3, 1.0, 3.0, 30.0), 1e-9

Pairs = Float[Array | np.ndarray, "pairs n_out n_in"]

# The error of an entry is weighed against max(|entry|, this share of the start's rms entry): relative to what
# the start holds, at every initialisation scale.
START_SHARE = 0.2

# The stiff method as it fits landscapes.
STIFF = Rosenbrock(local_model=local_model, check_symmetry=False)

# Rows kept where nothing is said of them: so many, or as many as hold so many numbers together (400 MB), but a few.
MAX_SAVES, MAX_ROWS_NUMBERS, MIN_SAVES = 1000, 50_000_000, 16

# Networks kept near saddles hold this many numbers at most (but four networks always).
MAX_DIP_NUMBERS = 10_000_000


def solver(argument: str, value: Any) -> Any:
    """The reader of an argument `solver`."""
    if not isinstance(value, diffrax.AbstractAdaptiveSolver):
        remedy = "Take diffrax.Tsit5() or wrap yours in diffrax.HalfSolver."
        if isinstance(value, type) and issubclass(value, diffrax.AbstractAdaptiveSolver):
            remedy = f"Make one: {value.__name__}()."
        refuse(argument, "be an adaptive diffrax solver, with an error estimate", value, remedy)
    return value


# What the options of flows are, for the tables of the functions that take them.
FLOW: dict[str, Reader] = {
    "rtol": number(example="1e-6"),
    "t1": optional(number(example="10.0")),
    "target_cost": optional(number()),
    "save_at": optional(real_numbers),
    "solver": optional(solver),
    "observables": optional(obs.read),
    "stop": optional(function("time", "network")),
    "save_networks": boolean,
    "max_saves": optional(integer(4)),
    "saves_per_step": integer(1, 10**6),
    "max_steps": integer(1, MOST_STEPS),
    "max_seconds": optional(number(example="60.0")),
    "gradient_tolerance": number(example="1e-4"),
    "rank_tolerance": optional(number()),
    "graded": optional(boolean),
    "progress": progress,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowOptions:
    """How a flow is to be solved and what of it is kept; `gradient_flow` documents each option.

    Numbers (rtol, t1, gradient_tolerance, target_cost) may be traced. Observables are resolved to functions,
    `save_at` to an array and `t1` to the last of its times where it was left out.

    Raises:
        ValueError: a bad option, named with value and remedy.
    """

    rtol: Any = 1e-6
    t1: Any = None
    save_at: Any = None
    solver: diffrax.AbstractSolver | None = None
    observables: Any = None  # a mapping or names; of a checked object, functions by name
    stop: Callable[[Array, DeepLinearNetwork], Bool[Array, ""]] | None = None
    save_networks: bool = False
    max_saves: int | None = None  # None: `with_room_for` decides
    saves_per_step: int = 1
    max_steps: int = 1_000_000
    max_seconds: float | int | None = None
    gradient_tolerance: Any = 1e-4
    target_cost: Any = None
    rank_tolerance: float | None = None
    graded: bool | None = None
    progress: bool | str = True
    phase: str = "run"  # of a longer work: its name on the meter
    deadline: float = math.inf  # of time.perf_counter: what is left of max_seconds, also to copies of these options

    def __post_init__(self):
        for name in ("rtol", "gradient_tolerance"):
            require_tolerance(name, getattr(self, name))
        if self.t1 is not None:
            require_positive("t1", self.t1)
        if self.save_at is not None:
            save_at, t1 = check_save_at(self.save_at, self.t1)
            object.__setattr__(self, "save_at", save_at)
            object.__setattr__(self, "t1", t1)
        if self.target_cost is not None:
            require_target(self.target_cost)
        object.__setattr__(self, "observables", obs.resolve(self.observables))
        require(
            self.solver is None or isinstance(self.solver, Rosenbrock) or not self.graded,
            "graded",
            "come with the default solver",
            type(self.solver).__name__,
            "Its error weights know the coordinates; others' do not.",
        )
        for name in ("max_seconds", "rank_tolerance"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        if self.max_seconds is not None:
            object.__setattr__(self, "deadline", min(self.deadline, time.perf_counter() + self.max_seconds))

    @property
    def num_rows(self) -> int:
        """Rows at most where the solver's own steps are saved."""
        return MAX_SAVES if self.max_saves is None else self.max_saves

    def check_rows(self, numbers: int) -> None:
        """Refuse more rows than fit into the memory, of so many numbers each.

        Raises:
            ValueError: a forecast, and what is free.
        """
        argument, count = ("max_saves", self.max_saves) if self.save_at is None else ("save_at", len(self.save_at))
        if count is not None:
            check_room(argument, count, 8 * count * numbers, f"A row holds {numbers} numbers: ask for fewer rows.")

    def with_room_for(self, numbers: int) -> "FlowOptions":
        """The options with `max_saves` decided, where it was left out, for rows of so many numbers each.

        Raises:
            ValueError: more rows asked for than fit into the memory.
        """
        self.check_rows(numbers)
        if self.max_saves is not None:
            return self
        return replace(self, max_saves=max(MIN_SAVES, min(MAX_SAVES, MAX_ROWS_NUMBERS // numbers)))


def require_tolerance(argument: str, value: Any) -> None:
    """Refuse a relative tolerance that float64 does not resolve, or of one and more (concrete ones only)."""
    if is_concrete(value):
        sound = math.isfinite(value) and 1e-13 <= value < 1
        require(sound, argument, "lie in [1e-13, 1)", value, "float64 resolves no less.")


def require_target(value: Any) -> None:
    """Refuse a target cost that is not finite, or negative (concrete ones only)."""
    if is_concrete(value):
        number = float(value)
        remedy = "Leave it out to go on to a minimum; where a loss falls below zero, add a constant to it."
        require(math.isfinite(number) and number >= 0, "target_cost", "be finite and not negative", number, remedy)


def check_problem(cost: Cost, network: DeepLinearNetwork, options: FlowOptions) -> None:
    """Refuse a network that does not fit its cost or is not finite, and a cost whose gradient is none, or not convex.

    Raises:
        ValueError: which of them, with value and remedy.
    """
    check_fit(cost, network)
    remedy = "A single layer has no small numbers to keep apart."
    require(network.depth > 1 or not options.graded, "graded", "be left out for a single layer", True, remedy)
    if needs_symmetry(options) and is_concrete(network.layers[0]):
        with np.errstate(over="ignore", invalid="ignore"):  # a huge start ends "non_finite"
            matrix = on_host(network).end_to_end()
        require_gradient(cost, matrix)
    require_convex(cost)


def check_fit(cost: Cost, network: DeepLinearNetwork) -> None:
    """Refuse a network that does not fit its cost or is not finite.

    Raises:
        ValueError: with value and remedy.
    """
    check_shape(cost, network)
    for index, layer in enumerate(network.layers):
        require_finite(f"network.layers[{index}]", layer)


def check_shape(cost: Cost, network: DeepLinearNetwork) -> None:
    """Refuse a network of another end-to-end shape than its cost.

    Raises:
        ValueError: with value and remedy.
    """
    require(
        tuple(network.shape) == tuple(cost.shape),
        "network",
        f"have the end-to-end shape of the cost, {tuple(cost.shape)}",
        tuple(network.shape),
        "Shapes are (n_out, n_in).",
    )


def needs_symmetry(options: FlowOptions) -> bool:
    """Whether the solver takes only fields that are gradients."""
    return options.solver is None or isinstance(options.solver, CountingSolver)


def require_gradient(cost: Cost, matrix: Float[Array | np.ndarray, "n_out n_in"]) -> None:
    """Refuse a cost whose `gradient` is no gradient: its derivative is not symmetric."""
    skew = _skewness(cost, matrix)
    require(
        not is_concrete(skew) or not float(skew) > MAX_ASYMMETRY,
        "cost",
        "have a `gradient` that is the gradient of some function",
        f"one whose derivative is not symmetric (relative asymmetry {skew:.1e})",
        "Leave `gradient` to automatic differentiation, or take another solver, such as diffrax.Tsit5().",
    )


def require_convex(cost: Cost) -> None:
    """Refuse a cost of a user's own that is seen not to be convex: "converged" would be said of any local minimum.

    It is seen at the middle between random matrices, of sizes over `SIZES_TRIED`; a cost may pass and be none.
    """
    inner = cost
    while isinstance(inner, Scaled):
        inner = inner.cost
    if type(inner).__module__.partition(".")[0] == "saddleflow":
        return
    num_pairs = max(len(SIZES_TRIED), min(PAIRS_TRIED, MAX_NUMBERS_TRIED // math.prod(inner.shape)))
    draws = np.random.default_rng(0).standard_normal((2, num_pairs, *inner.shape))
    sizes = np.resize(SIZES_TRIED, num_pairs)[:, None, None]
    excess = _excess(inner, *(sizes * draws))
    require(
        not is_concrete(excess) or not float(excess) > MAX_EXCESS,
        "cost",
        "be convex in the matrix",
        "one that is higher in the middle between two matrices than on average at both",
        "Pass its loss as a function of the model, as in sf.gradient_flow(lambda network: ..., network): a run then "
        'ends "stationary" at a local minimum.',
    )


def settings_of(landscape: Landscape, parameters: Any, options: FlowOptions, pad_rows: bool = False) -> Settings:
    """The numbers of a run from a start.

    Args:
        landscape: the landscape.
        parameters: the start.
        options: of the run.
        pad_rows: whether times are padded, for fewer compiled programs.
    """
    rms, unit = scales(landscape, parameters)
    save_at, max_rows = options.save_at, None
    if pad_rows:
        max_rows = options.num_rows
        if save_at is not None:
            max_rows = len(options.save_at)
            later = padded_size(max_rows) - max_rows
            save_at = np.pad(np.asarray(options.save_at), (0, later), constant_values=np.inf)
    return Settings(
        rtol=jnp.asarray(options.rtol, float),
        atol=jnp.asarray(options.rtol * START_SHARE * rms, float),
        t1=jnp.asarray(jnp.inf if options.t1 is None else options.t1, float),
        save_at=None if save_at is None else on_device(save_at),
        max_steps=jnp.asarray(options.max_steps),
        gradient_tolerance=jnp.asarray(-1.0) if save_at is not None else options.gradient_tolerance * unit,
        target_cost=None if options.target_cost is None else jnp.asarray(options.target_cost, float),
        max_rows=None if max_rows is None else jnp.asarray(max_rows),
    )


def method_of(
    options: FlowOptions,
    landscape: Landscape,
    graded: bool,
    num_dips: int = 0,
    turns: Any = "both",
    pad_rows: bool = False,
    price: float | None = None,
) -> Method:
    """The part of a run that is compiled in.

    Args:
        options: of the run.
        landscape: its landscape.
        graded: in graded coordinates.
        num_dips: networks kept at most, for `Trajectory.saddles`.
        turns: whose steps to compile in; a run waits where those of the other solver begin.
        pad_rows: whether there is room for more rows, for fewer compiled programs; `settings_of` bounds them.
        price: of inverting the stiff part of a step, in products, as the landscape tells; None: it is not a choice.
    """
    solver = options.solver
    if solver is None:
        # Graded coordinates are the stiff method's: a plateau among rounding is no place to be explicit.
        stiff = replace(STIFF, strains=landscape.strains, linear_tolerance=landscape.linear_tolerance)
        solver = stiff if graded else Switching(stiff)
    assert isinstance(solver, diffrax.AbstractAdaptiveSolver)
    return Method(
        solver=solver,
        observables=options.observables,
        stop=options.stop,
        save_networks=options.save_networks,
        graded=graded,
        capacity=padded_size(options.num_rows) if pad_rows else options.num_rows,
        saves_per_step=options.saves_per_step,
        num_dips=num_dips,
        tail_solver=landscape.tail_solver() if isinstance(solver, CountingSolver) else None,
        turns=turns,
        price=price if isinstance(solver, CountingSolver) else None,
    )


def needs_grading(cost: Cost, network: DeepLinearNetwork, options: FlowOptions) -> bool:
    """Whether the run goes in graded coordinates: as asked for, else by the size of the start."""
    if options.graded is not None:
        return options.graded
    return (options.solver is None or isinstance(options.solver, Rosenbrock)) and is_tiny(cost, network)


def dip_capacity(network: Any) -> int:
    """How many networks to keep from dips of the gradient norm: twice the ranks there are, if memory allows."""
    return max(4, min(2 * min(network.shape) + 2, MAX_DIP_NUMBERS // network.num_parameters))


@partial(compiled, runs_once=True)  # one by one its operations take longer to compile than to run
def scales(landscape: Landscape, parameters: Any) -> tuple[Float[Array, "*entries"], Float[Array, ""]]:
    """Root mean square entries of the start, and the norm that convergence is measured by."""
    return landscape.scales(parameters)


# On matrices, not on networks: a small start would hide an asymmetry in a Jacobian of its own size.
_MATRIX_TERM = diffrax.ODETerm(lambda time, matrix, cost: cost.gradient(matrix))


def _least_asymmetry(cost: Cost, matrix: Float[Array | np.ndarray, "n_out n_in"]) -> Float[Array, ""]:
    """The relative asymmetry of a cost's second derivative: the lesser of those at a matrix and at zero."""
    # at a huge matrix the curvature may be rounding
    return jnp.fmin(*(asymmetry(_MATRIX_TERM, 0.0, a, cost) for a in (matrix, jnp.zeros_like(matrix))))


_skewness = compiled(_least_asymmetry, runs_once=True)


def _largest_excess(cost: Cost, one: Pairs, other: Pairs) -> Float[Array, ""]:
    """By how much a cost in the middle of pairs exceeds its mean at both, relative to its size there."""
    here, there, middle = (jax.lax.map(cost, matrices) for matrices in (one, other, (one + other) / 2))
    excess = (middle - (here + there) / 2) / (jnp.abs(here) + jnp.abs(there) + jnp.abs(middle))
    return jnp.max(jnp.where(jnp.isfinite(excess), excess, 0.0))


_excess = compiled(_largest_excess, runs_once=True)
