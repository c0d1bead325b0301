"""The stored tables: written ones come back, broken ones are rejected, nothing is half-written."""

import errno
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import synthetic
from kvguard.engine.columns import SIGNALS
from kvguard.errors import KvguardError
from kvguard.guard.columns import FEATURES
from kvguard.store import tables as traces
from kvguard.store.schemas import TABLES


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    return synthetic.tokens_table(rng, [rng.integers(0, 50, n) for n in (5, 1, 9)])


@pytest.fixture
def judged():
    frame = pd.DataFrame(
        {
            "model": "toy",
            "trace_id": [0, 1],
            "prompt_id": ["a", "b"],
            "compressor": ["none", "snapkv"],
            "ratio": [0.0, 0.5],
            "n_prompt_tokens": 10,
            "n_kept_tokens": [10.0, 5.0],
            "token_ids": [np.array([1, 2], dtype=np.int32), np.array([3], dtype=np.int32)],
            "text": ["x", "y"],
            "stop_reason": ["eos", "length"],
            "predicted": ["4", None],
            "catastrophes": [[], ["looping", "non_termination"]],
            "onset": pd.array([None, 5], dtype="Int32"),
            "onset_by": [None, "answer"],
            "proxy_onset": pd.array([None, 7], dtype="Int32"),
            "proxy_onset_by": [None, "looping"],
            "compressor_params": "{}",
        }
    )
    return traces.conform("traces", frame)


def test_a_table_comes_back_as_it_was_written_nulls_and_lists_included(judged, tmp_path):
    path = tmp_path / "traces.parquet"
    traces.write_table("traces", judged, path, {"fingerprint": "abc"})
    back = traces.read_table("traces", path)
    assert back["onset"].tolist() == [pd.NA, 5]
    assert back["proxy_onset"].tolist() == [pd.NA, 7]
    assert back["onset_by"].tolist() == [None, "answer"]
    assert back["predicted"].tolist() == ["4", None]
    assert [list(names) for names in back["catastrophes"]] == [[], ["looping", "non_termination"]]
    assert [list(ids) for ids in back["token_ids"]] == [[1, 2], [3]]
    assert traces.read_metadata(path) == {"fingerprint": "abc"}
    traces.write_table("traces", back, tmp_path / "again.parquet", {"fingerprint": "abc"})
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_the_same_frame_gives_the_same_bytes(tokens, tmp_path):
    for name in ("a", "b"):
        traces.write_table("tokens", tokens, tmp_path / name, {"k": "v"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_only_the_columns_asked_for_are_read_in_schema_order(tokens, tmp_path):
    traces.write_table("tokens", tokens, tmp_path / "t")
    assert list(traces.read_table("tokens", tmp_path / "t", ["entropy", "t"]).columns) == ["t", "entropy"]
    with pytest.raises(KvguardError, match="no column colour"):
        traces.read_table("tokens", tmp_path / "t", ["colour"])


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("entropy", np.nan, "column entropy, row 7: .*not_nullable"),
        ("avg_logp", -np.inf, "column avg_logp, row 7: .*finite"),
        ("top1_prob", 1.5, "column top1_prob, row 7"),
        ("logprob_3", 0.2, "column logprob_3, row 7"),
        ("token_id", -1, "column token_id, row 7"),
    ],
)
def test_a_value_outside_the_schema_is_rejected_with_its_column_and_row(
    tokens, tmp_path, column, value, named
):
    tokens.loc[7, column] = tokens[column].dtype.type(value)
    with pytest.raises(KvguardError, match=named) as rejection:
        traces.write_table("tokens", tokens, tmp_path / "t")
    assert str(tmp_path / "t") in str(rejection.value)
    assert "\n" not in str(rejection.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (lambda frame: frame.drop(columns="entropy"), "column entropy is missing"),
        (lambda frame: frame.assign(colour=1), "column colour is not in the schema"),
        (lambda frame: frame.astype({"entropy": "float64"}), "column entropy: type is not float32"),
        (lambda frame: frame[frame.columns[::-1]], "out of order"),
        (lambda frame: frame.assign(t=frame["t"].where(frame["t"] != 8, 0)), "row 14: duplicate 2, 0"),
    ],
)
def test_a_frame_of_another_shape_is_rejected(tokens, tmp_path, broken, named):
    with pytest.raises(KvguardError, match=named):
        traces.write_table("tokens", broken(tokens), tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_a_list_of_the_wrong_kind_is_rejected(judged, tmp_path):
    judged["token_ids"] = [["one"], ["two"]]
    with pytest.raises(KvguardError, match="token_ids"):
        traces.write_table("traces", judged, tmp_path / "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_truncated_file_is_rejected_in_one_line(tokens, tmp_path, kept):
    path = tmp_path / "t"
    traces.write_table("tokens", tokens, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    for read in (lambda: traces.read_table("tokens", path), lambda: traces.read_metadata(path)):
        with pytest.raises(KvguardError, match="unreadable or truncated") as rejection:
            read()
        assert "\n" not in str(rejection.value)


def test_a_flipped_bit_is_rejected(tokens, tmp_path):
    path = tmp_path / "t"
    traces.write_table("tokens", tokens, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 20] ^= 1  # inside the first zstd page
    path.write_bytes(data)
    with pytest.raises(KvguardError, match="unreadable"):
        traces.read_table("tokens", path)


def test_a_file_with_another_schema_is_rejected_by_column(tokens, judged, tmp_path):
    traces.write_table("tokens", tokens, tmp_path / "t")
    with pytest.raises(KvguardError, match="column model is missing"):
        traces.read_table("traces", tmp_path / "t")
    table = pq.read_table(tmp_path / "t")
    position = table.schema.get_field_index("entropy")
    pq.write_table(table.set_column(position, "entropy", table["entropy"].cast("double")), tmp_path / "t")
    with pytest.raises(KvguardError, match="column entropy: type is double, expected float"):
        traces.read_table("tokens", tmp_path / "t")


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(KvguardError, match=r"does not exist; .*dvc repro featurize"):
        traces.read_table("features", tmp_path / "none")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tokens, tmp_path, monkeypatch):
    path = tmp_path / "t"
    traces.write_table("tokens", tokens, path)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KvguardError, match="No space left on device"):
        traces.write_table("tokens", tokens.iloc[:3], path)
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["t"]


def test_a_disk_that_fills_up_half_way_is_reported(tmp_path):
    resource = pytest.importorskip("resource")
    rng = np.random.default_rng(0)
    frame = synthetic.tokens_table(rng, [rng.integers(0, 50, 5000)])
    pid = os.fork()
    if pid == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            traces.write_table("tokens", frame, tmp_path / "t")
        except KvguardError as error:
            os._exit(0 if "File too large" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not list(tmp_path.iterdir())


def test_a_failure_while_writing_piece_by_piece_leaves_nothing(tokens, tmp_path):
    def write():
        with traces.open_table("tokens", tmp_path / "t") as writer:
            writer.write(tokens)
            writer.write(tokens.assign(entropy=np.float32(-1)))

    with pytest.raises(KvguardError, match="row 15"):
        write()
    assert not list(tmp_path.iterdir())


def test_pieces_come_back_as_one_table_and_group_by_group(tokens, tmp_path):
    with traces.open_table("tokens", tmp_path / "t") as writer:
        for start in (0, 5, 6):
            writer.write(tokens.iloc[start : {0: 5, 5: 6, 6: 15}[start]])
    pd.testing.assert_frame_equal(traces.read_table("tokens", tmp_path / "t"), tokens)
    assert [len(group) for group in traces.iter_table("tokens", tmp_path / "t")] == [5, 1, 9]
    assert traces.count_rows(tmp_path / "t") == 15


def test_all_token_files_come_back_ordered_by_trace_and_token(tokens, tmp_path):
    traces.write_table(
        "tokens", tokens.iloc[5:].iloc[::-1].reset_index(drop=True), tmp_path / "tokens-0.parquet"
    )
    traces.write_table("tokens", tokens.iloc[:5], tmp_path / "tokens-1.parquet")
    pd.testing.assert_frame_equal(traces.read_tokens(tmp_path), tokens)
    assert list(traces.read_tokens(tmp_path, ["h_alts"]).columns) == ["trace_id", "t", "h_alts"]
    with pytest.raises(KvguardError, match="no tokens-"):
        traces.read_tokens(tmp_path / "empty")


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / "x.parquet.kvguard-tmp").touch()
    (tmp_path / "x.parquet").touch()
    traces.remove_temporaries(tmp_path)
    assert [child.name for child in tmp_path.iterdir()] == ["x.parquet"]


def test_the_schemas_hold_the_signals_and_the_forty_four_features():
    assert len(SIGNALS) == 26
    assert len(FEATURES) == 44
    assert set(SIGNALS) <= set(TABLES["tokens"].columns)
    assert set(FEATURES) <= set(TABLES["features"].columns)
