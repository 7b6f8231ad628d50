"""Cards of results in notebooks: HTML on the notebook's own ground, in its own ink; no matplotlib.

A card never raises, prints or warns: of an object that is odd it shows the text.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from html import escape
from typing import Any

import numpy as np

_BOX = "font-family:sans-serif;font-size:13px;line-height:1.45;background:transparent;color:inherit"
_TABLE = "font-size:inherit;border-collapse:collapse;border:0;background:transparent;color:inherit;margin:4px 0"
_CELL = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;border:0;background:transparent;color:inherit"
_HEAD = f"{_CELL};opacity:0.7;font-weight:normal;white-space:nowrap"


def never_raises(build: Callable[[Any], str]) -> Callable[[Any], str]:
    """A `_repr_html_` that shows the text instead of an error, and keeps its warnings to itself."""

    @wraps(build)
    def safe(self: Any) -> str:
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                return build(self)
        except Exception:
            return _as_text(self)

    return safe


def _as_text(thing: Any) -> str:
    try:
        text = repr(thing)
    except Exception as error:
        text = f"{type(thing).__name__} (no text: {type(error).__name__})"
    return f'<pre style="background:transparent;color:inherit">{escape(text)}</pre>'


def card(title: str, rows: Iterable[tuple[str, str]], *below: str) -> str:
    """A title, a table of names and what is to be said of them, and what stands below.

    Args:
        title: plain text.
        rows: pairs of plain texts.
        below: pieces of HTML, such as a picture or `table(...)`.
    """
    lines = "".join(
        f'<tr style="background:transparent"><td style="{_HEAD}">{escape(name)}</td>'
        f'<td style="{_CELL}">{escape(text)}</td></tr>'
        for name, text in rows
    )
    body = f'<table style="{_TABLE}"><tbody>{lines}</tbody></table>'
    return f'<div style="{_BOX}"><b>{escape(title)}</b>{body}{"".join(below)}</div>'


def card_of(text: str, *below: str) -> str:
    """The card of a text card: a title, and lines "name : text"."""
    title, *lines = text.splitlines()
    pairs = [line.partition(" : ") for line in lines]
    rows = [(name.strip(), text.strip()) if mark else ("", name.strip()) for name, mark, text in pairs]
    return card(title, rows, *below)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; a column without any is left out."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    columns, rows = [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]
    head = "".join(f'<th style="{_HEAD}">{escape(name)}</th>' for name in columns)
    body = "".join(
        '<tr style="background:transparent">'
        + "".join(f'<td style="{_CELL}">{escape(text)}</td>' for text in row)
        + "</tr>"
        for row in rows
    )
    inner = f'<table style="{_TABLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div style="{_BOX}">{inner}</div>'
