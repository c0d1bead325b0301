"""The live stage on a tiny model: every policy once, resumed byte for byte, exact where nothing acts."""

import hashlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from live_setup import N_TOKENS, NEVER, live_of

from kvguard.engine.oracle import kvpress_generate
from kvguard.judging.judge import read_judged
from kvguard.models.load import LoadedModel, load_model
from kvguard.store.results import Results
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes.live import latency
from kvguard.studies.catastrophes.live.latency import measure_latency
from kvguard.studies.catastrophes.live.plan import Live
from kvguard.studies.catastrophes.live.results import ALARMED, headline, live_results
from kvguard.studies.catastrophes.live.stage import run_live
from kvguard.sweep.run import run_sweep

SHARED = ["prompt_id", "compressor", "ratio"]
ACTING = (
    "restore",
    "rollback",
    "restart",
    "stop",
    "entropy",
    "clock",
    "loop",
    "rollback_v2",
    "stop_at_answer",
)


@pytest.fixture(scope="module")
def model_folder(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["tiny"]


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> LoadedModel:
    live = live_of(model_folder)
    return load_model(live.name, live.spec, "cpu")


@pytest.fixture(scope="module")
def live(model_folder: Path) -> Live:
    return live_of(model_folder)


@pytest.fixture(scope="module")
def out(live: Live, loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("live")
    run_live(live, loaded, out, progress=False)
    return out


@pytest.fixture(scope="module")
def table(out: Path) -> pd.DataFrame:
    return read_judged(out / "live.parquet", kind="live")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.parquet"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def numbers_of(live: Live, table: pd.DataFrame) -> Results:
    offsets = live.settings.switch_offsets
    return live_results(live.name, table, live.triggers["hazard"], offsets, n_resamples=100, seed=0)


def of(table: pd.DataFrame, regime: str, policy: str, fit: int = 1) -> pd.DataFrame:
    chosen = (table["regime"] == regime) & (table["policy"] == policy) & (table["fit"] == fit)
    return table[chosen].set_index(SHARED)


def test_every_prompt_meets_every_policy_once(live: Live, table: pd.DataFrame) -> None:
    policies = {
        "prefill": {"static", *ACTING},
        "decoding": {"static", "hold", "restore", "rollback"},
    }
    for regime, names in policies.items():
        asked = live.sweep.prompts["prompt_id"].iloc[: 4 if regime == "prefill" else 2]
        plan = {(p, c.compressor, c.ratio) for p in asked for c in live.sweep.conditions[1:]}
        for name in names:
            rows = of(table, regime, name)
            assert len(rows) == len(plan)
            assert set(rows.index) == plan
    repeated = table[table["fit"] == 2]
    assert set(zip(repeated["regime"], repeated["policy"], strict=True)) == {("prefill", "rollback")}
    assert set(repeated.set_index(SHARED).index) == set(of(table, "prefill", "rollback").index)
    none = of(table, "prefill", "uncompressed")
    assert set(none.index) == {(p, "none", 0.0) for p in live.sweep.prompts["prompt_id"]}
    assert (none["kv_saved"] == 0).all()
    assert table["trace_id"].tolist() == list(range(len(table)))
    assert table["error"].isna().all()


def test_static_is_the_sweep_token_for_token(live: Live, table: pd.DataFrame, tmp_path: Path) -> None:
    swept = read_judged(run_sweep(live.sweep, tmp_path, progress=False).traces).set_index(SHARED)
    watched = pd.concat([of(table, "prefill", name) for name in ("uncompressed", "static")])
    assert len(watched) == len(swept) == 12
    shared = [
        "token_ids",
        "text",
        "stop_reason",
        "onset",
        "catastrophes",
        "correct",
        "amnesia",
        "n_kept_tokens",
    ]
    for name in shared:
        theirs = swept.loc[watched.index, name]
        assert [str(value) for value in watched[name]] == [str(value) for value in theirs], name


def test_what_is_watched_knows_every_token_and_what_acts_says_so(table: pd.DataFrame) -> None:
    watched = table[table["policy"].isin(["static", "uncompressed"])]
    for column in ("hazard", "kv_tokens"):
        assert (watched[column].map(len) == watched["token_ids"].map(len)).all()
    assert (watched["n_steps"] == watched["token_ids"].map(len)).all()
    assert (watched[["n_restores", "n_rewinds", "n_rewound"]] == 0).all(axis=None)
    for regime in ("prefill", "decoding"):
        acted = of(table, regime, "rollback")
        safe = acted["safe_at"] >= 0
        assert safe.any()
        assert (acted["n_restores"][~safe] == 0).all()
        assert (acted["n_steps"] == acted["token_ids"].map(len) + acted["n_rewound"]).all()
        assert (of(table, regime, "restore")["n_rewinds"] == 0).all()


def test_a_budget_while_decoding_saves_more_than_one_compression(live: Live, table: pd.DataFrame) -> None:
    once, held = (of(table, regime, "static") for regime in ("prefill", "decoding"))
    evicted = held["n_steps"] > live.settings.compression_interval  # a shorter text ends before any eviction
    assert evicted.any()
    more = held["kv_saved"] - once.loc[held.index, "kv_saved"]
    assert (more[evicted] > 0).all()
    assert (more[~evicted] == 0).all()


def test_a_prompt_whose_budget_the_press_cannot_hold_is_recorded_and_left_out_of_every_arm(
    model_folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    live = live_of(model_folder, decoding_n=4, switch_traces=0)
    lengths = np.array([len(loaded.encode(prompt)) for prompt in live.sweep.prompts["prompt"]])
    ratio = round(1 - 2 / (lengths.max() + 0.5), 6)  # two entries for the longest prompt, one for the others
    live = live_of(model_folder, decoding_n=4, switch_traces=0, conditions=(f"snapkv@{ratio}",))
    run_live(live, loaded, tmp_path, progress=False)
    table = read_judged(tmp_path / "live.parquet", kind="live")
    short = live.sweep.prompts["prompt_id"][lengths < lengths.max()]
    assert 0 < len(short) < len(lengths)
    rejected = table[table["stop_reason"] == "rejected"]
    assert set(rejected["regime"]) == {"decoding"}
    assert len(rejected) == len(short) * table.loc[table["regime"] == "decoding", "policy"].nunique()
    assert set(rejected["prompt_id"]) == set(short)
    assert rejected["error"].str.contains("too small a budget while decoding").all()
    assert (rejected["token_ids"].map(len) == 0).all()
    numbers = numbers_of(live, table).metrics("prompts")["prompts"]["all"]
    assert (numbers["n_prompts"]["value"], numbers["n_used"]["value"]) == (4, 4 - len(short))


def test_a_guard_that_never_fires_changes_no_token(
    model_folder: Path, loaded: LoadedModel, table: pd.DataFrame, tmp_path: Path
) -> None:
    live = live_of(model_folder, switch_traces=0)
    quiet = replace(live, triggers=dict.fromkeys(live.triggers, NEVER))
    run_live(quiet, loaded, tmp_path, progress=False)
    found = read_judged(tmp_path / "live.parquet", kind="live")
    assert (found["safe_at"] == -1).all()
    for regime in ("prefill", "decoding"):
        static = of(table, regime, "static")
        for policy in found.loc[found["regime"] == regime, "policy"].unique():
            if policy != "uncompressed":
                its = of(found, regime, policy).loc[static.index]
                assert all(map(np.array_equal, its["token_ids"], static["token_ids"]))
                assert its["kv_saved"].tolist() == static["kv_saved"].tolist()
    numbers = numbers_of(quiet, found).metrics("policies-prefill")["policies-prefill"]
    assert numbers["rollback"]["unchanged"]["value"] == 1
    assert numbers["rollback"]["saving_kept"]["value"] == 1


def test_a_restored_case_goes_on_as_the_uncompressed_model_would(
    live: Live, loaded: LoadedModel, table: pd.DataFrame
) -> None:
    prompts = live.sweep.prompts.set_index("prompt_id")["prompt"]
    static = of(table, "prefill", "static")
    switched = table[table["regime"] == "switch"]
    assert set(switched["policy"]) >= {"0", "8"}
    for row in switched.itertuples():
        case = static.loc[(row.prompt_id, row.compressor, row.ratio)]
        kept = int(row.safe_at)
        assert kept == case["onset"] - int(row.policy)
        assert row.token_ids[:kept].tolist() == case["token_ids"][:kept].tolist()
        ids = torch.tensor([*loaded.encode(prompts[row.prompt_id]), *row.token_ids[:kept].tolist()])
        alone = kvpress_generate(loaded.model, ids, None, N_TOKENS - kept, loaded.eos_ids)
        assert alone.agrees(row.token_ids[kept:].tolist())
        assert 0 <= row.kv_saved < 1


def test_a_finished_run_makes_nothing_again(live: Live, loaded: LoadedModel, out: Path) -> None:
    before = digests(out)
    again = run_live(live, loaded, out, progress=False)
    assert again.n_made == 0
    assert again.n_kept == len(list(out.rglob("part-*.parquet")))
    assert digests(out) == before


def test_another_operating_point_makes_again_what_the_hazard_watches(
    live: Live, loaded: LoadedModel, out: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(out, tmp_path / "copy")
    later = live.triggers["hazard"].model_copy(update={"k_escalate": 3})
    other = replace(live, triggers={**live.triggers, "hazard": later})
    before = digests(tmp_path / "copy")
    run_live(other, loaded, tmp_path / "copy", progress=False)
    times = {name for name, digest in digests(tmp_path / "copy").items() if before[name] == digest}
    assert {name for name in before if "-loop" in name or "-entropy" in name} <= times
    assert any("rollback" in name for name in set(before) - times)


def test_a_stop_string_ends_a_live_text_and_is_no_part_of_it(
    live: Live, table: pd.DataFrame, loaded: LoadedModel, tmp_path: Path
) -> None:
    often = max(set("".join(table["text"])), key="".join(table["text"]).count)
    task = live.task.model_copy(update={"stop_strings": (often,)})
    stopping = replace(live, sweep=replace(live.sweep, task=task))
    stopped = read_table("live", run_live(stopping, loaded, tmp_path, progress=False).table)
    assert (stopped["stop_reason"] == "stop").any()
    assert not stopped["text"].str.contains(often, regex=False).any()


def test_the_results_hold_every_table(live: Live, table: pd.DataFrame) -> None:
    results = numbers_of(live, table)
    found = headline(results)
    alarms = {f"alarms-{policy}" for policy in ALARMED} | {f"alarm_bins-{policy}" for policy in ALARMED}
    assert set(found) == {"prompts", "policies-prefill", "policies-decoding", "gap", "switch", *alarms}
    extra = {"always_safe", "mixed", "oracle"}
    assert extra <= set(found["policies-prefill"]) & set(found["policies-decoding"])
    assert set(found["gap"]) == {"restore", "rollback", "restart"}
    subjects = results.frame[results.frame["table"] == "policies-prefill"]["subject"]
    assert "rollback/knorm@0.5" in set(subjects)


def test_the_time_of_guarding_is_measured(live: Live, loaded: LoadedModel) -> None:
    results = Results("live-validate", "tiny", "v2")
    measure_latency(results, live, loaded, batch_size=3, n_tokens=4, rounds=2)
    found = results.metrics("latency")["latency"]
    assert found["guarded"]["ms_per_token"]["value"] > 0
    assert found["restore"]["ms"]["value"] > 0
    assert set(found) == {"unguarded", "guarded", "overhead", "restore"}


def test_a_slow_model_is_timed_on_fewer_tokens(
    live: Live, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    hook = loaded.model.register_forward_hook(lambda *_: passes.append(1))
    for seconds in (60, 0):
        monkeypatch.setattr(latency, "_SECONDS", seconds)
        measure_latency(
            Results("live-validate", "tiny", "v2"), live, loaded, batch_size=2, n_tokens=20, rounds=2
        )
        passes.append(0)
    hook.remove()
    all_, few = "".join(map(str, passes)).split("0")[:2]
    assert len(all_) - len(few) == 2 * 2 * (20 - 4)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from live_setup import live_of
from kvguard.models.load import load_model
from kvguard.studies.catastrophes.live.stage import run_live
if __name__ == "__main__":
    live = live_of(Path(sys.argv[1]), workers=2)
    run_live(live, load_model(live.name, live.spec, "cpu"), Path(sys.argv[2]), progress=False)
"""


@pytest.mark.parametrize("before", [(), pytest.param((1,), marks=pytest.mark.slow)], ids=str)
def test_killed_again_and_again_a_run_ends_with_the_same_bytes(
    model_folder: Path, out: Path, tmp_path: Path, before: tuple[int, ...]
) -> None:
    script, killed = tmp_path / "go.py", tmp_path / "killed"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(model_folder), str(killed), str(Path(__file__).parent)]
    n_parts = len(list(out.rglob("part-*.parquet")))
    for wanted in (*before, n_parts - 1):  # among the policies, and among the restored cases
        process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 240
        while process.poll() is None and len(list(killed.rglob("part-*.parquet"))) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)  # the orphaned workers see their parent gone
    assert subprocess.run(command, check=False).returncode == 0
    made = digests(killed)
    assert made == digests(out)
    assert not [f for f in killed.rglob("*") if "tmp" in f.name]
