"""Random flows for `benchmarks/soak.py`: programs, costs with their NumPy twins, starts, options.

All numbers of a flow come from `numpy.random.default_rng([seed, number])`, so a flow is known by the two.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import saddleflow as sf

NUM_TIMES = 12
MAX_STEPS = 4000
MAX_SECONDS = 30.0


@dataclass(frozen=True)
class Program:
    """What a compiled flow depends on: costs and starts of one program differ in numbers only.

    Attributes:
        kind: of the cost.
        sizes: of all spaces, input first.
        data: observed entries, or samples.
        dense_output: rows at asked times, else the solver's own steps.
        explicit: solve with diffrax's Tsit5.
    """

    kind: str
    sizes: tuple[int, ...]
    data: int = 0
    dense_output: bool = False
    explicit: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.sizes[-1], self.sizes[0]

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.sizes) - 1


PROGRAMS = (
    Program("completion", (2, 3, 3, 3), 5),
    Program("completion", (3, 3, 3, 2), 5),
    Program("completion", (4, 4, 4), 12, dense_output=True),
    Program("completion", (4, 6, 4), 12, dense_output=True),
    Program("completion", (5, 2, 2, 1), 4),
    Program("completion", (1, 2, 2, 5), 4),
    Program("completion", (3, 3, 3, 3, 3), 7, dense_output=True),
    Program("completion", (2, 4, 3, 6), 9),
    Program("completion", (3,) * 6, 9, dense_output=True),
    Program("completion", (3,) * 8, 8),
    Program("completion", (4, 4, 4, 4), 13, dense_output=True, explicit=True),
    Program("free corner", (2, 2, 2), 3, dense_output=True),
    Program("free corner", (2, 1, 1, 2), 3, dense_output=True),
    Program("free corner", (2,) * 5, 3),
    Program("free corner", (2,) * 7, 3, dense_output=True),
    Program("least squares", (2, 3, 3, 3), 8, dense_output=True),
    Program("least squares", (4, 3, 2), 9),
    Program("least squares", (4, 3, 3, 2), 2, dense_output=True),
    Program("least squares", (3,) * 6, 7),
    Program("least squares", (3, 2, 2, 2, 3), 7),
    Program("least squares", (6, 1, 1), 9, dense_output=True),
    Program("log-cosh", (2, 3, 3, 3), 8, dense_output=True),
    Program("log-cosh", (3, 3, 3, 3, 3), 8),
    Program("log-cosh", (2, 1, 2), 6),
    Program("exponential", (3, 3, 2), dense_output=True),
    Program("exponential", (2, 2, 2, 2)),
    Program("exponential", (2, 1, 1, 1, 2)),
    Program("constant", (2, 2, 2, 2)),
)


class LogCosh(sf.Cost):
    """`weight / N * sum log cosh (A X - Y)`: a cost of a user's own, without a curvature of its own."""

    inputs: jax.Array
    outputs: jax.Array
    weight: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.outputs.shape[0], self.inputs.shape[0]

    def __call__(self, matrix: jax.Array) -> jax.Array:
        """The cost."""
        residuals = matrix @ self.inputs - self.outputs
        values = jnp.logaddexp(residuals, -residuals) - jnp.log(2.0)
        return self.weight * jnp.sum(values) / self.inputs.shape[1]

    def test(self, matrix: jax.Array) -> jax.Array:
        """There is none."""
        raise ValueError("no test set")

    @property
    def has_test(self) -> bool:
        """None."""
        return False


class Exponential(sf.Cost):
    """`weight * mean exp(-signs * A / unit)`: falls to zero as A grows, which never ends."""

    signs: jax.Array
    weight: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.signs.shape[0], self.signs.shape[1]

    def __call__(self, matrix: jax.Array) -> jax.Array:
        """The cost."""
        return self.weight * jnp.mean(jnp.exp(-self.signs * matrix))

    def test(self, matrix: jax.Array) -> jax.Array:
        """There is none."""
        raise ValueError("no test set")

    @property
    def has_test(self) -> bool:
        """None."""
        return False


@dataclass(frozen=True)
class Twin:
    """A cost in NumPy: value, gradient, and a minimiser if there is one."""

    value: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]
    minimiser: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Task:
    """A cost by its numbers, so that it can be transposed and scaled."""

    kind: str
    numbers: dict[str, Any]

    def cost(self) -> sf.Cost:
        """As saddleflow takes it."""
        n = self.numbers
        if self.kind in ("completion", "free corner"):
            return sf.MatrixCompletion(n["target"], n["observed"])
        if self.kind == "least squares":
            return sf.MeanSquaredError(n["inputs"], n["outputs"])
        if self.kind == "log-cosh":
            return LogCosh(*(jnp.asarray(n[name]) for name in ("inputs", "outputs", "weight")))
        return Exponential(jnp.asarray(n["signs"]), jnp.asarray(n["weight"]))

    def twin(self) -> Twin:
        """In NumPy."""
        n = self.numbers
        if self.kind in ("completion", "free corner"):
            target, seen = n["target"], n["observed"]
            count = seen.sum()
            return Twin(
                lambda a: float(np.sum((a - target)[seen] ** 2) / count),
                lambda a: 2 * np.where(seen, a - target, 0.0) / count,
                lambda a: np.where(seen, target, a),
            )
        if self.kind == "least squares":
            x, y = n["inputs"], n["outputs"]
            return Twin(
                lambda a: float(np.sum((a @ x - y) ** 2) / x.shape[1]),
                lambda a: 2 * (a @ x - y) @ x.T / x.shape[1],
                lambda a: a + np.linalg.lstsq(x.T, (y - a @ x).T, rcond=None)[0].T,
            )
        if self.kind == "log-cosh":
            x, y, weight = n["inputs"], n["outputs"], float(n["weight"])
            return Twin(
                lambda a: float(weight * np.sum(np.logaddexp(a @ x - y, y - a @ x) - np.log(2)) / x.shape[1]),
                lambda a: weight * np.tanh(a @ x - y) @ x.T / x.shape[1],
                None,
            )
        signs, weight = n["signs"], float(n["weight"])
        return Twin(
            lambda a: float(weight * np.mean(np.exp(-signs * a))),
            lambda a: -weight * signs * np.exp(-signs * a) / signs.size,
        )

    def transposed(self) -> "Task | None":
        """The cost of A^T."""
        if self.kind in ("completion", "free corner", "exponential", "constant"):
            numbers = {key: np.ascontiguousarray(np.transpose(value)) for key, value in self.numbers.items()}
            return Task(self.kind, numbers)
        return None

    def doubled(self) -> "Task | None":
        """Twice the cost, on which time runs twice as fast."""
        n = self.numbers
        if "weight" in n:
            return Task(self.kind, n | {"weight": 2 * n["weight"]})
        if self.kind == "least squares":
            return Task(self.kind, {name: np.sqrt(2) * values for name, values in n.items()})
        return None

    def enlarged(self) -> "Task | None":
        """The cost of A in units a thousandth as large, up to the factor `1e6`."""
        if self.kind in ("completion", "free corner"):
            return Task(self.kind, self.numbers | {"target": 1e3 * self.numbers["target"]})
        return None


@dataclass
class Flow:
    """One random flow."""

    number: int
    program: Program
    task: Task
    start: list[np.ndarray]
    start_name: str
    options: dict[str, Any]
    attained: bool  # whether the flow can reach a minimiser
    rng: np.random.Generator = field(repr=False)

    def describe(self) -> str:
        """In a line."""
        options = {
            name: f"{value[0]:.3g}..{value[-1]:.3g}" if name == "save_at" else value
            for name, value in self.options.items()
            if value is not None and name not in ("max_steps", "max_seconds", "solver", "progress")
        }
        solver = ", Tsit5" if self.program.explicit else ""
        size = max(np.abs(layer).max() for layer in self.start)
        return (
            f"{self.program.kind} {self.program.sizes}{solver}, {self.start_name} (largest entry {size:.1e}), "
            + ", ".join(f"{name} {value}" for name, value in options.items())
        )

    def network(self, layers: list[np.ndarray] | None = None) -> sf.DeepLinearNetwork:
        """The start, or other layers."""
        return sf.DeepLinearNetwork(self.start if layers is None else layers)


def draw(seed: int, number: int) -> Flow:
    """The flow of a number."""
    rng = np.random.default_rng([seed, number])
    program = PROGRAMS[number % len(PROGRAMS)]
    unit = 10.0 ** rng.uniform(-4, 4) if rng.random() < 0.3 else 1.0
    task = _task(program, unit, rng)
    name, start = _start(program, unit, rng)
    attained = program.kind != "exponential" and not _is_cut_off(program, task, start)
    options = _options(program, task, start, unit, rng)
    return Flow(number, program, task, start, name, options, attained, rng)


def _task(program: Program, unit: float, rng: np.random.Generator) -> Task:
    n_out, n_in = program.shape
    rank = int(rng.integers(1, min(n_out, n_in) + 1))
    target = unit * rng.standard_normal((n_out, rank)) @ rng.standard_normal((rank, n_in))
    if program.kind == "completion":
        seen = (rng.permutation(target.size) < program.data).reshape(target.shape)
        target = 0 * target if rng.random() < 0.03 else target
        return Task("completion", {"target": target, "observed": seen})
    if program.kind == "free corner":
        target, seen = unit * np.array([[0.0, 1], [1, 0]]), np.array([[False, True], [True, True]])
        if rng.random() < 0.5:
            target = target * rng.choice([-1, 1], (2, 2)) * rng.uniform(0.3, 3, (2, 2))
        if rng.random() < 0.5:
            target, seen = target[::-1].copy(), seen[::-1].copy()
        return Task("free corner", {"target": target, "observed": seen})
    if program.kind == "constant":
        return Task("constant", {"signs": np.zeros((n_out, n_in)), "weight": np.asarray(1.0)})
    if program.kind == "exponential":
        return Task("exponential", {"signs": rng.choice([-1.0, 1], (n_out, n_in)), "weight": np.asarray(unit)})
    inputs = rng.standard_normal((n_in, program.data))
    if rng.random() < 0.5:  # correlated
        inputs = (rng.standard_normal((n_in, n_in)) * 10.0 ** rng.uniform(-1.5, 0, n_in)) @ inputs
    if rng.random() < 0.3 and n_in > 1:  # of lower rank
        inputs[-1] = inputs[0]
    if program.kind == "log-cosh":
        outputs = (target / unit) @ inputs + rng.uniform(0, 1) * rng.standard_normal((n_out, program.data))
        return Task("log-cosh", {"inputs": inputs, "outputs": outputs, "weight": np.asarray(unit)})
    outputs = target @ inputs + unit * rng.uniform(0, 1) * rng.standard_normal((n_out, program.data))
    return Task("least squares", {"inputs": inputs, "outputs": outputs})


def _start(program: Program, unit: float, rng: np.random.Generator) -> tuple[str, list[np.ndarray]]:
    """A name and layers."""
    depth, sizes = program.depth, program.sizes
    size = unit ** (1 / depth) if program.kind in ("completion", "free corner", "least squares") else 1.0
    alpha = 10.0 ** (rng.uniform(-15, 3) if rng.random() < 0.3 else rng.uniform(-3, 0.3))
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    layers = [rng.standard_normal(shape) / np.sqrt(max(sizes[1:-1])) for shape in shapes]
    names = ["Gaussian", "balanced", "equal neurons", "zero layer", "two zero layers", "huge layer", "equal layers"]
    name = str(rng.choice(names, p=[0.5, 0.15, 0.07, 0.05, 0.03, 0.1, 0.1]))
    if name == "balanced":
        layers = _balanced(rng.standard_normal(program.shape), program)
    elif name == "equal neurons":
        layers = [np.ones(shape) / np.sqrt(max(sizes[1:-1])) for shape in shapes]
    elif name in ("zero layer", "two zero layers"):
        for index in rng.permutation(depth)[: 1 if name == "zero layer" else 2]:
            layers[index] = np.zeros(shapes[index])
    elif name == "huge layer":
        index = int(rng.integers(depth))
        layers[index] = layers[index] * 10.0 ** rng.uniform(1, 4)
    elif name == "equal layers":
        if len(set(sizes)) == 1:
            layers = [layers[0].copy() for _ in shapes]
            if rng.random() < 0.5:
                name, layers = "equal symmetric layers", [layer + layer.T for layer in layers]
        else:
            name = "Gaussian"
    return f"{name} at alpha {alpha:.1e}", [alpha * size * layer for layer in layers]


def _balanced(matrix: np.ndarray, program: Program) -> list[np.ndarray]:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    kept = min(len(s), *program.sizes[1:-1])
    if program.kind == "free corner":
        kept = 1
    root = s[:kept] ** (1 / program.depth)
    blocks = [root[:, None] * vh[:kept], *[np.diag(root)] * (program.depth - 2), u[:, :kept] * root]
    layers = []
    for block, rows, columns in zip(blocks, program.sizes[1:], program.sizes[:-1], strict=True):
        layers.append(np.zeros((rows, columns)))
        layers[-1][: block.shape[0], : block.shape[1]] = block
    return layers


def product(layers: list[np.ndarray]) -> np.ndarray:
    """The end-to-end matrix."""
    matrix = layers[0]
    for layer in layers[1:]:
        matrix = layer @ matrix
    return matrix


def _is_cut_off(program: Program, task: Task, start: list[np.ndarray]) -> bool:
    """Whether minimisers are out of reach: rank one and the signs of the layers' determinants stay as they are."""
    if program.kind != "free corner":
        return False
    if program.sizes[1] == 1:
        return True
    determinants = [np.linalg.det(layer / max(np.abs(layer).max(), 1e-300)) for layer in start]
    if min(map(abs, determinants)) < 1e-12:
        return True
    wanted = np.sign(np.linalg.det(np.where(task.numbers["observed"], task.numbers["target"], 0.0)))
    return bool(np.sign(np.prod(np.sign(determinants))) != wanted)


def _options(
    program: Program, task: Task, start: list[np.ndarray], unit: float, rng: np.random.Generator
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "rtol": float(10.0 ** rng.integers(-9, -2)),
        "max_steps": MAX_STEPS,
        "max_seconds": MAX_SECONDS,
        "progress": False,
        "gradient_tolerance": float(rng.choice([1e-4, 1e-2, 1e-8], p=[0.6, 0.2, 0.2])),
        "graded": None,
    }
    if program.explicit:
        options["solver"] = diffrax.Tsit5()
    else:
        options["graded"] = [None, True, False][int(rng.choice(3, p=[0.6, 0.2, 0.2]))]
    slope = np.linalg.norm(task.twin().gradient(np.zeros(program.shape))) or 1.0
    size = float(np.exp(np.mean([np.log(max(np.abs(layer).max(), 1e-15)) for layer in start])))
    natural = (1 + abs(np.log(size))) / (slope * size ** (program.depth - 2))
    natural = float(np.clip(natural, 1e-30, 1e30))
    choice = rng.random()
    end = natural * 10.0 ** rng.uniform(-1.5, 1.5) if choice < 0.6 else 10.0 ** rng.uniform(-2, 12)
    if program.dense_output:
        times = np.sort(end * 10.0 ** rng.uniform(-3, 0, NUM_TIMES))
        times[-1] = end
        if rng.random() < 0.3:
            times[0] = 0.0
        options["save_at"] = times
    elif choice >= 0.6 or rng.random() < 0.5:
        options["t1"] = end
    return options


def wider(program: Program) -> Program | None:
    """A program of wider networks, if there is one in the list."""
    for other in PROGRAMS:
        same = (other.kind, other.data, other.dense_output, other.explicit, other.depth) == (
            program.kind,
            program.data,
            program.dense_output,
            program.explicit,
            program.depth,
        )
        larger = all(a <= b for a, b in zip(program.sizes, other.sizes, strict=False))
        if same and other.shape == program.shape and larger and other.sizes != program.sizes:
            return other
    return None


def has_transposed(program: Program) -> bool:
    """Whether the transposed networks have a program in the list."""
    turned = program.sizes[::-1]
    return any(
        (p.kind, p.data, p.dense_output) == (program.kind, program.data, program.dense_output) and p.sizes == turned
        for p in PROGRAMS
    )


def rotated(layers: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The layers with hidden spaces rotated at random."""
    layers = list(layers)
    for index in range(len(layers) - 1):
        size = layers[index].shape[0]
        turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
        layers[index], layers[index + 1] = turn @ layers[index], layers[index + 1] @ turn.T
    return layers


def included(layers: list[np.ndarray], sizes: tuple[int, ...]) -> list[np.ndarray]:
    """The layers with dead neurons."""
    padded = []
    for layer, (columns, rows) in zip(layers, itertools.pairwise(sizes), strict=True):
        padded.append(np.pad(layer, ((0, rows - layer.shape[0]), (0, columns - layer.shape[1]))))
    return padded
