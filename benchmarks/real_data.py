"""Real data at real size: a table of ratings and a photograph with gaps, completed by a flow and by others.

Run: python benchmarks/real_data.py [--write]     (ten minutes; --write writes docs/real_data.md with its pictures)

Of the known entries some are held out for validation: they choose where the flow is stopped, and the rank, the
number of neighbours and so on of the others. Errors are those on test entries, which no method sees. Every method
runs in a process of its own: seconds are those of the method with its choice, of the command those of the whole
process, and memory is the peak of the process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.console import Console
from tables import markdown, write_below

import saddleflow as sf

CONSOLE = Console()
MARK = "<!-- below: written by benchmarks/real_data.py --write -->"
DOCS = Path(__file__).parent.parent / "docs"

# Seconds that a method is given.
PATIENCE = 180

NUM_USERS, NUM_ITEMS, NUM_RATINGS = 943, 1682, 100_000


@dataclass(frozen=True)
class Problem:
    """A matrix with gaps, NaN there, in three parts that share no entry: for training, validation and test."""

    train: Float[np.ndarray, "rows columns"]
    validation: Float[np.ndarray, "rows columns"]
    test: Float[np.ndarray, "rows columns"]

    def error(self, completed: Float[np.ndarray, "rows columns"]) -> float:
        """Root of the mean squared error on the test entries."""
        return _rmse(completed, self.test)

    def validation_error(self, completed: Float[np.ndarray, "rows columns"]) -> float:
        """The same on the validation entries."""
        return _rmse(completed, self.validation)


def _rmse(completed: Float[np.ndarray, "rows columns"], known: Float[np.ndarray, "rows columns"]) -> float:
    return float(np.sqrt(np.nanmean((completed - known) ** 2)))


def expected_ratings(seed: int = 0, rank: int = 5) -> Float[np.ndarray, "users items"]:
    """What each user would rate each item on average: the signal of `ratings`."""
    rng = np.random.default_rng([seed, 0])
    user_bias, item_bias = 0.35 * rng.normal(size=(NUM_USERS, 1)), 0.5 * rng.normal(size=(1, NUM_ITEMS))
    tastes, traits = rng.normal(size=(NUM_USERS, rank)), rng.normal(size=(rank, NUM_ITEMS))
    return 3.5 + user_bias + item_bias + 0.7 * tastes @ traits / np.sqrt(rank)


def ratings(seed: int = 0) -> pd.DataFrame:
    """Ratings as people give them: 100,000 of 943 users for 1,682 items, as lines (user, item, rating).

    User u would rate item i with 3.5 + b_u + c_i + 0.7 p_u.q_i / sqrt(5) + 0.8 e_ui, where b ~ N(0, 0.35^2), c ~
    N(0, 0.5^2), p_u, q_i ~ N(0, I) in five dimensions, e ~ N(0, 1); what is given is the nearest of 1, 2, 3, 4, 5.

    Who rates what has a long tail: the pairs are drawn without replacement (Plackett and Luce's law, by the largest
    of log a_u + log b_i plus a standard Gumbel number), where log a ~ N(0, 1) says how active a user is, and log b ~
    N(0, 1.4^2) how popular an item. Each user and each item has a rating at least.
    """
    rng = np.random.default_rng([seed, 1])
    shape = NUM_USERS, NUM_ITEMS
    given = np.clip(np.rint(expected_ratings(seed) + 0.8 * rng.normal(size=shape)), 1, 5)
    activity, popularity = rng.normal(size=(NUM_USERS, 1)), 1.4 * rng.normal(size=(1, NUM_ITEMS))
    order = activity + popularity + rng.gumbel(size=shape)
    order[np.arange(NUM_USERS), order.argmax(axis=1)] = np.inf
    order[order.argmax(axis=0), np.arange(NUM_ITEMS)] = np.inf
    pairs = np.sort(np.argpartition(-order, NUM_RATINGS, axis=None)[:NUM_RATINGS])
    user, item = np.unravel_index(pairs, shape)
    return pd.DataFrame({"user": user + 1, "item": item + 1, "rating": given[user, item].astype(int)})


def rating_problem(seed: int = 0) -> Problem:
    """80 % of the ratings train, 10 % each validate and test."""
    matrix = ratings(seed).pivot(index="user", columns="item", values="rating").to_numpy(float)
    return Problem(*_parts(matrix, (0.8, 0.1, 0.1), seed))


def photograph() -> Float[np.ndarray, "427 640"]:
    """The green channel of a photograph that scikit-learn ships, between 0 and 1."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")[..., 1] / 255


def photograph_problem(seed: int = 0) -> Problem:
    """30 % of the pixels are known: 27 % train, 3 % validate. All others test."""
    return Problem(*_parts(photograph(), (0.27, 0.03, 0.7), seed))


def _parts(
    matrix: Float[np.ndarray, "rows columns"], shares: tuple[float, ...], seed: int
) -> Iterator[Float[np.ndarray, "rows columns"]]:
    """The matrix, its known entries in parts of these shares, drawn at random."""
    known = np.random.default_rng([seed, 2]).permutation(np.flatnonzero(~np.isnan(matrix)))
    for part in np.split(known, np.rint(np.cumsum(shares[:-1]) * len(known)).astype(int)):
        here = np.full(matrix.shape, np.nan)
        here.flat[part] = matrix.flat[part]
        yield here


PROBLEMS = {"ratings": rating_problem, "photograph": photograph_problem}

# Starts and ends of the flows. `t1` lies beyond the least error on the validation entries.
FLOWS: dict[str, dict[str, Any]] = {
    "ratings": {"gamma": 2.0, "t1": 1.2e4},
    "photograph": {"gamma": 2.0, "t1": 9.5e4},
}


@dataclass(frozen=True)
class Found:
    """What a method made of a problem, how it was chosen, and what may be drawn."""

    completed: Float[np.ndarray, "rows columns"]
    note: str
    drawn: dict[str, Any] | None = None


def flow(problem: Problem, name: str) -> Found:
    """A flow from a small start, stopped where the validation entries are met best."""
    train, validation = ~np.isnan(problem.train), ~np.isnan(problem.validation)
    mean = problem.train[train].mean()
    matrix = np.nan_to_num(np.where(train, problem.train, problem.validation) - mean)
    cost = sf.MatrixCompletion(matrix, train, validation)
    options = FLOWS[name]
    start = sf.gaussian(jax.random.key(0), depth=3, width=64, shape=cost.shape, gamma=options["gamma"])
    run = sf.gradient_flow(cost, start, rtol=1e-3, t1=options["t1"], max_seconds=150, max_saves=100, progress="log")
    assert run.test_cost is not None
    best = int(run.test_cost.argmin())
    drawn = {
        "time": run.time,
        "train": np.sqrt(run.train_cost),
        "validation": np.sqrt(run.test_cost),
        "test": np.array([problem.error(matrix + mean) for matrix in run.end_to_end]),
        "rank": run.rank,
        "best": best,
    }
    work = f"{run.stats['num_steps']} steps, {run.stats['num_hessian_vector_products']} products"
    note = f"rank {run.rank[best]} at t = {run.time[best]:.3g}; {run.stop_reason} after {work}"
    return Found(run.end_to_end[best] + mean, note, drawn)


def mean(problem: Problem, name: str) -> Found:
    """The mean of all entries."""
    return Found(np.full(problem.train.shape, np.nanmean(problem.train)), "")


def biases(problem: Problem, name: str) -> Found:
    """The mean, and how far rows and columns lie from it: damped, as few entries tell little."""
    centre = np.nanmean(problem.train)

    def fit(damping: float) -> Float[np.ndarray, "rows columns"]:
        rest = problem.train - centre
        rows = np.nansum(rest, axis=1, keepdims=True) / (damping + (~np.isnan(rest)).sum(axis=1, keepdims=True))
        rest = rest - rows
        return centre + rows + np.nansum(rest, axis=0) / (damping + (~np.isnan(rest)).sum(axis=0))

    return _choose(problem, "damping", [0.5, 1, 2, 5, 10, 20], fit)


def svd(problem: Problem, name: str) -> Found:
    """The mean in the gaps, then the nearest matrix of rank k."""
    centre = np.nanmean(problem.train)
    left, values, right = np.linalg.svd(np.nan_to_num(problem.train - centre), full_matrices=False)
    return _choose(problem, "k", range(51), lambda k: centre + (left[:, :k] * values[:k]) @ right[:k])


def iterative_svd(problem: Problem, name: str) -> Found:
    """Gaps filled by the nearest matrix of rank k, again and again (30 times), from the mean on."""
    known, centre = ~np.isnan(problem.train), np.nanmean(problem.train)
    filled = np.nan_to_num(problem.train - centre)

    def fit(k: int) -> Float[np.ndarray, "rows columns"]:
        from sklearn.utils.extmath import randomized_svd

        low_rank = np.zeros(filled.shape)
        for _ in range(30):
            left, values, right = randomized_svd(np.where(known, filled, low_rank), k, random_state=0)
            low_rank = (left * values) @ right
        return centre + low_rank

    return _choose(problem, "k", [1, 3, 5, 7, 15], fit)


def simple_imputer(problem: Problem, name: str) -> Found:
    """scikit-learn's `SimpleImputer`: the mean of each column."""
    from sklearn.impute import SimpleImputer

    return Found(np.asarray(SimpleImputer(keep_empty_features=True).fit_transform(problem.train)), "")


def knn_imputer(problem: Problem, name: str) -> Found:
    """scikit-learn's `KNNImputer`: the mean of the nearest rows."""
    from sklearn.impute import KNNImputer

    def fit(k: int) -> Float[np.ndarray, "rows columns"]:
        return KNNImputer(n_neighbors=k, keep_empty_features=True).fit_transform(problem.train)

    return _choose(problem, "neighbours", [5, 20, 50], fit)


def iterative_imputer(problem: Problem, name: str) -> Found:
    """scikit-learn's `IterativeImputer`: each column by ridge regression on the 20 nearest, ten rounds."""
    from sklearn.experimental import enable_iterative_imputer as _  # noqa: F401
    from sklearn.impute import IterativeImputer

    imputer = IterativeImputer(n_nearest_features=20, keep_empty_features=True, random_state=0)
    return Found(np.asarray(imputer.fit_transform(problem.train)), "20 columns each")


def _choose(
    problem: Problem, name: str, numbers: Any, fit: Callable[[Any], Float[np.ndarray, "rows columns"]]
) -> Found:
    """The number that meets the validation entries best."""
    errors = [(problem.validation_error(fit(number)), number) for number in numbers]
    best = min(errors)[1]
    return Found(fit(best), f"{name} = {best}")


METHODS: dict[str, tuple[str, Callable[[Problem, str], Found]]] = {
    "flow": ("saddleflow, depth 3, width 64", flow),
    "mean": ("mean of all", mean),
    "biases": ("means of rows and columns", biases),
    "svd": ("mean-filled SVD of rank k", svd),
    "iterative_svd": ("iterative SVD of rank k", iterative_svd),
    "simple": ("SimpleImputer", simple_imputer),
    "knn": ("KNNImputer", knn_imputer),
    "iterative": ("IterativeImputer", iterative_imputer),
}


def measure(name: str, method: str, path: Path) -> None:
    """A method on a problem, in this process; what was found goes to a file, its numbers to stdout as JSON."""
    begin = time.perf_counter()
    problem = PROBLEMS[name]()
    found = METHODS[method][1](problem, name)
    seconds = time.perf_counter() - begin
    np.savez(path, completed=found.completed, **(found.drawn or {}))
    _tell(problem.error(found.completed), seconds, found.note)


def _tell(error: float, seconds: float, note: str) -> None:
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    print(json.dumps({"error": error, "seconds": seconds, "peak": peak, "note": note}))


def measure_command(name: str, path: Path) -> None:
    """`saddleflow flow --data` on a file of train and validation entries together: it draws its own held-out ones."""
    problem, options = PROBLEMS[name](), FLOWS[name]
    known = pd.DataFrame(np.where(np.isnan(problem.train), problem.validation, problem.train))
    data, out = path.with_suffix(".csv"), path.with_suffix(".nc")
    numbers = {
        "--gamma": options["gamma"],
        "--width": 64,
        "--rtol": 1e-3,
        "--t1": options["t1"],
        "--max-seconds": 120,
    }
    command = ["flow", "--data", str(data), "--center", "--out", str(out)]
    if name == "ratings":
        lines = known.rename_axis(index="user", columns="item").stack().dropna()
        lines.to_frame("rating").to_csv(data)
        command += ["--triplets", "user,item,rating"]
    else:
        known.to_csv(data, index=False, header=False)
    command += [word for option in numbers.items() for word in map(str, option)]
    del known
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "from saddleflow.cli import main; main()", *command], check=True, stdout=sys.stderr
    )
    seconds = time.perf_counter() - begin
    labels: dict[str, Any] = {"index_col": 0} if name == "ratings" else {"header": None}
    table = pd.read_csv(out.with_name(f"{out.stem}_completed.csv"), **labels)
    table.columns = table.columns.astype(int)
    rows, columns = problem.test.shape
    completed = table.reindex(index=range(rows), columns=range(columns)).fillna(np.nanmean(problem.train)).to_numpy()
    np.savez(path, completed=completed)
    _tell(problem.error(completed), seconds, f"at its end, t = {options['t1']:.3g}, on all known entries")


def process(name: str, method: str, folder: Path) -> dict[str, Any] | None:
    """`measure` or `measure_command` in a process of its own; None where that takes longer than `PATIENCE`."""
    call = [sys.executable, __file__, "--measure", name, method, str(_file(folder, name, method))]
    try:
        run = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    return json.loads(run.stdout.splitlines()[-1])


def _file(folder: Path, name: str, method: str) -> Path:
    return folder / f"{name}_{method}.npz"


def table_of(name: str, folder: Path) -> str:
    """A row for every method on a problem."""
    rows = []
    labels = {"command": "`saddleflow flow --data`"} | {method: label for method, (label, _) in METHODS.items()}
    for method, label in labels.items():
        found = process(name, method, folder)
        if found is None:
            rows.append([label, "", f"more than {PATIENCE}", "", ""])
            continue
        numbers = [f"{found['error']:.4f}", f"{found['seconds']:.1f}", f"{found['peak']:.2f}"]
        rows.append([label, *numbers, found["note"]])
        CONSOLE.print(name, *rows[-1])
    return markdown([name, "RMSE on test entries", "seconds", "peak memory, GB", ""], rows)


def draw_photograph(folder: Path, path: Path) -> None:
    """What is known, what the flow and the best other method make of it, and the original."""
    from saddleflow import plotting

    problem, original = photograph_problem(), photograph()
    known = np.where(np.isnan(problem.train), problem.validation, problem.train)
    pictures = {"known pixels, 30 %": known}
    for method, title in (("flow", "completed by the flow"), ("iterative_svd", "by iterative SVD")):
        completed = np.load(_file(folder, "photograph", method))["completed"]
        filled = np.where(np.isnan(known), completed, known)
        pictures[f"{title}: RMSE {problem.error(completed):.3f}"] = np.clip(filled, 0, 1)
    pictures["original"] = original
    with plotting.style():
        figure, axes = plotting.subplots(2, 2, figsize=(7.5, 5.4))
        for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_title(title)
            axis.set_axis_off()
        figure.savefig(path)
        plotting.close(figure)


def draw_ratings(folder: Path, path: Path) -> None:
    """Errors and rank against the time of the flow."""
    from saddleflow import plotting

    run = np.load(_file(folder, "ratings", "flow"))
    best, shown = int(run["best"]), run["time"] > 0
    with plotting.style():
        figure, (above, below) = plotting.subplots(2, 1, figsize=(6.2, 4.6), sharex=True, height_ratios=[3, 1])
        for part, colour in (("train", plotting.BLUE), ("validation", plotting.ORANGE), ("test", plotting.GREEN)):
            above.plot(run["time"][shown], run[part][shown], color=colour, label=part)
        above.axvline(run["time"][best], color=plotting.MUTED, linewidth=0.8)
        above.set_ylabel("error (RMSE) of a rating")
        above.legend()
        below.step(run["time"][shown], run["rank"][shown], color=plotting.PURPLE, where="post")
        below.axvline(run["time"][best], color=plotting.MUTED, linewidth=0.8)
        below.set_ylabel("rank of A")
        below.set_xlabel("time t of the flow")
        first = np.flatnonzero(run["rank"] > 0)[0]
        below.set_xlim(0.8 * run["time"][first], run["time"][-1])
        figure.savefig(path)
        plotting.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, method, path = arguments.measure
        if method == "command":
            measure_command(name, Path(path))
        else:
            measure(name, method, Path(path))
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tables = [table_of(name, folder) for name in PROBLEMS]
        CONSOLE.print(*tables, sep="\n\n")
        if arguments.write:
            draw_photograph(folder, DOCS / "real_data_photograph.png")
            draw_ratings(folder, DOCS / "real_data_ratings.png")
            write_below(MARK, DOCS / "real_data.md", "Real data at real size", _page(*tables))


def _page(of_ratings: str, of_photograph: str) -> list[str]:
    versions = f"On {os.cpu_count()} cores, jax {jax.__version__}."
    return [
        versions,
        of_ratings,
        "![errors and rank along the flow of the ratings](real_data_ratings.png)",
        of_photograph,
        "![known pixels, completed pictures, original](real_data_photograph.png)",
    ]


if __name__ == "__main__":
    main()
