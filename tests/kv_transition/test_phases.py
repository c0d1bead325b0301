import json
import sqlite3

ASKED = """
SELECT example_id, text FROM responses JOIN requests ON requests.id = request_id
JOIN manifest_entries ON manifest_entries.id = entry_id JOIN examples ON examples.id = example_ref
"""


def test_all_goes_from_settings_to_a_report_and_skips_what_is_there(experiment, fake):
    experiment.done("all")
    n = 2 * 3 * 3
    assert experiment.query("SELECT count(*), count(DISTINCT request_id) FROM responses") == [(n, n)]
    assert experiment.query("SELECT count(*) FROM scores") == [(n,)]
    folder = experiment.database.parent
    for name in (
        "report.md",
        "report.html",
        "summary.json",
        "figures/acc_vs_len.png",
        "tables/bin_stats.csv",
    ):
        assert (folder / name).stat().st_size > 100
    assert 'src="figures' not in (folder / "report.html").read_text()
    again = experiment.done("all")
    assert "run: 0 requests answered" in again
    assert sum(fake.state()["completed"].values()) == n


def test_force_does_a_phase_and_what_follows_anew(experiment, fake):
    experiment.done("all")
    assert "18 responses scored" in experiment.done("all", "--force", "score")
    assert "18 requests answered" in experiment.done("all", "--force", "run")
    assert "9 examples" in experiment.done("all", "--force", "prepare")
    assert experiment.query("PRAGMA foreign_key_check") == []


def test_each_phase_runs_by_itself_and_says_what_must_come_first(experiment):
    for phase, first in (("run", "prepare"), ("score", "prepare"), ("refine", "prepare")):
        assert f"kv-transition {first}" in experiment.rejected(phase)
    experiment.done("prepare")
    assert "`kv-transition run` first" in experiment.rejected("score")
    experiment.done("run")
    assert "`kv-transition score` first" in experiment.rejected("analyze")
    experiment.done("score")
    assert "`kv-transition analyze` first" in experiment.rejected("report")
    experiment.done("analyze")
    experiment.done("report")


def test_refine_keeps_the_old_examples_and_says_that_its_choice_was_adaptive(experiment):
    experiment.done("all")
    before = set(experiment.query(ASKED))
    assert "no zone was found" in experiment.rejected("refine")  # three examples a bin show none
    experiment.done("refine", "--bins", "2", "-n", "4")
    after = set(experiment.query(ASKED))
    assert before < after
    assert experiment.query("SELECT bin_index, count(*) FROM manifest_entries JOIN bins ON bins.id = bin_id "
                            "WHERE stage = 2 GROUP BY 1") == [(1, 4)]  # fmt: skip
    assert {scope for (scope,) in experiment.query("SELECT DISTINCT scope FROM bin_stats")} == {
        "first",
        "all",
    }
    text = (experiment.database.parent / "report.md").read_text()
    assert "adaptive" in text
    assert "First stage" in text
    manifest = json.loads(experiment.query("SELECT manifest FROM datasets")[0][0])
    assert manifest["stages"][1]["adaptive"]


def test_the_database_holds_no_key(experiment, monkeypatch):
    monkeypatch.setenv("SECRET_OF_MINE", "sk-very-secret-indeed")
    experiment.change(engine={"api_key_env": "SECRET_OF_MINE"})
    experiment.done("prepare")
    experiment.done("run")
    for path in experiment.database.parent.rglob("*"):
        if path.is_file():
            assert b"very-secret" not in path.read_bytes()


def test_the_database_holds_settings_revision_and_telemetry(experiment, fake):
    experiment.done("prepare")
    fake.control(moods=["drip", "ok"])
    experiment.done("run")
    [(config, digest)] = experiment.query("SELECT config, config_digest FROM experiments")
    assert json.loads(config)["decoding"]["temperature"] == 0
    assert len(digest) == 8
    rows = experiment.query(
        "SELECT latency_s, ttft_s, prefill_s, decode_s, kv_prompt, kv_kept, memory_bytes FROM telemetry"
    )
    for latency, ttft, prefill, decode, prompt, kept, memory in rows:
        assert 0 < ttft <= latency
        assert abs(prefill + decode - latency) < 1e-9
        assert kept <= prompt
        assert memory in (None, 1048576)  # most are over before the endpoint was asked
    assert any(row[-1] for row in rows)


def test_bins_are_interleaved_over_time(experiment):
    experiment.change(engine={"concurrency": 1})
    experiment.done("prepare")
    experiment.done("run")
    order = experiment.query("SELECT bin_index FROM responses JOIN requests ON requests.id = request_id "
                             "JOIN manifest_entries ON manifest_entries.id = entry_id JOIN bins ON bins.id "
                             "= bin_id "
                             "ORDER BY responses.id")  # fmt: skip
    for start in range(0, len(order), 3):
        assert sorted(index for (index,) in order[start : start + 3]) == [0, 1, 2]


def test_repeats_are_drawn_with_seeds_of_their_own_and_their_spread_is_reported(experiment):
    experiment.change(decoding={"temperature": 0.7, "repeats": 2})
    for phase in ("prepare", "run", "score", "analyze"):
        experiment.done(phase)
    assert experiment.query("SELECT count(*), count(DISTINCT seed) FROM requests WHERE run_id = 1") == [
        (18, 18)
    ]
    assert experiment.query("SELECT count(*) FROM bin_stats WHERE metric = 'std_within'")[0][0] == 6


def test_datasette_and_others_may_read_it(experiment):
    experiment.done("prepare")
    reader = sqlite3.connect(f"file:{experiment.database}?mode=ro", uri=True)
    assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    reader.close()
