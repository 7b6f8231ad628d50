"""What all figures have in common: verdicts as lines, the task, the sequential panel, three files for each."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import lazy_loader as lazy
import numpy as np
from jaxtyping import PRNGKeyArray

from saddleflow import plotting
from saddleflow._backend.files import check_writable, write_netcdf
from saddleflow.greedy.algorithms import saddle_to_saddle
from saddleflow.greedy.paths import GreedyPath
from saddleflow.greedy.pictures import draw_dots, name_stages, seen_stages
from saddleflow.problem.costs import MatrixCompletion

if TYPE_CHECKING:
    import xarray as xr

else:
    xr = lazy.load("xarray")


def stage_colour(index: int | np.integer) -> str:
    """The colour of a greedy path by its number: as in the paper the first, second and third."""
    return (plotting.ORANGE, plotting.GREEN, plotting.RED)[index % 3]


def verdict_lines(statements: Iterable[tuple[str, bool]]) -> list[str]:
    """One line a statement of the caption: holds or fails, with its numbers."""
    return [f"{'holds' if holds else 'FAILS'}: {text}" for text, holds in statements]


def targets(number: int, folder: Path) -> list[Path]:
    """The files of a figure: picture as PNG and PDF, data as NetCDF."""
    return [folder / f"figure{number}.{kind}" for kind in ("png", "pdf", "nc")]


def write_files(
    number: int, data: "xr.Dataset", figure: "plotting.Figure", folder: Path, force: bool = False
) -> list[Path]:
    """Write a figure's files into a folder (made if need be), each whole or not at all; closes the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = targets(number, folder)
    for path in paths:
        check_writable(path, force)
    plotting.save_figure(figure, folder / f"figure{number}", force)
    plotting.close(figure)
    write_netcdf(data, paths[-1], force)
    return paths


def completion_task(seed: int, size: int, rank: int, observed: float) -> tuple[MatrixCompletion, PRNGKeyArray]:
    """The matrix completion task of figures 1 and 4, and the key of the start."""
    key_task, key_start = jax.random.split(jax.random.key(seed))
    return MatrixCompletion.random(key_task, shape=(size, size), rank=rank, observed=observed), key_start


@cache
def completion_path(seed: int, size: int, rank: int, observed: float, depth: int) -> GreedyPath:
    """The greedy path of the task of figures 1 and 4, with its networks; computed once a process."""
    cost, _ = completion_task(seed, size, rank, observed)
    return saddle_to_saddle(cost, depth, save_networks=True, progress=False)


def path_variables(path: GreedyPath) -> dict[str, Any]:
    """A greedy path in a figure's dataset: its rows and points under names of their own."""
    data = path.to_xarray()
    names = ("stage", "time", "train_cost", "test_cost", "end_to_end")
    return dict(
        (str(n), v)
        for n, v in data.rename({name: f"path_{name}" for name in names if name in data}).data_vars.items()
    )


def draw_stages(axes: "plotting.Axes", data: "xr.Dataset") -> None:
    """Train (solid) and test cost (dashed) of the greedy stages, one after another; dots: infinitely long waits."""
    indices = np.unique(data.path_stage)
    stages = [data.isel(row=np.flatnonzero(data.path_stage == index)) for index in indices]
    ends = data.point_cost.values[np.minimum(indices + 1, data.sizes["point"] - 1)]
    times, costs = ([stage[name].values for stage in stages] for name in ("path_time", "path_train_cost"))
    middles = []
    for place, (rows, x) in enumerate(seen_stages(times, costs, ends)):
        colour, stage = stage_colour(indices[place]), stages[place].isel(row=rows)
        axes.semilogy(x, stage.path_train_cost, color=colour)
        if "path_test_cost" in stage:
            axes.semilogy(x, stage.path_test_cost, "--", color=colour)
        if place < len(stages) - 1:
            draw_dots(axes, x[-1], float(stage.path_train_cost[-1]))
        middles.append(float(x[[0, -1]].mean()))
    name_stages(axes, middles)
    axes.set(ylabel="cost", title="limit: the greedy paths")
