"""README and docs are filled from a run of today's stages and from one of before; sentences follow it."""

import json
import shutil
from pathlib import Path

import made_up
import pytest

from kvguard.report.prose import BLOCK, Prose, documents

ROOT = Path(__file__).parents[4]


def nested(frame):
    """A results table as its stage's metrics file has it."""
    found = {}
    for row in frame.itertuples(index=False):
        numbers = {
            name: None if (it := getattr(row, name)) != it else it for name in ("value", "low", "high")
        }
        found.setdefault(row.table, {}).setdefault(row.subject, {})[row.metric] = numbers
    return found


def joined(old, new):
    return old | {k: joined(old.get(k, {}), v) if isinstance(v, dict) else v for k, v in new.items()}


@pytest.fixture
def root(tmp_path):
    """The documents, with a made-up run over the metrics in git."""
    shutil.copy(ROOT / "README.md", tmp_path)
    for name in ("docs", "metrics"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for model in made_up.PARAMS.pair:
        for frame in made_up.stages(model):
            stage, protocol = frame["stage"].iloc[0], frame["protocol"].iloc[0]
            name = f"{model}-{protocol}" if stage in ("train", "evaluate") else model
            write(tmp_path / "metrics" / stage / f"{name}.json", nested(frame))
    return tmp_path


def write(path, numbers):
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(joined(old, numbers)))


def filled(root):
    prose = Prose(root)
    return {path.name: prose.fill(path) for path in documents(root)}


def test_documents_are_filled_from_a_run_of_today_s_stages(root):
    texts = filled(root)
    for text in (outside(texts[name]) for name in ("README.md", "results.md")):
        assert "older than the code" not in text
        for line in ("... `stop` |", "a stop string after the first answer"):
            assert line in text
    told = outside(texts["results.md"])
    for line in (
        "| tokens of one index (a clock: a coin) |",
        "| under protocol v2 |",
        "; by the last answer ",
    ):
        assert line in told
    assert "From the onset to the alarm, in tokens" in told


def outside(text):
    """The text without its templates."""
    return BLOCK.sub(lambda found: found["text"], text)


@pytest.mark.parametrize(
    ("low", "high", "word", "verdict"),
    [
        (0.1, 0.3, "higher than", "the guard beats it"),
        (-0.1, 0.1, "not distinguishable from", "the guard does not beat it"),
        (-0.3, -0.1, "lower than", "the guard does not beat it"),
    ],
)
def test_a_guard_that_does_not_beat_the_stop_string_says_so(root, low, high, word, verdict):
    found = {"value": (low + high) / 2, "low": low, "high": high}
    numbers = {"policies-prefill": {"stop_at_answer": {"cbr_minus_rollback": found}}}
    write(root / "metrics" / "live-validate" / "reference.json", numbers)
    text = " ".join(outside(filled(root)["README.md"]).split())
    assert f"The CBR of the stop string is {word} that of `rollback`" in text
    after = text.partition(f"The CBR of the stop string is {word} that of `rollback`")[2]
    assert after.partition(": ")[2].startswith(verdict)


def test_a_run_of_before_shows_what_it_has():
    told = outside((ROOT / "docs" / "results.md").read_text())
    if not (ROOT / "metrics" / "train" / "reference-v3.json").is_file():
        assert "tokens of one index" not in told
        assert "under protocol v2" not in told
