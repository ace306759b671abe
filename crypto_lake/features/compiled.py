"""Loops that are worth machine code: compiled by Numba where it is there (the extra `fast`), else plain Python.

There is one text of each loop, so the plain path and the compiled one cannot say different things.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

IS_COMPILED: Final = find_spec("numba") is not None


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """The function as machine code, kept on disk for the next process; as it is where there is no Numba.

    Floating point follows the text to the letter (no fast-math, no reordering), and a division by zero gives an
    infinity or a NaN as in NumPy. `plain` is the way back.
    """
    if not IS_COMPILED:
        return function
    from numba import njit

    made: Callable[P, T] = njit(nogil=True, cache=True, error_model="numpy")(function)
    return made


def plain(function: Callable[P, T]) -> Callable[P, T]:
    """The Python text of a compiled function; functions that it calls stay as they are."""
    text: Callable[P, T] = getattr(function, "py_func", function)
    return text
