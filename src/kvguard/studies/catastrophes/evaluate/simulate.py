"""The controller's benefit as recorded traces foretell it, without generating anything.

**Outcomes.** A trace whose controller reaches SAFE before the onset (in a trace without an onset: at all) is
taken to go on as if it had never been compressed, so its outcome is that of the same prompt's ``none`` trace.
One that reaches SAFE at the onset or later, or never, keeps its outcome; under a protocol with ``grace`` so
many tokens later, since the guard rewinds. Protocol v1 counts wrong answers as failures, and those have no
onset: whenever SAFE fires it counts as in time, which is one of v1's mistakes.

**Memory.** What a trace saves is the mean, over its decoding steps t, of 1 - held / full, where full = the
entries that the uncompressed model keeps of the prompt (all of them, but for sliding windows) + t. A step is
compressed, held = kept + t, unless the controller is in SAFE after the token before it; then held = full.
Which steps are in SAFE is known as far as the recording goes:

- What follows in a trace that fails and is switched in time is not recorded. It is taken to hold the full
  cache from then on, to the end of the recording. A live guard saves more, since such a trace mostly ends
  sooner, and since it may return to compression; but then the failure may come back.
- In every other trace, a false alarm above all, the recorded hazard goes on and so do the states: once back
  in NORMAL its steps are compressed again. This takes the hazard and the length of the compressed recording
  for those of a trace that was uncompressed in between, which they are not.

So control never saves more than compression alone does, and tau_low and j_deescalate count by what false
alarms cost.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvguard.engine.presses import NONE, Condition
from kvguard.errors import KvguardError
from kvguard.guard.controller import ControllerParams, State, run_controller
from kvguard.judging.catastrophes import DETECTORS
from kvguard.judging.onsets import kinds_of
from kvguard.stats.bootstrap import Floats, count_by, mean_by, quantile, share, sum_by
from kvguard.studies.catastrophes.protocols import Protocol
from kvguard.studies.catastrophes.train.rows import Rows

NEVER = -1
OVERALL = "overall"
_OUTCOMES = ("failed", *DETECTORS, "correct")
_QUARTILES = {"lead_time_q25": 0.25, "lead_time_median": 0.5, "lead_time_q75": 0.75}

Bools = NDArray[np.bool_]


def recorded(traces: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """Return what the simulation needs to know of judged traces, each beside its uncompressed twin.

    Parameters
    ----------
    traces
        The ``none`` trace of every prompt among them.

    Returns
    -------
    pd.DataFrame
        trace_id, prompt_id, compressor, ratio, n_tokens, kept (KV pairs of the prompt), onset
        (NaN: none) and the kind of catastrophe that begins there; deadline, the first token at which an alarm
        comes too late; failed (in the protocol's sense), each kind of catastrophe, and correct (NaN: not
        scored); these and kept also of the prompt's ``none`` trace, with ``_uncompressed`` after the name.

    Raises
    ------
    KvguardError
        A prompt has no ``none`` trace.
    """
    kinds = {
        kind: traces["catastrophes"].map(lambda found, kind=kind: kind in found).to_numpy(dtype=bool)
        for kind in DETECTORS
    }
    found: dict[str, NDArray[Any]] = {
        "failed": protocol.failed(traces),
        **kinds,
        "correct": traces["correct"].astype("float64").to_numpy(),
        "kept": traces["n_kept_tokens"].to_numpy(dtype=np.float64),
    }
    twin = _uncompressed_rows(traces)
    return pd.DataFrame(
        {
            **{name: traces[name].to_numpy() for name in ("trace_id", "prompt_id", "compressor", "ratio")},
            "n_tokens": traces["token_ids"].map(len).to_numpy(dtype=np.int64),
            "onset": traces[protocol.onset].astype("float64").to_numpy(),
            "deadline": traces[protocol.onset].astype("float64").to_numpy() + protocol.grace,
            "kind": kinds_of(traces[f"{protocol.onset}_by"]),
            **found,
            **{f"{name}_uncompressed": values[twin] for name, values in found.items()},
        }
    )


def _uncompressed_rows(traces: pd.DataFrame) -> NDArray[np.int64]:
    """Return the row of each trace's uncompressed twin. [T]"""
    none = np.flatnonzero(traces["compressor"] == NONE)
    position = pd.Index(traces["prompt_id"].iloc[none]).get_indexer(traces["prompt_id"])
    if (position < 0).any():
        stray = traces["prompt_id"].iloc[int(np.argmax(position < 0))]
        raise KvguardError(f"traces: prompt {stray} has no `{NONE}` trace; keep `{NONE}` in the preset")
    return none[position]


def safe_from(safe_at: NDArray[np.integer], n_steps: int) -> Bools:
    """Return the steps in SAFE of a controller that never leaves it. [T] -> [T, L]

    Parameters
    ----------
    safe_at
        The first token after which it is in SAFE: 0 is always safe, ``NEVER`` does nothing.
    n_steps
        L, at least the length of the longest trace.
    """
    return (np.arange(n_steps) >= safe_at[:, None]) & (safe_at != NEVER)[:, None]


def simulate(traces: pd.DataFrame, safe: Bools) -> pd.DataFrame:
    """Return each trace's outcome without and with control.

    Parameters
    ----------
    traces
        See :func:`recorded`.
    safe
        After which tokens the controller is in SAFE, from whatever predictor; past a trace's end it does not
        matter. [T, L]

    Returns
    -------
    pd.DataFrame
        trace_id, prompt_id, compressor, ratio; failed, each kind of catastrophe, correct and kv_saved, each
        with its ``_controlled`` twin; failed_uncompressed, which is what always-safe reaches; safe_at
        (``NEVER`` possible) and lead_time (NaN unless SAFE fired before an onset).
    """
    n_tokens, onset = traces["n_tokens"].to_numpy(), traces["onset"].to_numpy()
    t = np.arange(safe.shape[1])
    generated = t < n_tokens[:, None]
    safe = safe & generated
    fired = safe.any(axis=1)
    safe_at = np.where(fired, safe.argmax(axis=1), NEVER)
    switched = fired & ~(safe_at >= traces["deadline"].to_numpy())
    rescued = switched & traces["failed"].to_numpy()
    compressed = generated.copy()
    compressed[:, 1:] &= ~safe[:, :-1]
    compressed[rescued] &= t <= safe_at[rescued, None]
    full = traces["kept_uncompressed"].to_numpy()[:, None]
    saved = (full - traces["kept"].to_numpy()[:, None]) / (full + t)
    outcomes: dict[str, NDArray[Any]] = {}
    for name in _OUTCOMES:
        without, uncompressed = traces[name].to_numpy(), traces[f"{name}_uncompressed"].to_numpy()
        outcomes |= {name: without, f"{name}_controlled": np.where(switched, uncompressed, without)}
    return pd.DataFrame(
        {
            **{name: traces[name].to_numpy() for name in ("trace_id", "prompt_id", "compressor", "ratio")},
            **outcomes,
            "failed_uncompressed": traces["failed_uncompressed"].to_numpy(),
            "safe_at": safe_at,
            "lead_time": np.where(switched & (safe_at < onset), onset - safe_at, np.nan),
            "kv_saved": (saved * generated).sum(axis=1) / n_tokens,
            "kv_saved_controlled": (saved * compressed).sum(axis=1) / n_tokens,
        }
    )


@dataclass(frozen=True)
class Replay:
    """Recorded traces with their hazards: the controller can be run over them again and again.

    Attributes
    ----------
    traces
        See :func:`recorded`.
    hazard
        [T, L], NaN past a trace's end
    """

    traces: pd.DataFrame
    hazard: NDArray[np.float32]

    @classmethod
    def of(cls, traces: pd.DataFrame, rows: Rows, hazard: NDArray[np.floating]) -> "Replay":
        """Join traces with their tokens' hazards.

        Parameters
        ----------
        traces
            See :func:`recorded`. [T]
        rows, hazard
            Tokens, those of other traces may be among them, and their hazards. [N]

        Raises
        ------
        KvguardError
            A trace lacks tokens.
        """
        position = pd.Index(traces["trace_id"]).get_indexer(rows.trace_id)
        wanted = position >= 0
        position, t = position[wanted], rows.t[wanted]
        n_tokens = traces["n_tokens"].to_numpy()
        n_rows = np.bincount(position, minlength=len(traces))
        if (n_rows != n_tokens).any():
            stray = int(np.argmax(n_rows != n_tokens))
            raise KvguardError(
                f"features table: trace {traces['trace_id'].iloc[stray]} has {n_rows[stray]} rows for "
                f"{n_tokens[stray]} tokens; run `dvc repro featurize`"
            )
        matrix = np.full((len(traces), int(n_tokens.max(initial=0))), np.nan, dtype=np.float32)
        matrix[position, t] = hazard[wanted]
        return cls(traces.reset_index(drop=True), matrix)

    @property
    def compressed(self) -> "Replay":
        """The same without the uncompressed traces."""
        chosen = (self.traces["compressor"] != NONE).to_numpy()
        return Replay(self.traces[chosen].reset_index(drop=True), self.hazard[chosen])

    def run(self, params: ControllerParams) -> pd.DataFrame:
        """Simulate the controller at one setting; see :func:`simulate`."""
        return simulate(self.traces, run_controller(self.hazard, params) == State.SAFE)


def controller_metrics(
    weights: Floats, cluster: NDArray[np.integer[Any]], per_trace: pd.DataFrame
) -> dict[str, Floats]:
    """Return what a controller did to some traces, for every resample. {metric: [R]}

    The false-positive rate is the share of failure-free traces in which SAFE fired, here and everywhere;
    ceiling_share is the reduction as a share of what always-safe reaches.

    Parameters
    ----------
    weights
        Of the prompts, see :func:`kvguard.stats.bootstrap.resample_weights`. [R, P]
    cluster
        The prompt of each trace. [T]
    per_trace
        See :func:`simulate`.
    """
    values = {name: per_trace[name].to_numpy() for name in per_trace.columns}
    n_prompts = weights.shape[1]

    def total(numbers: NDArray[Any]) -> Floats:
        return sum_by(cluster, numbers, n_prompts)

    def rates(metric: str, name: str) -> dict[str, Floats]:
        return {
            f"{metric}_uncontrolled": mean_by(weights, cluster, values[name]),
            f"{metric}_controlled": mean_by(weights, cluster, values[f"{name}_controlled"]),
        }

    fired, failed = values["safe_at"] != NEVER, values["failed"]
    cbr = rates("cbr", "failed")
    avoided = total(failed) - total(values["failed_controlled"])
    avoidable = total(failed) - total(values["failed_uncompressed"])
    lead = values["lead_time"]
    known = ~np.isnan(lead)
    levels = lead[known].astype(np.int64)
    leads = count_by(cluster[known], levels, n_prompts, int(levels.max(initial=0)) + 1)
    return {
        "n_traces": weights @ total(np.ones(len(failed))),
        **cbr,
        "reduction": cbr["cbr_uncontrolled"] - cbr["cbr_controlled"],
        "reduction_relative": share(weights, avoided, total(failed)),
        "ceiling_share": share(weights, avoided, avoidable),
        "false_positive_rate": share(weights, total(fired & ~failed), total(~failed)),
        "safe_rate": mean_by(weights, cluster, fired),
        **rates("accuracy", "correct"),
        **{name: quantile(weights, leads, q) for name, q in _QUARTILES.items()},
        **rates("kv_saved", "kv_saved"),
        **{name: rate for kind in DETECTORS for name, rate in rates(kind, kind).items()},
    }


def metrics_by_condition(weights: Floats, per_trace: pd.DataFrame) -> dict[str, dict[str, Floats]]:
    """Return the controller's metrics under each condition, then pooled over the compressed ones.

    Parameters
    ----------
    weights
        Of the prompts in the order of their first trace. [R, P]

    Returns
    -------
    dict
        {condition, or ``OVERALL``: {metric: [R]}}
    """
    cluster, _ = pd.factorize(per_trace["prompt_id"])
    groups = per_trace.groupby(["compressor", "ratio"], sort=False).indices
    chosen = {str(Condition(name, ratio)): index for (name, ratio), index in groups.items()}
    chosen[OVERALL] = np.flatnonzero(per_trace["compressor"] != NONE)
    return {
        subject: controller_metrics(weights, cluster[index], per_trace.iloc[index])
        for subject, index in chosen.items()
    }
