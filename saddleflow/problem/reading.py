"""A user's matrix with gaps, from a file to a matrix completion cost."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy
import numpy as np
from jaxtyping import Float

from saddleflow._backend import arguments
from saddleflow._backend.arguments import takes
from saddleflow._backend.checks import require
from saddleflow._backend.files import readable, require_room
from saddleflow.problem.costs import MatrixCompletion

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")

GAPS = {"", "nan", "na", "n/a", "null", "none", "?"}
SPELLINGS = sorted({spelling for gap in GAPS for spelling in (gap, gap.upper(), gap.title(), "NaN")})

_names = arguments.sequence_of(arguments.text, "('user', 'item', 'rating')")


def columns(argument: str, value: Any) -> tuple[str, ...]:
    """The names of columns."""
    return tuple(_names(argument, value))


TABLE = {"path": arguments.path, "header": arguments.boolean, "triplets": arguments.optional(columns)}

TRIPLETS = "Of a file with one rating a line, name the columns: triplets=('user', 'item', 'rating')."


@takes(**TABLE, held_out=arguments.number(), seed=arguments.integer(0, arguments.MOST_SEED))
def read_matrix(
    path: str | Path,
    *,
    held_out: float = 0.1,
    seed: int = 0,
    header: bool = False,
    triplets: tuple[str, str, str] | None = None,
) -> MatrixCompletion:
    """Read a matrix with gaps and set a share of its known entries aside as the test set.

    >>> np.savetxt("matrix.csv", [[1.0, 2.0, np.nan], [2.0, np.nan, 6.0]], delimiter=",")
    >>> cost = sf.read_matrix("matrix.csv", held_out=0.25)
    >>> cost.shape, cost.num_observed, int(cost.held_out.sum())
    ((2, 3), 3, 1)
    >>> import pandas as pd
    >>> ratings = {"user": ["ann", "bob", "bob"], "item": ["film", "book", "film"], "rating": [4, 3, 5]}
    >>> pd.DataFrame(ratings).to_csv("ratings.csv", index=False)
    >>> sf.read_matrix("ratings.csv", triplets=("user", "item", "rating"), held_out=0.0).shape
    (2, 2)

    The held-out entries are drawn uniformly, `round(held_out * known)` of them: the first ones in the permutation
    that `numpy.random.default_rng(seed)` draws of the known entries, in row-major order. (So the order of the lines
    of triplets does not matter.)

    Args:
        path: a .csv (gaps: empty cells, NaN, NA), .npy (float64 or integer, gaps: NaN) or .parquet file.
        held_out: share of the known entries that test instead of training, in [0, 1).
        seed: of the draw of the held-out entries.
        header: whether the first row of a csv holds names.
        triplets: names of three columns, for users, items and ratings: the file (csv with a header, or parquet) holds
            one known entry a line. Rows of the matrix are the sorted users, columns the sorted items; `read_table`
            returns them as labels. Other columns are left aside.

    Returns:
        The cost: `cost.target` is the matrix (zero at gaps), `cost.observed` and `cost.held_out` its two sets
        of known entries; entries in neither are the gaps.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file type, or a file that is not what its name says; text cells, ragged rows, no rows,
            infinite values, no known entry, or a share that leaves no entry to train on; of triplets also columns
            that are not there, lines without a label or a rating, and pairs of user and item that come twice. The
            message names the file.
    """
    return split(read_table(path, header=header, triplets=triplets), held_out=held_out, seed=seed)


@takes(**TABLE)
def read_table(
    path: str | Path, *, header: bool = False, triplets: tuple[str, str, str] | None = None
) -> "pd.DataFrame":
    """Read a matrix with gaps as a table, NaN at the gaps: that of `read_matrix`, with its labels.

    >>> import pandas as pd
    >>> ratings = {"user": ["ann", "bob", "bob"], "item": ["film", "book", "film"], "rating": [4, 3, 5]}
    >>> pd.DataFrame(ratings).to_csv("ratings.csv", index=False)
    >>> table = sf.read_table("ratings.csv", triplets=("user", "item", "rating"))
    >>> list(table.index), list(table.columns), float(table.loc["bob", "film"])
    (['ann', 'bob'], ['book', 'film'], 5.0)

    Args:
        path: as in `read_matrix`.
        header: as in `read_matrix`; the names are the labels of the columns.
        triplets: as in `read_matrix`; users label the rows, items the columns. Labels of a csv are integers where all
            of them read as such ("007" does not), else text, compared as text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_matrix`.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".npy": _read_npy, ".parquet": _read_parquet}
    kind = path.suffix.lower()
    require(kind in readers, "path", f"end in one of {sorted(readers)}", str(path))
    with readable(path, f"hold a matrix as a {kind} file does"):
        if triplets is not None:
            return _read_triplets(path, triplets)
        table = _read_csv(path, header) if kind == ".csv" else readers[kind](path)
        require(table.size > 0, "path", "hold a matrix with rows", f"shape {table.shape}")
        require(not np.isinf(table.to_numpy()).any(), "path", "hold finite values", "an infinity")
        return table


def split(table: "pd.DataFrame", *, held_out: float, seed: int) -> MatrixCompletion:
    """The cost of a table with gaps, a share of its known entries held out: see `read_matrix`."""
    require(0 <= held_out < 1, "held_out", "be a share in [0, 1)", held_out)
    matrix = table.to_numpy("float64")
    known = np.flatnonzero(~np.isnan(matrix))
    num_test = round(held_out * len(known))
    require(
        len(known) > num_test,
        "path",
        "leave at least one known entry to train on",
        f"{len(known)} known entries, {num_test} of them held out",
        "Lower `held_out`.",
    )
    order = np.random.default_rng(seed).permutation(len(known))
    test, train = np.zeros(matrix.shape, bool), np.zeros(matrix.shape, bool)
    test.flat[known[order[:num_test]]] = True
    train.flat[known[order[num_test:]]] = True
    return MatrixCompletion(np.nan_to_num(matrix), train, test)


def _read_triplets(path: Path, names: tuple[str, str, str]) -> "pd.DataFrame":
    """A table from lines (user, item, rating)."""
    three = len(names) == 3 and len(set(names)) == 3 and all(isinstance(name, str) for name in names)
    require(three, "triplets", "name three columns, for users, items and ratings", names)
    require(path.suffix.lower() != ".npy", "path", "end in .csv or .parquet to hold triplets", str(path))
    lines = _triplet_lines(path, names)
    require(len(lines) > 0, "path", "hold at least one rating", f"no lines in {str(path)!r}")
    users, rows = _labels(lines[names[0]])
    items, columns = _labels(lines[names[1]])
    ratings = _ratings(lines[names[2]])
    _require_once(users, items, rows, columns, names)
    require_room(8 * len(users) * len(items), path)
    matrix = np.full((len(users), len(items)), np.nan)
    matrix[rows, columns] = ratings
    index, header = pd.Index(users.tolist(), name=names[0]), pd.Index(items.tolist(), name=names[1])
    return pd.DataFrame(matrix, index=index, columns=header)


def _triplet_lines(path: Path, names: tuple[str, str, str]) -> "pd.DataFrame":
    """The three columns; labels of a csv as they are written."""
    how = {"keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        lines = pd.read_csv(path, nrows=0, **how) if path.suffix.lower() == ".csv" else _parquet(path)
    except pd.errors.EmptyDataError:
        lines = pd.DataFrame()
    found = list(lines.columns)
    missing = [name for name in names if name not in found]
    require(not missing, "triplets", f"name columns of the file, {found}", missing, "A csv needs a header.")
    if path.suffix.lower() == ".parquet":
        return lines
    return pd.read_csv(path, usecols=list(names), dtype=dict.fromkeys(names[:2], str), low_memory=False, **how)


def _labels(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """The sorted distinct labels of a column, and which of them is where."""
    codes, found = pd.factorize(column)
    labels = np.asarray(found, object)
    bad = np.flatnonzero((codes < 0) | (labels[codes] == ""))
    require(
        len(bad) == 0,
        "path",
        f"have a label in every line of {column.name!r}",
        f"none in line {bad[0] + 1 if len(bad) else 0} after the header",
        "Drop that line.",
    )
    if all(isinstance(label, str) and _is_integer(label) for label in labels):
        labels = np.array([int(label) for label in labels], object)
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    return labels[order], place[codes]


def _is_integer(text: str) -> bool:
    """Whether a text is an integer as it is printed: not 007, which is another label than 7."""
    return text.isascii() and text.removeprefix("-").isdigit() and str(int(text)) == text


def _ratings(column: Any) -> Float[np.ndarray, " lines"]:
    """The ratings of a column, which must all be finite numbers."""
    ratings = pd.Series(pd.to_numeric(column, errors="coerce")).to_numpy("float64", na_value=np.nan)
    bad = np.flatnonzero(~np.isfinite(ratings))
    require(
        len(bad) == 0,
        "path",
        f"have a finite number in every line of {column.name!r}",
        f"{str(column.iloc[bad[0]]) or 'an empty cell'} in line {bad[0] + 1} after the header" if len(bad) else "",
        "Leave lines without a rating out: every pair that has no line is a gap.",
    )
    return ratings


def _require_once(
    users: np.ndarray, items: np.ndarray, rows: np.ndarray, columns: np.ndarray, names: tuple[str, str, str]
) -> None:
    """Refuse two ratings of one entry."""
    pairs = rows * len(items) + columns
    order = np.argsort(pairs, kind="stable")
    again = order[1:][np.diff(pairs[order]) == 0]
    if len(again):
        line = int(again.min())
        raise ValueError(
            f"`path` must hold every pair of {names[0]!r} and {names[1]!r} once, but got ({users[rows[line]]!r}, "
            f"{items[columns[line]]!r}) again in line {line + 1} after the header, one of {len(again)} such lines. "
            "Take the mean of each pair, or the last: pandas' groupby(...).mean() or drop_duplicates(...)."
        )


def _read_csv(path: Path, header: bool = False) -> "pd.DataFrame":
    _require_rectangular(path)
    how = {"header": 0 if header else None, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        table = pd.read_csv(path, dtype="float64", na_values=SPELLINGS, skipinitialspace=True, **how)
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    except ValueError:  # cell by cell, to name the bad one; or gaps and numbers that only Python reads
        table = pd.read_csv(path, dtype=str, **how)
        _refuse_triplets([str(cell) for cell in (table.columns if header else table.iloc[0])])
        rows = enumerate(table.to_numpy(object), 1)
        cells = [[_cell(text, i, j) for j, text in enumerate(row, 1)] for i, row in rows]
        table = pd.DataFrame(cells, columns=table.columns, dtype="float64")
    if header:
        _refuse_triplets([str(name) for name in table.columns])
    require(len(table) > 0, "path", "hold at least one row of numbers", f"no rows in {str(path)!r}")
    return table


def _refuse_triplets(names: list[str]) -> None:
    """Say what to do with a file that is no matrix, but one rating a line."""
    starts = [name.strip().lower()[:4] for name in names]
    ratings = 3 <= len(names) <= 5 and "user" in starts and bool({"rati", "scor", "valu"} & set(starts))
    require(not ratings, "path", "hold a matrix", f"the columns {names}", TRIPLETS)


def _require_rectangular(path: Path) -> None:
    """Refuse rows of different lengths, of which pandas would take the short ones to end in gaps."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lengths = [len(row) for row in csv.reader(file) if row]
    for number, length in enumerate(lengths, start=1):
        require(
            length == lengths[0],
            "path",
            f"have {lengths[0]} cells in every row, as in row 1",
            f"{length} cells in row {number}",
            "Write gaps as empty cells between commas.",
        )


def _cell(text: str, row: int, column: int) -> float:
    if text.strip().lower() in GAPS:
        return np.nan
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"`path` must hold numbers and gaps, but got {text!r} in row {row}, column {column}. "
            "Pass header=True if the first row holds names, and drop text columns."
        ) from None


def _read_npy(path: Path) -> "pd.DataFrame":
    # mapped, not read: a header that declares more than the file holds allocates nothing; pickles are refused
    matrix = np.lib.format.open_memmap(path, mode="r")
    require(matrix.dtype.kind in "fiu", "path", "hold real numbers", str(matrix.dtype))
    require(matrix.ndim == 2, "path", "hold a matrix with rows", f"shape {matrix.shape}")
    require_room(8 * matrix.size, path)
    return pd.DataFrame(np.array(matrix, "float64"))


def _read_parquet(path: Path) -> "pd.DataFrame":
    table = _parquet(path)
    _refuse_triplets([str(name) for name in table.columns])
    for name, dtype in table.dtypes.items():
        require(getattr(dtype, "kind", "O") in "fiu", "path", "hold numeric columns", f"{dtype} in {name!r}")
    return table.astype("float64")


def _parquet(path: Path) -> "pd.DataFrame":
    try:
        import pyarrow.parquet

        declared = pyarrow.parquet.read_metadata(path)
        require_room(8 * declared.num_rows * declared.num_columns, path)
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise ImportError("Reading parquet needs pyarrow: pip install 'saddleflow[parquet]'.") from None
