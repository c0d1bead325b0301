"""The one exception that stands for a failure the user can fix, and the boundary that makes it of others'."""

from collections.abc import Iterator
from contextlib import contextmanager


class KvguardError(Exception):
    """A failure the user can fix; its message is one line: what, where, how to fix it.

    The shell commands and stage scripts print the message without a traceback and exit with 1.
    """


@contextmanager
def foreign(what: str, fix: str) -> Iterator[None]:
    """Turn an exception of code that a user brought (a press, a chat template, a tokenizer) into one line.

    Running out of memory is left as it is: those who can decode fewer rows catch it.

    Parameters
    ----------
    what
        What was asked, as the message opens: ``press FinchPress``, say.
    fix
        What the user can do, as the message ends.

    Raises
    ------
    KvguardError
        In place of any other exception.
    """
    try:
        yield
    except (KvguardError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which this room does not import
            raise
        said = " ".join(str(error).split()) or "no message"
        raise KvguardError(f"{what}: {type(error).__name__}: {said[:300]}: {fix}") from error
