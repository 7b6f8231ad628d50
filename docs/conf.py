"""The site: Sphinx reads the Markdown pages, runs the notebooks, and makes the API pages from the docstrings."""

import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from docutils.parsers.rst.states import Inliner
from nbclient import NotebookClient
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

import saddleflow

HERE = Path(__file__).parent

project = "saddleflow"
author = "the saddleflow authors"
version = release = saddleflow.__version__

extensions = [
    "myst_nb",  # Markdown pages and notebooks
    "sphinx.ext.autodoc",  # API pages from the docstrings,
    "sphinx.ext.napoleon",  # which are in Google's style
    "sphinx.ext.mathjax",  # formulas,
    "sphinx-mathjax-offline",  # also where there is no network
    "sphinx_copybutton",  # code is copied with one click, without its prompts
]
# What a page links to exists: files, headings, Python names. With `-W` a dead link fails the build.
nitpicky = True
# Other libraries' names are not links: their indices lie in the network, and a build needs none.
OTHERS = (
    "beartype",
    "collections",
    "dask",
    "diffrax",
    "distributed",
    "equinox",
    "jax",
    "jaxlib",
    "jaxtyping",
    "matplotlib",
    "numpy",
    "optax",
    "optimistix",
    "pandas",
    "pathlib",
    "rich",
    "scipy",
    "types",
    "typing",
    "xarray",
    "xr",
    "zarr",
)
# Nor are classes of our own that have no page.
INTERNAL = (
    "flow.arguments.FlowOptions",
    "flow.model_landscape.ModelLandscape",
    "flow.residual.Residual",
    "problem.classification.LabelledSet",
    "problem.costs._Entries",
    "problem.layered.Layered",
    "problem.objective.WeightDecay",
    "problem.padding.Padding",
    "solvers.ndf.NDFInterpolation",
    "solvers.rosenbrock.RosenbrockInterpolation",
    "solvers.switching.SwitchingInterpolation",
    "sweeps.after.After",
    "sweeps.lanes.Lane",
    "sweeps.lanes.Program",
    "sweeps.results.LaneResult",
    "sweeps.workers.Tally",
)
SHAPE = r"'[^']*'?|\d+|"  # of jaxtyping: "time n_out n_in"
WORD = r"~?\w+"  # a built-in class, or one of jaxtyping's: ours have their module before them
nitpick_ignore_regex = [
    ("py:.*", rf"({'|'.join(OTHERS)})(\..*)?"),
    ("py:.*", rf"saddleflow\.({'|'.join(map(re.escape, INTERNAL))})"),
    ("py:.*", SHAPE),
    ("py:.*", WORD),
]

# Pages
exclude_patterns = ["_generated"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]  # ```math, which GitHub shows as a formula, too
suppress_warnings = ["misc.highlighting_failure"]  # of plain text that is no Python
smartquotes = False  # `--data` in running text is an option; `fix_dashes` mends the dashes that are some

# Notebooks are run by `run_notebooks`, and shown with what they print. One that fails, or prints a warning, fails the
# build. `-D notebooks=copy` leaves them as they are.
nb_execution_mode = "off"
nb_output_stderr = "remove-warn"
nb_merge_streams = True
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # figures go into the page

# API
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "all"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of diffrax are on its own pages
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
add_module_names = False

# Look
html_theme = "sphinx_book_theme"
html_title = "saddleflow"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],
}
pygments_style = "tango"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# Where a public object is defined -> the name by which users know it, and by which its page has it.
PUBLIC: dict[str, str] = {}
for package in (
    saddleflow,
    *(getattr(saddleflow, name) for name in ("theory", "solvers", "training", "claims", "gallery", "plotting")),
):
    for name in package.__all__:
        value = getattr(package, name)
        defined = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        PUBLIC.setdefault(defined, f"{package.__name__}.{name}")


def run_notebook(source: Path, folder: Path, run: bool) -> None:
    """Lay a notebook beside the pages, run; its links to pages are those of the sources, where it lies elsewhere."""
    notebook = nbformat.reads(source.read_text().replace("](../docs/", "](../"), as_version=4)
    if run:
        options = ["--log-level=ERROR"]  # of the kernel, which else says that it is not encrypted
        NotebookClient(notebook, timeout=600, kernel_name="python3", extra_arguments=options).execute()
    nbformat.write(notebook, folder / source.name)


def run_notebooks(app: Sphinx) -> None:
    """All notebooks, as many at once as there are processes: Sphinx itself would run them one after another."""
    folder = HERE / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sources = sorted(HERE.parent.glob("notebooks/*.ipynb"))
    with ThreadPoolExecutor(app.parallel) as pool:
        run = partial(run_notebook, folder=folder, run=app.config.notebooks == "run")
        list(pool.map(run, sources))  # which raises what they raise


def write_command_line(app: Sphinx) -> None:
    """The help of every command, as Markdown."""
    import typer.cli
    import typer.main

    from saddleflow.cli import app as commands

    command = typer.main.get_command(commands)
    context = typer.Context(command, info_name="saddleflow")
    text = typer.cli.get_docs_for_click(obj=command, ctx=context, name="saddleflow", indent=1)
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / "cli.md").write_text(text)


def plain_bars() -> None:
    """A bar in a docstring is half a norm; reStructuredText would take `|A|` for a text to be put in."""

    def bar(_: Inliner, match: Any, line: int) -> tuple:
        end = match.end("start")
        return match.string[:end], [], match.string[end:], []

    dispatch: Any = Inliner.dispatch
    dispatch["|"] = bar


# Napoleon takes what stands before a colon in a property's first line, or in that of `Returns:`, for a type. Types
# are in the annotations, and sentences have colons; so these hide from it.
HIDDEN = "\N{NULL}"


def hide_colons(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Before Napoleon."""
    for index, before in enumerate(["property:" if what == "property" else "", *lines[:-1]]):
        if before.strip() in ("property:", "Returns:", "Yields:"):
            lines[index] = lines[index].replace(":", HIDDEN)


def show_colons(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """After Napoleon, whose types of attributes are not yet readable."""
    lines[:] = [line.replace(HIDDEN, ":") for line in lines]
    lines[:] = [readable(line).replace("*", "\\*") if line.startswith(":vartype") else line for line in lines]


def readable(annotation: str) -> str:
    """A type as one would say it: `Float[Array, 'out in']`, of JAX's and of NumPy's arrays."""
    text = re.sub(r"~?\b(jaxlib\._jax|jax|jaxtyping|numpy|typing)\.(?=\w+\b(?!\.))", "", annotation)
    return re.sub(r"(\w+)\[Array, ('[^']*')\] \| \1\[ndarray, \2\]", r"\1[Array, \2]", text)


def readable_types(app: Sphinx, what: str, name: str, value: Any, *_: object) -> tuple[str, None] | None:
    """The types of arguments, without those that say no more than that anything is read.

    Of a class that only the library makes, a result with `Attributes:`, no arguments are shown.
    """
    known = app.env.current_document.autodoc_annotations.get(name, {})
    documentation = value.__doc__ or ""
    if what == "class" and "Attributes:" in documentation and "Args:" not in documentation:
        known.clear()
        return "", None
    for argument, annotation in list(known.items()):
        known[argument] = readable(annotation)
        if known[argument] == "Any":
            del known[argument]
    return None


def forget_overloads() -> None:
    """Overloads are for type checkers; readers see the one signature with all its options."""
    folder = Path(saddleflow.__path__[0])
    for path in folder.rglob("*.py"):
        if "@overload" in path.read_text():
            analyzer = ModuleAnalyzer.for_module(".".join(path.relative_to(folder.parent).with_suffix("").parts))
            analyzer.analyze()
            analyzer.overloads.clear()


def target_of(env: BuildEnvironment, names: Iterable[str]) -> tuple[str, str, str] | None:
    """The first of the names that a page has: name, page, anchor."""
    objects = env.domains.python_domain.objects
    for name in names:
        if name in objects:
            return name, objects[name].docname, objects[name].node_id
    return None


def link_annotation(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Find an annotation's class, which autodoc calls by the place where it is defined."""
    known = target_of(env, [PUBLIC.get(node.get("reftarget", ""), "")])
    return known and make_refnode(app.builder, node["refdoc"], known[1], known[2], content, known[0])


def around(node: Any) -> list[str]:
    """The names of what a docstring belongs to, innermost first: a method, its class, its module."""
    scopes = []
    while node := node.parent:
        if isinstance(node, addnodes.desc) and node["domain"] == "py":
            signature: Any = node[0]
            scopes.append(".".join(filter(None, [signature.get("module"), signature.get("fullname")])))
    return scopes


def link_code(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Code that is a public name becomes a link to it: in docstrings, and in pages but that of the command line."""
    if page == "cli":
        return
    for node in list(doctree.findall(nodes.literal)):
        name = node.astext().removesuffix("()").removeprefix("sf.").removeprefix("saddleflow.")
        if not re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", name) or isinstance(node.parent, nodes.reference):
            continue
        scopes = around(node)
        known = target_of(app.env, [f"{scope}.{name}" for scope in [*scopes[1:], "saddleflow", "saddleflow.solvers"]])
        if known and known[0] not in scopes:
            node.replace_self(make_refnode(app.builder, page, known[1], known[2], node.deepcopy(), known[0]))


def fix_dashes(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Sphinx itself writes two hyphens between an argument and what it means."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def setup(app: Sphinx) -> None:
    """Connect the above."""
    # it copies files at the end, and does not say that it can be built in parallel
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
    forget_overloads()
    plain_bars()
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
    app.connect("autodoc-process-signature", readable_types, priority=600)  # after the types are noted down
    app.add_config_value("notebooks", "run", "env", [str], "Whether to run them, or to copy them: run, copy.")
    app.connect("builder-inited", run_notebooks)
    app.connect("builder-inited", write_command_line)
    app.connect("missing-reference", link_annotation)
    app.connect("doctree-resolved", link_code)
    app.connect("doctree-resolved", fix_dashes)
