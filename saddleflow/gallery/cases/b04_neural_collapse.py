"""B04: neural collapse of free features under a deep linear head, with weight decay."""

import jax
import numpy as np
import scipy

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

CLASSES, PER_CLASS, HIDDEN, DECAY, HEADS = 4, 5, 16, 5e-3, (1, 3)
SAMPLES = CLASSES * PER_CLASS


def outputs(layers):
    """What the head makes of the features, which are the first layer."""
    features, *head = layers
    for layer in head:
        features = layer @ features
    return features


def pose():
    """Heads of one and of three layers; half the mean squared error with decay of features and layers alike."""
    onehot = np.repeat(np.eye(CLASSES), PER_CLASS, axis=1)
    objective = sf.Objective(sf.SquaredError(onehot), outputs, sf.weight_decay(2 * DECAY))  # twice the source's loss
    runs = {}
    for depth in HEADS:
        sizes = [SAMPLES, *[HIDDEN] * depth, CLASSES]
        keys = jax.random.split(jax.random.key(0), depth + 1)
        layers = [0.1 * jax.random.normal(key, (sizes[k + 1], sizes[k])) for k, key in enumerate(keys)]
        runs[depth] = sf.gradient_flow(objective, layers, observables={"outputs": lambda _, model: outputs(model)})
    return runs


def optimum(depth):
    """Loss and output at the optimum, one direction a class: every layer has the same singular value."""

    def loss(s):
        return CLASSES * ((np.sqrt(PER_CLASS) - s ** (depth + 1)) ** 2 / SAMPLES + DECAY * (depth + 1) * s**2)

    found = scipy.optimize.minimize_scalar(loss, bounds=(0.5, 3.0), method="bounded", options={"xatol": 1e-12})
    return found.fun, found.x ** (depth + 1) / np.sqrt(PER_CLASS)


def judge(runs):
    """The optimum; variability within classes; means and head as orthogonal frames."""
    numbers = []
    for depth, run in runs.items():
        loss, value = optimum(depth)
        features, *head = map(np.asarray, run.model)
        groups = features.reshape(HIDDEN, CLASSES, PER_CLASS)
        means = groups.mean(axis=2)
        within = np.square(groups - means[..., None]).sum() / np.square(groups).sum()
        product = head[0]
        for layer in head[1:]:
            product = layer @ product
        gram = product @ product.T / np.linalg.norm(product @ product.T)
        name = f"head of {depth}"
        numbers += [
            Number.near(f"loss at the end, {name}", loss, run.train_cost[-1], within=1e-4, origin="stated"),
            Number.near(
                f"output of the right class, {name}",
                value,
                np.asarray(outputs(run.model))[0, 0],
                absolute=1e-3,
                origin="stated",
            ),
            Number.at_most(f"NC1: variance within classes over all, {name}", 1e-6, within, origin="stated"),
            Number.at_most(
                f"NC2: distance of W W^T from a multiple of one, {name}",
                1e-3,
                np.linalg.norm(gram - np.eye(CLASSES) / 2),
                origin="stated",
            ),
        ]
    return numbers


def draw(axes, runs):
    """Loss above the optimum against time."""
    for depth, run in runs.items():
        (line,) = axes.loglog(run.time[1:], run.train_cost[1:] - optimum(depth)[0] * (1 - 1e-9))
        name_curve(line, f"head of {depth}", at=0.5, offset=(5, 5))
    axes.set(xlabel="time", ylabel="loss above its minimum", ylim=(1e-8, None))


CASE = Case(
    name="B04",
    title="neural collapse under a deep linear head",
    source="Fsoft-AIC/Neural-Collapse-in-Deep-Linear-Networks, commit fc0be92, synthetic_experiment_balanced.py",
    paper="Dang et al., ICML 2023, arXiv 2301.00437",
    computed=(
        "Free features and linear layers with weight decay fit one-hot targets: at the minimum the features of a "
        "class are one vector, and classes are orthogonal."
    ),
    source_cost="30,000 steps with momentum",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="5 samples per class in place of 100, 16 features in place of 64, decay 5e-3 in place of 5e-4.",
    in_law=True,
)
