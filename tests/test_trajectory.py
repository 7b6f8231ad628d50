import json
import math
from typing import Any

import diffrax
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow.flow import residual
from saddleflow.flow.visits import Saddles, SaddleVisit


@pytest.fixture(scope="module")
def trajectory() -> sf.Trajectory:
    cost = sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 4), rank=2, observed=0.75)
    start = sf.gaussian(jax.random.key(2), depth=3, width=20, shape=(3, 4), gamma=2.5)
    return sf.gradient_flow(
        cost, start, rtol=1e-4, gradient_tolerance=1e-3, observables=["layer_norms"], save_networks=True, max_saves=64
    )


def test_curves_are_functions_of_the_matrix(trajectory):
    np.testing.assert_allclose(
        trajectory.singular_values, np.linalg.svd(trajectory.end_to_end, compute_uv=False), rtol=1e-12
    )
    np.testing.assert_allclose(trajectory.nuclear_norm, trajectory.singular_values.sum(axis=1))
    assert trajectory.rank[0] == 0
    assert trajectory.rank[-1] == 2
    np.testing.assert_allclose(trajectory.network.end_to_end(), trajectory.end_to_end[-1], rtol=1e-10)


def test_saving_and_loading_keeps_everything(trajectory, tmp_path):
    path = trajectory.save(tmp_path / "run.nc")
    again = sf.load(path)
    for name in ("time", "end_to_end", "train_cost", "test_cost", "gradient_norm", "singular_values", "rank"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trajectory, name))
    for ours, theirs in ((again.network, trajectory.network), (again.networks, trajectory.networks)):
        for a, b in zip(ours.layers, theirs.layers, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.observables["layer_norms"], trajectory.observables["layer_norms"])
    assert again.stop_reason == trajectory.stop_reason
    assert again.stats == trajectory.stats
    assert again.configuration == trajectory.configuration
    assert again.residual is None  # the cost is not in the file
    assert repr(again) == repr(trajectory).partition("\n  residual")[0]
    assert repr(sf.load(path, trajectory.cost)) == repr(trajectory)


def test_dataset_has_names_units_and_provenance(trajectory):
    data = trajectory.to_xarray()
    assert data["end_to_end"].dims == ("time", "n_out", "n_in")
    assert data["layer_2"].dims == ("hidden_2", "hidden_1")
    assert all("units" in data[name].attrs for name in data.variables)
    assert json.loads(data.attrs["configuration"])["rtol"] == pytest.approx(1e-4)
    assert {"jax", "diffrax", "saddleflow", "python"} <= set(json.loads(data.attrs["versions"]))


def test_saving_refuses_to_overwrite(trajectory, tmp_path):
    path = tmp_path / "run.nc"
    path.write_text("precious")
    with pytest.raises(ValueError, match=r"`path` must not exist yet.*--force"):
        trajectory.save(path)
    assert path.read_text() == "precious"
    trajectory.save(path, force=True)
    assert sf.load(path).stop_reason == trajectory.stop_reason


def test_interrupt_leaves_no_file(trajectory, tmp_path, monkeypatch):
    def interrupted(self, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trajectory.save(tmp_path / "run.nc")
    assert list(tmp_path.iterdir()) == []


def test_loading_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sf.load(tmp_path / "none.nc")
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="hold a saddleflow trajectory"):
        sf.load(tmp_path / "other.nc")


def test_card_says_what_happened(trajectory):
    card = repr(trajectory)
    for words in ("MatrixCompletion 3x4, depth 3, width 20", "converged at t", "accepted", "rank 0 at cost", "test"):
        assert words in card
    assert f"by a gap of {trajectory.rank_gap[-1]:.2g}" in card
    assert f"|grad C(A)| {trajectory.residual.norm:.1e}, relative (as" in card
    assert trajectory.residual.relative <= 1e-3
    assert "left" not in card


def test_plot_draws_what_was_computed(trajectory):
    figure = trajectory.plot(axis="log t")
    top, bottom = figure.axes
    np.testing.assert_array_equal(top.lines[0].get_ydata(), trajectory.train_cost)
    np.testing.assert_array_equal(top.lines[1].get_ydata(), trajectory.test_cost)
    assert len(bottom.lines) == trajectory.singular_values.shape[1] + 1
    assert bottom.get_xscale() == "log"
    plt.close(figure)


def test_without_test_set():
    cost = sf.MeanSquaredError.teacher(np.eye(2))
    start = sf.gaussian(jax.random.key(2), depth=2, width=3, shape=(2, 2), gamma=1.0)
    trajectory = sf.gradient_flow(cost, start, rtol=1e-4, t1=1.0, solver=diffrax.Tsit5())
    assert trajectory.test_cost is None
    assert "test" not in repr(trajectory)
    assert "test_cost" not in trajectory.to_xarray()


def weak(gradient_tolerance):
    """A run towards strengths of 1000, 1 and .001."""
    cost = sf.MeanSquaredError.teacher(np.diag([1e3, 1.0, 1e-3, 0.0]))
    start = sf.gaussian(jax.random.key(0), depth=2, width=8, shape=(4, 4), variance=1e-7)
    return sf.gradient_flow(cost, start, rtol=1e-4, gradient_tolerance=gradient_tolerance, progress=False)


def test_converged_says_what_is_left_and_the_remedy_works():
    early = weak(1e-4)
    assert early.stop_reason == "converged"
    assert early.rank[-1] == 1
    assert early.residual.left == pytest.approx(2e-3, rel=1e-4)
    assert early.residual.unit == pytest.approx(2e3, rel=1e-4)
    assert "singular value 2.0e-03 outside the learned ones; take gradient_tolerance=1e-07" in repr(early)
    late = weak(1e-7)
    assert late.singular_values[-1, 2] == pytest.approx(1e-3, rel=0.2)
    assert late.residual.left is None
    assert "longer flow" not in repr(late)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_a_tail_leaves_nothing(tolerance):
    """A completion's gradient is large outside the learned directions all through the tail, and means nothing."""
    cost = sf.MatrixCompletion.random(jax.random.key(1), shape=(3, 4), rank=2, observed=0.75)
    start = sf.gaussian(jax.random.key(2), depth=3, width=20, shape=(3, 4), gamma=2.5)
    run = sf.gradient_flow(cost, start, rtol=1e-4, gradient_tolerance=tolerance, max_saves=64, progress=False)
    assert run.stop_reason == "converged"
    assert run.residual.left is None


def test_the_gap_says_that_a_noisy_rank_is_ill_defined():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 30))
    start = sf.gaussian(jax.random.key(0), depth=2, width=30, shape=(30, 30), gamma=2.0)

    def run(noise, **options):
        target = signal + noise * rng.standard_normal((30, 30))
        cost = sf.MeanSquaredError.teacher(target)
        return sf.gradient_flow(cost, start, rtol=1e-3, gradient_tolerance=1e-2, progress=False, **options)

    clean, noisy = run(0.0), run(0.1)
    assert clean.rank[-1] == 2
    assert clean.rank_gap[-1] > 50
    assert noisy.rank[-1] > 10
    assert noisy.rank_gap[-1] < 2
    assert run(0.1, rank_tolerance=0.2 * np.sqrt(30)).rank[-1] == 2


def test_the_card_of_a_run_without_a_certificate_does_not_look_for_what_is_left(
    monkeypatch, small_cost, small_network
):
    """That takes Newton steps in the space of A: minutes for a large matrix."""
    run = sf.gradient_flow(small_cost, small_network, t1=1.0)
    monkeypatch.setattr(residual, "_left", lambda *_: pytest.fail("looked for"))
    assert "residual" in repr(run)


def test_saddles_print_as_a_table_and_convert():
    numbers: dict[str, Any] = {
        "time": 2.0,
        "gradient_norm": 1e-3,
        "row": 4,
        "enter": 1.0,
        "leave": 3.0,
        "escape_time": 3.5,
    }
    known: dict[str, Any] = {"predicted_speed": 0.25, "index": 2, "hessian_range": (-1.0, 2.0), "strict": True}
    visits = Saddles(
        [
            SaddleVisit(rank=0, cost=2.5, **numbers, escape=(5, 0.1), escape_speed=math.nan),
            SaddleVisit(rank=1, cost=0.125, **numbers, escape=(5, 0.1), escape_speed=0.24, **known),
        ]
    )
    lines = [line.split() for line in repr(visits).splitlines()]
    assert lines[0][:4] == ["rank", "cost", "enter", "leave"]
    assert lines[1:] == [
        ["0", "0", "2.5", "1", "3", "3.5"],
        ["1", "1", "0.125", "1", "3", "3.5", "0.24", "0.25", "2", "True"],
    ]
    assert "<table" in visits._repr_html_()
    table: Any = visits.to_pandas()
    np.testing.assert_array_equal(table["cost"], [2.5, 0.125])
    assert table["hessian_range"][1] == (-1.0, 2.0)
    assert repr(Saddles()) == "no saddle visited"
    assert Saddles() == []
