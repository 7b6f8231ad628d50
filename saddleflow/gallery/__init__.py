"""The gallery: published experiments of this field, repeated, timed and compared with their sources.

>>> sf.gallery.names()[:3]
('A01', 'A02', 'A03')

`saddleflow gallery all` does them all; docs/gallery.md shows them.
"""

from saddleflow.gallery.case import Case, Number, Result
from saddleflow.gallery.page import picture_path, write_page, write_pictures
from saddleflow.gallery.runner import case, names, run, run_all, table

__all__ = [
    "Case",
    "Number",
    "Result",
    "case",
    "names",
    "picture_path",
    "run",
    "run_all",
    "table",
    "write_page",
    "write_pictures",
]
