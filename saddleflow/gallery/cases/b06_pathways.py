"""B06: two pathways that share a target; the deeper they are, the more one of them takes."""

import jax.numpy as jnp
import numpy as np
import scipy

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve

TARGET, STARTS = 10.0, (0.1, 0.05)
DEPTHS = (2, 3, 8, 13)


def pose():
    """One flow a depth; a pathway is a chain whose layers differ by one in their squares, as the source has it."""
    runs = {}
    for depth in DEPTHS:
        chains = [
            sf.DeepLinearNetwork([jnp.full((1, 1), p)] + [jnp.full((1, 1), np.sqrt(1 + p**2))] * (depth - 1))
            for p in STARTS
        ]
        objective = sf.Objective(
            sf.SquaredError(np.full((1, 1), TARGET)), lambda paths: paths[0].end_to_end() + paths[1].end_to_end()
        )
        shares = {"paths": lambda _, paths: [path.end_to_end()[0, 0] for path in paths]}
        runs[depth] = sf.gradient_flow(objective, chains, observables=shares, rtol=1e-8, gradient_tolerance=1e-10)
    return runs


def conserved_end(depth):
    """The end by the conserved difference of `int dp / (1 + p^2)^((D - 1) / 2)` over the two pathways."""

    def clock(p):
        return scipy.integrate.quad(lambda q: (1 + q**2) ** (-(depth - 1) / 2), 0, p)[0]

    def strength(p):
        return p * (1 + p**2) ** ((depth - 1) / 2)

    largest = scipy.optimize.brentq(lambda p: strength(p) - TARGET, 0, TARGET)

    def excess(p):  # of the time that the stronger pathway is ahead
        rest = scipy.optimize.brentq(lambda q: strength(q) - (TARGET - strength(p)), 0, largest + 1e-9)
        return clock(p) - clock(rest) - clock(STARTS[0]) + clock(STARTS[1])

    middle = scipy.optimize.brentq(lambda p: strength(p) - TARGET / 2, 0, TARGET)
    return strength(scipy.optimize.brentq(excess, middle, largest))


def judge(runs):
    """What the stronger pathway takes."""
    return [
        Number.near(
            f"stronger pathway at the end, D = {depth}",
            conserved_end(depth),
            run.observables["paths"][-1, 0],
            within=1e-4,
            origin="stated",
        )
        for depth, run in runs.items()
    ]


def draw(axes, runs):
    """Paths in the plane of the two strengths."""
    axes.plot([0, TARGET], [TARGET, 0], ":", color="C4", lw=0.7)
    for depth, run in runs.items():
        (line,) = axes.plot(*run.observables["paths"].T)
        name_curve(line, f"D = {depth}", offset=(4, 4))
    axes.set(
        xlabel="stronger pathway",
        ylabel="weaker pathway",
        xlim=(0, 11.5),
        ylim=(0, 6),
        title="dotted: the target is shared",
    )


CASE = Case(
    name="B06",
    title="two pathways race for one target",
    source="AllenInstitute/Multipathway_NeurIPS2022, commit 36f1055, Figure3.py",
    paper="Shi et al., NeurIPS 2022, openreview 4B7azgAbzda",
    computed=(
        "Two chains of D weights add up to 10; from slightly different starts the deeper ones share less evenly. "
        "The source draws trajectories by Euler steps; where they end follows from a conserved quantity of its "
        "equations."
    ),
    source_cost="10,000 Euler steps for each of 800 starts",
    pose=pose,
    judge=judge,
    draw=draw,
    smaller="one start for each depth.",
)
