"""A user's matrix with gaps, from a file to a matrix completion cost."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader as lazy
import numpy as np

from saddleflow._backend.checks import require
from saddleflow.problem.costs import MatrixCompletion

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")

GAPS = {"", "nan", "na", "n/a", "null", "none", "?"}


def read_matrix(path: str | Path, *, held_out: float = 0.1, seed: int = 0, header: bool = False) -> MatrixCompletion:
    """Read a matrix with gaps and set a share of its known entries aside as the test set.

    Args:
        path: a .csv (gaps: empty cells, NaN, NA), .npy (float64 or integer, gaps: NaN) or .parquet file.
        held_out: share of the known entries that test instead of training, in [0, 1).
        seed: of the draw of the held-out entries.
        header: whether the first row of a csv holds names.

    Returns:
        The cost: `cost.target` is the matrix (zero at gaps), `cost.observed` and `cost.held_out` its two sets
        of known entries; entries in neither are the gaps.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file type, text cells, ragged rows, no rows, infinite values, no known entry, or a
            share that leaves no entry to train on.
    """
    path = Path(path)
    readers = {".csv": _read_csv, ".npy": _read_npy, ".parquet": _read_parquet}
    require(path.suffix in readers, "path", f"end in one of {sorted(readers)}", str(path))
    if not path.exists():
        raise FileNotFoundError(f"`path`: there is no file {str(path)!r}.")
    matrix = _read_csv(path, header) if path.suffix == ".csv" else readers[path.suffix](path)
    require(matrix.ndim == 2 and matrix.size > 0, "path", "hold a matrix with rows", f"shape {matrix.shape}")
    known = np.argwhere(~np.isnan(matrix))
    require(bool(np.isfinite(matrix[~np.isnan(matrix)]).all()), "path", "hold finite values", "an infinity")
    require(0 <= held_out < 1, "held_out", "be a share in [0, 1)", held_out)
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
    test[tuple(known[order[:num_test]].T)] = True
    train[tuple(known[order[num_test:]].T)] = True
    return MatrixCompletion(np.nan_to_num(matrix), train, test)


def _read_csv(path: Path, header: bool = False) -> np.ndarray:
    _require_rectangular(path)
    try:
        table = pd.read_csv(
            path, header=0 if header else None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    require(len(table) > 0, "path", "hold at least one row of numbers", f"no rows in {str(path)!r}")
    rows = enumerate(table.to_numpy(object), 1)
    return np.array([[_cell(text, i, j) for j, text in enumerate(row, 1)] for i, row in rows])


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


def _read_npy(path: Path) -> np.ndarray:
    matrix = np.load(path, allow_pickle=False)
    require(matrix.dtype.kind in "fiu", "path", "hold real numbers", str(matrix.dtype))
    return matrix.astype("float64")


def _read_parquet(path: Path) -> np.ndarray:
    try:
        table = pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise ImportError("Reading parquet needs pyarrow: pip install 'saddleflow[parquet]'.") from None
    for name, dtype in table.dtypes.items():
        require(getattr(dtype, "kind", "O") in "fiu", "path", "hold numeric columns", f"{dtype} in {name!r}")
    return table.to_numpy("float64")
