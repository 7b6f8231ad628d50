import numpy as np
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
