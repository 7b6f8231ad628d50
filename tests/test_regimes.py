import numpy as np
import pytest
import xarray as xr

from saddleflow.figures import f2_regimes, f3_transition, f5_ranks


def test_log_rate_of_an_exponential():
    time = np.linspace(0, 10, 200)
    rate, r_squared = f2_regimes.log_rate(time, 7 * np.exp(-2.5 * time))
    assert rate == pytest.approx(2.5)
    assert r_squared == pytest.approx(1.0)
    assert f2_regimes.log_rate(time, 7 / (1 + time) ** 8)[1] < 0.99


def test_plateau_length_of_a_line():
    time = np.linspace(0, 1, 7)
    assert f2_regimes.plateau_length(time, 1 - time) == pytest.approx(0.1)
    assert f2_regimes.plateau_length(time, np.ones(7)) == np.inf


def test_jumps_and_dips():
    time = np.geomspace(0.1, 10, 400)
    nuclear = 1 / (1 + time**-30.0) + 2 / (1 + (time / 4) ** -30.0)
    np.testing.assert_allclose(f5_ranks.jumps(time, nuclear), [1, 4], rtol=0.05)
    norm = np.exp(2 * np.cos(4 * np.log(time)))
    run = xr.Dataset({"train_cost": ("time", np.ones(400)), "gradient_norm": ("time", norm)})
    assert len(f5_ranks.dips(run)) == 2


@pytest.mark.slow
def test_the_figures_at_small_sizes(tmp_path):
    data = f2_regimes.compute(widths=(10, 100), num_seeds=3, t1=1.0, progress=False)
    lines = f2_regimes.verdicts(data) + f5_ranks.verdicts(
        f5_ranks.compute(widths=(10, 100), num_seeds=3, t1=1.0, progress=False)
    )
    assert all(line.startswith("holds") for line in lines), lines
    assert {p.name for p in f2_regimes.write(data, tmp_path)} == {"figure2.png", "figure2.pdf", "figure2.nc"}
    assert {p.name for p in f5_ranks.write(data, tmp_path)} == {"figure5.png", "figure5.pdf", "figure5.nc"}
    data = f3_transition.compute(gammas=(0.75, 1.25, 2.0), widths=(10, 100), num_seeds=3, progress=False)
    lines = f3_transition.verdicts(data)
    assert all(line.startswith("holds") for line in lines), lines
    assert len(f3_transition.write(data, tmp_path)) == 3
