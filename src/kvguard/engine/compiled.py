"""Loops over the numbers of one decoding step, compiled.

Between two steps the language model empties the CPU's caches, of code too: a dozen calls of NumPy or torch
then take longer than the arithmetic in them. A compiled loop is one call.
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])

# Sums in any order, and a * b + c rounded once: what vector instructions need. NaN stays NaN.
_ANY_ORDER = {"reassoc", "contract", "nsz"}


def compiled(*, any_order: bool = False) -> Callable[[Function], Function]:
    """Compile a function of arrays and numbers when first called, and keep it on the disk where that may be.

    What it calls or reads of the module must stand in the same file: a change elsewhere would not be noticed
    on the disk.

    Parameters
    ----------
    any_order
        Its sums may run in any order.
    """

    fastmath: bool | set[str] = _ANY_ORDER if any_order else False

    def compile_(function: Function) -> Function:
        try:
            return cast(Function, njit(cache=True, fastmath=fastmath)(function))
        except RuntimeError:  # no folder to keep it in: compiled in every process
            return cast(Function, njit(fastmath=fastmath)(function))

    return compile_
