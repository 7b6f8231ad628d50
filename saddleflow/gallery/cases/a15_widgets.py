"""A15: the widgets of learningmechanics.pub, from multiples of the identity with a little noise."""

import jax
import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number, first_time
from saddleflow.plotting import name_point

VALUES = np.array([6.0, 4.0, 3.0, 2.0, 1.0, 0.5])


SETTINGS = ((1, 1e-4), (2, 1e-5), (2, 1.0), (3, 0.1), (3, 1.0))  # depth and scale of the start


def pose():
    """Small and large starts, depth 1 to 3."""
    cost = sf.MeanSquaredError.teacher(np.diag(VALUES))
    key, runs = jax.random.key(0), {}
    for depth, scale in SETTINGS:
        width = None if depth == 1 else 6
        start = sf.identity(key, depth=depth, width=width, shape=(6, 6), scale=scale, noise=0.1)
        runs[depth, scale] = sf.gradient_flow(cost, start)
    return runs


def judge(runs):
    """Plateaus at the saddles of the smallest start; times of two layers by the closed form."""
    rest = np.append(np.cumsum(VALUES[::-1] ** 2)[::-1], 0.0)  # what k learned modes leave
    small = runs[2, 1e-5]
    learned = first_time(small.time, small.singular_values[:, 0], 3.0)
    visits = {visit.rank: visit.cost for visit in small.saddles(stationary_points=False)}
    return [
        *(
            Number.near(
                f"plateau of rank {k}, L = 2 from 1e-5", rest[k], visits.get(k, np.nan), within=1e-2, origin="derived"
            )
            for k in (0, 1, 3, 4, 5)  # between 4 and 3 it is too short to count
        ),
        Number.near(
            "time of the strongest mode, L = 2 from 1e-5: ln(6 / 1e-10) / 24",
            np.log(6 / 1e-10) / 24,
            learned,
            within=5e-2,
            origin="derived",
        ),
        *(
            Number.near(
                f"plateaus, {name}", 0, len(runs[key].saddles(stationary_points=False)), absolute=0.5, origin="stated"
            )
            for name, key in (("L = 1", (1, 1e-4)), ("L = 2 from 1", (2, 1.0)), ("L = 3 from 1", (3, 1.0)))
        ),
    ]


def draw(axes, runs):
    """Costs against time."""
    axes.set(xlabel="time (learning rate x steps)", ylabel="cost", ylim=(1e-6, 200), xlim=(1e-3, 30))
    for place, ((depth, scale), run) in enumerate(runs.items()):
        (line,) = axes.loglog(run.time[1:], run.train_cost[1:])
        name_point(axes, (1e-3, 10.0 ** -(1 + place)), f"L = {depth}, s = {scale:g}", line.get_color())


CASE = Case(
    name="A15",
    title="singular values learned one by one",
    source="learningmechanics/learningmechanics.github.io, commit c2e3b36",
    paper="learningmechanics.pub, deep linear networks",
    computed=(
        "Widgets train 6 x 6 networks of depth 1 to 3 towards diag(6, 4, 3, 2, 1, 1/2), from layers s (I + 0.1 "
        "N); small s give staircases, large ones none."
    ),
    source_cost="up to 2,000,000 steps per picture",
    pose=pose,
    judge=judge,
    draw=draw,
    in_law=True,
)
