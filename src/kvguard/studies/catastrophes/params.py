"""The params of the catastrophe study: params.yaml as one frozen, typed object."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from kvguard.config import Count, Natural, Positive, Section, Share, Text, check_known, first_mistake
from kvguard.engine.presses import NONE
from kvguard.errors import KvguardError
from kvguard.guard.actions import GuardParams
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.models.spec import ModelSpec
from kvguard.sweep.settings import CompressorSpec, GenerateParams, Preset, parse_entry
from kvguard.tasks import Task, make_task

WORST = "worst"  # the condition that fails most in the sweep


Protocol = Literal["v1", "v2"]


class SampleParams(Section):
    """How many prompts each model is asked."""

    n: Count


class FeaturizeParams(Section):
    """How signals become feature rows and labels."""

    horizon: Count = 32
    thinking_words: tuple[Text, ...] = ()


class ValidateParams(Section):
    """What the data checks tolerate."""

    max_snapkv_inside_window: Share = 0.0


class SplitParams(Section):
    """Shares of the prompts that train, tune and test."""

    train: Share
    tune: Share
    test: Share

    @model_validator(mode="after")
    def _adds_up(self) -> "SplitParams":
        total = self.train + self.tune + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + tune + test = {total:g}: the shares must sum to 1")
        if not min(self.train, self.tune, self.test):
            raise ValueError("a share of 0 leaves a part empty: give each part some prompts")
        return self


class XgboostParams(Section):
    """Settings of the hazard model, under XGBoost's own names."""

    n_estimators: Count = 300
    max_depth: Count = 6
    learning_rate: Positive = 0.1
    subsample: Share = 0.8
    colsample_bytree: Share = 0.8
    min_child_weight: Annotated[float, Field(strict=True, ge=0)] = 5
    early_stopping_rounds: Count = 20
    max_bin: Annotated[int, Field(strict=True, ge=2)] = 128


class TrainParams(Section):
    """How the hazard model is trained.

    ``max_tokens`` bounds the training rows: above it tokens are drawn evenly; None takes them all, read
    from their table in pieces. ``positive_weight`` is the weight of a positive token, ``balanced`` the ratio
    of the classes. ``horizons`` are the values of H that are compared; the model itself takes
    ``featurize.horizon``.
    """

    split: SplitParams
    exclude_features: tuple[Text, ...] = ()
    horizons: tuple[Count, ...] = (16, 32, 64, 128)
    max_tokens: Count | None = 250_000
    positive_weight: Positive | Literal["balanced"] = 1.0
    calibration: Literal["isotonic", "platt"] = "isotonic"
    xgboost: XgboostParams = XgboostParams()


class EvaluateParams(Section):
    """How operating points are searched and chosen: at most these false-positive rates on tune prompts."""

    n_trials: Count = 500
    conservative_fpr: Share = 0.01
    balanced_fpr: Share = 0.02


class LiveValidateParams(Section):
    """What the live guard is measured on, and against what.

    ``conditions`` are written ``name@ratio``; ``worst`` is the one that fails most in the sweep. The first
    ``decoding_n`` prompts are also asked under a budget that is enforced every ``compression_interval``
    tokens while decoding; without it ``hold`` can do nothing. ``switch_offsets`` are tokens before the onset
    at which ``switch_traces`` failing traces are restored.
    """

    n: Count = 400
    seed: Natural
    conditions: tuple[Text, ...] = Field(min_length=1)
    actions: tuple[Literal["hold", "restore", "rollback", "restart"], ...] = Field(
        ("hold", "restore", "rollback", "restart"), min_length=1
    )
    baselines: tuple[Literal["entropy", "loop"], ...] = ("entropy", "loop")
    point: Literal["conservative", "balanced", "aggressive"] = "balanced"
    prompts_per_part: Count = 100
    compression_interval: Count = 16
    decoding_n: Natural = 100
    switch_offsets: tuple[Annotated[int, Field(strict=True)], ...] = (128, 64, 32, 16, 8, 4, 0, -8)
    switch_traces: Natural = 200

    @field_validator("conditions")
    @classmethod
    def _conditions_parse(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            name, ratio = parse_entry(entry)
            if entry != WORST and not ratio:
                raise ValueError(f"{entry!r} has no ratio above 0: write {name}@0.5, or {WORST}")
        return entries

    @model_validator(mode="after")
    def _hold_can_act(self) -> "LiveValidateParams":
        if "hold" in self.actions and not self.decoding_n:
            raise ValueError("hold acts only under a budget while decoding: raise decoding_n or drop hold")
        if self.decoding_n > self.n:
            raise ValueError(f"decoding_n {self.decoding_n} is more than n {self.n}: lower it")
        return self

    @property
    def pairs(self) -> list[tuple[str, float] | None]:
        """Each (compressor, ratio) once, in order; None stands for the worst."""
        found = [None if entry == WORST else parse_entry(entry) for entry in self.conditions]
        return [pair and (pair[0], pair[1] or 0.0) for pair in dict.fromkeys(found)]


class AblateParams(Section):
    """Which settings of the controller are swept, and how often the random predictor is drawn."""

    hysteresis: tuple[Count, ...] = tuple(range(1, 17))
    thresholds: tuple[Share, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
    n_random: Count = 20


class ReportParams(Section):
    """What the report shows: traces in its explorer, and the models that a reader expects to see."""

    traces_per_condition: Count = 20
    models: tuple[Text, ...] = ()


class Params(Section):
    """All of params.yaml. The key ``validate`` is the attribute ``validation``."""

    model: Text
    transfer_to: Text
    seed: Natural
    n_resamples: Annotated[int, Field(strict=True, ge=100)] = 1000
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    models: dict[str, ModelSpec]
    tasks: dict[str, SerializeAsAny[Task]]
    sample: SampleParams
    presets: dict[str, Preset]
    compressors: dict[str, CompressorSpec]
    generate: GenerateParams
    catastrophes: CatastropheParams
    featurize: FeaturizeParams
    validation: ValidateParams = Field(alias="validate")
    train: TrainParams
    evaluate: EvaluateParams
    guard: GuardParams = GuardParams()
    live_validate: LiveValidateParams
    ablate: AblateParams
    report: ReportParams

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks_are_made(cls, settings: dict[str, dict[str, Any] | None]) -> dict[str, Task]:
        return {name: make_task(name, **(own or {})) for name, own in settings.items()}

    @model_validator(mode="after")
    def _names_resolve(self) -> "Params":
        check_known("model", self.model, self.models)
        check_known("transfer_to", self.transfer_to, self.models)
        check_known("generate.preset", self.generate.preset, self.presets)
        if self.model == self.transfer_to:
            raise KvguardError(f"transfer_to: {self.transfer_to!r} is also the model: name another of models")
        if len(set(self.protocols)) < len(self.protocols):
            raise KvguardError(f"protocols: {list(self.protocols)} names one twice: keep each once")
        for name, spec in self.models.items():
            check_known(f"models.{name}.task", spec.task, self.tasks)
        if NONE in self.compressors:
            raise KvguardError(f"compressors.{NONE}: the name of the baseline is taken: rename it")
        for name in self.report.models:
            check_known("report.models", name, self.models)
        for name, preset in self.presets.items():
            for compressor, _ in preset.pairs()[1:]:
                check_known(f"presets.{name}.compressors", compressor, self.compressors)
        for pair in self.live_validate.pairs:
            if pair is not None:
                check_known("live_validate.conditions", pair[0], self.compressors)
        return self

    def on(self, device: str | None) -> "Params":
        """Return these settings on another device, if one is named."""
        return self.model_copy(update={"device": device}) if device else self

    def spec(self, model: str) -> ModelSpec:
        """Return the spec of the model called ``model``."""
        check_known("model", model, self.models)
        return self.models[model]

    def task(self, model: str) -> Task:
        """Return the task that the model called ``model`` is asked."""
        return self.tasks[self.spec(model).task]

    def asking(self, model: str, task: str | None) -> "Params":
        """Return these settings with another task for ``model``, if one is named."""
        if task is None:
            return self
        check_known("--task", task, self.tasks)
        spec = self.spec(model).model_copy(update={"task": task})
        return self.model_copy(update={"models": {**self.models, model: spec}})


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read ``path`` and check every key, value and name in it.

    Raises
    ------
    KvguardError
        One line: the file, the key, the value, and what would mend it.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KvguardError(f"{path}: no such file: run in the repository, or pass --params") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KvguardError(f"{path}: cannot be read ({error}): restore it with git") from None
    except yaml.YAMLError as error:
        raise KvguardError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise KvguardError(f"{path}: holds no settings: restore it with `git checkout {path}`")
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise KvguardError(f"{path}: {first_mistake(error, Params)}") from None
    except KvguardError as error:
        raise KvguardError(f"{path}: {error}") from None
