"""What a sweep is asked for: presets, compressors, how the work is cut."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kvguard.config import Count, Ratio, Section, Text
from kvguard.engine.presses import NONE, Condition


class Preset(Section):
    """Which conditions a sweep covers: names crossed with ``ratios``, or ``name@ratio`` entries.

    The uncompressed baseline is always one of them.
    """

    compressors: tuple[Text, ...]
    ratios: tuple[Ratio, ...] = ()

    @field_validator("compressors")
    @classmethod
    def _entries_parse(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        names = [parse_entry(entry)[0] for entry in entries]
        return entries if NONE in names else (NONE, *entries)

    @model_validator(mode="after")
    def _plain_names_have_ratios(self) -> "Preset":
        for entry in self.compressors:
            if "@" not in entry and entry != NONE and not self.ratios:
                raise ValueError(f"{entry!r} has no ratio: list some under ratios, or write {entry}@0.5")
        return self

    def pairs(self) -> list[tuple[str, float]]:
        """Return each (compressor, ratio) once, in order, after the uncompressed baseline."""
        pairs = [(NONE, 0.0)]
        for entry in self.compressors:
            name, ratio = parse_entry(entry)
            if name != NONE:
                pairs += [(name, r) for r in (self.ratios if ratio is None else (ratio,))]
        return list(dict.fromkeys(pairs))


class CompressorSpec(Section):
    """A kvpress press by class name, and the arguments it is built with (all but the ratio)."""

    press: Text
    params: dict[str, Any] = Field(default_factory=dict)

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


class GenerateParams(Section):
    """How the sweep is cut into parts and batches, and what makes them.

    The ``engine`` changes no table: ``local`` is this machine, ``ray`` a Ray cluster, a worker per GPU. On
    CPUs there are ``workers`` of them in the whole cluster; ``auto`` is as many as its cores hold.
    """

    preset: Text
    prompts_per_part: Count = 100
    batch_size: Count | Literal["auto"] = "auto"
    workers: Count | Literal["auto"] = "auto"
    engine: Literal["local", "ray"] = "local"


def parse_entry(entry: str) -> tuple[str, float | None]:
    """Read ``name`` or ``name@ratio``."""
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


def conditions(preset: Preset) -> list[Condition]:
    """List a preset's conditions: ``none`` first, then compressor by compressor in the preset's order."""
    return [Condition(name, ratio) for name, ratio in preset.pairs()]
