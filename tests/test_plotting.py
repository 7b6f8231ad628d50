"""How results look: labels that do not collide, colours, pictures of sweeps and paths, cards in notebooks."""

import re
import warnings
from html.parser import HTMLParser
from itertools import combinations, pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.text import Text

import saddleflow as sf
from saddleflow import plotting
from saddleflow.plotting import cards, svg
from saddleflow.plotting.labels import spread


@pytest.fixture(autouse=True)
def no_figure_is_left():
    before = plt.get_fignums()
    yield
    for number in set(plt.get_fignums()) - set(before):
        plt.close(number)


@pytest.fixture(scope="module")
def cost():
    return sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 4), rank=2, observed=0.75)


@pytest.fixture(scope="module")
def trajectory(cost):
    start = sf.gaussian(jax.random.key(2), depth=3, width=20, shape=(3, 4), gamma=2.5)
    return sf.gradient_flow(cost, start, rtol=1e-4, gradient_tolerance=1e-3, max_saves=64, progress=False)


@pytest.fixture(scope="module")
def path(cost):
    return sf.saddle_to_saddle(cost, 3, progress=False)


def sweep_data(**sizes):
    """A sweep's dataset, made up: costs that fall in time, the later the larger gamma."""
    sizes = {"gamma": 3, "width": 2, "seed": 5} | sizes
    rng = np.random.default_rng(0)
    time = np.geomspace(1e-2, 1e3, 20)
    late = np.arange(sizes["gamma"])[:, None, None, None] + 0.3 * rng.normal(size=(1, *list(sizes.values())[1:], 1))
    shape = (*sizes.values(), 20)
    variables = {
        "train_cost": (
            (*sizes, "time"),
            np.broadcast_to(np.exp(-np.minimum(time / 10**late, 30)), shape),
            {"units": "cost"},
        ),
        "rank": ((*sizes, "time"), np.where(time > 100, -1, (time > 1).astype(int)) * np.ones(shape, int)),
        "singular_values": ((*sizes, "time", "mode"), np.ones((*shape, 2))),
        "end_time": (tuple(sizes), 10.0 ** late[..., 0] * np.ones(tuple(sizes.values()))),
        "stop_reason": (tuple(sizes), np.full(tuple(sizes.values()), "converged")),
    }
    values = {"gamma": [1.0, 1.5, 2.0], "width": [20, 50], "seed": range(5)}
    coords = {name: list(values[name])[:size] for name, size in sizes.items()}
    return xr.Dataset(variables, {**coords, "time": time})


def boxes(figure):
    """The boxes of all labels that are seen, by axes, and the figure's own."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    found = {
        axes: [(t.get_text(), Text.get_window_extent(t, renderer)) for t in axes.texts if t.get_visible()]
        for axes in figure.axes
    }
    return found, figure.bbox


def check_labels(figure):
    """No label overlaps another one or is clipped."""
    found, page = boxes(figure)
    for labels in found.values():
        for (one, a), (other, b) in combinations(labels, 2):
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart, f"{one} on {other}"
        for text, box in labels:
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= page.x1 + 1, text
            assert box.y1 <= page.y1 + 1, text


class TestLabels:
    def test_a_column_is_spread_as_little_as_can_be(self):
        found = spread(np.array([0.0, 1.0, 1.0, 50.0]), np.full(4, 10.0), -20.0, 100.0)
        np.testing.assert_allclose(found, [-9.33, 0.67, 10.67, 50.0], atol=0.01)
        assert np.all(np.diff(spread(np.zeros(5), np.full(5, 10.0), -5.0, 45.0)) >= 10 - 1e-9)
        low = spread(np.array([-100.0, -90.0]), np.full(2, 10.0), 0.0, 50.0)
        np.testing.assert_allclose(low, [5.0, 15.0])

    @pytest.mark.parametrize("width", list(plotting.WIDTHS))
    @pytest.mark.parametrize("theme", list(plotting.THEMES))
    def test_ends_of_curves_in_one_place(self, theme, width):
        with plotting.style(theme, width):
            figure, axes = plotting.subplots(figsize=plotting.figure_size(width))
            time = np.linspace(0, 1, 50)
            for index in range(6):
                (line,) = axes.plot(time, np.exp(-time * (5 + 1e-3 * index)))
                plotting.name_curve(line, f"curve {index}")
        check_labels(figure)
        found, _ = boxes(figure)
        heights = [box.y0 for _, box in found[axes]]
        assert len(heights) == 6
        assert all(above > below for above, below in pairwise(heights))  # in the order of the curves

    def test_what_does_not_fit_is_left_out(self):
        figure, axes = plotting.subplots(figsize=(2, 1))
        for index in range(40):
            (line,) = axes.plot([0, 1], [0, index])
            plotting.name_curve(line, f"c{index}")
        check_labels(figure)
        shown = [text.get_text() for text in axes.texts if text.get_visible()]
        assert shown[0] == "c0"
        assert 2 <= len(shown) < 40

    def test_points_in_one_place_keep_their_labels(self):
        figure, axes = plotting.subplots(figsize=(4, 3))
        axes.plot([0, 1], [0, 1])
        for index in range(5):
            plotting.name_point(axes, (0.5, 0.5 + 1e-3 * index), f"point {index}")
        check_labels(figure)
        assert all(text.get_visible() for text in axes.texts)
        assert any(text.arrow_patch.get_visible() for text in axes.texts)  # those moved away are joined

    def test_a_label_follows_the_frame(self):
        """Labels are placed as the figure is drawn: limits and sizes may change after they were made."""
        figure, axes = plotting.subplots()
        (line,) = axes.plot([0, 1, 2], [0, 1, 2])
        label = plotting.name_curve(line, "end")
        axes.set_xlim(0, 1)
        figure.canvas.draw()
        assert label.xy == (1.0, 1.0)
        figure.set_size_inches(2, 2)
        check_labels(figure)
        axes.set_xlim(5, 6)
        figure.canvas.draw()
        assert not label.get_visible()
        label.remove()
        figure.canvas.draw()

    @pytest.mark.parametrize("width", list(plotting.WIDTHS))
    def test_short_plateaus(self, width):
        with plotting.style("light", width):
            figure, axes = plotting.subplots(figsize=plotting.figure_size(width))
            time = np.linspace(0, 10, 400)
            train = 1.0 + 3 * (time < 3) + 0.5 * (time < 3.3) + 1e-3 * np.exp(-time)
            ends = [(0, 3, 4.5, "origin"), (3, 3.3, 1.5, "rank 1"), (3.3, 10, 1.0, "rank 2")]
            plotting.draw_costs(axes, time, train, 0.9 * train, [plotting.Plateau(*end) for end in ends])
        check_labels(figure)
        found, _ = boxes(figure)
        for (begin, end, height, name), (_, box) in zip(ends, found[axes], strict=False):
            left, right = axes.transData.transform([(begin, height), (end, height)])[:, 0]
            middle = (box.x0 + box.x1) / 2
            assert left - box.width <= middle <= right + box.width, name

    def test_bad_input_is_named(self):
        _, axes = plotting.subplots()
        (line,) = axes.plot([0, 1], [0, 1])
        with pytest.raises(ValueError, match="`at` must be a share of the curve"):
            plotting.name_curve(line, "a", at=2.0)
        with pytest.raises(ValueError, match="`point` must be a pair"):
            plotting.name_point(axes, (1.0, 2.0, 3.0), "a")
        with pytest.raises(ValueError, match="`end` must not lie before the begin"):
            plotting.name_plateau(axes, 2.0, 1.0, 0.0, "a")


class TestAxes:
    def test_a_singular_value_has_one_colour_everywhere(self, trajectory, path):
        for figure in (trajectory.plot(), path.plot()):
            lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) > 2]
            colours = [line.get_color() for line in lines]
            assert set(colours) == {plotting.mode_colour(k) for k in range(len(lines))}
        assert plotting.mode_colour(0) == plotting.BLUE
        assert plotting.mode_colour(6) == plotting.mode_colour(100) == plotting.MUTED
        with pytest.raises(ValueError, match="`index` must be an integer >= 0"):
            plotting.mode_colour(-1)

    @pytest.mark.parametrize("axis", ["t", "log t", "t / t_escape", "arc length"])
    @pytest.mark.parametrize("width", list(plotting.WIDTHS))
    def test_pictures_of_runs(self, trajectory, axis, width):
        figure = trajectory.plot(axis=axis, width=width)
        check_labels(figure)
        top, bottom = figure.axes
        shown = {text.get_text() for text in top.texts if text.get_visible()}
        assert {"train", "test", "origin"} <= shown
        assert "rank tolerance" in [text.get_text() for text in bottom.texts]

    def test_themes(self, trajectory):
        light, dark, through = (trajectory.plot(theme=theme) for theme in ("light", "dark", "transparent"))
        assert light.get_facecolor() == (1, 1, 1, 1)
        assert sum(dark.get_facecolor()[:3]) < 0.3
        assert through.get_facecolor()[3] == 0
        assert mpl.rcParams["figure.facecolor"] == "white"  # the user's own style is as it was
        with pytest.raises(ValueError, match="`theme` must be one of"):
            trajectory.plot(theme="blue")
        with pytest.raises(ValueError, match="`width` must be one of"):
            trajectory.plot(width="huge")
        with pytest.raises(ValueError, match="`height` must be finite and positive"):
            plotting.figure_size("column", -1.0)

    def test_saving_keeps_the_ground_and_refuses_to_overwrite(self, tmp_path):
        with plotting.style("dark"):
            figure, axes = plotting.subplots(figsize=(1, 1))
        axes.plot([0, 1])
        paths = plotting.save_figure(figure, tmp_path / "a")
        assert [path.name for path in paths] == ["a.png", "a.pdf"]
        assert plt.imread(paths[0])[0, 0, :3].max() < 0.1
        with pytest.raises(ValueError, match="must not exist yet"):
            plotting.save_figure(figure, tmp_path / "a")
        plotting.save_figure(figure, tmp_path / "a", force=True)

    def test_bands(self):
        _, axes = plotting.subplots()
        samples = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan], [5.0, 4.0, np.nan]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            line = plotting.draw_band(axes, [0, 1, 2], samples, name="median", quantiles=(0, 1))
        np.testing.assert_array_equal(line.get_ydata(), [3.0, 3.0, np.nan])
        for arguments, message in [
            (([0, 1], samples), "`samples` must have the shape"),
            (([0, 1, 2], samples[:0]), "`samples` must hold at least one sample"),
            (([], samples), "`x` must be a list of numbers"),
        ]:
            with pytest.raises(ValueError, match=message):
                plotting.draw_band(axes, *arguments)
        with pytest.raises(ValueError, match="`quantiles` must ascend"):
            plotting.draw_band(axes, [0, 1, 2], samples, quantiles=(0.9, 0.1))

    def test_phase_diagrams_have_cells_around_their_values(self):
        figure, axes = plotting.subplots()
        x, y = [1.0, 1.5, 2.0], [1e-3, 1e-2, 1e-1]
        cells = plotting.draw_phase_diagram(axes, x, y, [[1, 2, np.nan], [10, 20, 30], [100, 200, 300]], label="cost")
        assert axes.get_yscale() == "log"
        assert axes.get_xscale() == "linear"
        assert isinstance(cells.norm, mpl.colors.LogNorm)
        corners = cells.get_coordinates()
        np.testing.assert_allclose(corners[0, :, 0], [0.75, 1.25, 1.75, 2.25])
        np.testing.assert_allclose(corners[:, 0, 1], 10.0 ** np.array([-3.5, -2.5, -1.5, -0.5]))
        assert figure.axes[1].get_ylabel() == "cost"
        for change, message in [
            ({"values": [[1.0]]}, "`values` must have the shape"),
            ({"values": np.full((3, 3), np.nan)}, "`values` must hold at least one number"),
            ({"x": [1.0, 1.0, 2.0]}, "`x` must rise or fall strictly"),
            ({"limits": (2.0, 1.0)}, "`limits` must ascend"),
            ({"limits": (0.0, 1.0), "logarithmic": True}, "`limits` must be positive"),
        ]:
            with pytest.raises(ValueError, match=message):
                plotting.draw_phase_diagram(axes, **({"x": x, "y": y, "values": np.ones((3, 3))} | change))

    def test_spectra_count_their_signs(self):
        figure, axes = plotting.subplots()
        plotting.draw_spectrum(axes, [3.0, -1.0, 0.0, 100.0, 1e-12], zero=1e-9)
        assert [text.get_text() for text in axes.texts] == ["2 positive", "2 zero", "1 negative"]
        assert axes.get_yscale() == "symlog"
        check_labels(figure)
        _, axes = plotting.subplots()
        plotting.draw_spectrum(axes, [3.0, -1.0, 0.0], complete=False)
        assert [text.get_text() for text in axes.texts] == ["at least 1 positive", "zero", "at least 1 negative"]
        with pytest.raises(ValueError, match="`eigenvalues` must be a list of finite numbers"):
            plotting.draw_spectrum(axes, [np.nan])
        with pytest.raises(ValueError, match="`zero` must not be negative"):
            plotting.draw_spectrum(axes, [1.0], zero=-1.0)

    def test_planes_and_their_points(self):
        figure, axes = plotting.subplots()
        points = [(0, 0), (1, 0), (1, 1)]
        plotting.draw_plane(axes, points, points, ["origin", "rank 1", "minimum"])
        check_labels(figure)
        assert [line.get_marker() for line in axes.lines[1:]] == ["+", "o", "*"]
        with pytest.raises(ValueError, match="`path` must have the shape"):
            plotting.draw_plane(axes, [1.0, 2.0])
        with pytest.raises(ValueError, match="`names` must be as many as the points"):
            plotting.draw_plane(axes, points, points, ["origin"])

    def test_shapes_that_do_not_fit(self):
        _, axes = plotting.subplots()
        with pytest.raises(ValueError, match="`train_cost` must have the shape of time"):
            plotting.draw_costs(axes, [0, 1], [1.0])
        with pytest.raises(ValueError, match="`test_cost` must have the shape of time"):
            plotting.draw_costs(axes, [0, 1], [1.0, 2.0], [1.0])
        with pytest.raises(ValueError, match="`values` must have the shape"):
            plotting.draw_singular_values(axes, [0, 1], [1.0, 2.0])
        with pytest.raises(ValueError, match="`side` must be"):
            plotting.draw_level(axes, 1.0, "a", side="middle")


class TestPaths:
    @pytest.mark.parametrize("width", list(plotting.WIDTHS))
    def test_a_path_is_drawn_stage_by_stage(self, path, width):
        figure = path.plot(width=width)
        check_labels(figure)
        top, bottom = figure.axes
        assert {"origin", "rank 1", "minimum"} <= {text.get_text() for text in top.texts}
        assert [tick.get_text() for tick in bottom.get_xticklabels()] == [r"$\theta^{1}$", r"$\theta^{2}$"]
        assert np.isnan(top.lines[0].get_ydata()).sum() == 1  # between two stages

    def test_a_path_without_a_stage(self, path):
        empty = type(path)((), path.saddles[:1], None, "max_stages")
        with pytest.raises(ValueError, match="`path` must have a stage to draw"):
            empty.plot()
        assert "max_stages" in empty._repr_html_()


class TestSweeps:
    def test_curves_over_time_with_bands(self):
        data = sweep_data().sel(width=50)
        figure = sf.plot_sweep(data, "train_cost")
        (axes,) = figure.axes
        assert len(axes.lines) == 3
        assert len(axes.collections) == 3
        np.testing.assert_allclose(axes.lines[1].get_ydata(), data.train_cost.sel(gamma=1.5).median("seed"))
        assert [text.get_text() for text in axes.texts] == [rf"$\gamma$ = {g}" for g in ("1", "1.5", "2")]
        assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()) == ("log", "log", "train cost")
        check_labels(figure)

    def test_times_that_a_flow_did_not_reach_are_left_out(self):
        (axes,) = sf.plot_sweep(sweep_data().isel(width=0), "rank").axes
        values = axes.lines[0].get_ydata()
        assert set(values[np.isfinite(values)]) == {0.0, 1.0}
        assert axes.get_ylabel() == "rank of A"

    def test_ends_over_a_parameter(self):
        data = sweep_data()
        (axes,) = sf.plot_sweep(data, "train_cost", x="gamma", quantiles=(0, 1)).axes
        np.testing.assert_allclose(axes.lines[0].get_ydata(), data.train_cost[:, 0, :, -1].median("seed"))
        assert axes.get_xlabel() == r"$\gamma$"
        (axes,) = sf.plot_sweep(data, "end_time", over=["seed", "width"]).axes
        assert len(axes.lines) == 1

    def test_phase_diagrams(self):
        data = sweep_data()
        axes, bar = sf.plot_sweep(data, "end_time", x="gamma", y="width", theme="light", width="column").axes
        np.testing.assert_allclose(axes.collections[0].get_array(), data.end_time.median("seed").transpose())
        assert bar.get_ylabel() == "median time at the end"

    def test_what_a_sweep_really_gives(self, cost):
        data = sf.sweep(cost, depth=2, width=3, gamma=[1.0, 1.5], seed=range(2), t1=1.0, max_saves=4, progress=False)
        (axes,) = sf.plot_sweep(data, "test_cost").axes
        np.testing.assert_allclose(axes.lines[0].get_ydata(), data.test_cost.isel(sample=-1).median("seed"))
        with pytest.raises(ValueError, match=r"`x` must be a parameter of the sweep.*save_at=times"):
            sf.plot_sweep(data, "test_cost", x="time")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"variable": "traincost"}, "`variable` must be a number of the dataset"),
            ({"variable": "stop_reason"}, "`variable` must be a number of the dataset"),
            ({"variable": 3}, "`variable` must be a string"),
            ({"variable": "end_time", "x": "alpha"}, "`x` must be a parameter of the sweep"),
            ({"variable": "end_time", "x": "gamma", "y": "gamma"}, "`y` must be another parameter"),
            ({"variable": "train_cost"}, r"`data` must leave 1 further parameter at most.*data.isel\(width=0\)"),
            ({"variable": "singular_values", "x": "gamma"}, r"data.isel\(mode=0\)"),
            ({"variable": "end_time", "over": "seeds"}, "`over` must name parameters of the sweep"),
            ({"variable": "end_time", "over": None}, "`data` must leave 1 further parameter at most"),
            ({"variable": "end_time", "theme": "pink"}, "`theme` must be one of"),
            ({"variable": "end_time", "quantiles": (1, 0)}, "`quantiles` must ascend"),
        ],
    )
    def test_bad_input_is_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            sf.plot_sweep(sweep_data(), **arguments)

    def test_something_else_than_a_dataset(self):
        with pytest.raises(ValueError, match="`data` must be the dataset of a sweep, but got 'list'"):
            sf.plot_sweep([1.0], "train_cost")


class Reader(HTMLParser):
    """Refuses HTML whose tags do not close; collects the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


class TestCards:
    def check(self, thing, *words):
        """Well-formed, with these words in it; it opens no figure, prints nothing and warns of nothing."""
        open_before, style_before = plt.get_fignums(), mpl.rcParams.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            html = thing._repr_html_()
        found = read(html)
        assert "pre" not in found.tags, found.text
        for word in words:
            assert word in found.text, word
        assert plt.get_fignums() == open_before
        assert mpl.rcParams == style_before
        assert set(re.findall(r"background:(\w+)", html)) == {"transparent"}
        return found

    def test_objectives_and_reduced_networks(self, cost):
        self.check(sf.Objective(cost, regulariser=sf.weight_decay(1e-3)), "MatrixCompletion", "WeightDecay", "3 x 4")
        wide = sf.sample_reduced(jax.random.key(0), depth=3, width=10**6, shape=(3, 4), gamma=1.5)
        self.check(wide, "hidden widths", "of 1000000, 1000000", "exact")

    def test_costs(self, cost, capsys):
        values = np.linalg.svd(cost.target, compute_uv=False)
        rank = f"rank 2, singular values {values[0]:.3g}, {values[1]:.3g}"
        self.check(cost, "MatrixCompletion 3x4", "9 of 12 entries", "3 entries, the test set", rank)
        self.check(0.5 * cost, "Scaled 3x4", "0.5, times MatrixCompletion", "9 of 12")
        squares = sf.MeanSquaredError([[1.0, 1.0]], [[0.0, 2.0]], keep_samples=True)
        self.check(squares, "span 1 of 1", "rank 1, singular values 1", "minimum1")
        self.check(sf.MeanSquaredError.teacher(np.eye(2)), "minimum0")
        self.check(sf.SquaredError(np.eye(3)), "rank 3", "(3, 3)")
        sensing = sf.LinearMeasurements.sensing(jax.random.key(0), np.eye(3), num_measurements=4)
        self.check(sensing, "4; they tell not all of the 9 entries")
        classes = sf.CrossEntropy([0, 1, 1], 2, inputs=[[1.0, -1.0, -2.0]])
        self.check(classes, "3: 1 of label 0, 2 of label 1", "minimumnone")
        assert capsys.readouterr() == ("", "")

    def test_networks(self):
        network = sf.identity(depth=3, width=4, shape=(4, 4), scale=0.5)
        self.check(network, "DeepLinearNetwork 4x4", "depth3", "48", "1, 1, 1", "0.125, 0.125", "balancedyes")
        start = sf.gaussian(jax.random.key(0), depth=2, width=3, shape=(2, 2), gamma=1.0)
        self.check(start, "of the largest |W_l|^2")
        many = jax.tree.map(lambda layer: jnp.stack([layer] * 5), start)
        self.check(many, "5, along axes of shape (5,)")

    def test_trajectories(self, trajectory):
        found = self.check(trajectory, *(line.split(" : ")[1] for line in repr(trajectory).splitlines()[1:]))
        assert found.tags.count("svg") == 2
        visit = trajectory.saddles(stationary_points=False)[0]
        assert f"{visit.cost:.6g}" in found.text
        self.check(trajectory.saddles(stationary_points=False), f"{visit.cost:.6g}", "escape_time")

    def test_models(self):
        loss = sf.Objective(sf.SquaredError([[1.0]]), lambda model: model["a"][None, None] ** 2)
        run = sf.gradient_flow(loss, {"a": jnp.asarray(0.1)}, t1=0.1, progress=False)
        self.check(run, "ModelTrajectory", "1 trainable parameters", "gradient norm")

    def test_paths(self, path):
        found = self.check(path, "GreedyPath", "converged after 2 stages", f"{path.saddles[1].cost:.6g}")
        assert found.tags.count("svg") == 2

    def test_descents(self, cost):
        start = sf.gaussian(jax.random.key(2), depth=2, width=3, shape=(3, 4), gamma=1.0)
        run = sf.gradient_descent(cost, start, learning_rate=1e-2, num_steps=10, progress=False)
        self.check(run, "gradient descent", "learning rate 1.0e-02")

    def test_texts_are_escaped(self):
        evil = "<script>alert('&')</script>"
        html = cards.card(evil, [(evil, evil)], cards.table([evil], [[evil]]))
        html += svg.panel(np.arange(3.0), [svg.Curve(np.arange(3.0), name=evil)], evil, x_name=evil)
        assert "<script" not in html
        assert read(html).text.count(evil) == 8
        assert cards.card_of("Title\n  odd line\n  a : b : c").count("<td") == 4

    def test_a_card_never_raises(self):
        class Odd:
            @cards.never_raises
            def _repr_html_(self):
                warnings.warn("not heard", stacklevel=1)
                return 1 / 0

            def __repr__(self):
                return "<odd>"

        assert read(Odd()._repr_html_()).text == "<odd>"

        class Odder(Odd):
            def __repr__(self):
                raise RuntimeError

        assert "Odder (no text: RuntimeError)" in Odder()._repr_html_()

    def test_odd_objects(self, cost):
        traced = []
        jax.jit(lambda target: traced.append(sf.SquaredError(target)._repr_html_()) or 0.0)(np.eye(2))
        assert "SquaredError" in traced[0]
        network = sf.identity(depth=2, width=2, shape=(2, 2), scale=0.5)
        broken = jax.tree.map(lambda layer: layer * jnp.nan, network)
        assert "DeepLinearNetwork" in broken._repr_html_()

    @pytest.mark.parametrize(
        "values", [[np.nan, np.nan], [0.0, 0.0], [1.0, 1.0], [np.inf, 1.0], [-1.0, 1e300], [1e-320, 1.0]]
    )
    def test_pictures_of_odd_numbers(self, values):
        for logarithmic in (False, True):
            with np.errstate(all="ignore"):
                html = svg.panel(np.arange(2.0), [svg.Curve(np.array(values))], "odd", logarithmic=logarithmic)
            assert "M" in html
            assert not {"Mnan", "Lnan"} & {piece[:4] for piece in html.replace("L", " L").split()}
            read(html)

    def test_a_run_that_blew_up_shows_itself(self, trajectory):
        rows = trajectory.__dict__ | {"train_cost": np.full_like(trajectory.train_cost, np.nan)}
        odd = SimpleNamespace(**rows)
        assert "namespace" in cards.never_raises(lambda self: self.nothing)(odd)


def test_a_curve_that_leaves_the_frame_takes_no_room_for_its_name():
    """Limits and scales may be set after the name: before it is drawn, the layout asks where it is."""
    time = np.logspace(-6, 0, 50)
    with plotting.style():
        figure, axes = plotting.subplots()
        plotting.draw_band(axes, time, np.exp(-50 * time)[None], name="w = 10")
        axes.set(xscale="log", yscale="log", ylim=(1e-3, 2))
        figure.canvas.draw()  # without matplotlib's warning of a layout that collapsed
    assert axes.get_position().height > 0.8
    plotting.close(figure)


def test_a_style_leaves_figures_on_that_a_notebook_has_turned_on():
    before = mpl.is_interactive()
    try:
        with plotting.style():
            mpl.interactive(True)
        assert mpl.is_interactive()
    finally:
        mpl.interactive(before)
