"""What the stage scripts and the shell commands share: options, and errors of one line."""

import errno
import functools
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kvguard.errors import KvguardError

# What the user can fix outside the program; any other OSError is a bug and keeps its traceback.
_OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

params_option = click.option(
    "--params",
    "params_path",
    type=click.Path(path_type=Path),
    default="params.yaml",
    show_default=True,
    help="The settings.",
)
model_option = click.option("--model", required=True, help="A name from models in the settings.")
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "mps", "cpu"]),
    help="Where the model runs, in place of the settings' device; auto takes CUDA before MPS before CPU.",
)


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``command`` print a failure the user can fix as one line on stderr, and exit with 1.

    So do Ctrl-C and SIGTERM, with the exit status of shells: 128 and the signal's number.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with _sigterm_interrupts() as received:
                return command(*args, **kwargs)
        except KeyboardInterrupt as error:
            click.echo(str(error) or "interrupted", err=True)
            gc.freeze()  # else Python looks through all that is loaded before it ends: more than a second
            raise click.exceptions.Exit(128 + (received or [signal.SIGINT])[0]) from None
        except KvguardError as error:
            raise click.ClickException(
                " ".join(str(error).splitlines())
            ) from error  # also with such a path in it
        except ModuleNotFoundError as error:
            absent = (error.name or "").partition(".")[0]
            if absent in ("", "kvguard"):
                raise
            message = f"{absent} is not installed: pip install 'kvguard[pipeline]'"
            raise click.ClickException(message) from error
        except OSError as error:
            if error.errno not in _OUTSIDE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror}: free some space, or make it writable"
            raise click.ClickException(message) from error

    return wrapper


@contextmanager
def _sigterm_interrupts() -> Iterator[list[int]]:
    """Let SIGTERM end the body as Ctrl-C does; yield where it is listed once it has come."""
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield received
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
