"""LoRA adapters in peft's format: a small folder on top of a model that lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvguard.errors import KvguardError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvguard.models.spec import ModelSpec

_CONFIG = "adapter_config.json"


def adapter_folder(name: str, spec: ModelSpec) -> Path:
    """Return the folder of a model's adapter.

    Raises
    ------
    KvguardError
        There is none, or the model is held in four bits, into which an adapter cannot be merged exactly.
    """
    from kvguard.models.reference import embedded_adapter

    kind, _, rest = (spec.adapter or "").partition(":")
    key = f"models.{name}.adapter" if name != spec.source else "--adapter"
    if kind not in {"embedded", "path"} or not rest:
        raise KvguardError(f"{key}: {spec.adapter!r} is neither embedded:NAME nor path:DIR")
    folder = embedded_adapter(rest) if kind == "embedded" else Path(rest)
    if not (folder / _CONFIG).is_file():
        raise KvguardError(f"{key}: no adapter lies at {folder} ({_CONFIG} is missing)")
    if spec.quantisation != "none":
        raise KvguardError(f"{key}: an adapter needs quantisation none, not {spec.quantisation}")
    return folder


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return a model with an adapter added to its weights.

    Merged, since presses and the batched attention look for the layers where transformers has them.
    """
    from peft import PeftModel

    merged: PreTrainedModel = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return merged
