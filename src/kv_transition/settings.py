"""Settings of an experiment: YAML over defaults, frozen, with unknown keys rejected by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from kvguard.config import Count, Natural, Positive, Section, Text, first_mistake, read_settings
from kvguard.errors import KvguardError

FULL = 1.0
Budget = Annotated[float, Field(gt=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
DEFAULTS = Path("config") / "default.yaml"


class Dataset(Section):
    """What is asked; see :mod:`kv_transition.data.loader`."""

    name: Literal["longarith", "haystack", "longbench", "jsonl"] = "longarith"
    task: Text | None = None
    path: Text | None = None
    n_per_bin: Count = 5
    min_tokens: Count = 200
    max_tokens: Count = 2000
    gold_position: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Natural = 17

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_tokens >= self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} must be below max_tokens {self.max_tokens}")
        if self.name in ("haystack", "jsonl") and self.path is None:
            raise ValueError(f"{self.name} needs path: a file of JSON Lines, or a folder of them")
        if self.name == "longbench" and self.path is None and self.task is None:
            raise ValueError("longbench needs task (of the hub) or path (of local files)")
        return self


class Binning(Section):
    """How lengths are cut into bins."""

    n_bins: Annotated[int, Field(strict=True, ge=2)] = 5
    by: Literal["quantiles"] | tuple[Natural, ...] = "quantiles"

    @model_validator(mode="after")
    def _edges(self) -> Self:
        if self.by != "quantiles":
            if len(self.by) != self.n_bins + 1:
                raise ValueError(f"by has {len(self.by)} edges: {self.n_bins} bins need {self.n_bins + 1}")
            if list(self.by) != sorted(set(self.by)):
                raise ValueError("by: edges must rise")
        return self


class Model(Section):
    """Which model the server is asked for, and whose tokens are counted."""

    name: Text | None = None
    tokenizer: Text = "served"


class Request(Section):
    """Bounds of one request."""

    timeout_s: Positive | Count = 120


class Retries(Section):
    """How often and how patiently a request is repeated."""

    attempts: Count = 6
    wait_s: Annotated[float, Field(ge=0)] = 0.5
    max_wait_s: Annotated[float, Field(ge=0)] = 30


class Engine(Section):
    """Which endpoint serves which budget."""

    base_url: Text | None = None
    endpoints: dict[Budget, Text] = Field(default_factory=dict)
    spawn: Literal["kvguard"] | None = None
    spawn_model: Text | None = None
    spawn_options: tuple[str, ...] = ()
    choose_kv: bool = False
    api: Literal["chat", "completions"] = "chat"
    api_key_env: Text | None = None
    concurrency: Count = 1
    request: Request = Request()
    retries: Retries = Retries()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in ("base_url", "endpoints", "spawn") if getattr(self, name)]
        if len(ways) != 1:
            raise ValueError(f"give one of base_url, endpoints, spawn (given: {', '.join(ways) or 'none'})")
        if self.spawn and self.spawn_model is None:
            raise ValueError("spawn needs spawn_model: what `kvguard serve` takes as --model")
        if self.choose_kv and not self.base_url:
            raise ValueError("choose_kv goes with base_url")
        return self


class Kv(Section):
    """The compression policy, and the shares of KV pairs that it keeps."""

    policy: Text = "snapkv"
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)] = (1.0, 0.5, 0.2)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.budgets)) != len(self.budgets):
            raise ValueError(f"budgets {list(self.budgets)} must differ")
        return self


class Decoding(Section):
    """How answers are drawn."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0
    max_tokens: Count = 64
    seed: Natural = 17
    repeats: Count = 1

    @model_validator(mode="after")
    def _repeats_differ(self) -> Self:
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError("repeats: at temperature 0 every repeat is the same; set a temperature")
        return self


class Score(Section):
    """Which metric stands for accuracy."""

    headline: Literal["em", "f1", "substring_em"] | None = None


class Analysis(Section):
    """Resamples, permutations, and what counts as a collapse."""

    n_resamples: Annotated[int, Field(strict=True, ge=100)] = 1000
    n_permutations: Annotated[int, Field(strict=True, ge=199)] = 1999
    alpha: OpenShare = 0.05
    collapse: OpenShare = 0.5
    effective: OpenShare = 0.85
    seed: Natural = 17


class Output(Section):
    """Where results go."""

    exp_group_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    folder: Text = "runs"
    mlflow: bool = False


class Db(Section):
    """Where the database of record lies."""

    path: Text | None = None


class Settings(Section):
    """All settings of an experiment."""

    dataset: Dataset = Dataset()
    binning: Binning = Binning()
    model: Model = Model()
    engine: Engine
    kv: Kv = Kv()
    decoding: Decoding = Decoding()
    score: Score = Score()
    analysis: Analysis = Analysis()
    output: Output = Output()
    db: Db = Db()

    @model_validator(mode="after")
    def _every_budget_is_served(self) -> Self:
        engine, budgets = self.engine, set(self.kv.budgets)
        if engine.endpoints and (missing := budgets - set(engine.endpoints)):
            raise ValueError(f"engine.endpoints: no url for budget {sorted(missing)}")
        if engine.base_url and not engine.choose_kv and len(budgets) > 1:
            raise ValueError(
                "engine.base_url: one server has one budget; name one in kv.budgets, or give "
                "engine.endpoints, or set engine.choose_kv for a `kvguard serve --allow-kv`"
            )
        return self

    def snapshot(self) -> dict[str, Any]:
        """Return every setting as JSON holds it."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Return eight characters that tell these settings from others; where results go does not matter."""
        decisive = {key: value for key, value in self.snapshot().items() if key not in ("output", "db")}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]


def load(path: Path, defaults: Path | None = None) -> Settings:
    """Read the settings of an experiment over the defaults.

    Parameters
    ----------
    path
        The experiment's file.
    defaults
        Where it says nothing; ``config/default.yaml`` above the experiment's file, if there is one.

    Raises
    ------
    KvguardError
        One line: the file, the key, and how to fix it.
    """
    data = read_settings(path, "-c")
    defaults = defaults or _defaults_of(path)
    if defaults is not None:
        data = _over(read_settings(defaults), data)
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise KvguardError(f"{path}: {_mistake(error)}") from None


def _defaults_of(path: Path) -> Path | None:
    """Return the ``default.yaml`` nearest above a file of settings."""
    folders = list(path.resolve().parents)[:2]
    return next((found for folder in folders if (found := folder / DEFAULTS.name).is_file()), None)


def _mistake(error: ValidationError) -> str:
    """Say what is wrong first: a mistake of a union's member under the key that holds the union."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        return f"{place}: {said}" if place else said
    return first_mistake(error, Settings)


def _over(defaults: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` over ``defaults``, at every depth."""
    merged = dict(defaults)
    for name, value in data.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            merged[name] = _over(defaults[name], value)
        else:
            merged[name] = value
    return merged


def as_yaml(settings: Settings) -> str:
    """Return settings as a file would hold them."""
    return yaml.safe_dump(settings.snapshot(), sort_keys=False)
