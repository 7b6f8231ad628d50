"""The compiled loop: bursts of adaptive steps of one trajectory, with what is saved on the way.

Everything here is a pure JAX function of arrays, so it runs under `jit` and `vmap`. The flow is autonomous:
each step runs in local time from 0 to its own length h, and h is carried as a number of its own, never as a
difference of large times. diffrax supplies solver and controller; the loop is ours because a run must stop
and go on at any step (wall-clock budgets, meters, lanes) and diffrax saves h nowhere.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from saddleflow.flow.clock import Clock
from saddleflow.flow.dips import Dips
from saddleflow.flow.ending import StepEnd, located, reaches, retried, stops
from saddleflow.flow.graded import Frame, grade, noise, resolution
from saddleflow.flow.grinding import Grinding
from saddleflow.flow.growth import Growth
from saddleflow.flow.landscape import FLOW, Landscape, NetworkLandscape, Parameters
from saddleflow.flow.state import FlowState, Method, Row, Settings, StopReason
from saddleflow.problem import geometry
from saddleflow.solvers import NDF, CountingSolver, NDFState, PredictiveController, amplified, mean_norm, scaled_size
from saddleflow.solvers.ndf import SHARE

# This many rejections in a row shrink h by at least 1e-20: nothing but underflow or NaN does that.
MAX_CONSECUTIVE_REJECTIONS = 60
# Nor so many steps that move nothing, each after a rejection.
MAX_UNMOVED = 20
EPSILON = 2.0**-52

# Beyond it squares, and with them norms and inner products, are not finite.
LARGEST_GRADIENT = 1e150

# The results, not the steps, are what `rtol` promises: within 10 x rtol of exact solutions (tests/test_exact.py).
# Our own solver's error estimate, a third-order one for a fourth-order step, is cautious enough for that; where
# local errors add up unmitigated (explicit methods), a step gets this share of the tolerance.
STEP_SHARE = 0.1

# Before an escape of five layers or more steps shrink by a factor that scatters: smaller ones save more in rejections
# than they cost (L = 5 from alpha = 1e-4: 20 % rejected at the usual .9, 16 % at .8; fewer evaluations in all).
DEEP_SAFETY = 0.8

# On a tail the solver steps on and on, each step stiff and a short move: shorter, in units of the entries, than this
# times rtol^(1/4), which is what a fourth-order method takes elsewhere. One step in `WATCH` is looked at, and so many
# such ones in a row are a tail (elsewhere 29 short steps in a row were seen, few of them stiff; on tails hundreds).
SHORT_MOVE, STIFF, WATCH, PATIENCE = 0.25, 1e3, 8, 4
# From so many on steps get the share of the tolerance that they get on a tail: their errors are not forgotten either.
WARY, LEAST_RTOL = 2, 1e-13
# There A creeps, too: by this share of the network's move at least. On a plateau it rests.
CREEP = 0.5
# The tail solver begins at order one, whose error is the square of a move: with rtol^(1/4) of the last step. It
# gives up after so many rejections in a row.
MAX_FAILURES = 8
# Then so many looks pass before it is asked again.
REST = 8

# Steps of at least so large a share of one that was dear are taken to be as dear.
LATER = 0.1

# In graded coordinates the spaces are turned anew after this many steps, accepted or not.
REGRADE = 50


def start(landscape: Landscape, parameters: Parameters, settings: Settings, method: Method) -> FlowState:
    """The state before the first step; stops at once where the field is not finite or the cost is minimal."""
    solver, controller = _numerics(method, settings, landscape, parameters)
    zero, one = jnp.zeros(()), jnp.ones(())
    gradient, at_rest, rounded = landscape.at_rest(parameters, method.graded)
    # A first step that moves the parameters by a hundredth. (diffrax's own guess falls back on an absolute 1e-6
    # where things move slowly, which a run in other units would notice.)
    step_size = jnp.where(gradient > 0, 0.01 * landscape.length(parameters) / gradient, one)
    _, controller_state = controller.init(
        FLOW, zero, one, parameters, step_size, landscape, solver.func, _order(solver)
    )
    outputs = landscape.outputs(parameters)
    loss = landscape.loss(parameters, outputs)
    finite, reached = jnp.isfinite(gradient) & jnp.isfinite(loss), reaches(loss, settings)
    certified, runs_away = _converged(landscape, outputs, settings), landscape.lacks_minimum(outputs)
    stays, rests = _rest(at_rest & ~reached & ~runs_away, settings, method)
    reason = _first_of(
        (StopReason.non_finite, ~finite),
        (StopReason.diverges, certified & runs_away),
        (StopReason.converged, certified | rests & rounded),
        (StopReason.target_cost, reached),
        (_rest_reason(landscape), rests),
        (StopReason.t1, stays),
    )
    clock, frame = Clock.start(), Frame.of(parameters) if method.graded else None
    first = observe(landscape, parameters, clock, method)
    capacity = method.capacity if settings.save_at is None else settings.save_at.shape[0]
    count = _num_times(settings)
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), first)
    if settings.save_at is None:
        rows, num_rows = _write(rows, jnp.zeros((), int), first), jnp.ones((), int)
    else:
        due = settings.save_at[0] <= 0  # checked to be sorted and not negative: only the first can be 0
        every = jax.tree.map(lambda x: jnp.broadcast_to(x, (capacity, *x.shape)), first)
        every = every | {"time": settings.save_at, "within": settings.save_at}
        rows = _kept(stays, every, _write(rows, jnp.where(due, 0, capacity), first))
        num_rows = jnp.where(stays, count, jnp.where(due, 1, 0))
        clock = _kept(stays, clock.after(settings.t1), clock)
    state = FlowState(
        parameters=parameters,
        frame=frame,
        clock=clock,
        step_size=jnp.asarray(step_size),
        dips=Dips.start(parameters, frame, gradient, method.num_dips) if method.num_dips else None,
        growth=Growth.start(landscape.unbounded(parameters, outputs)),
        grinding=Grinding.start() if landscape.may_jump and isinstance(solver, CountingSolver) else None,
        solver_state=_arrays(solver.init(FLOW, zero, step_size, parameters, landscape)),
        controller_state=_arrays(controller_state),
        num_accepted=jnp.zeros((), int),
        num_rejected=jnp.zeros((), int),
        consecutive_rejections=jnp.zeros((), int),
        unmoved=jnp.zeros((), int),
        met_non_finite=jnp.zeros((), bool),
        calm=jnp.zeros((), int),
        on_tail=jnp.zeros((), bool),
        jumped=jnp.zeros((), bool),
        tail_state=None,
        inverts_from=None if method.price is None else jnp.asarray(jnp.inf),
        strained=jnp.zeros((), int),
        reason=reason,
        rows=rows,
        num_rows=num_rows,
        stride=jnp.ones((), int),
    )
    with_tail = method.turns == "both" and method.tail_solver is not None
    return _with_tail(state, landscape, method) if with_tail else state


def advance(
    state: FlowState, landscape: Landscape, settings: Settings, method: Method, num_steps: Int[Array, ""]
) -> FlowState:
    """Take at most `num_steps` more steps, accepted or not; fewer where the run ends or the rows are full.

    Full rows are thinned by half at the next call, so what is kept does not depend on how a run was cut into
    bursts.
    """
    if settings.save_at is None:
        room = has_room(state.num_rows, state.stride, settings.max_rows, method)
        state = jax.lax.cond(room, lambda s: s, thin, state)
    return burst(state, landscape, settings, method, num_steps)


def burst(
    state: FlowState, landscape: Landscape, settings: Settings, method: Method, num_steps: Int[Array, ""]
) -> FlowState:
    """As `advance`, but full rows are for the caller to thin: where they are donated, nothing copies them."""
    if method.turns == "tail" and state.tail_state is None:
        state = _with_tail(state, landscape, method)
    dynamic, static = eqx.partition(state, eqx.is_array)

    def running(carry):
        taken, dynamic = carry
        go_on = (taken < num_steps) & (dynamic.reason == StopReason.running)
        if method.price is not None:  # the host goes on with the other program
            go_on = go_on & (inverts_next(dynamic) == method.inverts)
        return (
            go_on
            if settings.save_at is not None
            else go_on & has_room(dynamic.num_rows, dynamic.stride, settings.max_rows, method)
        )

    def steps(on_tail, take):
        """A loop of steps while it is the turn of one of the solvers."""

        def turn(carry):
            return running(carry) & (carry[1].on_tail == on_tail)

        def step(carry):
            taken, dynamic = carry
            after = take(eqx.combine(dynamic, static), landscape, settings, method)
            return taken + 1, eqx.filter(after, eqx.is_array)

        def due(carry):
            _, dynamic = carry
            return (dynamic.num_accepted + dynamic.num_rejected) % REGRADE == 0

        def round_of_steps(carry):
            # One step at least, then up to the next regrading: counted in the lane's own steps, so that neither
            # bursts nor neighbours matter; and outside the inner loop, where a vmap cannot turn it into every step's.
            taken, dynamic = carry
            regrade = partial(_regrade, landscape=landscape)
            graded = jax.lax.cond(due(carry), regrade, lambda s: s, eqx.combine(dynamic, static))
            carry = (taken, eqx.filter(graded, eqx.is_array))
            _, carry = jax.lax.while_loop(
                lambda c: turn(c[1]) & (c[0] | ~due(c[1])),
                lambda c: (jnp.zeros((), bool), step(c[1])),
                (jnp.ones((), bool), carry),
            )
            return carry

        body = round_of_steps if method.graded else step
        return lambda carry: jax.lax.while_loop(turn, body, carry)

    carry = jnp.zeros((), int), dynamic
    if method.turns == "tail":
        _, dynamic = steps(True, _tail_step)(carry)
    elif method.turns == "plain" or method.tail_solver is None:
        _, dynamic = steps(False, _plain_step)(carry)
    else:
        plain, tail = steps(False, _plain_step), steps(True, _tail_step)
        _, dynamic = jax.lax.while_loop(running, lambda carry: tail(plain(carry)), carry)
    return eqx.combine(dynamic, static)


def _plain_step(state: FlowState, landscape: Landscape, settings: Settings, method: Method) -> FlowState:
    """A step of the method's own solver; the tail solver's turn comes where many in a row were short and stiff.

    Before that steps get the share of the tolerance that they get on a tail: their errors, too, have one sign there.
    """
    if method.tail_solver is None:
        return _step(state, landscape, settings, method)
    share = _share(state.calm, settings)
    tight = replace(settings, rtol=share * settings.rtol, atol=share * settings.atol)
    after = _step(state, landscape, tight, method)
    due = (after.num_accepted > state.num_accepted) & (after.num_accepted % WATCH == 0)
    calm = jax.lax.cond(due, lambda: _calm(state, after, landscape, settings), lambda: state.calm)
    on_tail = calm >= PATIENCE
    calm = jnp.where(on_tail, 0, calm)
    # steps of another tolerance are shorter or longer, and the controller is to think the last one was
    change = (_share(calm, settings) / share) ** (1 / _order(method.solver))
    step_size = jnp.where(on_tail, settings.rtol**0.25, change) * after.step_size
    memory = replace(after.controller_state, size=change * after.controller_state.size)
    return replace(after, calm=calm, on_tail=on_tail, step_size=step_size, controller_state=memory)


def _share(calm: Int[Array, ""], settings: Settings) -> Float[Array, ""]:
    """Of the tolerance, what a step gets after so many stiff and short ones; no less than float64 resolves."""
    return jnp.where(calm >= WARY, jnp.clip(LEAST_RTOL / settings.rtol, SHARE, 1.0), 1.0)


def _calm(before: FlowState, after: FlowState, landscape: Landscape, settings: Settings) -> Int[Array, ""]:
    """How many steps in a row, of those looked at, were stiff and short; less than zero: not to be counted yet."""
    move = _mean_change(after.parameters, before.parameters, landscape, settings)
    short = (move < SHORT_MOVE * settings.rtol**0.25) & ~_a_plateau(before, after, landscape, move, CREEP)
    framed = landscape.framed(before.frame)
    assert isinstance(framed, NetworkLandscape), "only networks have a solver of tails"
    # as long as a step at the full tolerance: else steps would leave off being stiff where they get a share of it
    length = before.step_size * _share(before.calm, settings) ** -0.25
    stiff = length * geometry.stiffness(framed.cost, after.parameters, framed.active) > STIFF
    return jnp.where((before.calm < 0) | (short & stiff), before.calm + 1, 0)


def _a_plateau(
    before: FlowState, after: FlowState, landscape: Landscape, move: Float[Array, ""], share: float
) -> Bool[Array, ""]:
    """Whether A rests while the network moves: what grows then is small, and only the usual solver cares enough."""
    was, now = landscape.outputs(before.parameters), landscape.outputs(after.parameters)
    return jnp.linalg.norm(now - was) < share * move * jnp.linalg.norm(now)


def _tail_step(state: FlowState, landscape: Landscape, settings: Settings, method: Method) -> FlowState:
    """A step of the tail solver, which begins where it has no past, and leaves off after many rejections."""
    assert method.tail_solver is not None
    assert state.tail_state is not None
    begin = partial(_no_past, state, landscape, method)
    past = jax.lax.cond(state.tail_state.order == 0, begin, lambda: state.tail_state)
    past = replace(past, order=jnp.maximum(past.order, 1), work=state.tail_state.work)
    tail_method = replace(method, solver=method.tail_solver)
    after = _step(replace(state, solver_state=past), landscape, settings, tail_method)
    past = after.solver_state
    due = (after.num_accepted > state.num_accepted) & (after.num_accepted % WATCH == 0)
    plateau = jax.lax.cond(
        due,
        lambda: _a_plateau(
            state, after, landscape, _mean_change(after.parameters, state.parameters, landscape, settings), CREEP / 5
        ),
        lambda: jnp.asarray(False),
    )
    on_tail = (past.failures < MAX_FAILURES) & ~plateau
    return replace(
        after,
        solver_state=state.solver_state,
        tail_state=replace(past, order=jnp.where(on_tail, past.order, 0)),
        calm=jnp.where(on_tail, 0, -REST),
        on_tail=on_tail,
        jumped=jnp.asarray(True),
    )


def _with_tail(state: FlowState, landscape: Landscape, method: Method) -> FlowState:
    """The state with room for the tail solver's."""
    return replace(state, tail_state=_no_past(state, landscape, method))


def _no_past(state: FlowState, landscape: Landscape, method: Method) -> NDFState:
    """The tail solver's state at a network: of order zero, which says so."""
    assert method.tail_solver is not None
    framed = landscape.framed(state.frame)
    past = method.tail_solver.init(FLOW, jnp.zeros(()), state.step_size, state.parameters, framed)
    return replace(past, order=jnp.zeros_like(past.order))


def _regrade(state: FlowState, landscape: Landscape) -> FlowState:
    framed = landscape.framed(state.frame)
    assert state.frame is not None
    assert isinstance(framed, NetworkLandscape), "only networks have graded coordinates"
    network, turns, spectra = grade(state.parameters, framed.active)
    parts = state.parameters, spectra, state.step_size, state.strained, framed.padding
    strained, lost = resolution(framed.cost, *parts)
    reason = jnp.where(lost & (state.reason == StopReason.running), StopReason.below_resolution, state.reason)
    past = state.tail_state
    if past is not None:
        turned = jax.vmap(turns.apply)(past.differences)
        past = replace(past, differences=jax.tree.map(lambda d, w: d.at[0].set(w), turned, network))
    frame = state.frame.after(turns)
    return replace(state, parameters=network, frame=frame, tail_state=past, strained=strained, reason=reason)


def observe(
    landscape: Landscape, parameters: Parameters, clock: Clock, method: Method, gradient_norm: Any = None
) -> Row:
    """What one saved time records: the outputs, the gradient norm, the observables asked for.

    All of it in the coordinates of the start, whatever frame the landscape and the parameters are in.
    """
    if gradient_norm is None:
        gradient_norm = geometry.norm(landscape.gradient(parameters))
    subject = landscape.subject(parameters)
    row = {
        "time": clock.time,
        "segment": clock.segment,
        "within": clock.within,
        **landscape.record(parameters, landscape.outputs(parameters)),
        "gradient_norm": gradient_norm,
        "observables": {name: jnp.asarray(observable(*subject)) for name, observable in method.observables.items()},
    }
    return row | {"network": landscape.plain(parameters)} if method.save_networks else row


class _Attempt(eqx.Module):
    """One step tried: where it leads, whether it is kept, and what solver and controller make of it."""

    parameters: Parameters  # the old ones where the step is rejected
    outputs: Float[Array, "n_out n_in"]  # of the candidate
    loss: Float[Array, ""]  # of the candidate
    keep: Bool[Array, ""]
    error: Float[Array, ""] | None  # of the entries, in units of their tolerances, where it is looked at
    finite: Bool[Array, ""]
    next_size: Float[Array, ""]
    solver_state: PyTree
    rejected_state: PyTree  # the solver's, were the step rejected
    controller_state: PyTree
    interpolation: diffrax.AbstractLocalInterpolation


def _step(state: FlowState, landscape: Landscape, settings: Settings, method: Method) -> FlowState:
    landscape = landscape.framed(state.frame)
    remaining = settings.t1 - state.time
    lands = state.step_size >= remaining
    h = jnp.minimum(state.step_size, remaining)
    tried = _attempt(state, h, landscape, settings, method)
    tried, end = _to_the_end(state, tried, h, lands, landscape, settings, method)
    keep, parameters, outputs, length = tried.keep, end.parameters, end.outputs, end.after
    clock = _kept(keep, state.clock.tick(length, tried.next_size), state.clock)
    gradient, at_rest, rounded = landscape.at_rest(parameters, method.graded)
    growth = state.growth.follow(landscape.unbounded(parameters, outputs), length, keep)
    grows = growth.lasts(landscape.size(parameters, outputs)) | landscape.lacks_minimum(outputs)
    stays, rests = _rest(keep & at_rest & ~grows & ~end.reached, settings, method)
    certified = keep & _converged(landscape, outputs, settings)
    if settings.save_at is not None:
        rows, num_rows = _save_between(state, tried, end, stays, landscape, settings, method)
        clock = _kept(stays, clock.after(settings.t1 - clock.time), clock)
    else:
        end_point = parameters, clock, jnp.where(end.lands, settings.t1, clock.time), gradient
        rows, num_rows = _save_steps(state, length, keep, tried.interpolation, end_point, landscape, method)
    grinding, grinds = _watch_jumps(state, tried, h, method)
    rejections = jnp.where(keep, 0, state.consecutive_rejections + 1)
    met_non_finite = jnp.where(keep, state.met_non_finite, ~tried.finite)
    num_accepted, num_rejected = state.num_accepted + keep, state.num_rejected + (1 - keep)
    unmoved = _unmoved(state, parameters, keep, settings)
    stuck, creeps = rejections > MAX_CONSECUTIVE_REJECTIONS, unmoved > MAX_UNMOVED
    reason = _first_of(
        (StopReason.diverges, grows & (certified | keep & at_rest & (settings.save_at is None))),
        (StopReason.converged, certified | rests & rounded),
        (StopReason.non_finite, gradient > LARGEST_GRADIENT),
        (StopReason.target_cost, end.reached),
        (StopReason.stop, end.stopped),
        (StopReason.t1, keep & end.lands | stays),
        (StopReason.non_finite, (stuck | creeps) & met_non_finite),
        (StopReason.step_size_underflow, stuck),
        (StopReason.below_resolution, creeps),  # steps move less than rounding, and longer ones fail
        (StopReason.not_smooth, grinds),
        (StopReason.max_steps, num_accepted + num_rejected >= settings.max_steps),
        (_rest_reason(landscape), rests),
    )
    return FlowState(
        parameters=parameters,
        frame=state.frame,
        clock=clock,
        step_size=tried.next_size,
        dips=state.dips and state.dips.follow(parameters, state.frame, gradient, clock.time, length, keep),
        growth=growth,
        grinding=grinding,
        solver_state=tried.solver_state,
        controller_state=tried.controller_state,
        num_accepted=num_accepted,
        num_rejected=num_rejected,
        consecutive_rejections=rejections,
        unmoved=unmoved,
        met_non_finite=met_non_finite,
        calm=state.calm,
        on_tail=state.on_tail,
        jumped=state.jumped & ~keep,
        tail_state=state.tail_state,
        inverts_from=_inverts_from(state, tried, h, method),
        strained=state.strained,
        reason=reason,
        rows=rows,
        num_rows=num_rows,
        stride=state.stride,
    )


def _to_the_end(
    state: FlowState,
    tried: _Attempt,
    h: Float[Array, ""],
    lands: Bool[Array, ""],
    landscape: Landscape,
    settings: Settings,
    method: Method,
) -> tuple[_Attempt, StepEnd]:
    """The step tried, and where it ends: within it where the run ends there.

    Where that is early in the step, the step is rejected for one that ends soon after: see `retried`.
    """
    stopped = stops(landscape, tried.parameters, state.clock.after(h), method)
    reached = reaches(tried.loss, settings)
    whole = StepEnd(h, lands, tried.parameters, tried.outputs, tried.keep & reached, tried.keep & stopped)
    if settings.target_cost is None and method.stop is None:
        return tried, whole
    is_first = state.num_accepted == 0
    end = located(whole, tried.interpolation, state.clock, is_first, landscape, settings, method)
    again, shorter = retried(end, h, state, settings)
    rejected = replace(
        tried,
        keep=jnp.asarray(False),
        next_size=shorter,
        solver_state=_arrays(tried.rejected_state),
        controller_state=state.controller_state,
    )
    nothing = replace(whole, parameters=state.parameters, reached=jnp.asarray(False), stopped=jnp.asarray(False))
    return _kept(again, rejected, tried), _kept(again, nothing, end)


def _attempt(
    state: FlowState, h: Float[Array, ""], landscape: Landscape, settings: Settings, method: Method
) -> _Attempt:
    """One step of length h by the solver, judged by the controller."""
    solver, controller = _numerics(method, settings, landscape, state.parameters)
    zero = jnp.zeros(())
    candidate, error, dense_info, solver_state, _ = solver.step(
        FLOW, zero, h, state.parameters, landscape, state.solver_state, state.jumped
    )
    outputs = landscape.outputs(candidate)
    loss = landscape.loss(candidate, outputs)
    finite = _all_finite(candidate) & jnp.isfinite(loss)
    if not isinstance(solver, CountingSolver):  # those see to it themselves
        tolerances = controller.rtol, controller.atol
        support = landscape.support(state.parameters)
        error = amplified(error, state.parameters, candidate, *tolerances, landscape.output_error, support)
    # The controller would forgive a NaN candidate under a finite error, and turn an infinite one into a NaN step.
    error = jax.tree.map(lambda e: jnp.where(finite & ~jnp.isnan(e), e, jnp.inf), error)
    candidate = _kept(finite, candidate, state.parameters)
    judged = candidate, error, controller.rtol, controller.atol
    keep, begin, end, _, controller_state, _ = controller.adapt_step_size(
        zero, h, state.parameters, candidate, landscape, error, _order(solver), state.controller_state
    )
    dropped = state.solver_state
    if isinstance(solver, CountingSolver):
        dropped = solver.rejected_state(dropped, solver_state)
    return _Attempt(
        parameters=_kept(keep, candidate, state.parameters),
        outputs=outputs,
        loss=loss,
        keep=jnp.asarray(keep),
        error=None
        if state.grinding is None
        else scaled_size(state.parameters, *judged, landscape.support(state.parameters)),
        finite=finite,
        next_size=jnp.asarray(end - begin),
        solver_state=_arrays(_kept(keep, solver_state, dropped)),
        rejected_state=_arrays(dropped),
        controller_state=_arrays(controller_state),
        interpolation=solver.interpolation_cls(t0=zero, t1=h, **dense_info),
    )


def inverts_next(state: FlowState) -> Bool[Array, ""]:
    """Whether the next step is to invert its stiff part, where that has a price."""
    assert state.inverts_from is not None
    return state.step_size >= state.inverts_from


def _inverts_from(state: FlowState, tried: _Attempt, h: Float[Array, ""], method: Method) -> Float[Array, ""] | None:
    """The length of steps that are to invert their stiff part: once one took more products than that costs.

    A tenth of that step's: what follows is as stiff, but for an escape, whose far shorter steps begin anew.
    """
    if state.inverts_from is None or method.price is None:
        return None
    assert isinstance(method.solver, CountingSolver), "others know no price"
    if method.inverts:
        return jnp.where(tried.next_size < state.inverts_from, jnp.inf, state.inverts_from)
    work, before = (method.solver.work(s) for s in (tried.solver_state, state.solver_state))
    return jnp.where(work.products - before.products > method.price, LATER * h, state.inverts_from)


def _watch_jumps(
    state: FlowState, tried: _Attempt, h: Float[Array, ""], method: Method
) -> tuple[Grinding | None, Bool[Array, ""]]:
    """What the try says of jumps of the gradient, and whether the run grinds at them."""
    if state.grinding is None or tried.error is None:
        return None, jnp.asarray(False)
    grinding = state.grinding.follow(h, tried.keep, tried.error, _order(method.solver))
    return grinding, grinding.grinds


def _first_of(*cases: tuple[StopReason, Bool[Array, ""]]) -> Int[Array, ""]:
    """The first reason whose condition holds, else `running`: the order of the cases is that of precedence."""
    conditions = [condition for _, condition in cases]
    return jnp.select(conditions, [jnp.asarray(int(reason)) for reason, _ in cases], int(StopReason.running))


def _unmoved(state: FlowState, parameters: Parameters, keep: Any, settings: Settings) -> Int[Array, ""]:
    """How many steps after a rejection moved nothing, and none between them moved: a run creeps towards a wall so.

    One alone says little: where rounding is all that is left to relax, long steps move nothing either.
    """
    still = jax.lax.cond(
        keep & ((state.consecutive_rejections > 0) | (state.unmoved > 0)),
        lambda: _largest_change(parameters, state.parameters, settings) <= EPSILON,
        lambda: jnp.asarray(False),
    )
    more = state.unmoved + (state.consecutive_rejections > 0)
    return jnp.where(keep, jnp.where(still, more, 0), state.unmoved)


def _kept(keep: Any, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def _save_between(state, tried, step_end, stays, landscape, settings, method):
    """Rows for all asked times within the step, by dense output; all that remain where the network stays."""
    save_at, begin, count = settings.save_at, state.clock.time, _num_times(settings)
    h = step_end.after
    end = jnp.where(step_end.lands | stays, settings.t1, begin + h)

    def due(carry):
        _, index = carry
        return tried.keep & (index < count) & (save_at[jnp.minimum(index, count - 1)] <= end)

    def save(carry):
        rows, index = carry
        after = save_at[index] - begin
        here = _kept(stays & (after > h), step_end.parameters, tried.interpolation.evaluate(after))
        row = observe(landscape, here, state.clock.after(after), method) | {"time": save_at[index]}
        return _write(rows, index, row), index + 1

    return jax.lax.while_loop(due, save, (state.rows, state.num_rows))


def _save_steps(state, h, keep, interpolation, end, landscape, method):
    """Rows of the step just taken: at its end, and at `saves_per_step` places within it by dense output."""
    places = method.saves_per_step
    first = state.stride - (state.num_accepted * places) % state.stride

    def due(carry):
        return keep & (carry[2] <= places)

    def save(carry):
        rows, index, place = carry
        *here, time, gradient = end
        if places > 1:
            within = state.clock.after(h * place / places)
            inside = [interpolation.evaluate(h * place / places), within]
            *here, time = jax.tree.map(partial(jnp.where, place == places), [*here, time], [*inside, within.time])
            gradient = None
        row = observe(landscape, *here, method, gradient) | {"time": time}
        return _write(rows, index, row), index + 1, place + state.stride

    rows, num_rows, _ = jax.lax.while_loop(due, save, (state.rows, state.num_rows, first))
    return rows, num_rows


def _num_times(settings: Settings) -> Any:
    """How many times are asked for; those after them are padding."""
    if settings.save_at is None:
        return 0
    return settings.save_at.shape[0] if settings.max_rows is None else settings.max_rows


def has_room(num_rows: Any, stride: Any, max_rows: Any, method: Method) -> Any:
    """Whether the rows hold all that one more step may save; of arrays and of Python numbers."""
    capacity = method.capacity if max_rows is None else max_rows
    return num_rows + 1 + (method.saves_per_step - 1) // stride <= capacity


def ends_between_rows(num_accepted: Any, stride: Any, method: Method) -> Any:
    """Whether the last step ended where no row was due."""
    return num_accepted * method.saves_per_step % stride != 0


def thin(state: FlowState) -> FlowState:
    """Drop every other row; row 0, the start, stays."""
    order = jnp.minimum(2 * jnp.arange(state.rows["time"].shape[0]), state.num_rows - 1)
    rows = jax.tree.map(lambda x: x[order], state.rows)
    return eqx.tree_at(
        lambda s: (s.rows, s.num_rows, s.stride),
        state,
        (rows, (state.num_rows + 1) // 2, 2 * state.stride),
    )


def _write(rows: Row, index: Int[Array, ""], row: Row) -> Row:
    return jax.tree.map(lambda buffer, x: buffer.at[index].set(x, mode="drop"), rows, row)


def _converged(landscape: Landscape, outputs: Float[Array, "n_out n_in"], settings: Settings) -> Bool[Array, ""]:
    return landscape.certificate(outputs) <= settings.gradient_tolerance


def _rest_reason(landscape: Landscape) -> StopReason:
    """What a gradient of zero means without a certificate."""
    return StopReason.stationary_saddle if landscape.always_saddle else StopReason.stationary


def _rest(at_rest: Bool[Array, ""], settings: Settings, method: Method) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """What rest means: that the network stays as it is up to t1, or that the run ends.

    Rows at asked times are all there: those of a network at rest are known, unless `stop` has to be asked.
    """
    never = jnp.asarray(False)
    if settings.save_at is None:
        return never, at_rest
    return (at_rest if method.stop is None else never), never


def _numerics(method: Method, settings: Settings, landscape: Landscape, parameters: Any):
    """Solver and controller with the run's tolerances in place."""
    solver, support = method.solver, landscape.support(parameters)
    norm = partial(mean_norm, support=support)
    if isinstance(solver, CountingSolver):
        atol = settings.atol
        if method.graded:
            atol = jax.tree.map(lambda layer: settings.atol + noise(layer), parameters)
        deep = method.graded and parameters.depth > 4
        safety = DEEP_SAFETY if deep else PredictiveController.safety
        predicts = not isinstance(solver, NDF)
        safety = safety if predicts else PredictiveController.safety
        controller = PredictiveController(rtol=settings.rtol, atol=atol, norm=norm, safety=safety, predicts=predicts)
        return solver.with_tolerances(settings.rtol, atol, landscape.output_error, support), controller
    # an explicit method's step is often held by stability: the proportional part damps the rejections
    controller = diffrax.PIDController(
        rtol=STEP_SHARE * settings.rtol, atol=STEP_SHARE * settings.atol, pcoeff=0.4, icoeff=0.3, norm=norm
    )
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        # As diffeqsolve does: a root finder without tolerances of its own takes the controller's.
        names = [
            name for name in ("rtol", "atol", "norm") if getattr(solver.root_finder, name) is _use_stepsize_tolerance
        ]
        solver = eqx.tree_at(
            lambda s: [getattr(s.root_finder, name) for name in names],
            solver,
            [getattr(controller, name) for name in names],
        )
    return solver, controller


def _order(solver: diffrax.AbstractAdaptiveSolver) -> Any:
    return solver.error_order(FLOW)


def _mean_change(new: Parameters, old: Parameters, landscape: Landscape, settings: Settings) -> Float[Array, ""]:
    """Root mean square of the entries' changes, each relative to its size or the start's share of it."""
    return mean_norm(_relative_change(new, old, settings), landscape.support(old))


def _largest_change(new: Parameters, old: Parameters, settings: Settings) -> Float[Array, ""]:
    """Largest change of an entry, relative to the entry or the start's share of it, as the error weights have it."""
    changes = jax.tree.leaves(_relative_change(new, old, settings))
    return jnp.max(jnp.stack([jnp.max(jnp.abs(change)) for change in changes]))


def _relative_change(new: Parameters, old: Parameters, settings: Settings) -> Parameters:
    floor = settings.atol / settings.rtol
    return jax.tree.map(lambda a, b: (a - b) / (jnp.abs(b) + floor), new, old)


def _arrays(tree: PyTree) -> PyTree:
    """Python numbers in a state as arrays, so that a loop can carry them."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, bool | int | float) else x, tree)


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


_use_stepsize_tolerance = diffrax.with_stepsize_controller_tols(diffrax.VeryChord)().rtol  # a sentinel
