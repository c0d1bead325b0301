"""The two small language models that kvguard trains itself and ships."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"

REFERENCE_PATHS: dict[str, Path] = {
    "reference": WEIGHTS / "qwen2",
    "reference_llama": WEIGHTS / "llama",
}
