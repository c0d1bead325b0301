"""params.yaml as frozen, typed objects that refuse what they do not know."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kvguard.errors import KvguardError

NO_COMPRESSION = "none"
WORST = "worst"  # the condition that fails most in the sweep

Text = Annotated[str, Field(strict=True, min_length=1)]
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Ratio = Annotated[float, Field(strict=True, ge=0, lt=1)]
Protocol = Literal["v1", "v2"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Section):
    """Where a model comes from, in which form it is held, and how it is asked.

    ``revision`` is a branch, tag or commit of the hub. ``attention`` is how passes over many tokens attend
    (``auto`` is ``sdpa``); a press that needs attention weights gets ``eager`` whatever it says. With
    ``cuda_graphs`` a GPU repeats the decode step as a recording, where the model's can be recorded.
    """

    source: Text
    revision: Text = "main"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantisation: Literal["none", "nf4"] = "none"
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    cuda_graphs: bool = True
    task: Text
    task_source: Text | None = None
    n_shots: Natural = 3
    max_new_tokens: Count = 256

    @property
    def is_reference(self) -> bool:
        """Whether the model is one of those that kvguard ships."""
        return self.source.startswith("embedded:")


class SampleParams(_Section):
    """How many prompts each model is asked."""

    n: Count


class Preset(_Section):
    """Which conditions a sweep covers: names crossed with ``ratios``, or ``name@ratio`` entries.

    The uncompressed baseline is always one of them.
    """

    compressors: tuple[Text, ...]
    ratios: tuple[Ratio, ...] = ()

    @field_validator("compressors")
    @classmethod
    def _entries_parse(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        names = [_parse_entry(entry)[0] for entry in entries]
        return entries if NO_COMPRESSION in names else (NO_COMPRESSION, *entries)

    @model_validator(mode="after")
    def _plain_names_have_ratios(self) -> "Preset":
        for entry in self.compressors:
            if "@" not in entry and entry != NO_COMPRESSION and not self.ratios:
                raise ValueError(f"{entry!r} has no ratio: list some under ratios, or write {entry}@0.5")
        return self

    def pairs(self) -> list[tuple[str, float]]:
        """Return each (compressor, ratio) once, in order, after the uncompressed baseline."""
        pairs = [(NO_COMPRESSION, 0.0)]
        for entry in self.compressors:
            name, ratio = _parse_entry(entry)
            if name != NO_COMPRESSION:
                pairs += [(name, r) for r in (self.ratios if ratio is None else (ratio,))]
        return list(dict.fromkeys(pairs))


class CompressorSpec(_Section):
    """A kvpress press by class name, and the arguments it is built with (all but the ratio)."""

    press: Text
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_params(cls, data: Any) -> Any:
        if not isinstance(data, dict) or isinstance(data.get("params"), dict):
            return data
        if "compression_ratio" in data:
            raise ValueError("compression_ratio comes from the preset: remove it here")
        return {
            **({"press": data["press"]} if "press" in data else {}),
            "params": {key: value for key, value in data.items() if key != "press"},
        }


class GenerateParams(_Section):
    """How the sweep is cut into parts and batches, and what makes them.

    The ``engine`` changes no table: ``local`` is this machine, ``ray`` a Ray cluster, a worker per GPU. On
    CPUs there are ``workers`` of them in the whole cluster; ``auto`` is as many as its cores hold.
    """

    preset: Text
    prompts_per_part: Count = 100
    batch_size: Count | Literal["auto"] = "auto"
    workers: Count | Literal["auto"] = "auto"
    engine: Literal["local", "ray"] = "local"


class CatastropheParams(_Section):
    """When a trace counts as looping, as endless, as having forgotten its question."""

    loop_window: Count = 20
    loop_repeats: Annotated[int, Field(strict=True, ge=2)] = 3
    nontermination_onset: Share = 0.75
    amnesia_threshold: Share = 0.5


class FeaturizeParams(_Section):
    """How signals become feature rows and labels."""

    horizon: Count = 32
    thinking_words: tuple[Text, ...] = ()


class ValidateParams(_Section):
    """What the data checks tolerate."""

    max_snapkv_inside_window: Share = 0.0


class SplitParams(_Section):
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


class XgboostParams(_Section):
    """Settings of the hazard model, under XGBoost's own names."""

    n_estimators: Count = 300
    max_depth: Count = 6
    learning_rate: Positive = 0.1
    subsample: Share = 0.8
    colsample_bytree: Share = 0.8
    min_child_weight: Annotated[float, Field(strict=True, ge=0)] = 5
    early_stopping_rounds: Count = 20
    max_bin: Annotated[int, Field(strict=True, ge=2)] = 128


class TrainParams(_Section):
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


class ControllerParams(_Section):
    """An operating point: thresholds on the hazard, and hysteresis in tokens."""

    tau_low: Share
    tau_high: Share
    k_escalate: Count
    j_deescalate: Count

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> "ControllerParams":
        if self.tau_low > self.tau_high:
            raise ValueError(f"tau_low {self.tau_low:g} is above tau_high {self.tau_high:g}: swap them")
        return self


class GuardParams(_Section):
    """How the live guard acts.

    ``max_rewinds`` bounds the rewinds of one row; ``resume`` compresses a restored row again once it has been
    calm.
    """

    max_rewinds: Natural = 2
    resume: bool = False

    def __init__(self, **settings: Any) -> None:  # the one section that users of the library make themselves
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise KvguardError(_first_mistake(error, "guard")) from None


class EvaluateParams(_Section):
    """How operating points are searched and chosen: at most these false-positive rates on tune prompts."""

    n_trials: Count = 500
    conservative_fpr: Share = 0.01
    balanced_fpr: Share = 0.02


class LiveValidateParams(_Section):
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
            name, ratio = _parse_entry(entry)
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
        found = [None if entry == WORST else _parse_entry(entry) for entry in self.conditions]
        return [pair and (pair[0], pair[1] or 0.0) for pair in dict.fromkeys(found)]


class AblateParams(_Section):
    """Which settings of the controller are swept, and how often the random predictor is drawn."""

    hysteresis: tuple[Count, ...] = tuple(range(1, 17))
    thresholds: tuple[Share, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
    n_random: Count = 20


class ReportParams(_Section):
    """What the report shows: traces in its explorer, and the models that a reader expects to see."""

    traces_per_condition: Count = 20
    models: tuple[Text, ...] = ()


class Params(_Section):
    """All of params.yaml. The key ``validate`` is the attribute ``validation``."""

    model: Text
    transfer_to: Text
    seed: Natural
    n_resamples: Annotated[int, Field(strict=True, ge=100)] = 1000
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    models: dict[str, ModelSpec]
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

    @model_validator(mode="after")
    def _names_resolve(self) -> "Params":
        from kvguard.tasks import TASK_NAMES

        check_known("model", self.model, self.models)
        check_known("transfer_to", self.transfer_to, self.models)
        check_known("generate.preset", self.generate.preset, self.presets)
        if self.model == self.transfer_to:
            raise KvguardError(f"transfer_to: {self.transfer_to!r} is also the model: name another of models")
        if len(set(self.protocols)) < len(self.protocols):
            raise KvguardError(f"protocols: {list(self.protocols)} names one twice: keep each once")
        for name, spec in self.models.items():
            check_known(f"models.{name}.task", spec.task, TASK_NAMES)
        if NO_COMPRESSION in self.compressors:
            raise KvguardError(f"compressors.{NO_COMPRESSION}: the name of the baseline is taken: rename it")
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
        raise KvguardError(f"{path}: {_first_mistake(error)}") from None
    except KvguardError as error:
        raise KvguardError(f"{path}: {error}") from None


def check_known(key: str, name: str, known: Iterable[str]) -> None:
    """Raise a one-line error naming ``key``, the nearest name and all names unless ``name`` is known."""
    names = list(known)
    if name not in names:
        raise KvguardError(f"{key}: unknown name {name!r}{_did_you_mean(name, names)} ({_listed(names)})")


def _parse_entry(entry: str) -> tuple[str, float | None]:
    name, at, text = entry.partition("@")
    if not at:
        return name, None
    try:
        ratio = float(text)
    except ValueError:
        raise ValueError(f"{entry!r} is not name@ratio, as in snapkv@0.5") from None
    if not 0 <= ratio < 1:
        raise ValueError(f"{entry!r}: the ratio is the share removed: it must lie in [0, 1)")
    return name, ratio


def _first_mistake(error: ValidationError, *section: str) -> str:
    mistake = error.errors()[0]
    location = (*section, *(str(part) for part in mistake["loc"]))
    key = ".".join(location)
    if mistake["type"] == "extra_forbidden":
        names = _fields_beside(location)
        return f"unknown key {key!r}{_did_you_mean(location[-1], names)} ({_listed(names)})"
    if mistake["type"] == "missing":
        return f"missing key {key!r}: add it"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: {mistake['input']!r} does not fit: {message[0].lower()}{message[1:]}"


def _fields_beside(location: tuple[str, ...]) -> list[str]:
    """Return the keys allowed where the key at ``location`` was found."""
    kind: Any = Params
    for part in location[:-1]:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = next(f.annotation for name, f in kind.model_fields.items() if (f.alias or name) == part)
    return [field.alias or name for name, field in kind.model_fields.items()]


def _did_you_mean(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _listed(names: list[str]) -> str:
    return f"known: {', '.join(names)}" if names else "none are known here"
