"""What a caller may take for granted: nothing left changed, no warning from inside, copies, threads."""

import copy
import itertools
import os
import pickle
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl
from problems import completion, costs, start

import saddleflow as sf
from saddleflow.flow.arguments import FlowOptions
from saddleflow.sweeps.chunk import SweepOptions
from saddleflow.sweeps.chunks import cut
from saddleflow.sweeps.grid import Grid

COST, NETWORK, KEY = completion(), start(), jax.random.key(0)
COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


def flow(**options):
    return sf.gradient_flow(COST, NETWORK, **({"t1": 5.0, "progress": False} | options))


def fails(**options):
    with pytest.raises(ValueError, match="stop"):
        flow(stop=lambda time, network: time, **options)


def fails_inside():
    """An error of a function of the user, raised when it is traced the second time: within the run."""
    calls = []

    def observable(cost, network):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("inside")
        return jnp.zeros(())

    with pytest.raises(RuntimeError, match="inside"):
        flow(observables={"o": observable})


def state():
    """What the whole process has in common."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        "threads": sorted((one["filepath"], one["num_threads"]) for one in threadpoolctl.threadpool_info()),
        "jax": dict(jax.config.values),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "umask": mask,
        "numpy": np.geterr(),
        "print": np.get_printoptions(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


@pytest.mark.parametrize("where", ["here", "in a thread"])
@pytest.mark.parametrize("work", [flow, fails, fails_inside], ids=["a flow", "bad input", "an error inside"])
def test_nothing_is_left_changed(work, where):
    flow()  # what is set once a process: the folder of compiled programs, the libraries that are loaded
    before = state()
    if where == "here":
        work()
    else:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(work).result()
    assert state() == before


def test_a_layer_of_zeros_is_reduced_without_a_warning():
    layers = [np.ones((40, 4)) * 0.1, np.zeros((40, 40)), np.ones((4, 40)) * 0.1]
    run = sf.gradient_flow(COST, sf.reduce_width(sf.DeepLinearNetwork(layers), 1e-3), t1=1.0, progress=False)
    assert np.isfinite(run.end_to_end).all()


def objectives():
    return {
        "weight decay": sf.weight_decay(1e-3),
        "objective": sf.Objective(COST, regulariser=sf.weight_decay(1e-3)),
        "regression": sf.regression(predict, np.ones((5, 3)), np.ones(5)),
    }


def predict(model, x):
    return x @ model["w"]


def chunk():
    grid = Grid.of(COST, depth=2, width=3, gamma=1.0, alpha=1.0, seed=[0, 1], rtol=1e-4)
    return cut(grid, SweepOptions(FlowOptions(t1=1.0)), None)[0]


THINGS = {
    **costs(),
    **objectives(),
    "a cost times a number": 2 * COST,
    "a network": NETWORK,
    "a reduced network": sf.reduce_width(NETWORK),
    "a drawn network": sf.sample_reduced(KEY, depth=3, width=100, shape=(4, 4), gamma=1.0),
    "options": FlowOptions(t1=1.0, save_at=[0.5]),
    "a chunk": chunk(),
    "after": sf.after(COST, sf.gaussian),
    "a solver": sf.solvers.Switching(),
    "a reason": sf.StopReason.t1,
    "alignment": sf.observables.Alignment(2),
    "products": sf.observables.PartialProducts(),
    "hessian": sf.observables.HessianEigenvalues(2, least=True),
    "kernel": sf.observables.KernelEigenvalues(3),
    "kernel matrix": sf.observables.KernelMatrix(16),
    "kernel distance": sf.observables.KernelDistance(NETWORK),
    "distance": sf.observables.Distance(np.eye(4)),
    **sf.observables.REGISTRY,
}


def same(first, second):
    """Whether two things hold the same arrays, in the same structure, and are of one type."""
    assert type(first) is type(second)
    ours, theirs = jax.tree.leaves(eqx.filter(first, eqx.is_array)), jax.tree.leaves(eqx.filter(second, eqx.is_array))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", THINGS)
def test_copies(name, how):
    thing = THINGS[name]
    twin = COPIES[how](thing)
    same(thing, twin)
    if name != "a solver":  # equinox prints what is a default by identity
        assert repr(twin) == repr(thing) or " at 0x" in repr(thing)


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_cost_and_of_observables_give_the_same_numbers(how):
    made = COPIES[how]
    matrix = np.arange(12.0).reshape(4, 3)
    for cost in costs().values():
        assert float(made(cost)(matrix)) == float(cost(matrix))
        np.testing.assert_array_equal(made(cost).gradient(matrix), cost.gradient(matrix))
    for observable in (sf.observables.Alignment(2), sf.observables.Distance(np.eye(4))):
        np.testing.assert_array_equal(made(observable)(COST, NETWORK), observable(COST, NETWORK))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("looked_at", [False, True])
def test_copies_of_a_run(how, looked_at):
    run = flow()
    if looked_at:
        run.saddles()
    twin = COPIES[how](run)
    assert repr(twin) == repr(run)
    for name in ("time", "end_to_end", "train_cost", "gradient_norm", "singular_values", "rank"):
        np.testing.assert_array_equal(getattr(twin, name), getattr(run, name))
    same(run.network, twin.network)
    assert [visit.rank for visit in twin.saddles()] == [visit.rank for visit in run.saddles()]


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_a_run_of_a_model(how):
    objective = sf.regression(predict, np.eye(5, 3), np.ones(5))
    run = sf.gradient_flow(objective, {"w": jnp.ones(3)}, t1=1.0, progress=False)
    twin = COPIES[how](run)
    assert repr(twin) == repr(run)
    np.testing.assert_array_equal(twin.train_cost, run.train_cost)
    np.testing.assert_array_equal(twin.model["w"], run.model["w"])


def test_a_copy_is_solved_to_the_same_numbers():
    run = flow()
    again = sf.gradient_flow(*pickle.loads(pickle.dumps((COST, NETWORK))), t1=5.0, progress=False)
    np.testing.assert_array_equal(run.end_to_end, again.end_to_end)


def test_flows_in_two_threads_are_as_alone():
    starts = [NETWORK, 0.5 * NETWORK]
    alone = [sf.gradient_flow(COST, one, t1=5.0, progress=False) for one in starts]
    ready = threading.Barrier(2)

    def work(one):
        ready.wait()
        return sf.gradient_flow(COST, one, t1=5.0, progress=False)

    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(work, starts))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.time, other.time)
        np.testing.assert_array_equal(one.end_to_end, other.end_to_end)
        assert one.stats["num_steps"] == other.stats["num_steps"]


def test_a_clock_that_is_set_anew_changes_nothing(monkeypatch):
    """Budgets and meters run on a clock that nobody sets."""
    plain = flow(max_seconds=1e3, progress=True)
    now, jumps = time.time, itertools.cycle([0.0, 1e9, -1e9])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    found = flow(max_seconds=1e3, progress=True)
    np.testing.assert_array_equal(found.end_to_end, plain.end_to_end)
    assert found.stop_reason == plain.stop_reason
    package = Path(sf.__file__).parent
    ages_of_files = Path("_backend", "programs.py")
    sources = {path.relative_to(package): path.read_text() for path in package.rglob("*.py")}
    assert [path for path, text in sources.items() if re.search(r"\btime\.time\(|\bdatetime\b", text)] == [
        ages_of_files
    ]
