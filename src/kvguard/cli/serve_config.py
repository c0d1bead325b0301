"""Settings of `kvguard serve` from a file: every option by its name, with underscores for hyphens."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvguard.errors import KvguardError

_SECRET = re.compile(r"(?:.*_)?(?:keys?|secrets?|tokens?|passwords?)", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config``: what its file says holds where the command line says nothing."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_open,
        help="A YAML file of these options: their names with underscores, `max_rows: 8` say. "
        "The command line goes before it. Keys do not belong in it.",
    )(command)


def variable(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Reject what is no name of a variable, and does not show it: it may be the key itself."""
    if value is not None and not _VARIABLE.fullmatch(value):
        raise click.BadParameter("give the name of a variable that holds keys, not a key", ctx, param)
    return value


def _open(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        try:
            ctx.default_map = {**(ctx.default_map or {}), **settings(ctx, path)}
        except KvguardError as error:
            raise click.ClickException(str(error)) from None


def settings(ctx: click.Context, path: Path) -> dict[str, Any]:
    """Return what a file says, by the names that the command has for its options.

    Raises
    ------
    KvguardError
        One line: it cannot be read, has a key that is no option or is secret, or a value that does not fit.
    """
    from kvguard.config import check_known, read_settings

    options = {_key(option): option for option in ctx.command.params if isinstance(option, click.Option)}
    options.pop("config")
    found = {}
    for key, value in read_settings(path, "--config").items():
        if key not in options and _SECRET.fullmatch(str(key)):
            raise KvguardError(
                f"{path}: {key}: API keys do not belong in a file of settings: set KVGUARD_API_KEY, or "
                "name a file of keys by api_key_file"
            )
        check_known(str(path), str(key), options)
        try:
            found[str(options[key].name)] = _value(ctx, options[key], value)
        except click.BadParameter as error:
            raise KvguardError(f"{path}: {key}: {error.message.rstrip('.')}") from None
    return found


def _key(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def _value(ctx: click.Context, option: click.Option, value: Any) -> Any:
    """Return a value as the command line would have it: what YAML made of it is not trusted to fit."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter(f"{value!r} is not true or false")
        return value
    if isinstance(value, bool):
        raise click.BadParameter(
            f"{value} is no value of it; YAML reads yes, no, on and off so: put it in quotes"
        )
    if not isinstance(value, (str, int, float)):
        raise click.BadParameter("give one value, or leave the key out")
    option.type.convert(str(value), option, ctx)
    return str(value)
