"""A14: two modalities, fused early or late."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number, first_time
from saddleflow.plotting import name_curve, name_point

SETTINGS = ((2.0, 0.0), (2.0, 0.5), (3.0, 0.0), (2.0, -0.5))  # sigma_A / sigma_B, rho
START = 1e-9  # standard deviation of the weights


def late(branches, x):
    """The sum of two networks, each of a modality of its own."""
    return branches[0].end_to_end() @ x[:1] + branches[1].end_to_end() @ x[1:]


def weights(_, branches):
    """What each modality counts."""
    return [branch.end_to_end()[0, 0] for branch in branches]


def pose():
    """Late fusion as a model of two networks, in four settings; early fusion as one network, in the first of them."""
    branches = [sf.gaussian(jax.random.key(k), depth=2, width=100, shape=(1, 1), variance=START**2) for k in range(2)]
    whole = sf.gaussian(jax.random.key(0), depth=2, width=100, shape=(1, 2), variance=START**2)
    runs = {}
    for ratio, rho in SETTINGS:
        covariance = np.array([[ratio**2, rho * ratio], [rho * ratio, 1.0]])
        inputs = np.sqrt(2) * np.linalg.cholesky(covariance).T  # two samples, rows, with these moments
        objective = sf.regression(late, inputs, inputs.sum(axis=1))
        runs[ratio, rho] = sf.gradient_flow(objective, branches, observables={"weights": weights})
        if (ratio, rho) == SETTINGS[0]:
            early = sf.gradient_flow(sf.MeanSquaredError(inputs.T, inputs.sum(axis=1)[None]), whole)
    return runs, early


def judge(posed):
    """Ratios of the learning times by the paper's formula."""
    runs, early = posed
    numbers = []
    for (ratio, rho), run in runs.items():
        first, second = (first_time(run.time, values, 0.5) for values in run.observables["weights"].T)
        numbers.append(
            Number.near(
                f"t_B / t_A, late fusion, sigma_A/sigma_B = {ratio:g}, rho = {rho:g}",
                1 + (ratio**2 - 1) / (1 - rho**2),
                second / first,
                within=5e-2,
                origin="stated",
            )
        )
    visits = early.saddles(stationary_points=False)
    return [*numbers, Number.near("plateaus, early fusion", 1, len(visits), absolute=0.5, origin="stated")]


def draw(axes, posed):
    """Weights against time, in the first setting."""
    runs, early = posed
    late_run = runs[SETTINGS[0]]
    axes.set(xlabel="time", ylabel="total weight of a modality", ylim=(-0.1, 1.15))
    for weight, name, offset in zip(late_run.observables["weights"].T, "AB", ((0, -8), (0, 8)), strict=True):
        (line,) = axes.plot(late_run.time, weight)
        name_curve(line, f"{name}, late fusion", at=0.55, offset=offset)
    for k, colour in enumerate(("C0", "C1")):
        axes.plot(early.time, early.end_to_end[:, 0, k], "--", color=colour)
    name_point(axes, (3.2, 0.72), "A and B, early fusion", offset=(4, 0))


CASE = Case(
    name="A14",
    title="unimodal bias of late fusion",
    source="yedizhang/unimodal-bias, commit e4e56cc",
    paper="Zhang et al., ICML 2024, arXiv 2312.00935",
    computed=(
        "Two modalities and their sum as target: with late fusion one is learned long before the other, with "
        "early fusion both at once. The ratio of times has a closed form for small starts."
    ),
    source_cost="up to 100,000 steps of 0.04",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="exact moments of the data in place of 8,192 samples.",
)
