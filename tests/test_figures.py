import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow.figures import FIGURES, f1_plateaus, f4_scales, figure1, figure4

# Small figures, of which every statement holds as it does at the paper's sizes (which the slow test computes).
TASK = {"seed": 6, "depth": 3, "width": 20, "size": 6, "observed": 0.9, "progress": False}


@pytest.fixture(scope="module")
def first():
    return figure1(**TASK, gamma=3.0)


@pytest.fixture(scope="module")
def fourth():
    return figure4(**TASK, alphas=(3.0, 1.0, 0.05))


def test_three_plateaus_at_the_greedy_costs(first):
    assert first.visit_rank.values.tolist() == [0, 1, 2]
    np.testing.assert_allclose(first.visit_cost, first.point_cost[:3], rtol=5e-3)


def test_the_flow_follows_the_greedy_paths_in_the_plane(first):
    points, flow = first.point_plane.values, first.plane.values
    np.testing.assert_allclose(points[0], 0.0)
    assert points[1, 1] == pytest.approx(0.0, abs=1e-9)  # the first axis runs through the first saddle
    # near every saddle and the minimum passes the flow, and the greedy stages join them
    size = np.linalg.norm(points[-1])
    for point in points:
        assert np.min(np.linalg.norm(flow - point, axis=1)) < 0.1 * size
    for stage in range(3):
        curve = first.path_plane.values[first.path_stage == stage]
        # the start holds an escaping neuron whose layers are of size rtol^(1/L)
        np.testing.assert_allclose(curve[0], points[stage], atol=0.1 * size)
        np.testing.assert_allclose(curve[-1], points[stage + 1], atol=1e-2 * size)


@pytest.mark.parametrize("number", [1, 4])
def test_verdicts_hold_and_can_fail(number, first, fourth):
    data = {1: first, 4: fourth}[number]
    lines = FIGURES[number].verdicts(data)
    assert len(lines) >= 5
    assert all(line.startswith("holds") for line in lines), lines
    spoilt = data.copy(deep=True)
    if number == 1:
        spoilt["visit_cost"] = spoilt.visit_cost * 1.1
        spoilt.attrs["stop_reason"] = "max_steps"
    else:
        spoilt["test_cost"] = spoilt.test_cost.copy(data=spoilt.test_cost.values[::-1])
        spoilt["num_plateaus"] = spoilt.num_plateaus + 1
    assert sum(line.startswith("FAILS") for line in FIGURES[number].verdicts(spoilt)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 4])
def test_verdicts_hold_at_the_paper_s_sizes(number):
    lines = FIGURES[number].verdicts(FIGURES[number].compute(progress=False))
    assert len(lines) >= 5
    assert all(line.startswith("holds") for line in lines), lines


def test_a_lazy_start_has_no_plateaus_and_figure_1_says_so():
    lazy = figure1(**TASK, gamma=2 / 3)
    assert any(line.startswith("FAILS") for line in f1_plateaus.verdicts(lazy))
    plt.close(f1_plateaus.draw(lazy))


def test_files_and_curves_of_figure_1(first, tmp_path):
    paths = f1_plateaus.write(first, tmp_path)
    assert {path.name for path in paths} == {"figure1.png", "figure1.pdf", "figure1.nc"}
    with xr.open_dataset(tmp_path / "figure1.nc", engine="h5netcdf") as data:
        np.testing.assert_array_equal(data.train_cost, first.train_cost)
        assert f1_plateaus.verdicts(data.load()) == f1_plateaus.verdicts(first)
    figure = f1_plateaus.draw(first)
    left, middle, right = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_xydata(), first.plane)
    np.testing.assert_array_equal(middle.lines[0].get_ydata(), first.train_cost)
    assert middle.lines[1].get_linestyle() == "--"
    assert [line.get_linestyle() for line in right.lines].count("--") == 3
    plt.close(figure)
    with pytest.raises(ValueError, match="must not exist yet"):
        f1_plateaus.write(first, tmp_path)


def test_figure_4_draws_the_line_of_solutions(fourth, tmp_path):
    assert len(f4_scales.write(fourth, tmp_path)) == 3
    figure = f4_scales.draw(fourth)
    _, middle, _ = figure.axes
    line = middle.lines[0]
    np.testing.assert_allclose(line.get_xdata(), fourth.target_plane[0])
    for index in range(3):
        end = fourth.plane.values[np.flatnonzero(fourth["flow"] == index)[-1]]
        assert end[0] == pytest.approx(float(fourth.target_plane[0]), rel=1e-2)
        assert min(line.get_ydata()) < end[1] < max(line.get_ydata())
    plt.close(figure)


def runs_of_three_widths():
    """What figures 2, 3 and 5 draw, made up: costs that fall, ranks that rise."""
    gammas, widths, time = [0.75, 1.0, 1.5], [10, 100, 1000], np.concatenate([[0.0], np.geomspace(1e-4, 1, 30)])
    late = np.asarray(gammas)[:, None, None, None] + 0.1 * np.random.default_rng(0).normal(size=(3, 3, 4, 1))
    cost = 1e4 * np.exp(-30 * time / late)
    names, coords = ("gamma", "width", "seed", "time"), {"gamma": gammas, "width": widths}
    variables = {
        "train_cost": (names, cost),
        "test_cost": (names, cost / 1e4),
        "rank": (names, (cost < 1e3).astype(int)),
        "nuclear_norm": (names, 1e4 - cost),
        "gradient_norm": (names, np.sqrt(cost)),
        "zero_predictor": ((), 1.0),
    }
    return xr.Dataset(variables, coords | {"time": time})


@pytest.mark.parametrize("number", [2, 3, 5])
def test_figures_of_sweeps_name_their_widths(number):
    data = runs_of_three_widths()
    if number == 3:
        data = data.rename(time="sample").drop_vars("sample")
    figure = FIGURES[number].draw(data)
    figure.canvas.draw()
    for axes in {2: figure.axes, 3: figure.axes, 5: figure.axes[3:6]}[number]:
        assert {"w = 10", "w = 100", "w = 1000"} <= {text.get_text() for text in axes.texts if text.get_visible()}
    plt.close(figure)


def test_bad_parameters_are_named():
    with pytest.raises(ValueError, match="`alphas` must descend"):
        figure4(alphas=(0.1, 1.0))
    with pytest.raises(ValueError, match="`observed` must be below 1"):
        figure4(observed=1.0)
    with pytest.raises(ValueError, match="`rank` must give a greedy path of at least two stages"):
        figure1(**TASK, rank=1)
    assert sf.figures.figure1 is figure1
