"""Where a model comes from, and in which form it is held."""

from typing import Literal

from kvguard.config import Section, Text


class ModelSpec(Section):
    """Where a model comes from, in which form it is held, and the task that it is asked by default.

    ``revision`` is a branch, tag or commit of the hub. ``adapter`` is a LoRA adapter on the source, in peft's
    format: ``embedded:<name>`` or ``path:<dir>``; it is merged into the weights.
    A ``dtype`` of ``auto`` is float32 on a CPU, bfloat16 elsewhere. ``attention`` is how passes over many
    tokens attend (``auto`` is ``sdpa``); a press that needs attention weights gets ``eager`` anyway. With
    ``cuda_graphs`` a GPU repeats the decode step as a recording, where the model's can be recorded.
    """

    source: Text
    revision: Text = "main"
    adapter: Text | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    quantisation: Literal["none", "nf4"] = "none"
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    cuda_graphs: bool = True
    task: Text

    def dtype_on(self, device_type: str) -> str:
        """Return the dtype that the weights are held in on a kind of device."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if device_type == "cpu" else "bfloat16"

    @property
    def is_reference(self) -> bool:
        """Whether the model is one of those that kvguard ships."""
        return self.source.startswith("embedded:")
