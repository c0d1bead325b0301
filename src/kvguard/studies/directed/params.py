"""The settings of the study: what may stand in studies/directed/params.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from kvguard.config import Count, Key, Natural, Section, Settings, Share, Text, check_known
from kvguard.errors import KvguardError
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.sweep.settings import CompressorSpec

SHIPPED = Path(__file__).with_name("params.yaml")  # a link to the repository's; a wheel holds a copy
PLAIN = "none"  # the setting in which nothing but the condition varies

Better = Literal["lower", "higher"]


class DatasetParams(Section):
    """Where examples come from, and how long their documents may be.

    ``source`` is ``path:FILE``, ``hub:NAME``, ``embedded:reading`` or ``embedded:facts``. Of the hub's
    ``split`` the first ``pool`` examples are read; ``sentences`` is the length of a made document. One of
    more than ``max_tokens`` tokens, or than the model's window holds, is an error, skipped or cut at its
    end, as ``longer`` says.
    """

    source: Text
    split: Text = "validation"
    pool: Count = 5000
    sentences: Annotated[int, Field(strict=True, ge=8)] = 16
    max_tokens: Count | None = None
    longer: Literal["reject", "skip", "cut"] = "reject"


class ScoringParams(Section):
    """How documents are read and questions asked.

    ``separator`` stands after the prefix and around the question. ``frame`` says whether both stand in a
    user's message (``chat``). ``chunk`` examples are scored and committed together, ``batch_rows`` rows in
    one pass. Where texts are generated they have up to ``max_new_tokens``.
    """

    separator: Text = "\n"
    frame: Literal["auto", "chat", "plain"] = "auto"
    chunk: Count = 16
    batch_rows: Count = 32
    max_new_tokens: Count = 48


class WriterParams(Section):
    """Who writes the prefixes that a language model makes: the model itself, or one behind an endpoint.

    ``instructions`` follow the document (``paraphrase``: the question, which stands in it as {question}).
    """

    base_url: Text | None = None
    model: Text | None = None
    api_key_env: Text | None = None
    max_new_tokens: Count = 32
    instructions: dict[Text, Text]

    @model_validator(mode="after")
    def _an_endpoint_has_a_model(self) -> "WriterParams":
        if self.base_url and self.model is None:
            raise ValueError("base_url needs model: the name that the endpoint is asked for")
        return self


class AnalysisParams(Section):
    """What the statistics resample, and what counts as hard and as significant."""

    n_resamples: Annotated[int, Field(strict=True, ge=100)] = 1000
    n_permutations: Annotated[int, Field(strict=True, ge=99)] = 1999
    hard: Share = 0.4
    quantiles: Annotated[int, Field(strict=True, ge=2)] = 5
    alpha: Share = 0.05


class Grid(Section):
    """Two factors: a table of cells, each a condition, or ``condition|setting``."""

    rows: Annotated[tuple[Text, ...], Field(min_length=2)]
    columns: Annotated[tuple[Text, ...], Field(min_length=2)]
    cells: tuple[tuple[Text, ...], ...]

    @model_validator(mode="after")
    def _is_full(self) -> "Grid":
        if len(self.cells) != len(self.rows) or any(len(row) != len(self.columns) for row in self.cells):
            raise ValueError(f"cells: give {len(self.rows)} rows of {len(self.columns)} cells")
        return self


class Protocol(Section):
    """One experiment: a track's cells, and what is asked of their values.

    Attributes
    ----------
    track
        What scores the cells; ``options`` are its own.
    conditions, settings
        Cells: every condition in every setting. What a setting is (a press at a ratio, a mask, a length), the
        track says.
    metrics
        What is compared, and which is better.
    baseline
        What each other condition is compared with, in the same setting, and by whose NLL examples are hard.
    reference, oracle
        Noise, and the real question: semantic delta and structural fraction are made of these.
    gradient
        Conditions in their semantic order, least related first.
    grids
        Factors that cells cross.
    """

    track: Text
    title: Text
    about: Text
    conditions: Annotated[tuple[Text, ...], Field(min_length=1)]
    settings: Annotated[tuple[Text, ...], Field(min_length=1)] = (PLAIN,)
    metrics: dict[Text, Better] = Field(default_factory=lambda: cast(dict[str, Better], {"nll": "lower"}))
    baseline: Text = "bare"
    reference: Text | None = None
    oracle: Text | None = None
    gradient: tuple[Text, ...] = ()
    grids: dict[Text, Grid] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_its_conditions(self) -> "Protocol":
        if len(set(self.conditions)) < len(self.conditions):
            raise ValueError("conditions: one stands twice: keep each once")
        named = [self.baseline, self.reference, self.oracle, *self.gradient]
        for name in (one for one in named if one is not None):
            if name not in self.conditions:
                raise ValueError(f"{name} is none of its conditions: add it there, or name another")
        for grid in self.grids.values():
            for cell in (cell for row in grid.cells for cell in row):
                condition, _, setting = cell.partition("|")
                if condition not in self.conditions or (setting and setting not in self.settings):
                    raise ValueError(f"grids: {cell} is none of its cells: name a condition, and a setting")
        return self


class Params(Settings):
    """The settings of the study."""

    seed: Key[int] = Key(Natural)
    device: Key[str] = Key(Literal["auto", "cuda", "mps", "cpu"])
    datasets: Key[dict[str, DatasetParams]] = Key(dict[Text, DatasetParams])
    framings: Key[dict[str, str]] = Key(dict[Text, Text])
    writer: Key[WriterParams] = Key(WriterParams)
    scoring: Key[ScoringParams] = Key(ScoringParams)
    analysis: Key[AnalysisParams] = Key(AnalysisParams)
    catastrophes: Key[CatastropheParams] = Key(CatastropheParams)
    compressors: Key[dict[str, CompressorSpec]] = Key(dict[Text, CompressorSpec])
    experiments: Key[dict[str, Protocol]] = Key(dict[Text, Protocol])

    def protocol(self, name: str) -> Protocol:
        """Return the protocol of the experiment called ``name``."""
        check_known("experiment", name, self.value("experiments"))
        return cast(Protocol, self.read(f"experiments.{name}", Protocol))

    def dataset(self, name: str) -> tuple[str, DatasetParams]:
        """Return a data set's name and settings: one that is known, or ``path:FILE``."""
        if name.startswith("path:"):
            return Path(name.removeprefix("path:")).stem, DatasetParams(source=name)
        check_known("dataset", name, self.value("datasets"))
        return name, cast(DatasetParams, self.read(f"datasets.{name}", DatasetParams))

    def on(self, device: str | None) -> "Params":
        """Return these settings on another device, if one is named."""
        return self.with_value("device", device) if device else self


def load_params(path: Path | None = None) -> Params:
    """Open the settings that ship with kvguard, or those of a file over them.

    Raises
    ------
    KvguardError
        One line: the file, the key, the value, and how to fix it.
    """
    return Params.load(SHIPPED) if path is None else Params.load(path, SHIPPED)


def option(protocol: Protocol, name: str, default: Any) -> Any:
    """Return an option of a track.

    Raises
    ------
    KvguardError
        It is of another kind than its default.
    """
    found = protocol.options.get(name, default)
    if not isinstance(found, type(default)):
        raise KvguardError(f"options.{name}: {found!r} is no {type(default).__name__}: fix it")
    return found


def snapshot(protocol: Protocol) -> Mapping[str, Any]:
    """Return a protocol as a run tracks it."""
    return protocol.model_dump(mode="json", exclude={"title", "about"})
