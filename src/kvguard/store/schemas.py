"""The schemas of the stored tables, in one place; :mod:`.tables` reads and writes through them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow
from pandera.errors import SchemaError, SchemaErrorReason

from kvguard.engine.columns import LOGPROBS
from kvguard.errors import KvguardError
from kvguard.guard.columns import FEATURES

V1_ONLY = ("rank_of_chosen", "token_position_v1")

STOP_REASONS = ("eos", "stop", "length", "guard", "invalid", "rejected")  # invalid: NaN; rejected: not asked
PARTS = ("train", "tune", "test")
REGIMES = ("prefill", "decoding", "switch")  # compressed once; held to a budget besides; restored on the way

# Float32 rounding may carry a probability or an entropy this far over its bound.
TOLERANCE = 1e-5

_INT, _BOOL, _F32, _F64, _STR = arrow.int32(), arrow.bool_(), arrow.float32(), arrow.float64(), arrow.string()
_MESSAGE = arrow.struct({"role": _STR, "content": _STR})
_NULLABLE_DTYPES: dict[arrow.DataType, Any] = {_INT: pd.Int32Dtype(), _BOOL: pd.BooleanDtype()}
_STAGE = {
    "prompts": "sample",
    "features": "featurize",
    "split": "train",
    "split_v1": "train",
    "hazards": "train",
    "pareto": "evaluate",
    "curve": "score",
    "controlled": "score",
    "results": "",  # of several
    "directed": "studies/directed/dvc.yaml",
    "live": "live-validate",
    "live_parts": "live-validate",
}
_OF_A_SWEEP = {"prompts", "parts", "tokens", "traces", "scores"}  # lie in a folder of `kvguard sweep` too


@dataclass(frozen=True)
class Column:
    """One column of a stored table: its Arrow type on disk, its dtype in pandas, its checks."""

    type: arrow.DataType
    nullable: bool = False
    checks: tuple[pa.Check, ...] = ()

    @property
    def dtype(self) -> Any:
        """The pandas dtype; nullable integers and booleans keep their null, strings and lists are objects."""
        if self.nullable and self.type in _NULLABLE_DTYPES:
            return _NULLABLE_DTYPES[self.type]
        if self.type == _STR or arrow.types.is_nested(self.type):
            return np.dtype(object)
        return np.dtype(self.type.to_pandas_dtype())


@dataclass(frozen=True)
class Table:
    """A kind of stored table: its columns in order, and the columns whose values together are unique."""

    columns: dict[str, Column]
    key: tuple[str, ...]

    def only(self, names: Sequence[str]) -> "Table":
        """Return this table restricted to ``names``; the key goes if one of its columns goes."""
        kept = {name: self.columns[name] for name in names}
        return Table(kept, self.key if set(self.key) <= set(kept) else ())


def _between(low: float | None, high: float | None) -> pa.Check:
    def check(values: "pd.Series[Any]") -> "pd.Series[bool]":
        ok = np.ones(len(values), dtype=bool)
        array = values.to_numpy()
        if low is not None:
            ok &= array >= low
        if high is not None:
            ok &= array <= high
        return pd.Series(ok, index=values.index)

    return pa.Check(
        check, name=f"{'-inf' if low is None else low} <= value <= {'inf' if high is None else high}"
    )


def _finite(values: "pd.Series[Any]") -> "pd.Series[bool]":
    return pd.Series(np.isfinite(values.to_numpy()), index=values.index)


_FINITE = pa.Check(_finite, name="finite")
_INDEX = Column(_INT, checks=(_between(0, None),))
_TEXT = Column(_STR)
_RATIO = Column(_F64, checks=(pa.Check.in_range(0.0, 1.0, include_max=False),))
_RATE = Column(_F64, nullable=True)
_FLOAT = Column(_F32, checks=(_FINITE,))
_PROBABILITY = Column(_F32, checks=(_FINITE, _between(-TOLERANCE, 1.0 + TOLERANCE)))
_NOT_NEGATIVE = Column(_F32, checks=(_FINITE, _between(-TOLERANCE, None)))
_NOT_POSITIVE = Column(_F32, checks=(_FINITE, _between(None, TOLERANCE)))

_SIGNAL_COLUMNS = {
    "entropy": _NOT_NEGATIVE,
    "top1_prob": _PROBABILITY,
    "top5_prob": _PROBABILITY,
    **dict.fromkeys(LOGPROBS, _NOT_POSITIVE),
    "h_alts": _NOT_NEGATIVE,
    "avg_logp": _NOT_POSITIVE,
    "rank_of_chosen": _NOT_NEGATIVE,
}
_RAW = {
    "trace_id": _INDEX,
    "prompt_id": _TEXT,
    "compressor": _TEXT,
    "ratio": _RATIO,
    "n_prompt_tokens": _INDEX,
    "n_kept_tokens": Column(_F64, checks=(_FINITE, _between(0.0, None))),
    "token_ids": Column(arrow.list_(_INT)),
    "text": _TEXT,
    "stop_reason": Column(_STR, checks=(pa.Check.isin(STOP_REASONS),)),
}
_TOKEN_KEY = {"trace_id": _INDEX, "t": _INDEX}

_JUDGED = {
    "predicted": Column(_STR, nullable=True),
    "catastrophes": Column(arrow.list_(_STR)),
    "onset": Column(_INT, nullable=True, checks=(pa.Check.ge(0),)),
    "onset_by": Column(_STR, nullable=True),
    "proxy_onset": Column(_INT, nullable=True, checks=(pa.Check.ge(0),)),
    "proxy_onset_by": Column(_STR, nullable=True),
}
# A generation of the live guard. hazard and kv_tokens (cache entries held) run over its tokens; they are
# empty where the guard acts. fit: which of the hazard, from 1. safe_at: tokens drawn before SAFE, -1: never.
_LIVE = {
    "trace_id": _INDEX,
    "regime": Column(_STR, checks=(pa.Check.isin(REGIMES),)),
    "policy": _TEXT,
    "fit": Column(_INT, checks=(_between(1, None),)),
    **{name: column for name, column in _RAW.items() if name != "trace_id"},
    "kv_saved": Column(_F64, checks=(_FINITE, _between(-TOLERANCE, 1.0))),
    "safe_at": Column(_INT, checks=(_between(-1, None),)),
    **dict.fromkeys(("n_steps", "n_restores", "n_rewinds", "n_rewound"), _INDEX),
    "hazard": Column(arrow.list_(_F32)),
    "kv_tokens": Column(arrow.list_(_F32)),
    "error": Column(_STR, nullable=True),
}

TABLES: dict[str, Table] = {
    # prompt: how a model with a chat template is asked, and one without. metadata: an object, as JSON.
    "prompts": Table(
        {
            **dict.fromkeys(("prompt_id", "task", "question"), _TEXT),
            "prompt": Column(arrow.struct({"messages": arrow.list_(_MESSAGE), "text": _STR})),
            "references": Column(arrow.list_(_STR)),
            "metadata": _TEXT,
        },
        ("prompt_id",),
    ),
    "parts": Table(_RAW, ("trace_id",)),
    "tokens": Table({**_TOKEN_KEY, "token_id": _INDEX, **_SIGNAL_COLUMNS}, ("trace_id", "t")),
    "traces": Table(
        {
            "model": _TEXT,
            **_RAW,
            **_JUDGED,
            "compressor_params": _TEXT,
        },
        ("trace_id",),
    ),
    # What the task finds of each trace's text; null: not scored.
    "scores": Table({"trace_id": _INDEX, "metric": _TEXT, "value": _RATE}, ("trace_id", "metric")),
    "live_parts": Table(_LIVE, ("trace_id",)),
    "live": Table({"model": _TEXT, **_LIVE, **_JUDGED}, ("trace_id",)),
    "features": Table(
        {
            **_TOKEN_KEY,
            **dict.fromkeys((*FEATURES, *V1_ONLY), _FLOAT),
        },
        ("trace_id", "t"),
    ),
    "split": Table(
        {"prompt_id": _TEXT, "part": Column(_STR, checks=(pa.Check.isin(PARTS),))}, ("prompt_id",)
    ),
    # Protocol v1's split, by trace: a prompt may stand in several parts.
    "split_v1": Table(
        {"trace_id": _INDEX, "part": Column(_STR, checks=(pa.Check.isin(PARTS),))}, ("trace_id",)
    ),
    # Every number that a stage finds, in one form: what the report, the paper and the comparison read.
    "results": Table(
        {
            **dict.fromkeys(("stage", "model", "protocol", "table", "subject", "metric"), _TEXT),
            **dict.fromkeys(("value", "low", "high"), _RATE),
        },
        ("stage", "model", "protocol", "table", "subject", "metric"),
    ),
    # What an example is worth in a cell of an experiment; null: nothing was found there.
    "directed": Table(
        {
            **dict.fromkeys(("example", "document", "dataset", "condition", "setting", "metric"), _TEXT),
            "value": _RATE,
        },
        ("example", "dataset", "condition", "setting", "metric"),
    ),
    # What a hazard model forecasts for tokens that it was not fitted on.
    "hazards": Table({**_TOKEN_KEY, "hazard": _PROBABILITY}, ("trace_id", "t")),
    # What each threshold of the hazard flags of the pre-onset tokens, thresholds falling from infinity.
    "curve": Table(
        {
            "threshold": Column(_F64),
            **dict.fromkeys(("recall", "fpr", "precision"), _RATE),
            **dict.fromkeys(("n_positive", "n_negative"), _INDEX),
        },
        ("threshold",),
    ),
    # The trials of the threshold search.
    "pareto": Table(
        {
            "trial": _INDEX,
            "tau_low": Column(_F64, checks=(_between(0, 1),)),
            "tau_high": Column(_F64, checks=(_between(0, 1),)),
            "k_escalate": _INDEX,
            "j_deescalate": _INDEX,
            **dict.fromkeys(("reduction", "false_positive_rate", "kv_saved"), _RATE),
            "on_front": Column(_BOOL),
            "operating_point": Column(_STR, nullable=True),
        },
        ("trial",),
    ),
    # The simulated outcome of each test trace at the balanced operating point.
    "controlled": Table(
        {
            "trace_id": _INDEX,
            "failed": Column(_BOOL),
            "failed_controlled": Column(_BOOL),
            "safe_at": Column(_INT),
            "lead_time": _RATE,
            "kv_saved": _RATE,
            "kv_saved_controlled": _RATE,
        },
        ("trace_id",),
    ),
}


def conform(kind: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` with the columns of ``kind`` in order and in their dtypes; right ones are not copied.

    Raises
    ------
    KvguardError
        A column is missing or its values do not fit the dtype.
    """
    columns: dict[str, Any] = {}
    for name, column in TABLES[kind].columns.items():
        if name not in frame:
            raise KvguardError(f"{kind} table: column {name} is missing; the code that builds it must add it")
        try:
            columns[name] = frame[name].astype(column.dtype, copy=False)
        except (TypeError, ValueError) as error:
            raise KvguardError(f"{kind} table: column {name} does not fit {column.dtype}: {error}") from error
    return pd.DataFrame(columns, copy=False)


@cache
def _pandera_schema(kind: str, names: tuple[str, ...]) -> pa.DataFrameSchema:
    columns = {}
    for name in names:
        column = TABLES[kind].columns[name]
        dtype = str if column.type == _STR else column.dtype
        columns[name] = pa.Column(dtype, checks=list(column.checks), nullable=column.nullable)
    return pa.DataFrameSchema(columns, strict=True, ordered=True)


def arrow_schema(kind: str, names: Iterable[str]) -> arrow.Schema:
    """Return the Arrow schema of the columns ``names`` of ``kind``."""
    columns = TABLES[kind].columns
    return arrow.schema(
        [arrow.field(name, columns[name].type, nullable=columns[name].nullable) for name in names]
    )


def fix(kind: str) -> str:
    """Return the half sentence that tells how to make a table of ``kind`` again."""
    command = f"dvc repro {_STAGE.get(kind, 'generate')}".rstrip()
    return f"make it again with `{command}`" + (", or run the sweep again" if kind in _OF_A_SWEEP else "")


def check_table(kind: str, frame: pd.DataFrame, path: Path, first_row: int = 0) -> None:
    """Check ``frame`` against the schema of ``kind`` (of the columns that it has).

    Parameters
    ----------
    path, first_row
        What an error names: the file, and the number in it of the frame's first row.

    Raises
    ------
    KvguardError
        The first breach: file, column, row.
    """
    names = tuple(name for name in TABLES[kind].columns if name in frame.columns)
    if tuple(frame.columns) != names:
        stray = next((name for name in frame.columns if name not in names), None)
        what = "the columns are out of order" if stray is None else f"column {stray} is not in the schema"
        raise KvguardError(f"{path} ({kind} table): {what}; {fix(kind)}")
    frame = frame.copy(deep=False)
    frame.index = pd.RangeIndex(first_row, first_row + len(frame))
    try:
        _pandera_schema(kind, names).validate(frame, inplace=True)
    except SchemaError as error:
        raise KvguardError(f"{path} ({kind} table): {_breach(error)}; {fix(kind)}") from error
    duplicate = _first_duplicate(frame, TABLES[kind].only(names).key)
    if duplicate is not None:
        key = TABLES[kind].key
        value = ", ".join(str(frame[name].iloc[duplicate]) for name in key)
        where = f"column {' + '.join(key)}, row {first_row + duplicate}"
        raise KvguardError(f"{path} ({kind} table): {where}: duplicate {value}; {fix(kind)}")


def _breach(error: SchemaError) -> str:
    column = error.schema.name
    if error.reason_code == SchemaErrorReason.WRONG_DATATYPE:
        return f"column {column}: type is not {error.schema.dtype}: {error!s:.120}"
    case = error.failure_cases.iloc[0]
    check = getattr(error.check, "name", None) or error.check
    return (
        f"column {column}, row {int(case['index'])}: value {case['failure_case']!s:.60} breaks {check!s:.60}"
    )


def _first_duplicate(frame: pd.DataFrame, key: tuple[str, ...]) -> int | None:
    if not key:
        return None
    if key == ("trace_id", "t"):
        packed = (frame["trace_id"].to_numpy().astype(np.int64) << 32) | frame["t"].to_numpy()
        if (np.diff(packed) > 0).all():
            return None
        twice = pd.Series(packed).duplicated()
    else:
        twice = frame.duplicated(list(key))
    return int(np.argmax(twice.to_numpy())) if twice.any() else None
