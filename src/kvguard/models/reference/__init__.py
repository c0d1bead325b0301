"""The small language models that kvguard trains itself and ships."""

from pathlib import Path

_HERE = Path(__file__).parent
WEIGHTS = _HERE / "weights"

# In a folder of its own: no stage of the pipeline asks it, and stages depend on the whole of ``weights``.
LONG = _HERE / "weights_long" / "qwen2_long"

# Encoder-decoders, likewise: the directed study's alone.
ENCDEC = _HERE / "weights_encdec"

REFERENCE_PATHS: dict[str, Path] = {
    "reference": WEIGHTS / "qwen2",
    "reference_llama": WEIGHTS / "llama",
}


def embedded(name: str) -> Path:
    """Return the folder of ``embedded:<name>``."""
    if name == LONG.name:
        return LONG
    return (ENCDEC if name.startswith("t5") else WEIGHTS) / name
