import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

import saddleflow as sf

MATRIX = np.array([[1.0, np.nan, 3.5], [-4.0, 5.0, np.nan], [7.0, 8.0, 9e3], [1.0, 2.0, 3.0]])


def write(path):
    if path.suffix == ".csv":
        path.write_text("1,,3.5\n-4,5,NA\n\n7,8, 9e3\n1,2,3\n")
    elif path.suffix == ".npy":
        np.save(path, MATRIX)
    else:
        names = ["a", "b", "c"]
        pyarrow.parquet.write_table(pyarrow.table({n: c for n, c in zip(names, MATRIX.T, strict=True)}), path)
    return path


@pytest.mark.parametrize("name", ["m.csv", "m.npy", "m.parquet"])
def test_reads_gaps_and_holds_out_a_share(tmp_path, name):
    cost = sf.read_matrix(write(tmp_path / name), held_out=0.2)
    known = ~np.isnan(MATRIX)
    assert int(cost.held_out.sum()) == 2
    np.testing.assert_array_equal(cost.observed | cost.held_out, known)
    np.testing.assert_array_equal(cost.target, np.nan_to_num(MATRIX))
    again = sf.read_matrix(tmp_path / name, held_out=0.2)
    np.testing.assert_array_equal(cost.held_out, again.held_out)
    other = sf.read_matrix(tmp_path / name, held_out=0.2, seed=1)
    assert not np.array_equal(cost.held_out, other.held_out)


def test_nothing_held_out(tmp_path):
    cost = sf.read_matrix(write(tmp_path / "m.csv"), held_out=0.0)
    assert not cost.has_test


def test_header(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("x,y\n1,2\n3,4\n")
    assert sf.read_matrix(path, header=True).shape == (2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,abc\n", "got 'abc' in row 2, column 2.*header=True"),
        ("1,2\n3\n", "have 2 cells in every row, as in row 1, but got '1 cells in row 2'"),
        ("1,2\n3,4,5\n", "'3 cells in row 2'"),
        ("", "hold at least one row of numbers"),
        ("\n\n", "hold at least one row of numbers"),
        ("1,inf\n", "hold finite values"),
        (",\n,\n", "leave at least one known entry"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        sf.read_matrix(path)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in one of .*'.csv'"):
        sf.read_matrix(tmp_path / "m.xlsx")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sf.read_matrix(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="`held_out` must be a share"):
        sf.read_matrix(write(tmp_path / "m.csv"), held_out=1.0)
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    with pytest.raises(ValueError, match="hold real numbers"):
        sf.read_matrix(tmp_path / "text.npy")
    np.save(tmp_path / "cube.npy", np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match="hold a matrix with rows"):
        sf.read_matrix(tmp_path / "cube.npy")
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x", "y"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="hold numeric columns"):
        sf.read_matrix(tmp_path / "text.parquet")


TRIPLETS = ("who", "what", "stars")


def write_triplets(path, lines, columns=("stars", "who", "when", "what")):
    table = pd.DataFrame(lines, columns=list(columns))
    table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_triplets(tmp_path, name):
    """Users 10, 9 and 100 are sorted as the integers they are, items as text; the order of lines does not matter."""
    lines = [(5, 10, 0, "b"), (1, 9, 0, "NA"), (2.5, 9, 0, "b"), (4, 100, 1, "a, c")]
    table = sf.read_table(write_triplets(tmp_path / name, lines), triplets=TRIPLETS)
    assert list(table.index) == [9, 10, 100]
    assert list(table.columns) == ["NA", "a, c", "b"]
    assert (table.index.name, table.columns.name) == ("who", "what")
    nan = np.nan
    np.testing.assert_array_equal(table, [[1, nan, 2.5], [nan, nan, 5], [nan, 4, nan]])
    cost = sf.read_matrix(tmp_path / name, triplets=TRIPLETS, held_out=0.25)
    np.testing.assert_array_equal(cost.target, np.nan_to_num(table))
    np.testing.assert_array_equal(cost.observed | cost.held_out, ~np.isnan(table))
    assert int(cost.held_out.sum()) == 1
    again = sf.read_matrix(write_triplets(tmp_path / name, lines[::-1]), triplets=TRIPLETS, held_out=0.25)
    np.testing.assert_array_equal(cost.held_out, again.held_out)


def test_labels_of_a_csv_are_integers_only_where_all_are_printed_ones(tmp_path):
    path = write_triplets(tmp_path / "m.csv", [(1, "007", 0, "-2"), (2, "7", 0, "10")])
    table = sf.read_table(path, triplets=TRIPLETS)
    assert list(table.index) == ["007", "7"]
    assert list(table.columns) == [-2, 10]


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([(1, "x", 0, "a"), (2, "x", 0, "b"), (3, "x", 0, "a")], r"\('x', 'a'\) again in line 3 .* one of 1 .*mean"),
        ([(1, "x", 0, "a"), (np.inf, "y", 0, "a")], "finite number in every line of 'stars'.*inf in line 2"),
        ([("1", "x", 0, "a"), ("good", "y", 0, "a")], "finite number .*good in line 2 after the header.*gap"),
        ([(1, "x", 0, "a"), (np.nan, "y", 0, "a")], "finite number .* in line 2 after the header"),
        ([(1, "x", 0, "a"), (1, None, 0, "a")], "have a label in every line of 'who', but got 'none in line 2"),
        ([], "hold at least one rating"),
    ],
)
def test_bad_triplets(tmp_path, name, lines, message):
    path = write_triplets(tmp_path / name, lines)
    with pytest.raises(ValueError, match=message):
        sf.read_table(path, triplets=TRIPLETS)


def test_bad_names_of_triplets(tmp_path):
    path = write_triplets(tmp_path / "m.csv", [(1, "x", 0, "a")])
    with pytest.raises(ValueError, match=r"`triplets` must name columns of the file, \['stars'.*got \['rating'\]"):
        sf.read_matrix(path, triplets=("who", "what", "rating"))
    with pytest.raises(ValueError, match="`triplets` must name three columns"):
        sf.read_matrix(path, triplets=("who", "who", "stars"))
    with pytest.raises(ValueError, match=r"end in .csv or .parquet to hold triplets"):
        sf.read_matrix(write(tmp_path / "m.npy"), triplets=TRIPLETS)
    path.write_text("")
    with pytest.raises(ValueError, match="name columns of the file"):
        sf.read_matrix(path, triplets=TRIPLETS)


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_file_that_looks_like_triplets(tmp_path, name, header):
    path = write_triplets(tmp_path / name, [(1, 2, 3.5, 0)], ("userId", "movieId", "rating", "timestamp"))
    with pytest.raises(ValueError, match=r"hold a matrix.*one rating a line.*triplets="):
        sf.read_matrix(path, header=header)


def test_names_are_kept_in_a_table(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("x,y\n1, NA\n3,1_000\n")
    table = sf.read_table(path, header=True)
    assert list(table.columns) == ["x", "y"]
    np.testing.assert_array_equal(table.to_numpy(float), [[1, np.nan], [3, 1000]])
