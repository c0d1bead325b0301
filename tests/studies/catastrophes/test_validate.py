"""The validate stage: a sound dataset passes, every breach is named by file, column and row."""

import shutil

import numpy as np
import pytest

import synthetic
from kvguard.errors import KvguardError
from kvguard.store.tables import read_table, write_table
from kvguard.studies.catastrophes.params import ValidateParams
from kvguard.studies.catastrophes.validate import Plan, snapkv_windows, validate
from kvguard.sweep.settings import CompressorSpec

PLAN = Plan(synthetic.CONDITIONS, synthetic.MAX_NEW_TOKENS, synthetic.VOCAB, {"snapkv": 16})
PARAMS = ValidateParams()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    synthetic.build(folder, n_prompts=8)
    return folder


@pytest.fixture
def dataset(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "dataset")


def check(folder, plan=PLAN):
    return validate(
        folder / "prompts.parquet", folder / "generate", folder / "features.parquet", plan, PARAMS
    )


def rewrite(kind, path, change):
    frame = read_table(kind, path)
    write_table(kind, change(frame), path)


def test_a_sound_dataset_passes_and_is_described(sound):
    report = check(sound)
    assert report.ok
    assert (report.metrics["n_traces"], report.metrics["n_prompts"]) == (32, 8)
    traces = read_table("traces", sound / "generate" / "traces.parquet")
    failing = traces["catastrophes"].map(len) > 0
    assert report.metrics["cbr"] == failing.mean()
    assert report.metrics["accuracy"] == 1 - failing.mean()
    by = report.metrics["onsets_by"]
    assert sum(by.values()) == failing.sum()
    assert by == {
        rule: (traces["onset_by"] == rule).sum() for rule in sorted(set(traces["onset_by"].dropna()))
    }
    assert all(f"{count} by {rule}" in report.markdown for rule, count in by.items())
    assert report.metrics["snapkv_inside_window"] == 0
    assert "| snapkv | 0.875 | 8 |" in report.markdown


def test_snapkv_traces_inside_the_window_are_above_the_tolerance(sound):
    report = check(sound, Plan(PLAN.conditions, PLAN.max_new_tokens, PLAN.vocab_size, {"snapkv": 30}))
    assert not report.ok
    assert report.metrics["snapkv_inside_window"] == 0.5  # all of ratio 0.875: at most 26 tokens kept
    assert "ABOVE" in report.markdown


def test_a_missing_trace_is_named_by_prompt_and_condition(dataset):
    rewrite(
        "traces",
        dataset / "generate" / "traces.parquet",
        lambda frame: frame.drop(index=6).reset_index(drop=True),
    )
    with pytest.raises(
        KvguardError, match=r"31 traces where .* make 32; the first missing is prompt p0001 under snapkv"
    ):
        check(dataset)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.assign(ratio=f["ratio"].where(f.index != 5, 0.75)), "column ratio, row 5"),
        (lambda f: f.assign(model=f["model"].where(f.index != 3, "other")), "column model, row 3"),
        (lambda f: f.assign(stop_reason="length"), "column stop_reason, row 0"),
        (lambda f: f.assign(n_kept_tokens=f["n_prompt_tokens"] + 1.0), "column n_kept_tokens, row 0"),
        (lambda f: f.assign(onset=f["onset"].where(f.index != 0, 3)), "column onset, row 0: onset and cata"),
        (
            lambda f: f.assign(onset=f["onset"].mask(f["onset"].notna(), 96)),
            "column onset, row .*: not inside",
        ),
        (
            lambda f: f.assign(proxy_onset=f["proxy_onset"].where(f.index != 0, 3)),
            "column proxy_onset, row 0: proxy_onset and cata",
        ),
        (
            lambda f: f.assign(proxy_onset=f["proxy_onset"].mask(f["proxy_onset"].notna(), 96)),
            "column proxy_onset, row .*: not inside",
        ),
        (
            lambda f: f.assign(
                token_ids=f["token_ids"].where(f.index != 1, f["token_ids"].map(lambda ids: ids + 1))
            ),
            "column token_id, row .*: not the token",
        ),
    ],
)
def test_a_trace_against_the_plan_or_itself_is_named(dataset, change, named):
    rewrite("traces", dataset / "generate" / "traces.parquet", change)
    with pytest.raises(KvguardError, match=named):
        check(dataset)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("entropy", np.log(synthetic.VOCAB) + 0.01, "column entropy, row 9: above ln 50"),
        ("logprob_7", 0.0, "column logprob_7, row 9: above logprob_6"),
        ("top5_prob", 0.0, "column top5_prob, row 9: below top1_prob"),
        ("rank_of_chosen", 50, "column rank_of_chosen, row 9: beyond the vocabulary"),
        ("t", 95, "column t, row 9: past the end"),
    ],
)
def test_a_token_out_of_range_is_named(dataset, column, value, named):
    def change(frame):
        frame = frame.copy()
        frame.loc[9, column] = frame[column].dtype.type(value)
        return frame

    rewrite("tokens", dataset / "generate" / "tokens-a.parquet", change)
    with pytest.raises(KvguardError, match=rf"tokens-a\.parquet.*{named}"):
        check(dataset)


def test_missing_and_repeated_token_files_are_noticed(dataset):
    shutil.copy(dataset / "generate" / "tokens-b.parquet", dataset / "generate" / "tokens-c.parquet")
    with pytest.raises(KvguardError, match=r"trace 16 has \d+ rows and \d+ tokens"):
        check(dataset)
    (dataset / "generate" / "tokens-c.parquet").unlink()
    (dataset / "generate" / "tokens-b.parquet").unlink()
    with pytest.raises(KvguardError, match="trace 16 has 0 rows"):
        check(dataset)


def test_features_that_miss_rows_or_stand_at_impossible_places_are_named(dataset):
    path = dataset / "features.parquet"
    rewrite("features", path, lambda frame: frame.iloc[:-1])
    with pytest.raises(KvguardError, match="column trace_id: trace 31 has"):
        check(dataset)
    rewrite("features", path, lambda frame: frame.assign(token_position=np.float32(1)))
    with pytest.raises(KvguardError, match=r"column token_position, row 0: outside \[0, 1\)"):
        check(dataset)


def test_the_window_of_snapkv_is_found_by_its_press():
    compressors = {
        "narrow": CompressorSpec(press="SnapKVPress", params={"window_size": 16}),
        "default": CompressorSpec(press="SnapKVPress"),
        "knorm": CompressorSpec(press="KnormPress"),
    }
    assert snapkv_windows(compressors) == {"narrow": 16}
