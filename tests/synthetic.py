"""A small synthetic dataset: stored tables with catastrophes whose approach shows in the entropy."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from kvguard.engine.columns import LOGPROBS, SIGNALS
from kvguard.engine.presses import Condition
from kvguard.guard.controller import ControllerParams
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.judging.judge import SCORES, judge, score, score_metadata, with_scores
from kvguard.judging.onsets import uncompressed_lengths
from kvguard.store.schemas import conform
from kvguard.store.tables import write_table
from kvguard.studies.catastrophes.featurize import featurize
from kvguard.studies.catastrophes.params import TrainParams
from kvguard.tasks import make_task

VOCAB = 50
MAX_NEW_TOKENS = 96
SHORTEST = 20  # tokens of a trace
CONDITIONS = [
    Condition("none", 0.0),
    Condition("snapkv", 0.5),
    Condition("snapkv", 0.875),
    Condition("knorm", 0.875),
]
FAIL_SHARE = {0.0: 0.0, 0.5: 0.2, 0.875: 0.6}
MASK = np.arange(VOCAB) % 7 == 0

TASK = make_task("arithmetic", max_new_tokens=MAX_NEW_TOKENS)
CATASTROPHES = CatastropheParams()
CONTROLLER = ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=3, j_deescalate=8)
TRAIN = TrainParams.model_validate(
    {
        "split": {"train": 0.6, "tune": 0.2, "test": 0.2},
        "xgboost": {"n_estimators": 30, "max_depth": 3, "early_stopping_rounds": 5},
    }
)


def signals(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Plausible signals of n tokens, in the order of SIGNALS."""
    logprobs = -np.cumsum(rng.random((20, n), dtype=np.float32) * 0.5 + 0.05, axis=0)
    columns = {
        "entropy": rng.random(n) + 0.5,
        "top1_prob": np.exp(logprobs[0]),
        "top5_prob": np.minimum(np.exp(logprobs[:5]).sum(axis=0), 1),
        **dict(zip(LOGPROBS, logprobs, strict=True)),
        "h_alts": rng.random(n),
        "avg_logp": -5 - rng.random(n),
        "rank_of_chosen": rng.integers(0, 3, n),
    }
    return {name: columns[name].astype(np.float32) for name in SIGNALS}


def tokens_table(rng: np.random.Generator, token_ids: list[np.ndarray]) -> pd.DataFrame:
    """A tokens table for traces 0, 1, 2, ... with these tokens."""
    lengths = np.array([len(ids) for ids in token_ids])
    n = int(lengths.sum())
    frame = pd.DataFrame(
        {
            "trace_id": np.repeat(np.arange(len(lengths)), lengths),
            "t": np.concatenate([np.arange(length) for length in lengths]),
            "token_id": np.concatenate(token_ids),
            **signals(rng, n),
        }
    )
    return conform("tokens", frame)


def spelling(traces: pd.DataFrame) -> Callable[[list[int]], str]:
    """Decode the tokens of these traces, one character a token; they are known by their first ones."""
    texts = {
        tuple(ids[:SHORTEST]): text for ids, text in zip(traces["token_ids"], traces["text"], strict=True)
    }
    return lambda token_ids: texts.get(tuple(token_ids[:SHORTEST]), "")[: len(token_ids)]


def made(rng: np.random.Generator, prompt: int, fails: bool, answers: bool) -> tuple[np.ndarray, str]:
    """The tokens and the text of a trace.

    It ends early; or, where it fails, runs into a loop until the budget is spent, and its text states an
    answer shortly before that if it ``answers``, else with its last character.
    """
    text = f"Ana has {prompt} pens. #### {prompt + fails}"
    if not fails:
        return rng.integers(0, VOCAB, rng.integers(SHORTEST, 60)).astype(np.int32), text
    start = rng.integers(36, 60)
    loop = rng.integers(0, VOCAB, 5)
    tokens = np.concatenate([rng.integers(0, VOCAB, start), np.resize(loop, MAX_NEW_TOKENS - start)])
    answered = f"{text.rjust(start - 2)}\nQ: Who?"
    return tokens.astype(np.int32), answered if answers else text.rjust(MAX_NEW_TOKENS)


def build(folder, n_prompts: int = 40, seed: int = 0):
    """Write prompts, tokens, traces and features under ``folder``; return the judged traces."""
    rng = np.random.default_rng(seed)
    prompts = pd.DataFrame(
        {
            "prompt_id": [f"p{number:04d}" for number in range(n_prompts)],
            "task": "arithmetic",
            "question": [f"Ana has {number} pens. How many?" for number in range(n_prompts)],
            "prompt": [{"messages": [], "text": "Solve."}] * n_prompts,
            "references": [[str(number)] for number in range(n_prompts)],
            "metadata": "{}",
        }
    )
    write_table("prompts", prompts, folder / "prompts.parquet")
    rows: list[dict[str, object]] = []
    n_failing = 0
    for prompt in range(n_prompts):
        for condition in CONDITIONS:
            fails = rng.random() < FAIL_SHARE[condition.ratio]
            token_ids, text = made(rng, prompt, fails, answers=n_failing % 2 == 0)
            n_failing += fails
            rows.append(
                {
                    "trace_id": len(rows),
                    "prompt_id": prompts["prompt_id"][prompt],
                    "compressor": condition.compressor,
                    "ratio": condition.ratio,
                    "n_prompt_tokens": 200 + prompt,
                    "n_kept_tokens": (200 + prompt) * (1 - condition.ratio),
                    "token_ids": token_ids,
                    "text": text,
                    "stop_reason": "length" if fails else "eos",
                }
            )
    parts = pd.DataFrame(rows)
    parts["trace_id"] = parts["trace_id"].astype(np.int32)
    judged = judge(parts, TASK, CATASTROPHES, spelling(parts), uncompressed_lengths(parts))
    traces = conform("traces", pd.concat([parts, judged], axis=1).assign(model="toy", compressor_params="{}"))
    tokens = tokens_table(rng, list(traces["token_ids"]))
    onset = traces["onset"].fillna(10_000).to_numpy(dtype=np.int64)[tokens["trace_id"]]
    near = tokens["t"].to_numpy() >= onset - TRAIN.horizon
    tokens["entropy"] += (1.5 * near).astype(np.float32)
    generated = folder / "generate"
    middle = int(tokens["trace_id"].max()) // 2
    for name, chosen in (("a", tokens["trace_id"] <= middle), ("b", tokens["trace_id"] > middle)):
        write_table("tokens", tokens[chosen].reset_index(drop=True), generated / f"tokens-{name}.parquet")
    write_table("traces", traces, generated / "traces.parquet")
    scores = conform("scores", score(parts, prompts, TASK))
    write_table("scores", scores, generated / SCORES, score_metadata(TASK))
    featurize(generated, MAX_NEW_TOKENS, MASK, folder / "features.parquet")
    return with_scores(traces, scores, TASK.headline)
