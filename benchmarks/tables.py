"""Synthetic tables of many traces through featurize, validate, measure and train: time, rate and peak memory.

    python benchmarks/tables.py --traces 80000 --tokens 200

Each stage runs in a process of its own, whose peak is what the kernel says of it.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd

from kvguard.engine.columns import LOGPROBS, SIGNALS
from kvguard.engine.presses import NONE
from kvguard.judging.judge import SCORES, score_metadata
from kvguard.judging.onsets import LOOPING
from kvguard.store.schemas import conform
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes.featurize import featurize
from kvguard.studies.catastrophes.measure.stage import measure
from kvguard.studies.catastrophes.params import Params, load_params
from kvguard.studies.catastrophes.train.fit import train
from kvguard.studies.catastrophes.validate import Plan, validate
from kvguard.sweep.settings import conditions
from kvguard.tasks import make_task

LIMIT_GB = 6.0
VOCAB = 512
PROMPTS_PER_PART = 20
LOOP = 9  # tokens that a failing trace repeats, from LOOP_AT of its length on
LOOP_AT = 0.6
FAILS = 0.4  # share of the compressed traces


def make(folder: Path, params: Params, n_traces: int, n_tokens: int) -> None:
    """Write prompts, tokens and judged traces; before a loop the entropy rises."""
    planned = conditions(params.presets["default"])
    names = [f"p{number:06d}" for number in range(-(-n_traces // len(planned)))]
    prompts = pd.DataFrame({"prompt_id": names, "task": "synthetic", "question": "", "metadata": "{}"})
    prompts["prompt"] = [{"messages": [], "text": ""}] * len(names)
    prompts["references"] = [["1"]] * len(names)
    write_table("prompts", conform("prompts", prompts), folder / "prompts.parquet")
    compressor, ratio = ([getattr(c, key) for c in planned] for key in ("compressor", "ratio"))
    rng = np.random.default_rng(0)
    onset = int(LOOP_AT * n_tokens) + LOOP
    judged, right = [], []
    for part, begin in enumerate(range(0, len(names), PROMPTS_PER_PART)):
        asked = names[begin : begin + PROMPTS_PER_PART]
        n = len(asked) * len(planned)
        traces = pd.DataFrame(
            {
                "model": "synthetic",
                "trace_id": np.arange(n) + begin * len(planned),
                "prompt_id": np.repeat(asked, len(planned)),
                "compressor": compressor * len(asked),
                "ratio": ratio * len(asked),
                "n_prompt_tokens": 300,
                "n_kept_tokens": 100.0,
                "text": "#### 1",
                "predicted": "1",
                "compressor_params": "{}",
            }
        )
        fails = (rng.random(n) < FAILS) & (traces["compressor"] != NONE).to_numpy()
        token_ids = rng.integers(0, VOCAB, (n, n_tokens))
        token_ids[fails, onset - LOOP :] = np.resize(token_ids[0, :LOOP], n_tokens - onset + LOOP)
        traces["token_ids"] = list(token_ids.astype(np.int32))
        traces["stop_reason"] = np.where(fails, "length", "eos")
        for name in ("onset", "proxy_onset"):
            traces[name] = pd.array(np.where(fails, onset, None), dtype="Int32")
            traces[f"{name}_by"] = np.where(fails, LOOPING, None)
        traces["catastrophes"] = [["looping", "non_termination"] if failed else [] for failed in fails]
        right.append(pd.DataFrame({"trace_id": traces["trace_id"], "value": 1.0 - fails}))
        judged.append(conform("traces", traces))
        tokens = _tokens(rng, traces["trace_id"].to_numpy(), token_ids, fails, onset)
        write_table("tokens", tokens, folder / f"tokens-{part:04d}.parquet")
    write_table("traces", pd.concat(judged, ignore_index=True), folder / "traces.parquet")
    scores = conform("scores", pd.concat(right, ignore_index=True).assign(metric="accuracy"))
    write_table("scores", scores, folder / SCORES, score_metadata(make_task("arithmetic")))


def _tokens(
    rng: np.random.Generator, trace_id: np.ndarray, token_ids: np.ndarray, fails: np.ndarray, onset: int
) -> pd.DataFrame:
    n_traces, n_tokens = token_ids.shape
    t = np.tile(np.arange(n_tokens), n_traces)
    rising = np.repeat(fails, n_tokens) * np.clip((t - onset + 48) / 48, 0, 1)
    steps = rng.random((len(LOGPROBS), len(t)), dtype=np.float32) * 0.5
    logprobs = -np.cumsum(steps, axis=0)
    columns = {
        "entropy": rng.random(len(t)) + rising,
        "top1_prob": np.exp(logprobs[0]),
        "top5_prob": np.minimum(np.exp(logprobs[:5]).sum(axis=0), 1),
        **dict(zip(LOGPROBS, logprobs, strict=True)),
        "h_alts": rng.random(len(t)),
        "avg_logp": -5 - rng.random(len(t)),
        "rank_of_chosen": rng.integers(0, 3, len(t)),
    }
    keys = {"trace_id": np.repeat(trace_id, n_tokens), "t": t, "token_id": token_ids.ravel()}
    return conform("tokens", pd.DataFrame(keys | {name: columns[name] for name in SIGNALS}))


def run(stage: str, folder: Path, params: Params, n_tokens: int) -> None:
    """Do what the stage's script does, tracking aside."""
    features = folder / "features.parquet"
    if stage == "featurize":
        featurize(folder, n_tokens, np.arange(VOCAB) % 9 == 0, features)
    elif stage == "validate":
        plan = Plan(conditions(params.presets["default"]), n_tokens, VOCAB)
        validate(folder / "prompts.parquet", folder, features, plan, params.validation)
    elif stage == "measure":
        measure(folder, "synthetic", params.n_resamples, params.seed)
    else:
        columns = ["trace_id", "prompt_id", "compressor", "catastrophes"]
        columns += ["onset", "onset_by", "proxy_onset", "proxy_onset_by"]
        traces = read_table("traces", folder / "traces.parquet", columns)
        train(features, traces, params.train, params.seed)


def measured(arguments: list[str]) -> tuple[float, float]:
    """Run this script with ``arguments``; return seconds and peak memory in GB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"{' '.join(arguments)} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9  # the kernel counts in KiB


@click.command(help=__doc__)
@click.option("--traces", default=80_000, show_default=True)
@click.option("--tokens", default=200, show_default=True, help="Tokens of each trace.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the tables go; a temporary folder.")
@click.option("--stage", hidden=True, help="What a process of its own does.")
def main(traces: int, tokens: int, folder: Path | None, stage: str | None) -> None:
    if stage is not None:
        assert folder is not None
        params = load_params()
        if stage == "make":
            make(folder, params, traces, tokens)
        else:
            run(stage, folder, params, tokens)
        return
    with tempfile.TemporaryDirectory(prefix="kvguard-tables-") as temporary:
        shape = ["--traces", str(traces), "--tokens", str(tokens), "--folder", str(folder or temporary)]
        measured([*shape, "--stage", "make"])
        click.echo(f"{'stage':12}{'seconds':>10}{'tokens/s':>12}{'peak GB':>10}")
        peaks = []
        for name in ("featurize", "validate", "measure", "train"):
            seconds, peak = measured([*shape, "--stage", name])
            peaks.append(peak)
            click.echo(f"{name:12}{seconds:10.1f}{traces * tokens / seconds:12,.0f}{peak:10.2f}")
    verdict = "within" if max(peaks) <= LIMIT_GB else "ABOVE"
    click.echo(f"\n{traces:,} traces x {tokens} tokens: peak {max(peaks):.2f} GB, {verdict} {LIMIT_GB:g} GB")


if __name__ == "__main__":
    main()
