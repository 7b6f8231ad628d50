"""Wrong command lines: one line on stderr that names the argument and the remedy, exit code 2, nothing written."""

import csv

import pytest

from saddleflow import cli

# The words of a command line, and what its error must say.
FLOW = [
    (["--depht", "4"], "No such option: --depht (Possible options"),
    (["--depth", "x"], "'--depth'"),
    (["--depth"], "'--depth' requires an argument"),
    (["extra"], "unexpected extra argument"),
    (["--progress", "loud"], "'auto', 'log', 'off'"),
    (["--seed", "-1"], "'--seed'"),
    (["--seed", "99999999999999999999"], "'--seed'"),
    (["--out", "run.png"], "`out` must end in .nc, but got 'run.png'. For example run.nc."),
    (["--out", "nodir/run.nc"], "`out` must lie in an existing folder, but got 'nodir/run.nc'. Create the folder"),
    (["--out", "folder.nc"], "`out` must be a file, but got 'folder.nc, a folder'. Give the name of a file."),
    (["--out", "there.nc"], "`out` must not exist yet, but got 'there.nc'. Pass force=True (--force)."),
    (["--out", "beside.nc"], "`out` must not exist yet, but got 'beside.png'. Pass force=True (--force)."),
    (["--out", f"{'n' * 300}.nc"], "`out` must be a path that a file can have"),
    (["--shape", "0x3"], "`shape` must read like 10x10, rows x columns, both positive, but got '0x3'"),
    (["--shape", "3"], "`shape` must read like 10x10"),
    (["--shape", "3x3x3"], "`shape` must read like 10x10"),
    (["--rank", "0"], "`rank` must be an integer >= 1"),
    (["--rank", "99"], "`rank` must be at most min(shape) = 10, but got 99"),
    (["--observed", "2"], "`observed` must be a share in (0, 1], but got 2.0"),
    (["--observed", "nan"], "`observed` must be a share in (0, 1], but got nan"),
    (["--depth", "0"], "`depth` must be an integer >= 1, but got 0"),
    (["--width", "0"], "`width` must be"),
    (["--gamma", "nan"], "`gamma` must be"),
    (["--alpha", "0"], "`alpha` must be"),
    (["--t1", "-1"], "`t1` must be"),
    (["--t1", "nan"], "`t1` must be"),
    (["--max-seconds", "0"], "`max_seconds` must be"),
    (["--target-cost", "nan"], "`target_cost` must"),
    (["--rtol", "2"], "`rtol` must lie in"),
    (["--held-out", "0.2"], "`held_out` must come with --data, but got 0.2. Give --data"),
    (["--header"], "`header` must come with --data"),
    (["--center"], "`center` must come with --data"),
    (["--triplets", "a,b,c"], "`triplets` must come with --data"),
    (["--data", "none.csv"], "there is no file 'none.csv'"),
    (["--data", "m.xlsx"], "`path` must end in one of ['.csv', '.npy', '.parquet'], but got 'm.xlsx'"),
    (["--data", "folder.csv"], "`path` must be a file, but got 'folder.csv, none'"),
    (["--data", "text.csv"], "'a' in row 1, column 1. Pass header=True"),
    (["--data", "text.csv", "--triplets", "a,b"], "`triplets` must name three columns, as user,item,rating"),
    (["--data", "m.csv", "--held-out", "1"], "`held_out` must be a share in [0, 1), but got 1.0"),
    (["--data", "m.csv", "--rank", "1"], "`rank` must come without --data, but got 1"),
    (["--data", "m_completed.csv", "--out", "m.nc", "--force"], "`out` must not be what is read, or a store"),
]
SWEEP = [
    ([], "Missing argument 'grid'"),
    (["gamma"], "`grid` must read like gamma=0.75,1 or seed=0:10, but got 'gamma'"),
    (["gamma="], "`grid` must read like"),
    (["gama=1,2"], "Did you mean `gamma`?"),
    (
        ["t1=5"],
        "`grid` must name one of depth, width, gamma, variance, alpha, seed, rtol, but got 't1'. It is",
    ),
    (["cost=1"], "`grid` must name one of depth, width, gamma"),
    (["gamma=1", "gamma=2"], "`grid` must name each axis once, but got 'gamma=2'. Values in a list: gamma=1,2,3."),
    (["gamma=1", "variance=2"], "`gamma, variance` must be given one and not both"),
    (["gamma=a"], "`gamma` must be floats, as in 1,2,3 or 0:10, but got 'a'"),
    (["gamma=1,1"], "`gamma` must hold each value once"),
    (["seed=5:2"], "`seed` must be a range of 1 to 1000000 values, but got '5:2'"),
    (["seed=0:100000000000"], "`seed` must be a range of 1 to 1000000 values"),
    (["seed=0:1:2"], "`seed` must be ints"),
    (["seed=-1"], "`seed` must be an integer >= 0"),
    (["depth=1.5"], "`depth` must be ints"),
    (["width=0"], "`width` must be"),
    (["rtol=2"], "`rtol` must lie in"),
    (["gamma=1", "--shape", "0x3"], "`shape` must read like 10x10"),
    (["gamma=1", "--num-times", "5"], "`t1` must be given where save_at is a number of times"),
    (["gamma=1", "--reduce-width", "maybe"], "`reduce_width` must be None or one of ('auto', 'sample')"),
    (["gamma=1", "--store", "folder.nc"], "`store` must be new or the store of a sweep, but got 'folder.nc"),
    (
        ["gamma=1", "--store", "there.nc"],
        "`store` must be new or the store of a sweep, but got 'there.nc, no",
    ),
    (["gamma=1", "--store", "nodir/s.zarr"], "`store` must"),
    (["gamma=1", "--store", "s.nc", "--out", "s.nc"], "`out` must not be what is read, or a store"),
    (["gamma=1", "--out", "s.png"], "`out` must end in .nc"),
    (["gamma=1", "--t1", "nan"], "`t1` must be finite and positive, but got nan"),
    (["gamma=1", "--held-out", ".3"], "`held_out` must come with --data"),
]
OTHERS = [
    (["flo"], "No such command 'flo'. Did you mean 'flow'?"),
    (["--versio"], "No such option: --versio"),
    (["figure"], "Missing argument 'number'"),
    (["figure", "7"], "`number` must be one of 1, 2, 3, 4, 5, or all, but got '7'"),
    (["figure", "1", "widht=3"], "`settings` must be name=value with a name of ['depth'"),
    (["figure", "1", "progress=log"], "`settings` must be name=value"),
    (["figure", "1", "seed=1", "seed=2"], "`settings` must name each once, but got 'seed=2'"),
    (["figure", "4", "width=ten"], "`width` must read as int, but got 'ten'"),
    (["figure", "1", "depth=1"], "`depth` must be an integer >= 2"),
    (["figure", "all", "alphas=1"], "`settings` must be name=value"),
    (["figure", "1", "--out", "there.nc"], "`out` must be a folder, but got 'there.nc, none'"),
    (["figure", "1", "--out", "there.nc/figures"], "`out` must be a folder"),
    (["figure", "2", "--out", "figures"], "`out` must not exist yet, but got 'figures/figure2.pdf'"),
    (["verify", "--only", "nonsense"], "`only` must name claims: "),
    (["verify", "--ledger", "none.json"], "there is no file 'none.json'"),
    (["verify", "--ledger", "text.csv"], "`path` must be a ledger as `saddleflow verify --json` writes it"),
    (["verify", "--ledger", "none.json", "--full"], "`ledger` must come without --full, --only and --json"),
    (["verify", "--json", "x.nc"], "`json` must not end in .nc"),
    (["verify", "--json", "nodir/x.json"], "`json` must lie in an existing folder"),
    (["verify", "--json", "x.md", "--page", "x.md"], "`json, page` must give each file a name of its own"),
    (["verify", "--page", "."], "`page` must be a file"),
]
TABLE = [(["flow", *words], message) for words, message in FLOW]
TABLE += [(["sweep", *words], message) for words, message in SWEEP] + OTHERS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with some files that are not ours."""
    monkeypatch.chdir(tmp_path)
    for name in ("there.nc", "beside.png"):
        (tmp_path / name).write_text("mine")
    for name in ("folder.nc", "folder.csv", "figures"):
        (tmp_path / name).mkdir()
    (tmp_path / "figures" / "figure2.pdf").write_text("mine")
    (tmp_path / "folder.nc" / "file").write_text("mine")
    (tmp_path / "text.csv").write_text("a,b\nc,d\n")
    for name in ("m.csv", "m_completed.csv"):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([[1, 2], [3, ""]])
    return tmp_path


def listing(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("words", "message"), TABLE, ids=[" ".join(words)[:60] for words, _ in TABLE])
def test_one_line_names_the_argument_and_the_remedy(folder, monkeypatch, capsys, words, message):
    before = listing(folder)
    monkeypatch.setattr("sys.argv", ["saddleflow", *words])
    code = cli._run()
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("saddleflow: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert listing(folder) == before


def test_there_are_many():
    assert len(TABLE) >= 80


def test_without_a_command_comes_the_help(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["saddleflow"])
    cli._run()
    printed = capsys.readouterr()
    assert "Usage" in printed.out + printed.err


def test_shell_completion_is_on(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["saddleflow", "--help"])
    assert cli._run() == 0
    assert "--install-completion" in capsys.readouterr().out
    monkeypatch.setenv("_SADDLEFLOW_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "saddleflow sw")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setattr("sys.argv", ["saddleflow"])
    assert cli._run() == 0
    assert capsys.readouterr().out.split() == ["sweep"]
