"""Bad input over the public API: a call, the argument that its error names, and a piece of the remedy.

Every error comes before any work, from this package and not from within JAX or numpy, and says in one line what was
expected, what came and what to do. What is good input, if of an unusual type, is at the end.
"""

import traceback
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import completion, start

import saddleflow as sf

COST, NETWORK, KEY, NAN = completion(), start(), jax.random.key(0), float("nan")
SHAPED = {"depth": 2, "width": 3, "shape": (4, 4)}
INPUTS, TARGETS = np.ones((6, 3)), np.ones((6, 1))
OBJECTIVE = sf.Objective(COST)
HUGE = 10**30

Row = tuple[Callable[[], object], str, str]


def options(function: Callable[..., object], rows: dict[str, tuple[dict[str, object], str]]) -> dict[str, Row]:
    """Rows of one function, each with a wrong option, the first one given, and a piece of the remedy."""

    def row(wrong: dict[str, object], remedy: str) -> Row:
        return lambda: function(**wrong), next(iter(wrong)), remedy

    return {name: row(*given) for name, given in rows.items()}


def flow(**wrong):
    return sf.gradient_flow(COST, NETWORK, **wrong)


def integrate(**wrong):
    return sf.integrate(COST, NETWORK, **({"t1": 1.0} | wrong))


def descend(**wrong):
    return sf.gradient_descent(COST, NETWORK, **({"num_steps": 3} | wrong))


def sweep(**wrong):
    return sf.sweep(COST, **({"depth": 2, "width": 3, "progress": False} | wrong))


def gaussian(**wrong):
    return sf.gaussian(**({"key": KEY, "gamma": 1.0} | SHAPED | wrong))


def sampled(**wrong):
    return sf.sample_reduced(**({"key": KEY, "gamma": 1.0, "depth": 3, "width": 100, "shape": (4, 4)} | wrong))


def untraceable(cost, network):
    return float(network.layers[0][0, 0])


FLOW = {
    "t1 a string": ({"t1": "5"}, "without quotes: t1=5"),
    "t1 a word": ({"t1": "long"}, "For example t1="),
    "t1 nan": ({"t1": NAN}, "Look where it was computed: 0 / 0"),
    "t1 complex": ({"t1": 1j}, "real part"),
    "t1 negative": ({"t1": -1.0}, "be finite and positive"),
    "t1 a list": ({"t1": [1.0, 2.0]}, "For example t1="),
    "t1 beyond floats": ({"t1": 10**400}, "For example t1="),
    "rtol None": ({"rtol": None}, "For example rtol=1e-6"),
    "rtol a string": ({"rtol": "1e-6"}, "without quotes"),
    "rtol nan": ({"rtol": NAN}, "float64 resolves"),
    "rtol True": ({"rtol": True}, "For example rtol"),
    "target_cost a word": ({"target_cost": "x"}, "For example target_cost"),
    "target_cost nan": ({"target_cost": NAN}, "Leave it out"),
    "gradient_tolerance None": ({"gradient_tolerance": None}, "For example gradient_tolerance"),
    "graded a word": ({"graded": "yes"}, "Write graded=True"),
    "graded a number": ({"graded": 1}, "graded=True or graded=False"),
    "save_networks a word": ({"save_networks": "no"}, "Write save_networks=False"),
    "save_networks None": ({"save_networks": None}, "save_networks=True or"),
    "max_steps no size": ({"max_steps": HUGE}, "no use for more"),
    "max_steps a float": ({"max_steps": 1e6}, "Write max_steps=1000000"),
    "max_steps zero": ({"max_steps": 0}, "For example max_steps=1"),
    "max_saves no size": ({"max_saves": 10**12}, "ask for fewer rows"),
    "max_saves few": ({"max_saves": 3}, "For example max_saves=4"),
    "max_saves True": ({"max_saves": True}, "For example max_saves=4"),
    "saves_per_step no size": ({"saves_per_step": 10**12}, "no use for more"),
    "save_at strings": ({"save_at": ["1", "2"]}, r"For example \["),
    "save_at a string": ({"save_at": "5"}, r"For example \["),
    "save_at complex": ({"save_at": [1j]}, r"For example \["),
    "save_at ragged": ({"save_at": [[1.0], [1.0, 2.0]]}, r"For example \["),
    "save_at None within": ({"save_at": [0.0, None]}, r"For example \["),
    "save_at unsorted": ({"save_at": [2.0, 1.0]}, "sorted"),
    "stop no function": ({"stop": True}, "For example stop=lambda time, netw"),
    "stop of one argument": ({"stop": lambda time: False}, "Its arguments are"),
    "stop a number": ({"stop": lambda time, network: 1.0}, "jnp.any"),
    "stop an array": ({"stop": lambda time, network: network.layers[0] > 0}, "jnp.any"),
    "stop nothing": ({"stop": lambda time, network: None}, "jnp.asarray"),
    "stop untraceable": ({"stop": lambda time, network: bool(time > 1)}, "traced by JAX"),
    "solver a word": ({"solver": "tsit5"}, "HalfSolver"),
    "solver a class": ({"solver": diffrax.Tsit5}, r"Tsit5\(\)"),
    "solver fixed": ({"solver": diffrax.Euler()}, "HalfSolver"),
    "observables unknown": ({"observables": ["norms"]}, r"name one of \['alignment', 'effecti"),
    "observables a function": ({"observables": untraceable}, "For example observables="),
    "observables functions": ({"observables": [untraceable]}, "For example observables="),
    "observables a number": ({"observables": 3}, "For example observables="),
    "observables by numbers": ({"observables": {1: untraceable}}, r"map names to functions \(cost, netw"),
    "observables of a word": ({"observables": {"norm": "parameter_norm"}}, r"observables=\['parameter_norm'\]"),
}

ROWS: dict[str, Row] = {
    # what is solved, and from where
    "no cost": (lambda: sf.gradient_flow(None, NETWORK), "cost", "MatrixCompletion"),
    "a matrix as cost": (lambda: sf.gradient_flow(np.eye(4), NETWORK), "cost", "teacher"),
    "a class as cost": (
        lambda: sf.gradient_flow(sf.MatrixCompletion, NETWORK),
        "cost",
        "Make one",
    ),
    "no network": (lambda: sf.gradient_flow(COST, None), "network", "gaussian"),
    "layers as network": (lambda: sf.gradient_flow(COST, list(NETWORK.layers)), "network", "DeepLinearNetwork"),
    "swapped": (lambda: sf.gradient_flow(NETWORK, COST), "cost", "comes first"),
    "swapped models": (lambda: sf.gradient_flow(lambda m: 0.0, OBJECTIVE), "network", "comes first"),
    "a number as network": (lambda: sf.gradient_flow(COST, 3.0), "network", "gaussian"),
    "a model of no arrays": (lambda: sf.gradient_flow(OBJECTIVE, "model"), "network", "gaussian"),
    "preconditioner": (lambda: sf.gradient_flow(COST, NETWORK, preconditioner="hesian"), "preconditioner", "hessian"),
    "reduce_width a boolean": (lambda: flow(reduce_width=True), "reduce_width", "be a string"),
    "reduce_width a word": (lambda: flow(reduce_width="full"), "reduce_width", "sf.reduce_width"),
    "progress a word": (lambda: flow(progress="bar"), "progress", "meter"),
    "progress a number": (lambda: flow(progress=1), "progress", "meter"),
    "max_seconds a string": (lambda: flow(max_seconds="60"), "max_seconds", "without quotes"),
    "rank_tolerance zero": (lambda: flow(rank_tolerance=0.0), "rank_tolerance", "be finite and positive"),
    "rank_tolerance a list": (lambda: flow(rank_tolerance=[1.0]), "rank_tolerance", "For example"),
    "observable untraceable": (lambda: flow(observables={"o": untraceable}), "observables['o']", "traced by JAX"),
    "observable nothing": (lambda: flow(observables={"o": lambda c, n: None}), "observables['o']", "jnp.asarray"),
    "observable words": (lambda: flow(observables={"o": lambda c, n: "a"}), "observables['o']", "jnp.asarray"),
    "observable of one": (lambda: flow(observables={"o": lambda c: 0.0}), "observables", "Its arguments are"),
    "observable a class": (lambda: flow(observables={"o": sf.observables.Alignment}), "observables", "Make one"),
    "integrate no cost": (lambda: sf.integrate(None, NETWORK, t1=1.0), "cost", "MatrixCompletion"),
    "integrate swapped": (lambda: sf.integrate(NETWORK, COST, t1=1.0), "cost", "comes first"),
    "integrate reduced": (lambda: sf.integrate(COST, sf.reduce_width(NETWORK)), "network", r"reduced\.network"),
    "integrate a matrix": (lambda: sf.integrate(COST, np.eye(4)), "network", r"\[matrix\]"),
    "continue no run": (lambda: sf.continue_flow(NETWORK, COST), "trajectory", "gradient_flow"),
    "continue no cost": (lambda: sf.continue_flow(NETWORK, None), "cost", "MatrixCompletion"),
    "stationary no loss": (
        lambda: sf.stationary_point(None, NETWORK),
        "objective",
        r"For example sf\.MatrixCompletion\.ra",
    ),
    "stationary no model": (
        lambda: sf.stationary_point(OBJECTIVE, None),
        "model",
        r"For example sf\.gaussian\(jax\.random",
    ),
    "stationary rtol": (lambda: sf.stationary_point(OBJECTIVE, NETWORK, rtol=None), "rtol", "For example"),
    "stationary steps": (lambda: sf.stationary_point(OBJECTIVE, NETWORK, max_steps=HUGE), "max_steps", "no use"),
    # discrete training
    "descent swapped": (lambda: sf.gradient_descent(NETWORK, COST, num_steps=3), "cost", "comes first"),
    "descent no model": (lambda: sf.gradient_descent(COST, None, num_steps=3), "model", "gaussian"),
    "optimizer a rate": (lambda: sf.gradient_descent(COST, NETWORK, 1e-2, num_steps=3), "optimizer", "optax.sgd"),
    "distance": (lambda: sf.distance_to_flow(NETWORK, NETWORK), "descent", r"It is what sf\.gradient_descent and"),
    "batches no key": (lambda: sf.training.batch_indices(0, 10, 2, 3), "key", r"jax.random.key\(0\)"),
    "batches too large": (lambda: sf.training.batch_indices(KEY, 10, 20, 3), "batch_size", "twice"),
    "batches no size": (lambda: sf.training.batch_indices(KEY, 10, 2, 10**14), "num_steps", "fewer"),
    "descend no cost": (lambda: sf.training.descend(None, NETWORK, num_steps=3), "cost", "MatrixCompletion"),
    **options(
        descend,
        {
            "num_steps no size": ({"num_steps": HUGE}, "no use"),
            "num_steps None": ({"num_steps": None}, "For example num_steps=1"),
            "num_steps a float": ({"num_steps": 10.0}, "num_steps=10,"),
            "descent max_saves": ({"max_saves": 10**12, "num_steps": 10**13}, "fewer rows"),
            "batch_size a string": ({"batch_size": "8", "key": KEY}, "without quotes"),
            "batch_size large": ({"batch_size": 100, "key": KEY}, "be at most the number of samples,"),
            "key a number": ({"key": 3, "batch_size": 2}, r"jax.random.key\(3\)"),
            "rate a word": ({"learning_rate": "fast"}, "For example learning_rate"),
            "rate nan": ({"learning_rate": NAN}, "Look where it was computed: 0 / 0"),
            "rate of nothing": ({"learning_rate": lambda: 1e-2}, "Its arguments are"),
            "descent save_at": ({"save_at": [0.5]}, "learning rate"),
            "descent target": ({"target_cost": "x"}, "For example"),
            "descent networks": ({"save_networks": "no"}, "save_networks=False"),
        },
    ),
    # starts
    **options(
        gaussian,
        {
            "key zero": ({"key": 0}, r"jax.random.key\(0\)"),
            "key None": ({"key": None}, r"jax.random.key\(0\)"),
            "key huge": ({"key": 2**70}, r"jax.random.key\(0\)"),
            "keys": ({"key": jax.random.split(KEY, 3)}, r"keys\[0\]"),
            "depth a string": ({"depth": "3"}, "without quotes"),
            "depth a float": ({"depth": 3.0}, "Write depth=3"),
            "depth no size": ({"depth": HUGE}, "There is no use for more"),
            "width None": ({"width": None}, "For example width=10"),
            "width a string": ({"width": "10"}, "without quotes"),
            "width no size": ({"width": HUGE}, "scale the variance"),
            "width of no memory": ({"width": 10**11}, "sample_reduced"),
            "widths too many": ({"width": [3, 3]}, "hidden space"),
            "widths of strings": ({"width": ["a"]}, "For example width=1"),
            "shape a number": ({"shape": 3}, r"\(3, 3\)"),
            "shape of three": ({"shape": (3, 3, 3)}, r"\(10, 10\)"),
            "shape a string": ({"shape": "4x4"}, r"\(10, 10\)"),
            "shape zero": ({"shape": (0, 3)}, "both positive"),
            "shape of floats": ({"shape": (4.0, 4.0)}, "Write shape=4"),
            "gamma a string": ({"gamma": "1"}, "without quotes"),
            "gamma nan": ({"gamma": NAN}, "Look where it was computed: 0 / 0"),
            "gamma complex": ({"gamma": 1j}, "real part"),
            "layer_scales a number": ({"layer_scales": 2.0}, r"\[1.0, 2.0\]"),
        },
    ),
    "layer_scales words": (lambda: gaussian(layer_scales=["a", 1.0]), "layer_scales[0]", "For example"),
    "variance a list": (lambda: sf.uniform(KEY, **SHAPED, variance=[1.0]), "variance", "For example"),
    "scale None": (lambda: sf.orthogonal(KEY, **SHAPED, scale=None), "scale", "For example"),
    "noise a string": (lambda: sf.identity(KEY, **SHAPED, noise="0.1"), "noise", "without quotes"),
    "identity key": (lambda: sf.identity(0, **SHAPED, noise=0.1), "key", r"jax.random.key\(0\)"),
    "balanced no matrix": (lambda: sf.balanced(None, depth=2, width=4), "matrix", "numpy.asarray"),
    "balanced a vector": (
        lambda: sf.balanced(np.ones(4), depth=2, width=4),
        "matrix",
        r"Of a vector take vector\[None\] or v",
    ),
    "balanced ragged": (
        lambda: sf.balanced([[1.0], [1.0, 2.0]], depth=2, width=4),
        "matrix",
        "have rows of one length",
    ),
    "balanced imbalance": (lambda: sf.balanced(np.eye(3), depth=2, width=3, imbalance="1"), "imbalance", r"For ex"),
    "aligned values": (lambda: sf.aligned(np.eye(3), values=None, depth=2, width=3), "values", r"For example \["),
    "aligned complex": (lambda: sf.aligned(np.eye(3) * 1j, values=1.0, depth=2, width=3), "matrix", "real part"),
    "layers a matrix": (lambda: sf.DeepLinearNetwork(3.0), "layers", "DeepLinearNetwork"),
    "layers None": (lambda: sf.DeepLinearNetwork(None), "layers", "W_1 first"),
    "layers of words": (lambda: sf.DeepLinearNetwork(["a"]), "layers[0]", "numpy.asarray"),
    "layers complex": (lambda: sf.DeepLinearNetwork([np.eye(2) * 1j]), "layers[0]", "real part"),
    "alpha nan": (lambda: NAN * NETWORK, "alpha", r"0\.1 \* network"),
    "alpha zero": (lambda: 0.0 * NETWORK, "alpha", "saddle at the origin"),
    "alpha complex": (lambda: 1j * NETWORK, "alpha", "real part"),
    "alpha of a reduction": (lambda: NAN * sf.reduce_width(NETWORK), "alpha", r"0\.1 \* network"),
    "rotations": (lambda: sf.rotate(NETWORK, 3), "rotations", r"\[matrix\]"),
    "include": (lambda: sf.include(NETWORK, "10"), "width", "without quotes"),
    "include no network": (lambda: sf.include(COST, 10), "network", "comes first"),
    "balancedness": (lambda: sf.balancedness(None), "network", "sf.Objective"),
    "gradient swapped": (lambda: sf.gradient(NETWORK, COST), "cost", "comes first"),
    "hessian": (
        lambda: sf.hessian_vector_product(COST, NETWORK, None),
        "direction",
        "Of another model say what its outp",
    ),
    "kernel": (lambda: sf.neural_tangent_kernel(NETWORK, None), "matrix", "numpy.asarray"),
    # reduced width
    "reduce no network": (lambda: sf.reduce_width(None), "network", "sf.DeepLinearNetwork"),
    "reduce a cost": (lambda: sf.reduce_width(COST), "network", "sf.DeepLinearNetwork"),
    "reduce tolerance": (lambda: sf.reduce_width(NETWORK, "1e-3"), "tolerance", "without quotes"),
    "reduce for no cost": (lambda: sf.reduce_width(NETWORK, cost=NETWORK), "cost", "comes first"),
    **options(
        sampled,
        {
            "sampled key": ({"key": 7}, r"jax.random.key\(7\)"),
            "sampled depth": ({"depth": 1}, "For example depth=2"),
            "sampled width": ({"width": 10**13}, "scale the variance"),
            "sampled levels": ({"levels": "2"}, "without quotes"),
            "sampled tolerance": ({"tolerance": NAN}, "Look where it was computed: 0 / 0"),
            "sampled cost": ({"cost": 3}, "MatrixCompletion"),
        },
    ),
    # costs
    "completion of lists": (
        lambda: sf.MatrixCompletion([[1.0], [1.0, 2.0]], [[True]]),
        "target",
        "have rows of one length",
    ),
    "completion of a word": (lambda: sf.MatrixCompletion("a", [[True]]), "target", "numpy.asarray"),
    "completion empty": (
        lambda: sf.MatrixCompletion(np.ones((0, 3)), np.ones((0, 3), bool)),
        "target",
        "have rows and columns",
    ),
    "observed numbers": (lambda: sf.MatrixCompletion(np.eye(2), np.eye(2)), "observed", "!= 0"),
    "observed None": (lambda: sf.MatrixCompletion(np.eye(2), None), "observed", "!= 0"),
    "random key": (lambda: sf.MatrixCompletion.random(0), "key", r"jax.random.key\(0\)"),
    "random shape": (lambda: sf.MatrixCompletion.random(KEY, shape=3), "shape", r"\(3, 3\)"),
    "random rank": (lambda: sf.MatrixCompletion.random(KEY, rank="2"), "rank", "without quotes"),
    "random observed": (
        lambda: sf.MatrixCompletion.random(KEY, observed="all"),
        "observed",
        "observed=0.8",
    ),
    "random observed nan": (
        lambda: sf.MatrixCompletion.random(KEY, observed=NAN),
        "observed",
        r"be a share in \(0, 1\]",
    ),
    "random no size": (lambda: sf.MatrixCompletion.random(KEY, shape=(10**8, 10**8)), "shape", "forecast"),
    "teacher nan": (lambda: sf.MeanSquaredError.teacher([[NAN]]), "matrix", "Look where it was computed: 0 / 0"),
    "teacher a vector": (
        lambda: sf.MeanSquaredError.teacher([1.0]),
        "matrix",
        r"Of a vector take vector\[None\] or v",
    ),
    "teacher None": (lambda: sf.MeanSquaredError.random(KEY, teacher=None), "teacher", "numpy.asarray"),
    "teacher infinite": (
        lambda: sf.MeanSquaredError.random(KEY, teacher=[[np.inf]]),
        "teacher",
        "Look where it was computed: 0 / 0",
    ),
    "samples": (lambda: sf.MeanSquaredError.random(KEY, teacher=np.eye(2), num_samples=1e3), "num_samples", "=1000,"),
    "noise": (
        lambda: sf.MeanSquaredError.random(KEY, teacher=np.eye(2), noise=NAN),
        "noise",
        "be finite and not negative",
    ),
    "keep_samples": (lambda: sf.MeanSquaredError(np.eye(2), np.eye(2), keep_samples=1), "keep_samples", "=True"),
    "inputs None": (lambda: sf.MeanSquaredError(None, np.eye(2)), "inputs", "numpy.asarray"),
    "sensing": (
        lambda: sf.LinearMeasurements.sensing(KEY, np.eye(2), num_measurements=None),
        "num_measurements",
        "Fo",
    ),
    "sensing nan": (
        lambda: sf.LinearMeasurements.sensing(KEY, [[NAN]], num_measurements=3),
        "target",
        "Look where it was computed: 0 / 0",
    ),
    "measurements": (lambda: sf.LinearMeasurements(None, None), "matrices", "numpy.asarray"),
    "masked": (lambda: sf.LinearMeasurements.masked(None, np.eye(2), np.eye(2) > 0), "inputs", "numpy.asarray"),
    "targets": (lambda: sf.SquaredError("a"), "targets", "numpy.asarray"),
    "labels None": (lambda: sf.Logistic(None), "labels", r"2 \* labels - 1"),
    "labels words": (lambda: sf.ExponentialLoss(["a", "b"]), "labels", r"2 \* labels - 1"),
    "classes words": (lambda: sf.CrossEntropy(["a", "b"]), "labels", r"Of other labels take np\.unique\(lab"),
    "classes huge": (lambda: sf.CrossEntropy([0, 2**40]), "labels", "Count classes"),
    "num_classes": (lambda: sf.CrossEntropy([0, 1], "3"), "num_classes", "without quotes"),
    "factor": (lambda: "2" * COST, "c in c * cost", "without quotes"),
    "factor nan": (lambda: NAN * COST, "c in c * cost", "not convex"),
    "factor a matrix": (lambda: COST * np.eye(2), "c in c * cost", "For example"),
    "nuclear": (lambda: sf.nuclear_norm_solution(COST, tolerance="0"), "tolerance", "without quotes"),
    "nuclear solver": (lambda: sf.nuclear_norm_solution(COST, solver=3), "solver", "be a string"),
    "minimum norm": (lambda: sf.minimum_norm_solution(None), "cost", "docs/costs.md"),
    # objectives
    "objective cost": (lambda: sf.Objective(None), "cost", "sf.Cost"),
    "objective outputs": (lambda: sf.Objective(COST, outputs=3), "outputs", "For example outputs=lambda model:"),
    "objective outputs of two": (lambda: sf.Objective(COST, lambda m, x: m), "outputs", "Its arguments are"),
    "objective regulariser": (
        lambda: sf.Objective(COST, regulariser="decay"),
        "regulariser",
        "For example regulariser=lambda mod",
    ),
    "objective test": (
        lambda: sf.Objective(COST, test=COST.test(np.eye(4))),
        "test",
        "For example test=lambda model:",
    ),
    "weight_decay": (lambda: sf.weight_decay("1e-3"), "strength", "without quotes"),
    "weight_decay nan": (lambda: sf.weight_decay(NAN), "strength", "Look where it was computed: 0 / 0"),
    "predict": (lambda: sf.regression(None, INPUTS, TARGETS), "predict", "For example predict=lambda model,"),
    "predict of one": (lambda: sf.regression(lambda model: model, INPUTS, TARGETS), "predict", "Its arguments are"),
    "regression targets": (lambda: sf.regression(lambda m, x: x, INPUTS, None), "targets", "numpy.asarray"),
    "regression inputs": (lambda: sf.regression(lambda m, x: x, None, TARGETS), "inputs", "leading axis"),
    "regression words": (
        lambda: sf.regression(lambda m, x: x, ["a"] * 6, TARGETS),
        "inputs",
        r"Convert with numpy\.asarray\(values,",
    ),
    "regression complex": (lambda: sf.regression(lambda m, x: x, INPUTS * 1j, TARGETS), "inputs", "real part"),
    "classification": (
        lambda: sf.classification(lambda m, x: x, INPUTS, np.ones(6)),
        "labels",
        r"Of other labels take np\.unique\(lab",
    ),
    "classification num": (
        lambda: sf.classification(lambda m, x: x, INPUTS, [0] * 6, num_classes=HUGE),
        "num_classes",
        "There is no use for more",
    ),
    # greedy paths
    "path no cost": (lambda: sf.saddle_to_saddle(NETWORK, 3), "cost", "comes first"),
    "path depth": (lambda: sf.saddle_to_saddle(COST, 1), "depth", "no saddles"),
    "path rtol": (lambda: sf.saddle_to_saddle(COST, 3, rtol="1e-6"), "rtol", "without quotes"),
    "path stages": (lambda: sf.saddle_to_saddle(COST, 3, max_stages=2.0), "max_stages", "max_stages=2"),
    "greedy epsilon": (
        lambda: sf.greedy_descent(COST, 3, epsilon=None, num_steps=3, learning_rate=0.1),
        "epsilon",
        "For example",
    ),
    "greedy steps": (
        lambda: sf.greedy_descent(COST, 3, epsilon=0.1, num_steps=HUGE, learning_rate=0.1),
        "num_steps",
        "no use",
    ),
    "greedy rate": (
        lambda: sf.greedy_descent(COST, 3, epsilon=0.1, num_steps=3, learning_rate="0.1"),
        "learning_rate",
        "without quotes",
    ),
    "greedy saves": (
        lambda: sf.greedy_descent(COST, 3, epsilon=0.1, num_steps=10**13, learning_rate=0.1, max_saves=10**12),
        "max_saves",
        "fewer rows",
    ),
    # sweeps
    "sweep no cost": (lambda: sf.sweep(None, depth=2, width=3), "cost", "MatrixCompletion"),
    "sweep of words": (lambda: sf.sweep("cost", depth=2, width=3), "cost", "MatrixCompletion"),
    "sweep of a matrix": (lambda: sf.sweep(np.eye(3), depth=2, width=3), "cost", "teacher"),
    **options(
        sweep,
        {
            "seed a string": ({"seed": "0"}, "without quotes"),
            "seed negative": ({"seed": [-1, 0]}, "be an integer >= 0"),
            "seed beyond": ({"seed": 2**64}, "be at most 9223372036854775807"),
            "seeds no size": ({"seed": range(10**12)}, "Make several sweeps"),
            "sweep gamma": ({"gamma": ["1", 2.0]}, "without quotes"),
            "sweep gamma None": ({"gamma": None}, "For example"),
            "sweep alpha": ({"alpha": [NAN]}, "Look where it was computed: 0 / 0"),
            "sweep depth": ({"depth": 2.0}, "depth=2,"),
            "sweep width": ({"width": [3, "4"]}, "without quotes"),
            "sweep widths": ({"width": [[3, 4], [4, 3]]}, "Several hidden widths come from in"),
            "sweep ragged": ({"width": [[3], [4, 3]]}, "Several hidden widths come from in"),
            "sweep rtol": ({"rtol": "1e-4"}, "without quotes"),
            "sweep t1": ({"t1": "5"}, "without quotes"),
            "sweep save_at": ({"save_at": "5", "t1": 1.0}, r"For example \["),
            "sweep save_at one": ({"save_at": 1, "t1": 1.0}, "For example save_at=2"),
            "sweep save_at True": ({"save_at": True, "t1": 1.0}, "For example"),
            "sweep matrices": ({"save_matrices": "yes"}, "save_matrices=True"),
            "sweep saves": ({"max_saves": "64"}, "without quotes"),
            "sweep saves no size": ({"max_saves": 10**12}, "fewer rows"),
            "sweep steps": ({"max_steps": HUGE}, "no use"),
            "sweep reduce": ({"reduce_width": True}, "be a string"),
            "sweep store": ({"store": 3}, "pathlib.Path"),
            "sweep client": ({"client": "localhost:8786"}, "dask.distributed.Client"),
            "sweep devices": ({"devices": "cpu"}, r"jax.devices\(\)"),
            "sweep devices True": ({"devices": True}, r"jax.devices\(\)"),
            "sweep slots": ({"slots": "2"}, "without quotes"),
            "sweep chunk_size": ({"chunk_size": 0}, "For example chunk_size=1"),
            "sweep together": ({"together": "width"}, "together="),
            "sweep init": ({"init": "gaussian"}, r"For example init=sf\.gaussian"),
            "sweep accept": ({"accept": True, "init": sf.gaussian}, "For example accept=lambda start:"),
            "sweep method": ({"method": optax.sgd(1e-2)}, "optax.sgd"),
            "sweep num_steps": ({"num_steps": "10", "method": optax.sgd}, "without quotes"),
            "sweep batch_size": ({"batch_size": "8", "method": optax.sgd, "num_steps": 3}, "without quotes"),
            "sweep rate": ({"learning_rate": ["a"], "method": optax.sgd, "num_steps": 3}, "For example"),
        },
    ),
    "after no cost": (lambda: sf.after(None, sf.gaussian), "cost", "MatrixCompletion"),
    "after no init": (lambda: sf.after(COST, None), "init", r"For example sf\.gaussian"),
    "after options": (lambda: sf.after(COST, sf.gaussian, rtol="x"), "rtol", "For example rtol"),
    "after a time": (
        lambda: sf.after(COST, sf.gaussian)(KEY, switch_time="5", gamma=1.0, **SHAPED),
        "switch_time",
        "q",
    ),
    # observables, activations, files
    "alignment": (lambda: sf.observables.Alignment("3"), "count", "without quotes"),
    "products": (lambda: sf.observables.PartialProducts(0), "count", "For example count=1"),
    "hessian least": (lambda: sf.observables.HessianEigenvalues(1, least="yes"), "least", "least=True"),
    "kernel values": (lambda: sf.observables.KernelEigenvalues(None), "count", "For example count=1"),
    "kernel matrix": (lambda: sf.observables.KernelMatrix(1.5), "most", "For example"),
    "kernel distance": (
        lambda: sf.observables.KernelDistance(None),
        "reference",
        r"For example sf\.gaussian\(jax\.random",
    ),
    "distance None": (lambda: sf.observables.Distance(None), "reference", "numpy.asarray"),
    "register": (lambda: sf.observables.register(3), "observable", "For example observable=lambda cost"),
    "epsilon": (lambda: sf.activations.relu(jnp.ones(2), "1e-2"), "epsilon", "without quotes"),
    "slope": (lambda: sf.activations.leaky_relu(jnp.ones(2), 1e-2, None), "slope", "For example"),
    "observed a share": (lambda: sf.MatrixCompletion(np.eye(3), 0.8), "observed", "MatrixCompletion.random"),
    "regulariser a number": (
        lambda: sf.Objective(COST, regulariser=1e-3),
        "regulariser",
        r"sf\.weight_decay\(0.001\)",
    ),
    "rates of flows": (lambda: sweep(learning_rate=[0.1, 0.2]), "learning_rate", "method=optax.sgd"),
    "batches of flows": (lambda: sweep(batch_size=[None, 4]), "batch_size", "method=optax.sgd"),
    "neither gamma nor variance": (lambda: sf.gaussian(KEY, **SHAPED), "gamma, variance", "Write gamma="),
    "matrix path": (lambda: sf.read_matrix(None), "path", "pathlib.Path"),
    "matrix share": (lambda: sf.read_matrix("m.csv", held_out="0.2"), "held_out", "without quotes"),
    "matrix seed": (lambda: sf.read_matrix("m.csv", seed=-1), "seed", "For example seed=1"),
    "matrix header": (lambda: sf.read_matrix("m.csv", header="yes"), "header", "header=True"),
    "table columns": (lambda: sf.read_table("m.csv", triplets="user"), "triplets", "'rating'"),
    "table column": (lambda: sf.read_table("m.csv", triplets=("a", "b", 3)), "triplets[2]", "be a string"),
    "load a number": (lambda: sf.load(3), "path", "pathlib.Path"),
    "load with a network": (lambda: sf.load("run.nc", NETWORK), "cost", "cost comes first"),
    "load path": (lambda: sf.load_path(["path.nc"]), "path", "pathlib.Path"),
    "ledger": (lambda: sf.claims.Ledger.load_json(3), "path", "pathlib.Path"),
    "programs": (lambda: sf.cache_programs(3), "folder", "pathlib.Path"),
    "programs seconds": (lambda: sf.cache_programs(min_seconds="1"), "min_seconds", "without quotes"),
}
ROWS |= {f"flow: {name}": row for name, row in options(flow, FLOW).items()}
ROWS |= {
    f"integrate: {name}": options(integrate, FLOW)[name]
    for name in ("t1 a string", "rtol None", "graded a word", "max_saves no size", "stop a number", "save_at complex")
}


def test_the_table_is_long():
    assert len(ROWS) >= 150


@pytest.mark.parametrize("name", ROWS)
def test_bad_input_is_refused_in_one_line(name):
    call, argument, remedy = ROWS[name]
    with pytest.raises(ValueError, match=remedy) as error:
        call()
    assert type(error.value) is ValueError
    message = str(error.value)
    assert message.startswith(f"`{argument}"), message
    assert "\n" not in message
    assert len(message) < 400
    assert " but " in message
    last = traceback.extract_tb(error.value.__traceback__)[-1].filename
    assert Path(last).is_relative_to(Path(sf.__file__).parent), last


def same(one: object, other: object) -> bool:
    """Whether two pytrees hold the same arrays."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(first, second) for first, second in pairs)


GOOD: dict[str, Callable[[], bool]] = {
    "numpy integers": lambda: same(gaussian(depth=np.int64(2), width=np.int32(3)), gaussian()),
    "arrays of no axes": lambda: same(gaussian(depth=np.array(2), gamma=jnp.array(1.0)), gaussian()),
    "an array of widths": lambda: same(gaussian(depth=3, width=np.array([3, 3])), gaussian(depth=3, width=(3, 3))),
    "a list as shape": lambda: same(gaussian(shape=[np.int64(4), 4]), gaussian()),
    "an array as shape": lambda: same(gaussian(shape=np.array([4, 4])), gaussian()),
    "a fraction": lambda: same(gaussian(gamma=Fraction(1, 1)), gaussian()),
    "numbers of float32": lambda: same(gaussian(gamma=np.float32(1.0)), gaussian()),
    "an array of scales": lambda: same(gaussian(layer_scales=np.ones(2)), gaussian()),
    "a key of old": lambda: same(gaussian(key=jax.random.PRNGKey(0)), gaussian()),
    "layers as lists": lambda: sf.DeepLinearNetwork([[[1.0, 2]], [[3], [4]]]).shape == (2, 2),
    "lists as a target": lambda: sf.MeanSquaredError.teacher([[1, 2], [3, 4]]).shape == (2, 2),
    "lists as a task": lambda: sf.MatrixCompletion([[1, 2], [3, 4]], [[True, False], [True, True]]).num_observed == 3,
    "lists as a start": lambda: sf.balanced([[1, 2], [3, 4]], depth=np.int64(2), width=2).shape == (2, 2),
    "a target of jax": lambda: sf.regression(lambda m, x: x, INPUTS, jnp.ones(6)).shape == (1, 6),
    "numpy's counts": lambda: (
        sf.MeanSquaredError.random(KEY, teacher=np.eye(2), num_samples=np.int64(5)).shape == (2, 2)
    ),
    "numpy's booleans": lambda: sf.MeanSquaredError(INPUTS.T, TARGETS.T, keep_samples=np.True_).num_samples == 6,
    "numpy's factor": lambda: float((np.float64(2) * COST).factor) == 2.0,
    "an array as alpha": lambda: same(np.array(2.0) * NETWORK, 2.0 * NETWORK),
    "numpy's count": lambda: sf.observables.Alignment(np.int64(2)).count == 2,
    "numpy's decay": lambda: float(sf.weight_decay(np.float32(0.5)).strength) == 0.5,
    "arrays of rotations": lambda: same(sf.rotate(NETWORK, np.stack([np.eye(6)] * 2)), NETWORK),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_input_of_an_unusual_type(name):
    assert GOOD[name]()


def test_options_of_numpy_give_the_same_run():
    plain = flow(t1=2.0, max_saves=50, save_networks=False, rtol=1e-5, max_steps=500, progress=False)
    other = flow(
        t1=np.float64(2),
        max_saves=np.int64(50),
        save_networks=np.False_,
        rtol=jnp.asarray(1e-5),
        max_steps=np.array(500),
        progress=np.False_,
    )
    np.testing.assert_array_equal(plain.end_to_end, other.end_to_end)


def test_tracers_pass():
    def final(key, gamma, rtol, end):
        network = sf.gaussian(key, **SHAPED, gamma=gamma, layer_scales=jnp.ones(2) * end)
        return sf.integrate(COST, gamma * network, t1=end, rtol=rtol, max_saves=4).network.end_to_end()

    shapes = jax.eval_shape(jax.vmap(final), jax.random.split(KEY, 3), *[jnp.ones(3)] * 3)
    assert shapes.shape == (3, 4, 4)
