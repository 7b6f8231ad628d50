import csv

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import saddleflow as sf
from saddleflow import cli


def test_flow_on_a_random_task(tmp_path, run_cli):
    out = tmp_path / "run.nc"
    task = ["--shape", "4x4", "--rank", "2", "--observed", ".75"]
    arguments = ["flow", *task, "--width", "6", "--t1", "2", "--out", out]
    code, text, _ = run_cli(*arguments)
    assert code == 0
    assert "MatrixCompletion 4x4, depth 3, width 6" in text
    assert {p.name for p in tmp_path.iterdir()} == {"run.nc", "run.png", "run.pdf"}
    assert sf.load(out).stop_reason == "t1"
    code, _, error = run_cli(*arguments)
    assert code == 2
    assert "--force" in error
    assert run_cli(*arguments, "--force")[0] == 0


def test_sweep(tmp_path, run_cli):
    out, store = tmp_path / "sweep.nc", tmp_path / "sweep.zarr"
    arguments = ["sweep", "width=4", "depth=2", "seed=0:2", "--shape", "3x3", "--rank", "1", "--store", store]
    code, text, _ = run_cli(*arguments, "--out", out)
    assert code == 0
    assert "2 lanes" in text
    assert "2 converged" in text
    with xr.open_dataset(out, engine="h5netcdf") as data:
        assert data.train_cost.dims == ("seed", "sample")
    code, _, error = run_cli(*arguments, "--task-seed", 1, "--out", tmp_path / "other.nc")
    assert code == 2
    assert "another configuration (cost:" in error


def test_flow_fills_the_gaps_of_a_matrix(tmp_path, run_cli):
    rng = np.random.default_rng(0)
    full = np.outer(rng.normal(size=8), rng.normal(size=7))
    gaps = rng.random(full.shape) < 0.2
    data = tmp_path / "ratings.csv"
    with data.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["" if g else repr(float(x)) for x, g in zip(*row, strict=True)] for row in zip(full, gaps, strict=True)]
        )
    out = tmp_path / "run.nc"
    code, text, _ = run_cli("flow", "--data", data, "--gamma", 2.5, "--width", 30, "--held-out", 0.05, "--out", out)
    assert code == 0
    assert "run_completed.csv" in text
    filled = np.loadtxt(tmp_path / "run_completed.csv", delimiter=",")
    np.testing.assert_array_equal(filled[~gaps], full[~gaps])
    np.testing.assert_allclose(filled[gaps], full[gaps], atol=0.05 * np.abs(full).max())


@pytest.mark.slow
def test_flow_fills_the_gaps_of_triplets(tmp_path, run_cli):
    """30 users and 20 items of rank one about 3: the completed table has their labels, and the ratings as given."""
    rng = np.random.default_rng(0)
    full = 3 + np.outer(rng.normal(size=30), rng.normal(size=20))
    lines = [(f"u{i:02}", 10 * j, full[i, j]) for i in range(30) for j in range(20) if rng.random() < 0.6]
    known = pd.DataFrame(lines, columns=["user", "item", "rating"])
    known.sample(frac=1, random_state=0).to_csv(tmp_path / "ratings.csv", index=False)
    arguments = [
        "flow",
        "--data",
        tmp_path / "ratings.csv",
        "--gamma",
        2.5,
        "--width",
        30,
        "--out",
        tmp_path / "run.nc",
    ]
    code, text, error = run_cli(*arguments, "--triplets", "user,item,rating", "--center")
    assert code == 0, error
    assert "held out  : error (RMSE)" in text
    filled = pd.read_csv(tmp_path / "run_completed.csv", index_col="user")
    assert list(filled.index) == [f"u{i:02}" for i in range(30)]
    assert [int(name) for name in filled.columns] == list(range(0, 200, 10))
    np.testing.assert_allclose(filled, full, atol=0.05 * np.abs(full).max())
    for user, item, rating in lines:
        assert filled.loc[user, str(item)] == rating
    code, _, error = run_cli(*arguments, "--force")
    assert code == 2
    assert "hold a matrix" in error
    assert "triplets=" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flow", "--depth", "0"], "`depth` must be an integer >= 1, but got 0"),
        (["flow", "--shape", "ten"], "`shape` must read like 10x10"),
        (["flow", "--rtol", "0"], "`rtol` must lie"),
        (["flow", "--alpha", "0"], "`alpha` must be finite and nonzero"),
        (["flow", "--data", "none.csv"], "there is no file 'none.csv'"),
        (["flow", "--data", "x.csv", "--triplets", "a,b"], "`triplets` must name three columns, as user,item,rating"),
        (["flow", "--out", "nowhere/run.nc"], "lie in an existing folder"),
        (["figure", "2", "rtol=2"], "`rtol` must lie"),
        (["figure", "7"], "`number` must be one of 1"),
        (["figure", "1", "widht=3"], "`settings` must be name=value with a name of ['depth'"),
        (["figure", "4", "width=ten"], "`width` must read as int"),
        (["sweep", "gamma"], "`grid` must read like"),
        (["sweep", "gamma=a"], "`gamma` must be floats"),
        (["sweep", "gama=1,2"], "Did you mean `gamma`?"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, arguments, message, run_cli):
    monkeypatch.chdir(tmp_path)
    code, _, error = run_cli(*arguments)
    assert code != 0
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_figure_have_the_types_of_its_defaults():
    arguments = cli._parse_settings(["alphas=1,.3", "seed=2", "observed=.5"], sf.figures.figure4)
    assert arguments == {"alphas": (1.0, 0.3), "seed": 2, "observed": 0.5}


def test_settings_of_a_figure_are_listed_as_they_are_given(run_cli):
    code, text, _ = run_cli("figure", "4", "--list-settings", "seed=2")
    assert code == 0
    words = text.split()
    assert words[:2] == ["figure", "4:"]
    assert "seed=2" in words
    assert cli._parse_settings(words[2:], sf.figures.figure4)["width"] == cli._defaults(sf.figures.figure4)["width"]


def test_version(run_cli):
    assert run_cli("--version")[1].strip() == sf.__version__
