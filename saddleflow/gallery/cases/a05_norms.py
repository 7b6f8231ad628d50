"""A05: a 2 x 2 completion whose free entry runs away as it fits."""

import numpy as np

import saddleflow as sf
from saddleflow.gallery.case import Case, Number
from saddleflow.plotting import name_curve, name_point


def pose():
    """Depths 2, 3 and 4 from balanced starts of positive determinant, to the loss 1e-4; and a sweep of iid ones."""
    target, observed = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[False, True], [True, True]])
    cost = sf.MatrixCompletion(target, observed, held_out=~observed)
    end = 1e-4 / 1.5  # the source's loss is half the sum of three squares, ours their mean
    first = np.array([[0.2, 1.0], [-1.0, 0.3]])
    balanced = {
        depth: sf.gradient_flow(cost, sf.balanced(8e-3**depth * first, depth=depth, width=2), target_cost=end)
        for depth in (2, 3, 4)
    }
    iid = sf.sweep(
        cost,
        init=sf.gaussian,
        accept=lambda network: np.linalg.det(network.end_to_end()) > 0,
        depth=[3, 4],
        width=2,
        variance=8e-3**2,
        seed=range(10),
        target_cost=end,
        save_matrices=True,
    )
    return balanced, iid


def bound(run):
    """The paper's lower bound of |A00| at the run's last loss l: `(1 - r)^2 / r`, `r = sqrt(2 l)`."""
    root = np.sqrt(2 * 1.5 * run.train_cost[-1])
    return (1 - root) ** 2 / root


def judge(posed):
    """The free entry against the paper's bound, and the rank."""
    balanced, iid = posed
    numbers = []
    for depth, run in balanced.items():
        where = "where rounding ends it" if run.stop_reason == "below_resolution" else "at loss 1e-4"
        small, large = run.singular_values[-1, ::-1]
        numbers += [
            Number.at_least(
                f"|A00| over its lower bound, L = {depth}, {where}",
                0.999,
                abs(run.end_to_end[-1, 0, 0]) / bound(run),
                origin="stated",
            ),
            Number.at_most(
                f"second singular value over the first there, L = {depth}", 1e-3, small / large, origin="stated"
            ),
        ]
    grown = np.mean(np.abs(iid.end_to_end.isel(sample=-1, n_out=0, n_in=0)) > 10)
    return [
        *numbers,
        Number.near(
            "share of iid starts, L = 3 and 4, whose free entry exceeds 10",
            1.0,
            grown,
            absolute=0.01,
            origin="stated",
        ),
    ]


def draw(axes, posed):
    """The free entry against the loss."""
    for run in posed[0].values():
        (line,) = axes.loglog(1.5 * run.train_cost, np.abs(run.end_to_end[:, 0, 0]))
    name_curve(line, "L = 2, 3, 4", at=0.6, offset=(-4, 6), ha="right")
    loss = np.logspace(-4, -1, 50)
    axes.loglog(loss, (1 - np.sqrt(2 * loss)) ** 2 / np.sqrt(2 * loss), ":", color="C4")
    name_point(axes, (1e-3, 12), "lower bound", "C4", (-6, -12), ha="right")
    axes.invert_xaxis()
    axes.set(xlabel="loss", ylabel="|A00|")


CASE = Case(
    name="A05",
    title="completion that drives norms to infinity",
    source="noamrazin/imp_reg_dl_not_norms, commit c20e02c",
    paper="Razin and Cohen, NeurIPS 2020, arXiv 2005.06398",
    computed=(
        "Three of four entries are observed, as 1, 1 and 0; from a start of positive determinant the fourth grows "
        "without end while the loss falls, and the rank tends to one. (From iid starts, which are not balanced, "
        "the determinant can change its sign: at depth 2 it does, and the entry stays small.)"
    ),
    source_cost="5,000,000 steps of 3e-3",
    pose=pose,
    judge=judge,
    draw=draw,
)
