"""The live explorer: links, runs that are the library's own, words for errors; and the page in a real browser."""

import dataclasses
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree

import saddleflow as sf
from saddleflow.explorer import page, pictures, predictions, runs, server
from saddleflow.explorer.state import AXES, SIZE, TASKS, WIDEST_FULL, Settings
from saddleflow.problem.symmetry import include

# Two layers: the programs that compile fastest.
SMALL = Settings(task="diagonal", depth=2, width=20, scale="alpha", alpha=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(task="identity", rank=10, depth=1, width=1_000_000, gamma=0.75, theory=False, position=0),
        Settings(model="tanh", width=7, scale="alpha", alpha=2e-6, axis="log t", observed=0.65, seed=9, task_seed=8),
    ],
)
def test_settings_survive_a_link(settings):
    query = settings.to_query()
    assert Settings.from_query(query) == settings
    assert set(query) == {field.name for field in dataclasses.fields(Settings)}
    assert all(isinstance(text, str) for text in query.values())


def test_a_link_may_leave_settings_out():
    assert Settings.from_query({"depth": "2"}) == Settings(depth=2)
    assert Settings.from_query({}) == Settings()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"deph": "3"}, "`link` must name settings: task, rank"),
        ({"depth": "three"}, "`depth` must be an integer, but got 'three'"),
        ({"depth": "9"}, "`depth` must be from 1 to 5, but got 9"),
        ({"depth": ["1", "2"]}, "`depth` must be given once in a link"),
        ({"gamma": "nan"}, "`gamma` must be a number, but got 'nan'"),
        ({"gamma": "-1"}, "`gamma` must be from 0 to 3, but got -1.0"),
        ({"alpha": "0"}, "`alpha` must be from 1e-06 to 10, but got 0.0"),
        ({"width": "1e3"}, "`width` must be an integer, but got '1e3'"),
        ({"width": "2000000"}, "`width` must be from 1 to 1e+06"),
        ({"task": "tomography"}, "`task` must be one of completion, teacher, diagonal, identity"),
        ({"observed": "0.7"}, "`observed` must be one of 0.5, 0.65, 0.8"),
        ({"theory": "yes"}, "`theory` must be on or off, but got 'yes'"),
        ({"position": "101"}, "`position` must be from 0 to 100"),
        ({"model": "tanh", "width": "100"}, "`width` must be at most 40 for tanh, but got 100. Wider networks"),
    ],
)
def test_bad_links_are_told_in_words(query, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings.from_query(query)
    mo = SimpleNamespace(query_params=lambda: SimpleNamespace(to_dict=lambda: query))
    settings, trouble = page.read_link(mo)
    assert settings == Settings()
    assert trouble is not None
    assert words in trouble


def test_tasks_are_those_of_the_library():
    ours, theirs = (
        runs.task(Settings(rank=2, observed=0.65, task_seed=4)),
        sf.MatrixCompletion.random(jax.random.key(4), shape=(10, 10), rank=2, observed=0.65),
    )
    np.testing.assert_array_equal(ours.target, theirs.target)
    np.testing.assert_array_equal(ours.observed, theirs.observed)
    for name in set(TASKS) - {"completion"}:
        cost = runs.task(Settings(task=name, rank=2))
        assert not cost.has_test
        assert np.linalg.matrix_rank(np.asarray(cost.target)) == 2


def test_a_run_is_the_librarys_own():
    """Dead neurons change nothing: to the tolerance, the run is also that of the network without them."""
    found = runs.flow(SMALL)
    start = 1e-5 * sf.gaussian(jax.random.key(0), depth=2, width=20, shape=(10, 10), gamma=1.0)
    own = sf.gradient_flow(runs.task(SMALL), include(start, WIDEST_FULL), **runs.OPTIONS)
    np.testing.assert_array_equal(found.end_to_end, own.end_to_end)
    np.testing.assert_array_equal(found.train_cost, own.train_cost)
    assert found.configuration["width"] == 20
    assert found.network.hidden_widths == (20,)
    products = found.networks.layers[1] @ found.networks.layers[0]
    np.testing.assert_allclose(products, found.end_to_end, atol=1e-12)
    assert runs.result(SMALL).trajectory is found  # kept
    assert runs.result(dataclasses.replace(SMALL, axis="log t", position=3)).trajectory is found


def test_a_wide_run_is_drawn_in_law():
    settings = dataclasses.replace(SMALL, width=100_000, seed=2)
    start = 1e-5 * sf.sample_reduced(
        jax.random.key(2), depth=2, width=100_000, shape=(10, 10), gamma=1.0, levels=runs.LEVELS[2]
    )
    own = sf.gradient_flow(runs.task(settings), include(start.network, WIDEST_FULL), **runs.OPTIONS)
    found = runs.flow(settings)
    np.testing.assert_array_equal(found.end_to_end, own.end_to_end)
    assert found.configuration["width"] == 100_000
    assert found.configuration["reduced_widths"] == [20]
    assert "saddleflow.sample_reduced" in " ".join(page.notes(runs.result(settings)))


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_bases_of_wide_networks_fit_the_one_width(depth):
    network = runs.start(Settings(depth=depth, width=1000))
    assert max(network.hidden_widths) <= WIDEST_FULL
    assert runs.padded(network).hidden_widths == (WIDEST_FULL,) * (depth - 1)


def test_one_layer_has_no_saddle():
    found = runs.result(Settings(depth=1, task="teacher"))
    assert found.trajectory.stop_reason == "converged"
    assert found.points == ()
    assert "convex" in " ".join(found.predictions.notes)
    pictures.picture("plane", found)  # without a saddle


def test_the_spectrum_is_that_of_the_hessian():
    settings = dataclasses.replace(SMALL, width=4)
    found, cost = runs.result(settings), runs.task(settings)
    row = found.row(40)
    network = jax.tree.map(lambda layers: jnp.asarray(np.asarray(layers)[row]), found.trajectory.networks)
    flat, unravel = ravel_pytree(network)
    columns = [ravel_pytree(sf.hessian_vector_product(cost, network, unravel(e)))[0] for e in jnp.eye(flat.size)]
    expected = np.linalg.eigvalsh(np.stack(columns))
    least, largest = runs.spectrum(settings, row)
    np.testing.assert_allclose(least[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(largest[-1], expected[-1], rtol=1e-6)
    assert np.all(np.diff(least) >= 0)
    assert np.all(np.diff(largest) >= 0)


def test_theory_meets_the_run():
    """Levels are the best approximations by rank; two-layer escapes from small starts come when theory says."""
    found = runs.result(SMALL)
    strengths = np.linalg.svd(np.asarray(runs.task(SMALL).target), compute_uv=False)
    expected = [np.sum(strengths[rank:] ** 2) / SIZE**2 for rank in range(4)]
    np.testing.assert_allclose([cost for _, cost in found.predictions.levels], expected, atol=1e-12)
    visits = found.trajectory.saddles(stationary_points=False)
    assert len(visits) == 3
    np.testing.assert_allclose([visit.cost for visit in visits], expected[:3], rtol=1e-2)
    np.testing.assert_allclose(found.predictions.escape_times, [v.escape_time for v in visits], rtol=3e-2)


def test_theory_of_completion_is_that_of_the_greedy_path():
    settings = Settings(depth=2, rank=2)
    path = sf.saddle_to_saddle(runs.task(settings), 2, rtol=predictions.RTOL, progress=False)
    points = runs.points(settings)
    assert [point.cost for point in points] == [point.cost for point in path.points]
    assert [point.rank for point in points] == [0, 1, 2]
    times = predictions.two_layer_times(runs.task(settings), runs.start(settings))
    assert len(times) == 1  # what is not seen decides about the later ones


@pytest.mark.slow
def test_deep_theory_meets_the_run():
    found = runs.result(Settings(task="diagonal", depth=3, width=20, scale="alpha", alpha=1e-2))
    first = found.trajectory.saddles(stationary_points=False)[0]
    np.testing.assert_allclose(found.predictions.escape_times[0], first.escape_time, rtol=1e-2)
    ratios = np.array(found.predictions.escape_times) / found.predictions.escape_times[0]
    np.testing.assert_allclose(ratios, [1, 1.5, 3])  # strengths 10, 20/3, 10/3


@pytest.mark.slow
def test_a_tanh_run_is_the_librarys_own():
    settings = Settings(model="tanh", depth=2, width=10, gamma=2.0)
    cost = runs.task(settings)
    start = include(sf.gaussian(jax.random.key(0), depth=2, width=10, shape=(10, 10), gamma=2.0), WIDEST_FULL)
    model = eqx.nn.MLP(10, 10, WIDEST_FULL, 1, jnp.tanh, use_bias=False, use_final_bias=False, key=jax.random.key(1))
    model = eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, list(start.layers))
    objective = sf.Objective(cost, lambda m: jax.vmap(m, in_axes=1, out_axes=1)(jnp.eye(10)))
    own = sf.gradient_flow(objective, model, **runs.OPTIONS)
    found = runs.result(settings)
    np.testing.assert_allclose(found.trajectory.train_cost[-1], own.train_cost[-1], rtol=1e-2, atol=1e-8)
    test = runs.objective(settings).test
    assert test is not None
    np.testing.assert_allclose(test(model), cost.test(objective.outputs(model)))
    assert found.predictions.levels == ()
    least, largest = runs.spectrum(settings, found.row(50))
    assert least[0] < largest[-1]


@pytest.mark.parametrize("axis", AXES)
def test_pictures_have_a_marker_that_moves(axis):
    found = runs.result(dataclasses.replace(SMALL, axis=axis))
    last = found.row(100)
    for name in pictures.PANELS:
        picture = pictures.picture(name, found)
        begin, end = picture.at(found.row(50)), picture.at(last)
        assert begin != end
        assert end.count('class="marker"') > picture.svg.count('class="marker"') == 0
        assert end.endswith("</svg>\n") or end.endswith("</svg>")
    x, y = pictures.picture("costs", found).places[0]
    assert np.nanargmin(x) == (1 if axis == "log t" else 0)
    assert y[last] > y[1]  # of an SVG, down


def test_files_hold_what_is_shown(tmp_path):
    found = runs.result(SMALL)
    for kind, head in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        assert pictures.whole(found, 3, kind).startswith(head)
    with pytest.raises(ValueError, match="`kind` must be one of png, pdf, svg, but got 'gif'"):
        pictures.whole(found, 3, "gif")
    path = tmp_path / "explorer.nc"
    path.write_bytes(page.netcdf(found))
    again = sf.load(path, runs.task(SMALL))
    np.testing.assert_array_equal(again.train_cost, found.trajectory.train_cost)
    assert again.network.hidden_widths == (20,)


def test_the_command_says_what_is_wrong(run_cli, monkeypatch):
    monkeypatch.setattr(server, "find_spec", lambda name: name)  # there, or not, does not matter here
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, words = run_cli("explore", "--no-browser", "--port", port)
    assert (code, f"127.0.0.1:{port}" in words, "--port 0" in words) == (2, True, True)
    assert run_cli("explore", "--port", "70000")[0] == 2
    assert "be from 0 (any free one) to 65535, but got 70000" in run_cli("explore", "--port", "70000")[2]
    assert "must be free to listen on" in run_cli("explore", "--host", "192.0.2.1", "--no-browser")[2]
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    code, _, words = run_cli("explore", "--no-browser")
    assert code == 2
    assert 'pip install "saddleflow[explore]"' in words
    assert len(words.strip().splitlines()) == 1


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("playwright", "marimo") if find_spec(name) is None]
MISSING += [] if BROWSER else ["a Chromium browser"]
WAIT = 180_000  # milliseconds: programs are compiled at first


@pytest.fixture
def address():
    """The page, served by the command on a free port; ended by Ctrl-C."""
    command = [sys.executable, "-c", "from saddleflow.cli import main; main()", "explore", "--port", "0"]
    process = subprocess.Popen([*command, "--no-browser"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line
        for _ in range(300):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", int(found[1]))) == 0:
                    break
            time.sleep(0.1)
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_page_in_a_browser(address, tmp_path):
    """A slider changes the curve and the link; a reload restores both; Play moves; a file comes; no error is told."""
    from playwright.sync_api import expect, sync_playwright

    errors = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1366, "height": 900})
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(f"{address}?task=diagonal&depth=2&width=20&gamma=2")
        curve = tab.locator("[data-panel=costs] svg")
        made = tab.locator("[data-made]")
        curve.wait_for(timeout=WAIT)
        before, first = curve.inner_html(), made.get_attribute("data-made")

        tab.locator("[data-control=gamma]").get_by_role("slider").press("ArrowLeft")
        expect(made).not_to_have_attribute("data-made", first, timeout=WAIT)
        expect(tab).to_have_url(re.compile(r"gamma=1\.95"))
        moved = curve.inner_html()
        assert moved != before

        row = tab.locator("[data-row]")
        tab.locator(".sf-play").get_by_role("slider").press("ArrowRight")
        expect(tab).to_have_url(re.compile("position=51"))
        at = row.get_attribute("data-row")

        tab.reload()
        curve.wait_for(timeout=WAIT)
        expect(row).to_have_attribute("data-row", at)
        assert "gamma=1.95" in tab.url
        assert len(curve.locator(".marker").all()) == 2

        tab.locator(".sf-play").get_by_role("switch").click()
        expect(row).not_to_have_attribute("data-row", at, timeout=WAIT)
        second = row.get_attribute("data-row")
        expect(row).not_to_have_attribute("data-row", second, timeout=WAIT)
        tab.locator(".sf-play").get_by_role("switch").click()

        with tab.expect_download() as download:
            tab.get_by_text("data (NetCDF)").click()
        path = tmp_path / "explorer.nc"
        download.value.save_as(path)
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as data:
            assert data.sizes["time"] > 10

        tab.goto(f"{address}?depth=9")
        expect(tab.get_by_text("`depth` must be from 1 to 5, but got 9")).to_be_visible(timeout=WAIT)
        browser.close()
    assert not errors
