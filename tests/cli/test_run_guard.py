"""`kvguard run --guard`: unguarded beside guarded, in one screen."""

import click.testing
import pytest

import bundles
from kvguard import cli as commands
from kvguard.models.load import load_model


@pytest.fixture
def guarded(workspace):
    """A workspace with a guard of the tiny model that alarms early under compression."""
    from kvguard.studies.catastrophes.params import load_params

    model = load_model("tiny", load_params().spec("tiny"), "cpu").model
    bundles.write_bundle(workspace / "models/tiny", model, position=0.2)
    return workspace


def run(*arguments):
    return click.testing.CliRunner().invoke(commands.main, ["run", "--model", "tiny", *arguments])


def test_one_screen_has_each_condition_without_and_with_the_guard(guarded):
    result = run("--preset", "small", "-n", "2", "--guard", "--show")
    assert result.exit_code == 0, result.output
    screen, *shown = result.stdout.split("\nstreaming_llm@0.25, prompt")
    lines = screen.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 110
    assert "balanced operating point, rollback" in screen
    for head in ("CBR", "guarded", "accuracy", "saved", "alarms", "false", "rewinds"):
        assert head in screen
    rows = {line.split("  ")[0]: line.split() for line in lines[4:] if "@" in line or "none" in line}
    assert list(rows) == ["none", "streaming_llm@0.25", "streaming_llm@0.5", "snapkv@0.25", "snapkv@0.5"]
    assert rows["none"][-1] == "-"
    for name, cells in rows.items():
        if name != "none":
            unguarded, saved = float(cells[6]), float(cells[7])
            assert 0 < saved < unguarded
            alarms, false, rewinds = map(int, cells[8:])
            assert 1 <= alarms <= 2
            assert false <= alarms <= rewinds
    [shown] = shown
    for word in (
        "unguarded: answer",
        "guarded:   answer",
        "events: rollback of",
        "«rollback of",
        "hazard over",
    ):
        assert word in shown


def test_a_press_that_cannot_compress_while_decoding_is_rejected_before_any_prompt_is_asked(
    guarded, monkeypatch
):
    monkeypatch.setattr("kvguard.cli.trial.run_trial", lambda *_, **__: pytest.fail("a prompt was asked"))
    how = ["--compressor", "observed_attention", "--ratio", "0.5", "-n", "1", "--guard", "--interval", "8"]
    result = run(*how)
    assert result.exit_code == 1
    assert "ObservedAttentionPress: cannot compress while decoding" in result.stderr
    assert result.stdout == ""


def test_hold_stops_a_budget_while_decoding(guarded):
    how = ["--compressor", "streaming_llm", "--ratio", "0.5", "-n", "1", "--guard", "--interval", "8"]
    result = run(*how, "--action", "hold", "--point", "conservative")
    assert result.exit_code == 0, result.output
    assert "compressed every 8 tokens" in result.stdout
    assert "conservative operating point, hold" in result.stdout


def test_stop_ends_texts_where_the_task_says_that_they_are_answered(guarded, monkeypatch):
    asked = []

    def answered(self, text):
        asked.append(text)
        return [2, 4] if len(text) > 4 else []

    monkeypatch.setattr("kvguard.tasks.numeric.WordProblems.answered", answered)
    monkeypatch.setattr("kvguard.engine.batch.full_cache", lambda *_: pytest.fail("a cache was restored"))
    how = ["--compressor", "snapkv", "--ratio", "0.5", "-n", "2", "--guard", "--action", "stop", "--show"]
    result = run(*how)
    assert result.exit_code == 0, result.output
    assert asked
    assert "balanced operating point, stop" in result.stdout
    row = next(line.split() for line in result.stdout.splitlines() if line.startswith("snapkv@0.5 "))
    alarms, _, rewinds = map(int, row[8:])
    assert (alarms, rewinds) == (2, 0)
    assert "stopped by guard" in result.stdout
    assert "«stop of " in result.stdout
    assert "events: stop of " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bundle", "nowhere"], ["nowhere", "guard.json", "dvc repro export"]),
        (
            ["--action", "hold", "--interval", "4"],  # below the press's window
            ["SnapKVPress", "cannot compress while decoding"],
        ),
    ],
)
def test_what_the_guard_cannot_do_is_one_line(guarded, arguments, words):
    result = run("--compressor", "snapkv", "--ratio", "0.5", "-n", "1", "--guard", *arguments)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()[-1:]) == 1
    for word in words:
        assert word in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--action", "rollback"],
        ["--point", "bold", "--guard"],
        ["--interval", "0", "--guard"],
        ["--action", "hold", "--guard"],
    ],
)
def test_wrong_usage_of_the_guard_exits_with_2(guarded, arguments):
    assert run("--compressor", "snapkv", "--ratio", "0.5", *arguments).exit_code == 2
