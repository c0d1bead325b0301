"""The params of the catastrophe study: what may stand in its params.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from kvguard.config import Count, Key, Natural, Positive, Section, Settings, Share, Text, check_known
from kvguard.engine.presses import NONE
from kvguard.errors import KvguardError
from kvguard.guard.settings import GuardParams
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.models.spec import ModelSpec
from kvguard.studies.catastrophes.protocols import PROTOCOLS
from kvguard.sweep.settings import CompressorSpec, GenerateParams, Preset, parse_entry
from kvguard.tasks import Task, make_task

WORST = "worst"  # the condition that fails most in the sweep
REGISTRIES = ("models", "tasks", "presets", "compressors")
SHIPPED = Path(__file__).with_name("params.yaml")  # a link to the repository's; a wheel holds a copy

Point = Literal["conservative", "balanced", "aggressive"]
Offsets = tuple[Annotated[int, Field(strict=True)], ...]


class SampleParams(Section):
    """How many prompts each model is asked."""

    n: Count


class FeaturizeParams(Section):
    """How signals become feature rows."""

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

    ``fits`` is how many seeds it is fitted with: the first fit is the model, the others tell what a fit's
    chance does to comparisons of policies.
    ``max_tokens`` bounds the training rows: above it tokens are drawn evenly; None takes them all, read
    from their table in pieces. ``positive_weight`` is the weight of a positive token, ``balanced`` the ratio
    of the classes. ``horizon`` is H, the tokens ahead within which an onset counts; ``horizons`` are the
    values of H that it is compared with.
    """

    split: SplitParams
    exclude_features: tuple[Text, ...] = ()
    horizon: Count = 32
    horizons: tuple[Count, ...] = (16, 32, 64, 128)
    max_tokens: Count | None = 250_000
    positive_weight: Positive | Literal["balanced"] = 1.0
    fits: Count = 1
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
    actions: tuple[Literal["hold", "restore", "rollback", "restart", "stop"], ...] = Field(
        ("hold", "restore", "rollback", "restart", "stop"), min_length=1
    )
    baselines: tuple[Literal["entropy", "clock", "loop", "rollback_v2", "stop_at_answer"], ...] = (
        "entropy",
        "clock",
        "loop",
        "rollback_v2",
        "stop_at_answer",
    )
    point: Point = "balanced"
    prompts_per_part: Count = 100
    compression_interval: Count = 16
    decoding_n: Natural = 100
    switch_offsets: Offsets = (128, 64, 32, 16, 8, 4, 0, -8)
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


class CertifyParams(Section):
    """What the stage ``certify`` asks for, and how it is checked.

    ``alphas`` are limits on added catastrophes, each with the same limit on lost answers. Coverage is counted
    over ``n_splits`` random splits of the prompts, ``calibration`` of them to certify on. ``seed`` draws the
    prompts of ``kvguard recommend``; no other stage draws from it.
    """

    alphas: tuple[Annotated[float, Field(strict=True, gt=0, lt=1)], ...] = Field(
        (0.02, 0.05, 0.1), min_length=1
    )
    max_lost_answers: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.05
    confidence: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.95
    n_splits: Count = 1000
    calibration: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.5
    seed: Natural = 5005


class ReportParams(Section):
    """What the report shows: traces in its explorer, and the models that a reader expects to see."""

    traces_per_condition: Count = 20
    models: tuple[Text, ...] = ()


class Params(Settings):
    """The settings of params.yaml; what a stage reads of them is listed as its params in dvc.yaml."""

    model: Key[str] = Key(Text)
    transfer_to: Key[str] = Key(Text)
    seed: Key[int] = Key(Natural)
    n_resamples: Key[int] = Key(Annotated[int, Field(strict=True, ge=100)])
    protocols: Key[tuple[str, ...]] = Key(Annotated[tuple[Text, ...], Field(min_length=1)])
    device: Key[str] = Key(Literal["auto", "cuda", "mps", "cpu"])
    models: Key[dict[str, ModelSpec]] = Key(dict[str, ModelSpec])
    tasks: Key[dict[str, Any]] = Key(dict[str, dict[str, Any] | None])
    sample: Key[SampleParams] = Key(SampleParams)
    presets: Key[dict[str, Preset]] = Key(dict[str, Preset])
    compressors: Key[dict[str, CompressorSpec]] = Key(dict[str, CompressorSpec])
    generate: Key[GenerateParams] = Key(GenerateParams)
    catastrophes: Key[CatastropheParams] = Key(CatastropheParams)
    featurize: Key[FeaturizeParams] = Key(FeaturizeParams)
    validation: Key[ValidateParams] = Key(ValidateParams, "validate")
    train: Key[TrainParams] = Key(TrainParams)
    evaluate: Key[EvaluateParams] = Key(EvaluateParams)
    guard: Key[GuardParams] = Key(GuardParams)
    live_validate: Key[LiveValidateParams] = Key(LiveValidateParams)
    ablate: Key[AblateParams] = Key(AblateParams)
    certify: Key[CertifyParams] = Key(CertifyParams)
    report: Key[ReportParams] = Key(ReportParams)
    # Parts of sections, for stages that read no more.
    horizon: Key[int] = Key(Count, "train.horizon")
    preset_name: Key[str] = Key(Text, "generate.preset")
    thresholds: Key[tuple[float, ...]] = Key(tuple[Share, ...], "ablate.thresholds")
    live_point: Key[str] = Key(Point, "live_validate.point")
    switch_offsets: Key[tuple[int, ...]] = Key(Offsets, "live_validate.switch_offsets")

    @property
    def pair(self) -> tuple[str, str]:
        """The two models of the pipeline, the main one first."""
        return self.model, self.transfer_to

    @property
    def preset(self) -> Preset:
        """The preset of the sweep."""
        return cast(Preset, self.read(f"presets.{self.preset_name}", Preset))

    def spec(self, model: str) -> ModelSpec:
        """Return the spec of the model called ``model``."""
        check_known("model", model, self.value("models") if self.has("models") else ())
        return cast(ModelSpec, self.read(f"models.{model}", ModelSpec))

    def on(self, device: str | None) -> "Params":
        """Return these settings on another device, if one is named."""
        return self.with_value("device", device) if device else self

    def check_names(self) -> None:
        """Check that every name is known where it is looked up, and taken once."""

        def there(*names: str) -> list[Any] | None:
            return [self.value(name) for name in names] if all(map(self.has, names)) else None

        for key, names in (("model", "models"), ("transfer_to", "models"), ("generate.preset", "presets")):
            if found := there(key, names):
                check_known(key, *found)
        if (pair := there("model", "transfer_to")) and pair[0] == pair[1]:
            raise KvguardError(f"transfer_to: {pair[1]!r} is also the model: name another of models")
        for name in self.value("protocols") if self.has("protocols") else ():
            check_known("protocols", name, PROTOCOLS)
        if (found := there("protocols")) and len(set(found[0])) < len(found[0]):
            raise KvguardError(f"protocols: {found[0]} names one twice: keep each once")
        if found := there("report.models", "models"):
            for name in found[0]:
                check_known("report.models", name, found[1])
        for name, own in (self.value("tasks") if self.has("tasks") else {}).items():
            make_task(name, **(own or {}))
        if found := there("models", "tasks"):
            for name, spec in found[0].items():
                check_known(f"models.{name}.task", spec["task"], found[1])
        if found := there("compressors"):
            self._check_compressors(found[0])

    def _check_compressors(self, known: Mapping[str, Any]) -> None:
        """Check that ``known`` are good names, and that presets and live conditions name no other."""
        if NONE in known:
            raise KvguardError(f"compressors.{NONE}: the name of the baseline is taken: rename it")
        for name, preset in (self.value("presets") if self.has("presets") else {}).items():
            for compressor, _ in Preset.model_validate(preset).pairs()[1:]:
                check_known(f"presets.{name}.compressors", compressor, known)
        for entry in self.value("live_validate.conditions") if self.has("live_validate.conditions") else ():
            if entry != WORST:
                check_known("live_validate.conditions", parse_entry(entry)[0], known)

    def task(self, model: str) -> Task:
        """Return the task that the model called ``model`` is asked."""
        name = self.spec(model).task
        check_known(f"models.{model}.task", name, self.value("tasks") if self.has("tasks") else ())
        return make_task(name, **(self.read(f"tasks.{name}", dict[str, Any] | None) or {}))

    def with_entry(self, registry: str, name: str, entry: Mapping[str, Any]) -> "Params":
        """Return these settings with one entry of ``models`` or ``tasks`` added or replaced."""
        return self.with_value(registry, {**self.value(registry), name: dict(entry)})


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Open the settings and check every key, value and name in them.

    Raises
    ------
    KvguardError
        One line: the file, the key, the value, and how to fix it.
    """
    return Params.load(path)
