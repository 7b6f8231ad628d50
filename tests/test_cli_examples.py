"""The examples in the help of the command line: each is a command that it takes, and runs."""

import re
import shlex

import numpy as np
import pytest
import typer.main

from saddleflow import cli

COMMANDS = typer.main.get_command(cli.app).commands
EXAMPLES = [
    example
    for command in COMMANDS.values()
    for example in re.findall(r"`saddleflow ([^`]+)`", command.callback.__doc__ or "")
]
# Not run here: pages that never end are tests/test_explorer.py's; these take minutes, and make pages of the site.
LONG = ("explore", "gallery all", "verify --quick", "figure 4 alphas")


def test_every_command_has_examples():
    assert {shlex.split(example)[0] for example in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_taken(example):
    """Each of its options is one of the command's, and given."""
    name, *words = shlex.split(example)
    command = COMMANDS[name]
    context = command.make_context(name, list(words))
    given = {word for word in words if word.startswith("--")}
    options = {text: one.name for one in command.params for text in (*one.opts, *one.secondary_opts)}
    assert given <= set(options)
    assert {context.get_parameter_source(options[word]).name for word in given} <= {"COMMANDLINE"}
    assert context.params.keys() >= {options[word] for word in given}


def write_ratings(path, as_triplets):
    """A matrix of rank 2 with gaps; as one rating per line, or as it is."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((12, 2)) @ rng.standard_normal((2, 9))
    known = rng.random(matrix.shape) < 0.8
    if as_triplets:
        lines = [f"{i},{j},{matrix[i, j]}" for i, j in zip(*np.nonzero(known), strict=True)]
        path.write_text("\n".join(["user,item,rating", *lines]) + "\n")
    else:
        np.savetxt(path, np.where(known, matrix, np.nan), delimiter=",")


@pytest.mark.slow
@pytest.mark.parametrize("example", [one for one in EXAMPLES if not one.startswith(LONG)])
def test_an_example_runs(example, tmp_path, monkeypatch, run_cli):
    monkeypatch.chdir(tmp_path)
    if "ratings.csv" in example:
        write_ratings(tmp_path / "ratings.csv", "--triplets" in example)
    if "--ledger" in example:
        assert run_cli("verify", "--only", "symmetry", "--json", "ledger.json")[0] == 0
    before = set(tmp_path.iterdir())
    code, text, error = run_cli(*shlex.split(example))
    assert code == 0, error
    assert text
    silent = example == "gallery" or "--list-settings" in example
    assert silent or set(tmp_path.iterdir()) > before
