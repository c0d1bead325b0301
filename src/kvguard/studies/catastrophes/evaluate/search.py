"""The threshold search: which settings of the controller trade failures, false alarms and memory best.

Optuna's multi-objective TPE (Ozaki et al. 2022) raises the reduction, lowers the false-positive rate and
raises the KV memory saved, all pooled over the compressed conditions. The constraint tau_low <= tau_high
holds by construction: the sampler draws tau_low / tau_high, so no trial is spent on a setting that does not
exist.

The study is kept in Optuna's journal file, trial by trial: adding one there takes a fifth of what it takes in
a database. Only finished trials are in it, and each draws from a seed of its own, so a search that was killed
goes on to the very trials that it would have come to. A study belongs to its inputs, named by a fingerprint
of the traces, their hazards, the seed and what the simulation makes of them; one of other inputs is
replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from kvguard.errors import KvguardError
from kvguard.guard.controller import ControllerParams
from kvguard.studies.catastrophes.evaluate.operating_points import OBJECTIVES
from kvguard.studies.catastrophes.evaluate.simulate import Replay, controller_metrics
from kvguard.studies.catastrophes.protocols import Protocol
from kvguard.studies.catastrophes.train.splits import part_of_traces

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

# Of OBJECTIVES, in their order.
_DIRECTIONS: tuple[Literal["minimize", "maximize"], ...] = ("maximize", "minimize", "maximize")
_STUDY, _INPUTS = "thresholds", "inputs"
_LONGEST_K, _LONGEST_J = 16, 64
_VERSION = 1  # of what a trial draws and how its numbers are read
# What these settings come to stands for the code of the simulation: no trial is kept from before it changed.
_PROBES = (
    ControllerParams(tau_low=0.1, tau_high=0.3, k_escalate=1, j_deescalate=4),
    ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=4, j_deescalate=16),
)


def search(
    tune: Replay,
    split: pd.DataFrame,
    protocol: Protocol,
    n_trials: int,
    seed: int,
    journal: Path | None = None,
) -> pd.DataFrame:
    """Search the settings of the controller on the traces that they may be chosen on.

    Parameters
    ----------
    tune
        Traces of the protocol's tune part; uncompressed ones are left out.
    split
        The split of the prompts, or of the traces under v1.
    n_trials
        Those that ``journal`` holds count.
    journal
        Where the study is kept, None for nowhere.

    Returns
    -------
    pd.DataFrame
        One row per trial: trial, the fields of :class:`~kvguard.config.ControllerParams`, reduction,
        false_positive_rate (0 where every trace fails), kv_saved, on_front.

    Raises
    ------
    KvguardError
        A trace is not of the tune part: its outcome would leak into the thresholds. No trace is compressed.
        Or the study cannot be read.
    """
    _reject_leaks(tune.traces, split, protocol)
    tune = tune.compressed
    if tune.traces.empty:
        raise KvguardError("evaluate: no trace is compressed; name a compressor in the preset")
    import optuna

    stored = None if journal is None else _stored_study(journal, _fingerprint(tune, seed))
    with _quiet():
        study = optuna.create_study(directions=_DIRECTIONS)
        study.add_trials(stored.trials[:n_trials] if stored else [])
        n_done = len(study.trials)
        with tqdm(total=n_trials, initial=n_done, desc="thresholds", unit="trial", disable=None) as bar:
            for number in range(n_done, n_trials):
                own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
                study.sampler = optuna.samplers.TPESampler(seed=own_seed, multivariate=True)
                trial = study.ask()
                finished = study.tell(trial, _objectives(tune, _suggest(trial)))
                if stored:
                    stored.add_trial(finished)
                bar.update()
        front = {trial.number for trial in study.best_trials}
        return pd.DataFrame([_row(trial) | {"on_front": trial.number in front} for trial in study.trials])


def _reject_leaks(traces: pd.DataFrame, split: pd.DataFrame, protocol: Protocol) -> None:
    part = part_of_traces(traces, split)
    leaked = part != protocol.tune_part
    if leaked.any():
        row = int(np.argmax(leaked))
        raise KvguardError(
            f"thresholds: trace {traces['trace_id'].iloc[row]} is of the {part[row]} part, and protocol "
            f"{protocol.name} chooses on the {protocol.tune_part} part: search on that one only"
        )


def _suggest(trial: Trial) -> ControllerParams:
    trial.suggest_float("tau_high", 0, 1)
    trial.suggest_float("tau_low_share", 0, 1)
    trial.suggest_int("k_escalate", 1, _LONGEST_K)
    trial.suggest_int("j_deescalate", 1, _LONGEST_J)
    return _params(trial.params)


def _params(drawn: dict[str, Any]) -> ControllerParams:
    return ControllerParams(
        tau_low=drawn["tau_low_share"] * drawn["tau_high"],
        tau_high=drawn["tau_high"],
        k_escalate=drawn["k_escalate"],
        j_deescalate=drawn["j_deescalate"],
    )


def _objectives(tune: Replay, params: ControllerParams) -> list[float]:
    per_trace = tune.run(params)
    once = np.ones((1, 1))
    found = controller_metrics(once, np.zeros(len(per_trace), dtype=np.int64), per_trace)
    values = (found["reduction"], found["false_positive_rate"], found["kv_saved_controlled"])
    # Without a trace that does not fail the rate is undefined: nothing can be a false alarm.
    return [float(np.nan_to_num(value[0])) for value in values]


def _row(trial: FrozenTrial) -> dict[str, Any]:
    objectives = dict(zip(OBJECTIVES, trial.values, strict=True))
    return {"trial": trial.number, **_params(trial.params).model_dump(), **objectives}


def _fingerprint(tune: Replay, seed: int) -> str:
    import optuna

    total = hashlib.sha256(np.ascontiguousarray(tune.hazard).tobytes())
    total.update(pd.util.hash_pandas_object(tune.traces, index=False).to_numpy().tobytes())
    probed = [_objectives(tune, setting) for setting in _PROBES]
    total.update(f"{_VERSION} {probed} {seed} {optuna.__version__}".encode())
    return total.hexdigest()


def _stored_study(path: Path, fingerprint: str) -> Study:
    """Open the study of these inputs, or begin it.

    Raises
    ------
    KvguardError
        The file is no study.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    # A search that was killed in the middle of a write leaves a lock and half a line. Both are nobody's: DVC
    # runs a stage once at a time.
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
    with _quiet():
        if path.exists() and path.stat().st_size:
            study = _load(path)
            if study.user_attrs.get(_INPUTS) == fingerprint:
                return study
            path.unlink()
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(study_name=_STUDY, storage=storage, directions=_DIRECTIONS)
        study.set_user_attr(_INPUTS, fingerprint)
        return study


def _load(path: Path) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        with path.open("r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            if whole:
                file.truncate(whole)
        return optuna.load_study(study_name=_STUDY, storage=JournalStorage(JournalFileBackend(str(path))))
    except Exception as error:  # what Optuna raises depends on where the damage is
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise KvguardError(
            f"{path}: the study is corrupt ({reason}); delete the file and run `dvc repro evaluate`: "
            "the search begins anew"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's notes off the screen: the progress bar says it all."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
