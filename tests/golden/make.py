"""Write the golden set: ``python tests/golden/make.py``; look at the diff before you commit it.

``--guards`` first cuts the guards anew from those in models/: to their first trees, with thresholds that
short generations reach. Only a change of features or of the bundle's format asks for that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from generations import GUARDS, MODELS, POINT, VERSIONS, Records, generations, load
from golden_set import GOLDEN, NOT_EXACT
from torch import nn

from kvguard.guard.bundle import CARD, POINTS_FILE, digest_of
from kvguard.guard.hazard_model import HazardModel

BUNDLES = {"qwen2": Path("models/reference"), "llama": Path("models/reference_llama")}
N_TREES = 4
CONTROLLER = {"tau_low": 0.07, "tau_high": 0.1, "k_escalate": 3, "j_deescalate": 3}
LEAST_GAP = 1e-3  # between the two largest logits of a greedy row
NOISE = 1e-4  # of logits, ten times what other CPUs and batches make


def main(cut_anew: bool) -> None:
    models: dict[str, dict[str, Records]] = {}
    for name in MODELS:
        if cut_anew:
            _cut_guard(name)
        loaded = load(name)
        models[name] = generations(loaded)
        _check_gaps(name, models[name])
        with _Noise(loaded.model):
            disturbed = generations(loaded)
        _check_steady(name, models[name], disturbed)
    GOLDEN.write_text(_text({"versions": VERSIONS, "models": models}))


def _check_gaps(name: str, groups: dict[str, Records]) -> None:
    for group in ("decoded", "acted on"):
        for case, records in groups[group].items():
            for prompt, record in enumerate(records):
                if record["least_gap"] < LEAST_GAP:
                    sys.exit(
                        f"{name}, {case}, prompt {prompt}: a near tie ({record['least_gap']}): another CPU "
                        "may draw another token; put another prompt in prompts.json"
                    )


def _check_steady(name: str, groups: dict[str, Records], disturbed: dict[str, Records]) -> None:
    """Reject a set that noise changes: sampled rows, and a guard's decisions, have no gap to look at."""
    for group, cases in groups.items():
        for case, records in cases.items():
            for prompt, (record, other) in enumerate(zip(records, disturbed[group][case], strict=True)):
                changed = [key for key in record if key not in NOT_EXACT and record[key] != other[key]]
                if changed:
                    sys.exit(
                        f"{name}, {case}, prompt {prompt}: {', '.join(changed)} change with noise of {NOISE} "
                        "in the logits: put another prompt in prompts.json, or other thresholds in make.py"
                    )


class _Noise:
    """While entered, a model's logits are a little off."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.random = model, torch.Generator().manual_seed(0)

    def __enter__(self) -> None:
        self.handle = self.model.register_forward_hook(self._disturb)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _disturb(self, module: nn.Module, args: object, output: object) -> None:
        noise = torch.rand(output.logits.shape, generator=self.random)  # type: ignore[attr-defined]
        output.logits = output.logits + NOISE * (2 * noise - 1)  # type: ignore[attr-defined]


def _cut_guard(name: str) -> None:
    bundle, folder = BUNDLES[name], GUARDS / name
    whole = HazardModel.load(bundle)
    cut = HazardModel(whole.booster[:N_TREES], whole.features, whole.calibration, whole.threshold)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in cut.texts().items():
        (folder / file).write_text(text)
    (folder / POINTS_FILE).write_text(json.dumps({POINT: CONTROLLER}, indent=2) + "\n")
    card = json.loads((bundle / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "digest": digest_of(folder)}, indent=2) + "\n")


def _text(golden: dict[str, object]) -> str:
    """Return JSON with a line for every row, so that a diff shows which rows changed."""

    def lines(value: object, depth: int) -> str:
        if not isinstance(value, dict | list) or depth == 0:
            return json.dumps(value)
        inner = ",\n".join(
            [f"{json.dumps(key)}: {lines(item, depth - 1)}" for key, item in value.items()]
            if isinstance(value, dict)
            else [lines(item, depth - 1) for item in value]
        )
        return f"{{\n{inner}\n}}" if isinstance(value, dict) else f"[\n{inner}\n]"

    return lines(golden, 5) + "\n"


if __name__ == "__main__":
    main("--guards" in sys.argv[1:])
