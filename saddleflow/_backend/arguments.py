"""Arguments of public functions: a table says what each one is, and a wrong one is refused before any work.

    @takes(depth=integer(1), gamma=optional(number()), shape=shape)
    def gaussian(key, *, depth, shape, gamma=None): ...

An entry is a reader: a function of the argument's name and its value that gives the value as the function takes it (a
Python number for numpy's, a tuple for a list), or raises a `ValueError` that names argument, expectation, value and
remedy. Tracers pass: what they hold is not known. Bounds that depend on other arguments are the function's own.
"""

import difflib
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from saddleflow._backend.checks import is_concrete, require

Function = TypeVar("Function", bound=Callable[..., Any])
Reader = Callable[[str, Any], Any]

# No run takes so many steps, a microsecond each would be thirty years; beyond, counters of 64 bits end.
MOST_STEPS = 10**15

# Hidden widths up to this one: those of networks of which a reduced one is drawn.
MOST_WIDTH = 10**12

# More layers than any network that is solved: the tuple of them has to be made.
MOST_DEPTH = 10**6

# What jax.random.key takes: signed integers of 64 bits.
MOST_SEED = 2**63 - 1


def takes(**readers: Reader) -> Callable[[Function], Function]:
    """A decorator: every argument named here is read; a keyword of another name is answered with the nearest one.

    Raises:
        ValueError: an argument that its reader refuses.
        TypeError: an argument of another name, or one missing, as Python does by itself; of names the message adds
            the suggestion.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        parameters = signature.parameters.values()
        known = [one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        open_ended = any(one.kind == one.VAR_KEYWORD for one in parameters)
        unknown = set(readers) - set(known)
        assert open_ended or not unknown, f"{function.__name__} has no arguments {unknown}"

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            for name in named:
                if not open_ended:
                    require_known(name, known, function.__name__)
            try:
                bound = signature.bind(*arguments, **named)
            except TypeError:
                return function(*arguments, **named)  # Python's own words
            bound.arguments = read(readers, bound.arguments)
            if open_ended:
                rest = next(one.name for one in parameters if one.kind == one.VAR_KEYWORD)
                bound.arguments[rest] = read(readers, bound.arguments.get(rest, {}))
            return function(*bound.args, **bound.kwargs)

        call.__dict__["readers"] = readers
        return call  # pyright: ignore[reportReturnType]

    return decorate


def read(readers: Mapping[str, Reader], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as their readers have them; those without a reader as they are."""
    return {name: readers[name](name, value) if name in readers else value for name, value in given.items()}


def check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that are handed to a function of a table later on.

    Raises:
        ValueError: one that its reader refuses.
        TypeError: one of another name.
    """
    known = [name for name, one in inspect.signature(function).parameters.items() if one.kind == one.KEYWORD_ONLY]
    for name in options:
        require_known(name, known, function.__name__)
    read(function.__dict__["readers"], options)


def require_known(name: str, known: Sequence[str], function: str) -> None:
    """Refuse a keyword that a function does not take, with the nearest one that it takes.

    Raises:
        TypeError: as Python does by itself; the message adds the suggestion.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}."
        raise TypeError(f"`{name}` is no argument of {function}. {hint}")


def refuse(argument: str, expected: str, value: Any, remedy: str = "") -> NoReturn:
    """Raise the `ValueError` of an argument of the wrong kind.

    Args:
        argument: its name.
        expected: the expectation, continuing "must ...".
        value: what came, of any type and size.
        remedy: what to do about it.
    """
    raise ValueError(f"`{argument}` must {expected}, but got {described(value)}. {remedy}".rstrip())


def described(value: Any) -> str:
    """A value in a few words: short ones as Python writes them, others by type and shape."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | int | float | complex | list | tuple | dict | set | None):
        return _short_repr(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = f"{type(value).__name__} of {value.dtype}"
        return f"{value}, a {kind}" if value.shape == () and is_concrete(value) else f"{kind}, shape {value.shape}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"{_article(type(value).__name__)} {type(value).__name__}"


def _short_repr(value: Any) -> str:
    """The repr where it is short; that of numbers and strings is cut."""
    if isinstance(value, int) and value.bit_length() > 100:
        return "an integer of very many digits" if value.bit_length() > 1000 else f"about {float(value):.0e}"
    if isinstance(value, list | tuple | dict | set):
        few = len(value) <= 8 and not any(hasattr(entry, "dtype") for entry in value)
        text = repr(value) if few else ""
        return text if 0 < len(text) <= 80 else f"a {type(value).__name__} of {len(value)} entries"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def optional(reader: Reader) -> Reader:
    """None, or what the reader reads."""
    return lambda argument, value: None if value is None else reader(argument, value)


def scalar(value: Any) -> Any:
    """A number of numpy's, or an array of no axes, as Python's; all else, tracers too, as it is."""
    if not is_concrete(value) or not isinstance(value, np.generic | np.ndarray | jax.Array):
        return value
    if value.shape != () or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    return value.item() if value.dtype.kind in "biufc" else value


def _is_traced_number(value: Any) -> bool:
    return not is_concrete(value) and value.shape == () and value.dtype.kind in "iuf"


def number(*, least: float | None = None, example: str = "1e-3", remedy: str = "") -> Reader:
    """A real number; with a bound a finite one.

    Args:
        least: the smallest one.
        example: of one, for the remedy.
        remedy: in place of that, of numbers below the bound.
    """

    def of(argument: str, value: Any) -> Any:
        found = scalar(value)
        if _is_traced_number(found):
            return found
        if isinstance(found, bool) or not isinstance(found, numbers.Real) or not _fits_float(found):
            refuse(argument, "be a real number", value, _for_numbers(argument, found, example))
        found = found if isinstance(found, int | float) else float(found)
        if least is not None:
            bound = "not negative" if least == 0 else f"at least {least:g}"
            require(math.isfinite(found) and found >= least, argument, f"be finite and {bound}", found, remedy)
        return found

    return of


def _fits_float(value: Any) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _for_numbers(argument: str, value: Any, example: str) -> str:
    """What to write where a number was expected."""
    if isinstance(value, str):
        try:
            float(value)
            return f"Write it without quotes: {_named(argument, value)}."
        except ValueError:
            pass
    if isinstance(value, complex):
        return "Take its real part: nothing here is complex."
    return f"For example {_named(argument, example)}."


def _named(argument: str, value: str) -> str:
    """A keyword and its value; of what is no keyword the value alone."""
    return f"{argument}={value}" if argument.isidentifier() else value


def integer(least: int, most: int | None = None, remedy: str = "") -> Reader:
    """An integer within bounds.

    Args:
        least: the smallest.
        most: the largest; None: any.
        remedy: of those out of bounds.
    """

    def of(argument: str, value: Any) -> Any:
        found = scalar(value)
        whole = isinstance(found, int) and not isinstance(found, bool)
        if not whole or found < least:
            help_ = remedy or f"For example {_named(argument, str(max(least, 1)))}."
            if isinstance(found, float) and found.is_integer() and found >= least:
                help_ = f"Write {argument}={int(found)}, without a point."
            elif not whole:
                help_ = _for_numbers(argument, found, str(max(least, 1)))
            refuse(argument, f"be an integer >= {least}", found, help_)
        if most is not None and found > most:
            refuse(argument, f"be at most {_round(most)}", found, remedy or "There is no use for more.")
        return int(found)

    return of


def _round(number: int) -> str:
    """Powers of ten as such."""
    digits = len(str(number)) - 1
    return f"10^{digits}" if number == 10**digits and digits > 5 else str(number)


def boolean(argument: str, value: Any) -> bool:
    """True or False."""
    found = scalar(value)
    if not isinstance(found, bool):
        word = str(found).strip().lower()
        meant = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}.get(word)
        remedy = f"Write {argument}={meant}." if meant is not None else f"Write {argument}=True or {argument}=False."
        refuse(argument, "be True or False", value, remedy)
    return found


def choice(*names: str, remedy: str = "") -> Reader:
    """One of some words."""

    def of(argument: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            near = difflib.get_close_matches(value, names, 1) if isinstance(value, str) else []
            hint = f"Did you mean {near[0]!r}?" if near else remedy
            refuse(argument, f"be one of {names}", value, hint)
        return value

    return of


def text(argument: str, value: Any) -> str:
    """A string; which ones will do is the function's own to say."""
    if not isinstance(value, str):
        refuse(argument, "be a string", value)
    return value


def path(argument: str, value: Any) -> Any:
    """The name of a file or a folder."""
    name = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(name, str) or not name or "\0" in name:
        refuse(argument, "be the name of a file or a folder", name, "A string or a pathlib.Path.")
    return value


def function(*parameters: str, remedy: str = "") -> Reader:
    """A function of so many arguments.

    Args:
        parameters: what they are called in the message.
        remedy: of anything else.
    """
    expected = f"be a function ({', '.join(parameters)})"

    def of(argument: str, value: Any) -> Any:
        if not callable(value):
            example = f"For example {argument}=lambda {', '.join(parameters)}: ..."
            refuse(argument, expected, value, remedy or example)
        if not accepts(value, len(parameters)):
            own = inspect.signature(value)
            refuse(argument, expected, value, f"Its arguments are {own}. {remedy}".rstrip())
        return value

    return of


def accepts(called: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as its signature tells."""
    try:
        signature = inspect.signature(called)
    except (ValueError, TypeError):  # of builtins
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def instance(kinds: Any, expected: str, remedy: str | Callable[[Any], str] = "") -> Reader:
    """An instance of a class.

    Args:
        kinds: the class, or a union of them.
        expected: the expectation, continuing "must ...".
        remedy: of anything else, or a function from that to the remedy.
    """

    def of(argument: str, value: Any) -> Any:
        if not isinstance(value, kinds):
            hint = remedy(value) if callable(remedy) else remedy
            if isinstance(value, type) and issubclass(value, kinds):
                hint = f"Make one: {value.__name__}(...)."
            refuse(argument, expected, value, hint)
        return value

    return of


def key(argument: str, value: Any) -> Any:
    """One key of `jax.random`."""
    remedy = "For example jax.random.key(0)."
    found = scalar(value)
    if isinstance(found, int) and not isinstance(found, bool):
        remedy = f"Write jax.random.key({found})." if 0 <= found <= MOST_SEED else remedy
    dtype, form = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if typed and form != ():
        remedy = "Of several keys take one, keys[0], or jax.vmap over them."
    if not (typed and form == ()) and not (dtype == np.uint32 and form in ((2,), (4,))):
        refuse(argument, "be one key of jax.random", value, remedy)
    return value


def shape(argument: str, value: Any) -> tuple[int, int]:
    """The shape (n_out, n_in) of a matrix."""
    found = _sequence(value)
    if found is None or len(found) != 2:
        one = scalar(value)
        remedy = f"Of square matrices write ({one}, {one})." if isinstance(one, int) else "For example (10, 10)."
        refuse(argument, "be (n_out, n_in)", value, remedy)
    n_out, n_in = (integer(1, MOST_WIDTH, "shape is (n_out, n_in), both positive.")(argument, size) for size in found)
    return n_out, n_in


def width(argument: str, value: Any) -> int | tuple[int, ...]:
    """A hidden width, or a sequence of them."""
    size = integer(1, MOST_WIDTH, "Nothing changes beyond; scale the variance.")
    found = _sequence(value)
    return size(argument, value) if found is None else tuple(size(argument, one) for one in found)


def real_numbers(argument: str, value: Any) -> Any:
    """One number or a list of them, as an array of float64; tracers as they are."""
    if any(not is_concrete(leaf) for leaf in jax.tree.leaves(value)):
        return value
    found = _as_array(value)
    if found is None or found.dtype.kind not in "iuf":
        refuse(argument, "be a number or a list of them", value, "For example [0.0, 1.0, 10.0].")
    return found.astype(float)


def sequence_of(reader: Reader, example: str = "[1.0, 2.0]") -> Reader:
    """A sequence, or an array of one axis, whose entries are of one kind; a traced array as it is."""

    def of(argument: str, value: Any) -> Any:
        if not is_concrete(value):
            return value
        found = _sequence(value)
        if found is None:
            refuse(argument, "be a list", value, f"For example {argument}={example}.")
        return [reader(f"{argument}[{index}]", one) for index, one in enumerate(found)]

    return of


def _as_array(value: Any) -> np.ndarray | None:
    """A number, a sequence or an array as numpy's array; None for anything else, ragged lists among them."""
    if isinstance(value, str | bytes | Mapping | set) or value is None:
        return None
    try:
        return np.asarray(list(value) if isinstance(value, Iterable) and not hasattr(value, "dtype") else value)
    except (ValueError, TypeError, OverflowError):
        return None


def _sequence(value: Any) -> list[Any] | None:
    """The entries of a sequence, or of an array along its first axis; None for anything else."""
    if isinstance(value, np.ndarray | jax.Array) and is_concrete(value):
        return list(value) if value.ndim > 0 else None
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None
