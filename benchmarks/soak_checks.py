"""What `benchmarks/soak.py` checks on every flow. A check yields pairs (name, what is wrong)."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy
from soak_flows import Flow, Program, Twin, has_transposed, included, product, rotated, wider

import saddleflow as sf

Violation = tuple[str, str]
Layers = list[np.ndarray]

ROUNDING = 2.0**-52
ALLOWED = 10.0  # times rtol: what the library promises
SHARE_OF_SYMMETRIES, SHARE_OF_REFERENCES, SHARE_OF_FILES = 0.3, 0.4, 0.1
MAX_EVALUATIONS = 150_000


class TooLong(Exception):
    """An independent integration that takes too many evaluations."""


def run(flow: Flow, **changes) -> sf.Trajectory:
    """The flow, with options changed; `layers` and `task` change start and cost."""
    layers, task = changes.pop("layers", None), changes.pop("task", flow.task)
    return sf.gradient_flow(task.cost(), flow.network(layers), **flow.options | changes)


def check(flow: Flow, trajectory: sf.Trajectory) -> Iterator[Violation]:
    """All checks; the costly ones on a share of flows, drawn by the flow's own generator."""
    draws = flow.rng.random(3)
    twin = flow.task.twin()
    yield from _bookkeeping(flow, trajectory, twin)
    yield from _invariants(flow, trajectory, twin)
    yield from _verdict(flow, trajectory, twin)
    if draws[0] < SHARE_OF_FILES:
        yield from _file(trajectory)
    if draws[1] < SHARE_OF_SYMMETRIES:
        yield from _symmetries(flow, trajectory)
    if draws[2] < SHARE_OF_REFERENCES:
        yield from _reference(flow, trajectory, twin)


def _bookkeeping(flow: Flow, trajectory: sf.Trajectory, twin: Twin) -> Iterator[Violation]:
    """Rows, times, costs and counts are what they are called."""
    stats, options = trajectory.stats, flow.options
    if trajectory.stop_reason not in sf.StopReason.__members__ or trajectory.stop_reason == "running":
        yield "end", f"undocumented end {trajectory.stop_reason}"
    if stats["num_steps"] != stats["num_accepted_steps"] + stats["num_rejected_steps"]:
        yield "counts", "steps are not accepted and rejected ones"
    if stats["num_steps"] > options["max_steps"]:
        yield "counts", f"{stats['num_steps']} steps"
    if np.any(np.diff(trajectory.time) < 0):
        yield "time", "falls"
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.array([twin.value(a) for a in trajectory.end_to_end])
        costs, size = trajectory.train_cost, abs(twin.value(np.zeros(trajectory.network.shape))) + abs(values)
        wrong = np.isfinite(values) & ~(np.abs(costs - values) <= 1e-11 * size)
    if np.any(wrong):
        row = int(np.argmax(wrong))
        yield "cost", f"row {row}: {costs[row]!r}, by NumPy {values[row]!r}"
    times = options.get("save_at")
    if times is not None:
        kept = trajectory.time
        # a run that ends before the first of them has the row of its end
        before = len(kept) == 1 and kept[0] < times[0]
        if not before and not np.array_equal(kept, times[: len(kept)]):
            yield "rows", "not at the asked times"
        if trajectory.stop_reason == "t1" and len(kept) != len(times):
            yield "rows", f"{len(kept)} of {len(times)} rows"
    else:
        end = product([np.asarray(layer) for layer in trajectory.network.layers])
        scale = math.prod(np.linalg.norm(layer) for layer in trajectory.network.layers)
        if np.isfinite(scale) and np.abs(end - trajectory.end_to_end[-1]).max() > 1e-13 * scale:
            yield "rows", "the last row is not the final network's"
        if trajectory.stop_reason == "t1" and trajectory.time[-1] != options["t1"]:
            yield "time", f"t1 = {options['t1']!r}, but the end is at {trajectory.time[-1]!r}"


def _invariants(flow: Flow, trajectory: sf.Trajectory, twin: Twin) -> Iterator[Violation]:
    """The cost never rises but for errors of A of 10 rtol; balancedness is kept to 10 rtol."""
    rtol = flow.options["rtol"]
    drift = trajectory.stats["balancedness_drift"]
    finite = all(np.isfinite(layer).all() for layer in trajectory.network.layers)
    if finite and not drift <= ALLOWED * rtol:
        yield "balancedness", f"drifts by {drift / rtol:.1f} rtol ({trajectory.stop_reason})"
    matrices, costs = trajectory.end_to_end, trajectory.train_cost
    floor = 1e-12 * abs(twin.value(np.zeros(matrices.shape[1:])))
    with np.errstate(over="ignore", invalid="ignore"):
        for row in np.flatnonzero(np.diff(costs) > floor):
            error = ALLOWED * rtol * np.linalg.norm(matrices[: row + 2], axis=(1, 2)).max()
            slope = np.linalg.norm(twin.gradient(matrices[row + 1]))
            direction = twin.gradient(matrices[row + 1]) / (slope or 1.0)
            ahead = twin.value(matrices[row + 1] + error * direction) - twin.value(matrices[row + 1])
            rise = costs[row + 1] - costs[row]
            if rise > ahead + floor + 4 * ROUNDING * abs(costs[row]):
                yield (
                    "descent",
                    f"C rises by {rise:.2e} to {costs[row + 1]:.2e} at t = {trajectory.time[row + 1]:.3g}",
                )
                return


def _verdict(flow: Flow, trajectory: sf.Trajectory, twin: Twin) -> Iterator[Violation]:
    """Each end says the truth, as far as NumPy can tell from the final network."""
    layers = [np.asarray(layer) for layer in trajectory.network.layers]
    matrix, reason = product(layers), trajectory.stop_reason
    with np.errstate(over="ignore", invalid="ignore"):
        slope = np.linalg.norm(twin.gradient(matrix))
        scale = np.linalg.norm(twin.gradient(np.zeros_like(matrix)))
        scale = scale or np.linalg.norm(twin.gradient(product(flow.start)))
    bound = flow.options["gradient_tolerance"] * scale
    if reason == "converged":
        if not slope <= bound * (1 + 1e-6) + 1e-14 * scale:
            yield "converged", f"|grad C(A)| = {slope:.3e}, more than {bound:.3e}"
        best = _minimiser(twin, matrix)
        if best is not None:
            excess = twin.value(matrix) - twin.value(best)
            certified = slope * np.linalg.norm(matrix - best)
            if excess > certified * (1 + 1e-6) + 1e-13 * abs(twin.value(np.zeros_like(matrix))):
                yield "converged", f"C exceeds the minimum by {excess:.3e}, certified are {certified:.3e}"
        if not flow.attained and "diverges" in sf.StopReason.__members__:
            yield "converged", "there is no minimiser to converge to"
    if reason == "diverges" and flow.attained:
        yield "diverges", "there is a minimiser within reach"
    if reason == "stationary_saddle" and scale > 0:
        # the certificate of a run with `save_at` is switched off, but a minimum is no saddle even so
        if slope <= max(1e-13 * scale, 0.0):
            yield "stationary_saddle", f"|grad C(A)| = {slope:.2e}: a minimum"
        elif flow.start_name.startswith("Gaussian") and _can_leave(flow, matrix):
            yield "stationary_saddle", f"from a random start, at C = {twin.value(matrix):.3e}"
    if reason == "below_resolution" and "Gaussian" in flow.start_name:
        size = _largest(flow)
        learned = np.abs(matrix).max() ** (1 / len(layers))
        if size > 1e-2 * learned:
            yield "below_resolution", f"from a start of size {size:.1e} beside {learned:.1e}"
    if reason in ("non_finite", "step_size_underflow"):
        largest = max(np.linalg.norm(layer) for layer in flow.start) ** len(layers)
        if largest < 1e20 and flow.program.kind != "exponential":
            yield reason, f"from a start with |A| of at most {largest:.1e}"


def _can_leave(flow: Flow, matrix: np.ndarray) -> bool:
    """Whether a random start reaches a minimum from here: wide enough, and known beside what has been learned."""
    wide = min(flow.program.sizes[1:-1]) >= min(flow.program.shape)
    # plain coordinates, asked for, know a tiny start only to rounding of what is learned
    learned = np.abs(matrix).max() ** (1 / flow.program.depth)
    return wide and (flow.options["graded"] is not False or _largest(flow) > 1e-3 * learned)


def _largest(flow: Flow) -> float:
    """The largest entry of the start."""
    return max(np.abs(layer).max() for layer in flow.start)


def _minimiser(twin: Twin, matrix: np.ndarray) -> np.ndarray | None:
    """A minimiser near a matrix, by least squares or BFGS; None where there is none."""
    if twin.minimiser is not None:
        return twin.minimiser(matrix)
    if np.all(twin.gradient(np.zeros_like(matrix)) == 0):
        return matrix
    shape = matrix.shape
    best = scipy.optimize.minimize(
        lambda a: twin.value(a.reshape(shape)),
        matrix.ravel(),
        jac=lambda a: twin.gradient(a.reshape(shape)).ravel(),
        method="BFGS",
        options={"gtol": 1e-12 * np.linalg.norm(twin.gradient(np.zeros(shape)))},
    )
    return best.x.reshape(shape) if np.linalg.norm(best.x) < 1e3 * (1 + np.linalg.norm(matrix)) else None


def _file(trajectory: sf.Trajectory) -> Iterator[Violation]:
    """Saved and loaded, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        again = sf.load(trajectory.save(Path(folder) / "flow.nc"), trajectory.cost)
    for name in ("time", "end_to_end", "train_cost", "gradient_norm", "singular_values", "rank"):
        if not np.array_equal(getattr(trajectory, name), getattr(again, name), equal_nan=True):
            yield "file", f"{name} differs"
    same = [np.array_equal(a, b) for a, b in zip(trajectory.network.layers, again.network.layers, strict=True)]
    if not all(same) or again.stop_reason != trajectory.stop_reason:
        yield "file", "the end differs"
    if json.dumps(again.stats) != json.dumps(trajectory.stats):
        yield "file", "stats differ"


def _symmetries(flow: Flow, trajectory: sf.Trajectory) -> Iterator[Violation]:
    """A(t) of an equivalent flow, at the same rows: asked times, or the end at t1."""
    if trajectory.stop_reason != "t1":
        return
    for name, other, undo in _equivalents(flow):
        twin = other()
        if twin.stop_reason != "t1":
            yield name, f"ends {twin.stop_reason}, not t1, after {twin.stats['num_steps']} steps"
            continue
        rows = slice(None) if flow.program.dense_output else slice(-1, None)
        pairs = zip(trajectory.time[rows], trajectory.end_to_end[rows], twin.end_to_end[rows], strict=True)
        yield from _judge(flow, name, [(t, a, undo(b)) for t, a, b in pairs], 2 * ALLOWED)


def _equivalents(flow: Flow) -> Iterator[tuple[str, Callable[[], sf.Trajectory], Callable]]:
    options = flow.options
    choice = int(flow.rng.integers(4))
    if choice == 0 and has_transposed(flow.program) and (task := flow.task.transposed()) is not None:
        layers = [layer.T.copy() for layer in flow.start[::-1]]
        yield "transposition", lambda: run(flow, layers=layers, task=task), np.transpose
    elif choice == 1:
        layers = rotated(flow.start, flow.rng)
        yield "rotation", lambda: run(flow, layers=layers), np.asarray
    elif choice == 2 and isinstance(other := wider(flow.program), Program):
        layers = included(flow.start, other.sizes)
        yield "inclusion", lambda: run(flow, layers=layers), np.asarray
    elif choice == 3:
        task, factor, layers, unit = flow.task.doubled(), 2.0, flow.start, 1.0
        if task is None and (task := flow.task.enlarged()) is not None:
            unit, depth = 1e3, flow.program.depth
            layers, factor = [unit ** (1 / depth) * layer for layer in layers], unit ** (2 - 2 / depth)
        if task is not None:
            changes = {name: options[name] / factor for name in ("t1", "save_at") if options.get(name) is not None}
            yield "scaling", lambda: run(flow, layers=layers, task=task, **changes), lambda a: a / unit


def _judge(
    flow: Flow, name: str, rows: list[tuple[float, np.ndarray, np.ndarray]], allowed: float
) -> Iterator[Violation]:
    """Compare A at times: to `allowed` rtol of the largest |A| so far, or what the start's last digits make of it."""
    rtol, worst = flow.options["rtol"], None
    # where A is a cancellation, what Gaussian layers of these norms would make; a zero layer counts like the others
    sizes = [np.linalg.norm(layer) for layer in flow.start]
    norms = [size or np.mean(sizes) for size in sizes]
    largest = math.prod(norms) / math.sqrt(math.prod(flow.program.sizes[1:-1]))
    for t, a, b in rows:
        largest = max(largest, float(np.linalg.norm(a)))
        error = float(np.linalg.norm(a - b)) / (rtol * max(largest, 1e-300)) if np.any(a != b) else 0.0
        if not error <= allowed and (worst is None or not error <= worst[1]):
            worst = t, error
    if worst is None:
        return
    amplification = _amplification(flow, worst[0], rtol)
    # where those digits decide whether an escape has happened, there is nothing to compare
    if not amplification * rtol > 0.1 and not worst[1] <= allowed * max(1.0, amplification):
        told = f"{worst[1]:.1f} rtol at t = {worst[0]:.4g}; a start changed by rtol makes {amplification:.2g} rtol"
        yield name, told


def _amplification(flow: Flow, time: float, rtol: float) -> float:
    """What a change of the start's entries by rtol does to A at a time, over rtol: by the library at fine rtol."""
    if time <= 0:
        return 1.0
    fine = {"rtol": max(1e-3 * rtol, 1e-12), "max_steps": 10 * flow.options["max_steps"]}
    fine |= {"save_at": np.full(len(flow.options["save_at"]), time)} if flow.program.dense_output else {"t1": time}
    starts = [flow.start]
    for _ in range(3):
        starts.append([layer * (1 + rtol * flow.rng.standard_normal(layer.shape)) for layer in flow.start])
    ends = [run(flow, layers=layers, **fine) for layers in starts]
    if any(end.stop_reason != "t1" for end in ends):
        return np.inf  # nothing to compare with
    first, *others = (np.asarray(end.end_to_end[-1]) for end in ends)
    changes = [np.linalg.norm(other - first) for other in others]
    return float(np.max(changes)) / (rtol * max(float(np.linalg.norm(first)), 1e-300))


def _reference(flow: Flow, trajectory: sf.Trajectory, twin: Twin) -> Iterator[Violation]:
    """A at some rows against SciPy's LSODA at 1e-12 on all parameters, where that is short enough."""
    if not len(trajectory.time):
        return  # nothing asked for was reached
    rows = np.unique(np.linspace(0, len(trajectory.time) - 1, 8).astype(int))
    rows = rows[trajectory.time[rows] > 0]
    if not len(rows) or _largest(flow) == 0 or not np.isfinite(trajectory.end_to_end[rows]).all():
        return
    try:
        exact = integrated(flow.start, twin, trajectory.time[rows])
    except TooLong:
        return
    ours = trajectory.end_to_end[rows]
    triples = list(zip(trajectory.time[rows], ours, exact, strict=True))
    if list(_judge(flow, "reference", triples, ALLOWED)):
        try:  # is it the reference?
            exact = integrated(flow.start, twin, trajectory.time[rows], method="Radau", rtol=1e-10)
        except TooLong:
            return
        yield from _judge(flow, "reference", list(zip(trajectory.time[rows], ours, exact, strict=True)), ALLOWED)


def integrated(
    start: Layers, twin: Twin, times: np.ndarray, method: str = "LSODA", rtol: float = 1e-12
) -> np.ndarray:
    """A at times, by SciPy.

    Raises:
        TooLong: too many evaluations, or SciPy gave up.
    """
    shapes = [layer.shape for layer in start]
    splits = np.cumsum([layer.size for layer in start])[:-1]
    calls = 0

    def unravel(y):
        return [part.reshape(shape) for part, shape in zip(np.split(y, splits), shapes, strict=True)]

    def field(t, y):
        nonlocal calls
        calls += 1
        if calls > MAX_EVALUATIONS:
            raise TooLong
        layers = unravel(y)
        below = [None, layers[0]]
        for layer in layers[1:-1]:
            below.append(layer @ below[-1])
        pulled = twin.gradient(layers[-1] @ below[-1])
        forces = []
        for index in range(len(layers) - 1, 0, -1):
            forces.append(-pulled @ below[index].T)
            pulled = layers[index].T @ pulled
        forces.append(-pulled)
        return np.concatenate([force.ravel() for force in forces[::-1]])

    flat = np.concatenate([layer.ravel() for layer in start])
    atol = 1e-2 * rtol * np.sqrt(np.mean(flat**2))
    with np.errstate(all="ignore"):
        solution = scipy.integrate.solve_ivp(
            field, (0, times[-1]), flat, method=method, t_eval=times, rtol=rtol, atol=atol
        )
    if not solution.success or solution.y.shape[1] != len(times):
        raise TooLong
    return np.stack([product(unravel(y)) for y in solution.y.T])
