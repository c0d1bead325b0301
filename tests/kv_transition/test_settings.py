import sqlite3

import pytest

from kv_transition.db import migrations
from kv_transition.settings import Settings, load
from kvguard.errors import KvguardError


def mistake(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(KvguardError) as caught:
        load(path)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(str(path))
    return said.removeprefix(str(path))


def test_a_missing_file_says_how_to_name_another(tmp_path):
    with pytest.raises(KvguardError, match=r"no such file.* -c$"):
        load(tmp_path / "x.yaml")


URL = "engine: {base_url: http://x/v1}\nkv: {budgets: [1.0]}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{URL}dataset: {{n_per_bins: 3}}", "unknown key 'dataset.n_per_bins'; did you mean 'n_per_bin'?"),
        (f"{URL}datasets: {{}}", "unknown key 'datasets'; did you mean 'dataset'?"),
        (f"{URL}dataset: {{name: longarit}}", "dataset.name: 'longarit' does not fit"),
        (f"{URL}dataset: {{n_per_bin: 0}}", "dataset.n_per_bin: 0 does not fit"),
        (
            f"{URL}dataset: {{min_tokens: 500, max_tokens: 400}}",
            "min_tokens 500 must be below max_tokens 400",
        ),
        (f"{URL}dataset: {{name: haystack}}", "haystack needs path"),
        (f"{URL}binning: {{n_bins: 2, by: [1, 2]}}", "2 bins need 3"),
        (f"{URL}binning: {{n_bins: 2, by: [1, 3, 2]}}", "edges must rise"),
        (f"{URL}decoding: {{repeats: 2}}", "at temperature 0 every repeat is the same"),
        (f"{URL}decoding: {{temperature: 3}}", "decoding.temperature: 3 does not fit"),
        (f"{URL}output: {{exp_group_id: ../x}}", "output.exp_group_id"),
        ("engine: {base_url: http://x/v1}", "one server has one budget"),
        ("engine: {base_url: http://x/v1, spawn: kvguard, spawn_model: m}", "base_url, spawn"),
        ("engine: {}", "given: none"),
        ("{}", "missing key 'engine'"),
        ("engine: {spawn: kvguard}", "spawn needs spawn_model"),
        ("engine: {endpoints: {1.0: http://x/v1}}", "no url for budget [0.2, 0.5]"),
        ("engine: {base_url: x}\nkv: {budgets: [1.0, 1.5]}", "kv.budgets"),
        ("engine: {base_url: x}\nkv: {budgets: [0.5, 0.5]}", "must differ"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(tmp_path, text, said):
    assert said in mistake(tmp_path, text)


def test_settings_stand_over_defaults_at_every_depth(tmp_path):
    (tmp_path / "default.yaml").write_text(
        "engine: {request: {timeout_s: 7}, retries: {attempts: 2}}\ndataset: {seed: 5}\n"
    )
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "x.yaml"
    path.write_text(
        f"{URL}dataset: {{n_per_bin: 9}}\n".replace("{base_url", "{retries: {wait_s: 1}, base_url")
    )
    settings = load(path)
    assert settings.engine.request.timeout_s == 7
    assert (settings.engine.retries.attempts, settings.engine.retries.wait_s) == (2, 1)
    assert (settings.dataset.seed, settings.dataset.n_per_bin) == (5, 9)


def test_the_default_file_says_what_the_package_does(request):
    root = request.config.rootpath / "config"
    for path in sorted((root / "experiments").glob("*.yaml")):
        assert load(path).snapshot() == load(path, root / "default.yaml").snapshot()
    alone = Settings.model_validate({"engine": {"spawn": "kvguard", "spawn_model": "m"}})
    import yaml

    defaults = yaml.safe_load((root / "default.yaml").read_text())
    defaults["engine"] |= {"spawn": "kvguard", "spawn_model": "m"}
    assert Settings.model_validate(defaults).snapshot() == alone.snapshot()


def test_settings_are_frozen():
    settings = Settings.model_validate({"engine": {"spawn": "kvguard", "spawn_model": "m"}})
    with pytest.raises(Exception, match="frozen"):
        settings.decoding.seed = 3


def test_a_group_without_a_name_is_found_again(experiment):
    experiment.change(output={"exp_group_id": None})
    experiment.done("prepare")
    experiment.done("run")
    [folder] = (experiment.folder / "runs").iterdir()
    assert folder.name.endswith(load(experiment.config).digest())


def test_settings_that_do_not_fit_the_database_are_rejected_with_the_keys_that_differ(experiment):
    experiment.done("prepare")
    experiment.change(decoding={"max_tokens": 99}, dataset={"seed": 3})
    said = experiment.rejected("run")
    assert "dataset.seed (17 there, 3 here)" in said
    assert "decoding.max_tokens (64 there, 99 here)" in said


def test_nothing_is_forgotten_by_force_where_the_settings_do_not_fit(experiment):
    for phase in ("prepare", "run"):
        experiment.done(phase)
    experiment.change(decoding={"max_tokens": 99})
    assert "decoding.max_tokens" in experiment.rejected("all", "--force", "run")
    assert experiment.query("SELECT count(*) FROM responses") == [(18,)]
    experiment.change(
        output={"exp_group_id": "other"}, db={"path": str(experiment.database)}, decoding={"max_tokens": 64}
    )
    assert "is of group 'test', not of 'other'" in experiment.rejected("all", "--force", "prepare")
    assert experiment.query("SELECT count(*) FROM responses") == [(18,)]


def test_what_decides_no_answer_may_change(experiment):
    experiment.done("prepare")
    experiment.change(engine={"concurrency": 3}, analysis={"alpha": 0.01})
    experiment.done("run")


def test_a_database_of_a_newer_schema_is_rejected(experiment):
    experiment.done("prepare")
    with sqlite3.connect(experiment.database) as connection:
        connection.execute("INSERT INTO schema_version VALUES (?, '')", (migrations.NEWEST + 1,))
    assert f"version {migrations.NEWEST + 1}" in experiment.rejected("run")


def test_what_is_no_database_is_rejected(experiment):
    experiment.database.parent.mkdir(parents=True)
    experiment.database.write_text("not a database, " * 100)
    assert "move it away" in experiment.rejected("run")


def schema(connection):
    """The columns of every table and the indexes, whatever way they came there."""
    tables = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")
    ]
    columns = {
        name: sorted(row[1:5] for row in connection.execute(f"PRAGMA table_info({name})")) for name in tables
    }
    indexes = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    return columns, indexes


def test_a_database_of_version_1_is_brought_up_to_date_with_its_rows(tmp_path):
    old, new = sqlite3.connect(tmp_path / "old"), sqlite3.connect(tmp_path / "new")
    migrations.migrate(old, upto=1)
    assert migrations.version(old) == 1
    with old:
        old.execute("INSERT INTO experiments VALUES ('e', 't', '{}', 'd', NULL, NULL, '0')")
        old.execute("INSERT INTO datasets VALUES ('s', 'e', 'longarith', NULL, 't', 'h', 'em', '{}', 't')")
        old.execute("INSERT INTO examples VALUES (1, 's', 'x', 'q', 'c', '[]', '{}', 5)")
        old.execute("INSERT INTO bins VALUES (1, 's', 0, 1, 9, 1)")
        old.execute("INSERT INTO manifest_entries VALUES (1, 's', 1, 1, 0)")
        old.execute("INSERT INTO bin_stats VALUES (1, 'e', 0.5, 0, 'score', 1, 1, 1)")
    migrations.migrate(old)
    migrations.migrate(old)
    migrations.migrate(new)
    assert migrations.version(old) == migrations.NEWEST
    assert schema(old) == schema(new)
    assert old.execute("SELECT stage FROM manifest_entries").fetchall() == [(1,)]
    assert old.execute("SELECT scope, value FROM bin_stats").fetchall() == [("all", 1.0)]
    old.close()
    new.close()
