"""The options that say which model is asked, and what, and the settings that come of them."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvguard import stage

if TYPE_CHECKING:
    from kvguard.studies.catastrophes.params import Params

_ASKED = "asked.json"  # beside the tables of a sweep
_OWN = "own"  # the task of --prompts
_TASK = "gsm8k"  # what a model that stands in no settings is asked by default
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """A model, and what it is asked, as typed."""

    model: str
    params_path: Path | None
    device: str | None = None
    dtype: str | None = None
    adapter: str | None = None
    task: str | None = None
    task_source: str | None = None
    prompts: str | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.prompts is not None and (self.task or self.task_source):
            raise click.UsageError("--prompts goes without --task and --task-source")
        if not all(self.stop):
            raise click.UsageError("--stop needs at least one character")

    def settings(self) -> tuple[str, Params]:
        """Return the model's name in the settings, and the settings, in which it is asked this.

        Raises
        ------
        KvguardError
            The settings cannot be read; there is no such model or task; the task takes no file.
        """
        params = open_settings(self.params_path).on(self.device)
        name, spec = _spec(params, self.model)
        task = _OWN if self.prompts is not None else self.task or spec["task"]
        params = params.with_entry("tasks", task, self._task(params, task))
        held = {"dtype": self.dtype, "adapter": self.adapter and _adapter(self.adapter)}
        changed = {key: value for key, value in held.items() if value}
        return name, params.with_entry("models", name, {**spec, **changed, "task": task})

    def _task(self, params: Params, name: str) -> dict[str, Any]:
        from kvguard.config import check_known
        from kvguard.errors import KvguardError
        from kvguard.tasks import TASKS

        check_known("--task", name, params.tasks)
        settings = dict(params.tasks[name] or {})
        source = self.prompts if self.prompts is not None else self.task_source
        if source is not None:
            if "source" not in TASKS[name].model_fields:
                raise KvguardError(f"--task-source: task {name} takes no file: leave it out, or --task gsm8k")
            settings["source"] = source
        if self.max_new_tokens:
            settings["max_new_tokens"] = self.max_new_tokens
        if self.stop:
            written = [re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], text) for text in self.stop]
            settings |= {"stop_strings": written, "stop_in_chat": True}
        return settings


def open_settings(path: Path | None) -> Params:
    """Open the settings that ship with kvguard, under those of a file.

    Parameters
    ----------
    path
        None: ``params.yaml`` of the current folder. One that is another tool's is passed over, and said so.

    Raises
    ------
    KvguardError
        The file cannot be read, or has a mistake in it.
    """
    from kvguard.config import read_settings
    from kvguard.errors import KvguardError
    from kvguard.studies.catastrophes.params import REGISTRIES, SHIPPED, Params

    if path is not None:
        return Params.load(path, SHIPPED)
    here = Path("params.yaml")
    if not here.exists():
        return Params.load(SHIPPED)
    try:
        return Params.load(here, SHIPPED)
    except KvguardError as error:
        try:
            ours = any(name in read_settings(here) for name in REGISTRIES)
        except KvguardError:
            ours = False
        if ours:
            raise
        click.echo(f"{error}; taken for another tool's: kvguard's own settings are used", err=True)
        return Params.load(SHIPPED)


def _spec(params: Params, model: str) -> tuple[str, dict[str, Any]]:
    """Return a model's name and its entry in the settings; one that is not there is called by its source."""
    from kvguard.config import check_known
    from kvguard.errors import KvguardError

    known = params.value("models")
    if model in known:
        return model, dict(known[model])
    kind, colon, rest = model.partition(":")
    if colon and kind == "path" and rest:
        source = f"path:{_place(rest)}"
    elif _is_folder(model):
        raise KvguardError(f"--model: {model} is a folder here: write path:{model}")
    elif _HUB_ID.fullmatch(model):
        source = model
    elif "/" in model or colon:
        raise KvguardError(f"--model: {model!r} is no name of the settings, hub id (owner/name) or path:DIR")
    else:
        check_known("model", model, known)
    return source, {"source": source, "dtype": "auto", "task": _TASK}


def _adapter(text: str) -> str:
    kind, colon, rest = text.partition(":")
    return f"path:{_place(rest)}" if colon and kind == "path" and rest else text


def _place(text: str) -> Path:
    """Return where a folder lies, seen from the current one."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # a home that nobody has
        return Path(text).absolute()


def _is_folder(text: str) -> bool:
    try:
        return bool(text) and _place(text).is_dir()
    except (OSError, ValueError):  # no name that a folder could have
        return False


def check_model(params: Params, model: str) -> None:
    """Check that a model's folder is there, and say on stderr what was chosen for one in no settings.

    Raises
    ------
    KvguardError
        The folder holds no model.
    """
    from kvguard.models.availability import pick_device, resolve

    spec = params.spec(model)
    resolve(model, spec)
    if model == spec.source:
        device = pick_device(params.device).type
        held = f"{spec.dtype_on(device)} on {device}" + (" (--dtype)" if spec.dtype == "auto" else "")
        click.echo(f"{model}: {held}, task {spec.task}", err=True)


def n_prompts(params: Params, model: str, n: int | None, default: int | None) -> int | None:
    """Return how many prompts are asked: ``n``; else all of a user's own, or ``default`` of another task."""
    from kvguard.tasks.own import OwnPrompts

    task = params.task(model)
    return n or (len(task.all()) if isinstance(task, OwnPrompts) else default)


def remember(folder: Path, params: Params, model: str) -> None:
    """Write beside a sweep which model it asked, and what, so that nobody has to say it again."""
    from kvguard.store.files import write_json

    task = params.task(model)
    entries = {"models": {model: params.spec(model).model_dump()}, "tasks": {task.name: task.model_dump()}}
    write_json(folder / _ASKED, entries)


def recall(folder: Path, params: Params, model: str) -> Params:
    """Return the settings with what a sweep's folder says of its model and task, where it says something.

    Raises
    ------
    KvguardError
        The sweep is another model's, or what it says cannot be read.
    """
    from kvguard.errors import KvguardError

    path = folder / _ASKED
    if not path.exists():
        return params
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        registries = [(registry, *next(iter(entries[registry].items()))) for registry in ("tasks", "models")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise KvguardError(f"{path}: cannot be read ({error}): run the sweep again") from None
    name = registries[-1][1]
    if name != model:
        raise KvguardError(f"--model: {folder} holds a sweep of {name}, not of {model}: name that one")
    for registry, key, entry in registries:
        params = params.with_entry(registry, key, entry)
    return params


def folder_of(asked: Asked, data: Path | None) -> tuple[str, Params, Path]:
    """Return a model's name, the settings that its data was made with, and the folder that this lies in.

    Parameters
    ----------
    data
        A folder of ``generate`` or of a sweep; None: where the pipeline puts it.
    """
    from kvguard.studies.catastrophes import layout

    model, params = asked.settings()
    if data is None and model == params.spec(model).source:
        raise click.UsageError("--data: name the folder of its sweep, as --out did")
    folder = data or layout.generated(model)
    return model, recall(folder, params, model), folder


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a model and the settings; the command gets them as ``asked``."""
    return _gathered(command, [_MODEL, params_option])


def asking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of :func:`model_options`, and those that say what is asked, and how."""
    return _gathered(command, [_MODEL, _ADAPTER, *_TASK_OPTIONS, _DTYPE, stage.device_option, params_option])


def serving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of :func:`model_options`, and those that say how and where a model is held."""
    return _gathered(command, [_MODEL, _ADAPTER, _DTYPE, stage.device_option, params_option])


def _gathered(command: Callable[..., Any], options: list[Callable[..., Any]]) -> Callable[..., Any]:
    # Of these options alone: a command may have one of its own that is called like a field.
    names = {option(lambda: None).__click_params__[0].name for option in options}

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        asked = Asked(**{name: values.pop(name) for name in names})
        return command(asked=asked, **values)

    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper


params_option = click.option(
    "--params",
    "params_path",
    type=click.Path(path_type=Path),
    help="Settings that go before those that ship with kvguard; by default ./params.yaml, if it is there.",
)
_MODEL = click.option(
    "--model",
    required=True,
    help="A name from models in the settings, a hub id (owner/name), or path:DIR.",
)
_ADAPTER = click.option(
    "--adapter",
    help="A LoRA adapter on the model, in peft's format: path:DIR, or embedded:smollm135m_gsm8k.",
)
_DTYPE = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="How the weights are held; auto, the default of a hub id and of path:DIR, is float32 on a CPU and "
    "bfloat16 elsewhere.",
)
_TASK_OPTIONS = [
    click.option(
        "--task",
        help="A name from tasks in the settings; the model's own by default, gsm8k of a hub id and path:DIR.",
    ),
    click.option("--task-source", metavar="FILE", help="The task's data, GSM8K's test.jsonl say."),
    click.option(
        "--prompts",
        metavar="FILE",
        help="Your own prompts: JSONL of prompt or messages, and answer or answers where it is to be scored.",
    ),
    click.option("--max-new-tokens", type=click.IntRange(min=1), help="In place of the task's own budget."),
    click.option("--stop", multiple=True, help=r"Ends a text, \n is a newline; again for another."),
]
