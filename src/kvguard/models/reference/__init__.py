"""The small language models that kvguard trains itself and ships."""

from pathlib import Path

_HERE = Path(__file__).parent
WEIGHTS = _HERE / "weights"

# In folders of their own: no stage of the pipeline asks them, and stages depend on the whole of ``weights``.
LONG = _HERE / "weights_long" / "qwen2_long"
INSTRUCT = _HERE / "weights_instruct" / "qwen2_instruct"
ENCDEC = _HERE / "weights_encdec"
_APART = {path.name: path for path in (LONG, INSTRUCT, ENCDEC / "t5", ENCDEC / "t5_narrow")}

REFERENCE_PATHS: dict[str, Path] = {
    "reference": WEIGHTS / "qwen2",
    "reference_llama": WEIGHTS / "llama",
}


def embedded(name: str) -> Path:
    """Return the folder of ``embedded:<name>``."""
    return _APART.get(name, WEIGHTS / name)


def embedded_adapter(name: str) -> Path:
    """Return the folder of the adapter ``embedded:<name>``, on a model that is not ours."""
    return _HERE / "adapters" / name
