"""Exceptions of others' code become one line; running out of memory stays what it is."""

import pytest
import torch

from kvguard.errors import KvguardError, foreign


def test_any_exception_of_others_code_becomes_one_line_that_says_how_to_fix_it() -> None:
    with (
        pytest.raises(KvguardError, match=r"^press X: ValueError: two lines: choose another$"),
        foreign("press X", "choose another"),
    ):
        raise ValueError("two\nlines")


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("full"), KvguardError("said already")]
)
def test_memory_and_our_own_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, foreign("press X", "choose another"):
        raise error
    assert raised.value is error


def test_an_interrupt_passes_unchanged() -> None:
    with pytest.raises(KeyboardInterrupt), foreign("press X", "choose another"):
        raise KeyboardInterrupt
