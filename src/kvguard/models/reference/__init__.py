"""The small language models that kvguard trains itself and ships."""

from pathlib import Path

_HERE = Path(__file__).parent
WEIGHTS = _HERE / "weights"

# In a folder of its own: no stage of the pipeline asks it, and stages depend on the whole of ``weights``.
LONG = _HERE / "weights_long" / "qwen2_long"

REFERENCE_PATHS: dict[str, Path] = {
    "reference": WEIGHTS / "qwen2",
    "reference_llama": WEIGHTS / "llama",
}


def embedded(name: str) -> Path:
    """Return the folder of ``embedded:<name>``."""
    return LONG if name == LONG.name else WEIGHTS / name


def embedded_adapter(name: str) -> Path:
    """Return the folder of the adapter ``embedded:<name>``, on a model that is not ours."""
    return _HERE / "adapters" / name
