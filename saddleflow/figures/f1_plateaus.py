"""Figure 1, middle panel: saddle-to-saddle training of a deep network on matrix completion.

As in the paper: L = 4, w = 100, gamma = 2, a 10x10 target of rank 3; train cost solid, test cost dashed, three
plateaus at the saddles of rank 0, 1 and 2. Unknown there and chosen here: the target's law (Gaussian factors),
80 % observed, the seed (one whose three singular values are well apart).
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from saddleflow import plotting
from saddleflow.costs import MatrixCompletion
from saddleflow.files import check_writable
from saddleflow.flow import gradient_flow
from saddleflow.network import gaussian
from saddleflow.trajectory import Trajectory


def figure1(
    *,
    seed: int = 3,
    depth: int = 4,
    width: int = 100,
    gamma: float = 2.0,
    size: int = 10,
    rank: int = 3,
    observed: float = 0.8,
    rtol: float = 1e-4,
    progress: bool = True,
) -> Trajectory:
    """Compute the flow of figure 1; `draw` makes the picture of it and `verdicts` judges it.

    Args:
        seed: draws the task and, independently, the start.
        depth: number of layers L.
        width: hidden width w.
        gamma: exponent of the start's variance w^-gamma.
        size: rows and columns of the target.
        rank: rank of the target.
        observed: share of observed entries.
        rtol: relative tolerance of the flow.
        progress: show a meter on terminals.
    """
    key_task, key_start = jax.random.split(jax.random.key(seed))
    cost = MatrixCompletion.random(key_task, shape=(size, size), rank=rank, observed=observed)
    start = gaussian(key_start, depth=depth, width=width, shape=(size, size), gamma=gamma)
    return gradient_flow(cost, start, rtol=rtol, gradient_tolerance=1e-3, progress=progress)


def verdicts(trajectory: Trajectory) -> list[str]:
    """One line a statement of the caption: holds or fails, with its numbers."""
    visits = trajectory.saddles()
    ranks = [visit.rank for visit in visits]
    costs = ", ".join(f"{visit.cost:.4g}" for visit in visits)
    final_rank = int(trajectory.rank[-1])
    statements = [
        (f"{len(visits)} plateaus (paper: 3), at costs {costs}", len(visits) == 3),
        (f"plateaus at ranks {ranks}, rising by one from the origin", ranks == list(range(final_rank))),
    ]
    if trajectory.test_cost is not None:
        ratio = trajectory.test_cost[-1] / trajectory.test_cost[0]
        statements.append((f"the test cost falls, to {ratio:.1e} of its start", bool(ratio < 0.1)))
    statements.append((f"the end is a certified minimum ({trajectory.stop_reason})", _certified(trajectory)))
    return [f"{'holds' if holds else 'FAILS'}: {text}" for text, holds in statements]


def _certified(trajectory: Trajectory) -> bool:
    return trajectory.stop_reason == "converged"


def draw(trajectory: Trajectory) -> Figure:
    """Costs along the flow with the plateaus named (left), singular values of A (right)."""
    with plotting.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 2.6))
        time = trajectory.time
        curves = [(trajectory.train_cost, "-", plotting.BLUE, "train")]
        if trajectory.test_cost is not None:
            curves.append((trajectory.test_cost, "--", plotting.ORANGE, "test"))
        for values, line, colour, name in curves:
            left.semilogy(time, values, line, color=colour)
            left.annotate(
                name,
                (time[-1], values[-1]),
                xytext=(3, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                annotation_clip=False,
            )
        for visit in trajectory.saddles():
            name = "origin" if visit.rank == 0 else f"rank {visit.rank}"
            left.annotate(
                name,
                (visit.time, visit.cost),
                xytext=(2 if visit.rank == 0 else 0, -3),
                textcoords="offset points",
                color=plotting.MUTED,
                ha="left" if visit.rank == 0 else "center",
                va="top",
            )
        left.set(xlabel="time t of the flow", ylabel="cost", title="cost, with the saddles visited")
        right.plot(time, trajectory.singular_values, color=plotting.BLUE)
        for index in range(int(trajectory.rank[-1])):
            value = trajectory.singular_values[-1, index]
            right.annotate(
                f"$s_{index + 1}$",
                (time[-1], value),
                xytext=(3, 0),
                textcoords="offset points",
                color=plotting.BLUE,
                va="center",
                annotation_clip=False,
            )
        right.set(xlabel="time t of the flow", ylabel="singular value", title="singular values of A")
        for axes in (left, right):
            axes.set_xlim(0, time[-1])
    return figure


def write(trajectory: Trajectory, folder: Path, force: bool = False) -> list[Path]:
    """Write figure1.png, figure1.pdf and figure1.nc into a folder (made if need be); returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "figure1.nc"
    for path in (data, *(data.with_suffix(kind) for kind in (".png", ".pdf"))):
        check_writable(path, force)
    figure = draw(trajectory)
    pictures = plotting.save_figure(figure, folder / "figure1", force)
    plt.close(figure)
    return [*pictures, trajectory.save(data, force=force)]
