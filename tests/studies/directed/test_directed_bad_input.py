"""What a user may bring that cannot be scored is one line, before anything is scored."""

import json

import pytest

from kvguard.errors import KvguardError
from kvguard.studies.directed.examples import read_examples
from kvguard.studies.directed.params import DatasetParams, load_params
from kvguard.studies.directed.run import choose
from kvguard.studies.directed.sources import open_dataset

ROW = {"question": "Who?", "context": "Ana is here.", "answers": ["Ana"]}


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("field", ["question", "context", "answers"])
def test_a_missing_field_is_named_with_its_line(tmp_path, field):
    row = {key: value for key, value in ROW.items() if key != field}
    with pytest.raises(KvguardError, match=rf"rows.jsonl, line 2: there is no '{field}'"):
        read_examples(written(tmp_path, ROW, row))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": []}, "'answers' is empty"),
        ({"answers": [" ", ""]}, "'answers' is empty"),
        ({"answers": [{"text": "Ana"}]}, "which is no text"),
        ({"answers": True}, "which is no text"),
        ({"question": " "}, "'question' is empty"),
        ({"context": None}, "'context' is null"),
        ({"target": ""}, "'target' is empty"),
        ({"id": "one"}, "the id 'one' is that of"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, said):
    with pytest.raises(KvguardError, match=said) as error:
        read_examples(written(tmp_path, {**ROW, "id": "one"}, {**ROW, **change}))
    assert "line 2" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_question_that_cannot_be_answered_is_passed_over(tmp_path):
    unanswerable = {**ROW, "answers": [], "is_impossible": True}
    assert len(read_examples(written(tmp_path, ROW, unanswerable))) == 1
    with pytest.raises(KvguardError, match="no row has an answer"):
        read_examples(written(tmp_path, unanswerable))


def test_a_number_is_an_answer_and_one_answer_needs_no_list(tmp_path):
    [example] = read_examples(written(tmp_path, {**ROW, "answers": 1912}))
    assert example.answers == ("1912",)
    assert example.target == "1912"


@pytest.mark.parametrize("source", ["squad2", "hub:squad", "embedded:longarith", "path:/no/such/file.jsonl"])
def test_a_source_that_is_none_is_one_line(source):
    with pytest.raises(KvguardError) as error:
        open_dataset("mine", DatasetParams(source=source), 0)
    assert "\n" not in str(error.value)


def test_a_document_longer_than_the_window_is_rejected_skipped_or_cut(bench, tmp_path):
    opened, dataset, _ = bench()
    with opened as decoder:
        room = decoder.room(dataset.examples[0])
        assert room < decoder.loaded.window == 2048
        long = {**ROW, "id": "long", "context": "word " * 500}
        path = written(tmp_path, long, {**ROW, "id": "short"})
        source = DatasetParams(source=f"path:{path}")
        longer = open_dataset("mine", source, 0)
        with pytest.raises(KvguardError, match=r"example long: its document has \d+ tokens and \d+ can"):
            choose(longer, decoder, source, None)
        skipped = choose(longer, decoder, source.model_copy(update={"longer": "skip"}), None)
        assert [one.id for one in skipped] == ["short"]
        cut = choose(longer, decoder, source.model_copy(update={"longer": "cut", "max_tokens": 40}), None)
        assert sorted(one.id for one in cut) == ["long", "short"]
        assert max(decoder.length(one) for one in cut) <= 40
        with pytest.raises(KvguardError, match="1 examples that the model can read, 2 asked"):
            choose(longer, decoder, source.model_copy(update={"longer": "skip"}), 2)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("scoring: {chunk: 0}", "scoring.chunk"),
        ("scorin: {chunk: 2}", "did you mean 'scoring'"),
        ("writer: {base_url: 'http://x', instructions: {}}", "base_url needs model"),
        ("datasets: {mine: {source: 'path:x', longer: trim}}", "datasets.mine.longer"),
        (
            "experiments: {x: {track: decoder, title: t, about: a, conditions: [bare], oracle: oracle}}",
            "oracle is none of its conditions",
        ),
        (
            "experiments: {x: {track: decoder, title: t, about: a, conditions: [bare, bare]}}",
            "one stands twice",
        ),
    ],
)
def test_a_mistake_in_the_settings_is_one_line_with_its_key(tmp_path, yaml, said):
    path = tmp_path / "settings.yaml"
    path.write_text(f"{yaml}\n")
    with pytest.raises(KvguardError, match=said) as error:
        load_params(path).protocol("x")
    assert "\n" not in str(error.value)
