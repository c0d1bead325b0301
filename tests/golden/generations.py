"""Generations that pin the engine and the guard; the one place of the golden set that calls them.

All that decides a token stands here or beside it (prompts.json, guards/), so that neither params.yaml nor the
default run changes the set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from kvpress import BasePress
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from kvguard import engine, guard
from kvguard.engine.batch import Batch, Step
from kvguard.engine.budget import Budget
from kvguard.engine.columns import SIGNALS
from kvguard.engine.loop import Generated, assemble, decode, decode_steps
from kvguard.engine.prefill import prefill
from kvguard.engine.presses import NONE, Condition, attention_for, build_press
from kvguard.engine.requests import Decoding, Finished, Row
from kvguard.engine.sampling import Nucleus
from kvguard.guard.actions import GuardParams
from kvguard.guard.session import Guard
from kvguard.models.load import LoadedModel
from kvguard.models.reference import WEIGHTS

HERE = Path(__file__).parent
GUARDS, POINT = HERE / "guards", "golden"
MODELS = ("qwen2", "llama")
NEW = 64  # tokens
EVERY = 20  # tokens between two whose signals are kept
DIGITS = 5
VERSIONS = {"engine": engine.VERSION, "guard": guard.VERSION}


class Spec(NamedTuple):
    """A press by class name, and its arguments but the ratio."""

    press: str
    params: Mapping[str, Any] = {}


_SNAPKV = {"window_size": 16, "kernel_size": 5}
PRESSES = {
    "snapkv": Spec("SnapKVPress", _SNAPKV),
    "knorm": Spec("KnormPress"),
    "keydiff": Spec("KeyDiffPress"),
    "random": Spec("RandomPress", {"seed": 0}),
    "streaming_llm": Spec("StreamingLLMPress", {"n_sink": 4}),  # its scores depend on the ratio
    "observed_attention": Spec("ObservedAttentionPress"),  # eager
    "pyramidkv": Spec("PyramidKVPress", {**_SNAPKV, "beta": 20}),  # runs in kvpress's context manager
    "lagkv": Spec("LagKVPress", {"n_sink": 4, "lag_size": 32}),
    "adakv_snapkv": Spec("AdaKVPress", {"press": {"press": "SnapKVPress", **_SNAPKV}}),  # masks by head
    "adakv_knorm": Spec("AdaKVPress", {"press": {"press": "KnormPress"}}),
}
RATIOS = (0.25, 0.875)
SAMPLED = (Condition(NONE, 0.0), Condition("snapkv", 0.875))
ACTED_ON = (Condition("knorm", 0.75), Condition("adakv_snapkv", 0.75))
# Without KNorm: at layer 0 equal tokens have keys of equal norm, and rounding decides which is evicted.
BUDGETED = tuple(Condition(name, 0.75) for name in ("snapkv", "keydiff", "streaming_llm"))

Record = dict[str, Any]
Records = dict[str, list[Record]]  # by case, one per prompt


def load(name: str) -> LoadedModel:
    """Load a reference model."""
    folder = WEIGHTS / name
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return LoadedModel(name, model.eval(), AutoTokenizer.from_pretrained(folder), "")


def generations(loaded: LoadedModel, batch_size: int = 32) -> dict[str, Records]:
    """Generate the whole set of one model: by group, case and prompt."""
    texts = json.loads((HERE / "prompts.json").read_text())
    prompts = [torch.tensor(loaded.encode(text)) for text in texts]
    return {
        "decoded": _decoded(loaded, prompts, batch_size),
        "sampled": _sampled(loaded, prompts, batch_size),
        "acted on": _acted_on(loaded, prompts, batch_size),
        "guarded": _guarded(loaded, texts, batch_size),
    }


def _decoded(loaded: LoadedModel, prompts: Sequence[torch.Tensor], batch_size: int) -> Records:
    """All kinds of press at a low and a high ratio, in one batch."""
    pairs = [Condition(name, ratio) for name in PRESSES for ratio in RATIOS]
    rows = _rows(loaded, prompts, [Condition(NONE, 0.0), *pairs])
    how = Decoding(NEW, loaded.eos_ids)
    return _records(rows, decode(loaded.model, rows.values(), how, batch_size=batch_size))


def _sampled(loaded: LoadedModel, prompts: Sequence[torch.Tensor], batch_size: int) -> Records:
    rows = _rows(loaded, prompts, SAMPLED)
    how = Decoding(NEW, loaded.eos_ids, Nucleus(temperature=0.8, top_p=0.95, seed=17))
    return _records(rows, decode(loaded.model, rows.values(), how, batch_size=batch_size))


def _acted_on(loaded: LoadedModel, prompts: Sequence[torch.Tensor], batch_size: int) -> Records:
    """Rows that get their full cache back, are rewound, are compressed again, or held to a budget."""

    def restore(batch: Batch, step: Step) -> None:
        batch.restore(_at(step, 20))

    def rewind(batch: Batch, step: Step) -> None:
        slots = [slot for slot in _at(step, 30) if batch.attempt[slot] == 0]
        batch.restore(slots, [12] * len(slots))

    def recompress(batch: Batch, step: Step) -> None:
        batch.restore(_at(step, 20))
        batch.recompress(_at(step, 32))

    def run(
        rows: Mapping[tuple[int, Condition], Row], act: Callable[[Batch, Step], None], what: str
    ) -> Records:
        how = Decoding(NEW, loaded.eos_ids, keep_cache=True)
        batch, done = assemble(loaded.model, rows.values(), batch_size, how), list[Finished]()
        for step in decode_steps(batch):
            act(batch, step)
            done += batch.collect()
        generated = Generated.of([*done, *batch.collect()])
        return {f"{case}, {what}": found for case, found in _records(rows, generated).items()}

    rows = _rows(loaded, prompts, ACTED_ON)
    records = {
        **run(rows, restore, "restored"),
        **run(rows, rewind, "rewound"),
        **run(rows, recompress, "compressed again"),
    }
    rows = _rows(loaded, prompts, BUDGETED)
    presses = {condition: _press(condition) for condition in BUDGETED}
    with Budget(loaded.model, [presses[condition] for _, condition in rows], interval=20) as budget:
        return records | run(rows, lambda b, _: budget.enforce(b, np.arange(b.n)), "evicted from")


def _at(step: Step, t: int) -> list[int]:
    """Slots whose row has just drawn its token ``t``, and goes on."""
    return np.flatnonzero((step.t == t) & ~step.ended).tolist()


def _guarded(loaded: LoadedModel, texts: Sequence[str], batch_size: int) -> Records:
    """What the library's front door gives, its actions with it."""
    chosen = Guard.load(GUARDS / loaded.name, POINT, GuardParams(max_rewinds=2, resume=True, rewind_below=1))
    mild, harsh = Condition("snapkv", 0.75), Condition("streaming_llm", 0.875)
    calls: list[tuple[Condition, str, dict[str, Any]]] = [
        (mild, "restore", {}),
        (mild, "rollback", {}),
        (harsh, "rollback", {"temperature": 0.8, "seed": 17}),
        (harsh, "restart", {}),
        (mild, "hold", {"compression_interval": 20}),
        (harsh, "rollback", {"compression_interval": 20}),
    ]
    records: Records = {}
    for condition, action, how in calls:
        outputs = chosen.generate(
            loaded.model, loaded.tokenizer, texts, press=_press(condition),
            max_new_tokens=NEW, batch_size=batch_size, action=action, **how,
        )  # fmt: skip
        case = ", ".join([str(condition), action, *how])
        records[case] = [
            {
                "stop": out.stop_reason,
                "tokens": out.token_ids.tolist(),
                "states": "".join(map(str, out.states.tolist())),
                "actions": [[event.t, event.what, event.kept] for event in out.actions],
                "steps": [out.n_steps, out.n_rewound],
                "signals": _rounded(np.stack([out.hazard, out.kv_tokens], axis=1)),
            }
            for out in outputs
        ]
    return records


def _press(condition: Condition) -> BasePress | None:
    if condition.compressor == NONE:
        return None
    return build_press(PRESSES[condition.compressor], condition.ratio)


def _rows(
    loaded: LoadedModel, prompts: Sequence[torch.Tensor], conditions: Sequence[Condition]
) -> dict[tuple[int, Condition], Row]:
    """Prefill every prompt, once for all presses of an attention implementation."""
    presses = {condition: _press(condition) for condition in conditions}
    done = {}
    for implementation in ("sdpa", "eager"):
        together = {c: press for c, press in presses.items() if attention_for(press) == implementation}
        if together:
            for number, ids in enumerate(prompts):
                filled = prefill(loaded.model, ids, together, implementation)
                done |= {(number, c): Row(ids, filled.logits, kept) for c, kept in filled.kept.items()}
    return {(n, c): done[n, c] for c in conditions for n in range(len(prompts))}


def _records(keys: Mapping[tuple[int, Condition], Row], generated: Generated) -> Records:
    records: Records = {}
    for r, (_, condition) in enumerate(keys):
        n = int(generated.lengths[r])
        signals = generated.signals[r, :n]
        gap = signals[:, SIGNALS.index("logprob_0")] - signals[:, SIGNALS.index("logprob_1")]
        records.setdefault(str(condition), []).append(
            {
                "stop": generated.stop_reasons[r],
                "tokens": generated.token_ids[r, :n].tolist(),
                "least_gap": round(float(gap.min()), DIGITS),
                "signals": _rounded(signals),
            }
        )
    return records


def _rounded(signals: np.ndarray) -> list[list[float]]:
    """Keep the signals of every so many tokens. [T, S]"""
    kept = np.where(np.isfinite(signals), signals, -1.0)[::EVERY].astype(float)
    return kept.round(DIGITS).tolist()
