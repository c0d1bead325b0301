"""Data sets of the hub in their own fields, and the made one; prefixes from an endpoint, asked once."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice

import pytest

from kvguard.errors import KvguardError
from kvguard.store.journal import open_journal
from kvguard.studies.directed import sources
from kvguard.studies.directed.params import DatasetParams, WriterParams
from kvguard.studies.directed.sources import open_dataset
from kvguard.studies.directed.writer import Writer, endpoint

HUB = {
    "microsoft/ms_marco": [
        {
            "query_id": 1,
            "query": "who",
            "answers": ["Ana"],
            "passages": {"passage_text": ["no", "Ana did."], "is_selected": [0, 1]},
        },
        {
            "query_id": 2,
            "query": "why",
            "answers": ["No Answer Present."],
            "passages": {"passage_text": ["x"], "is_selected": [0]},
        },
    ],
    "rajpurkar/squad_v2": [
        {
            "id": "a",
            "title": "T",
            "question": "Who?",
            "context": "Ana did.",
            "answers": {"text": ["Ana", "Ana"]},
        },
        {"id": "b", "title": "T", "question": "Why?", "context": "Ana did.", "answers": {"text": []}},
    ],
    "mandarjoshi/trivia_qa": [
        {
            "question_id": "q",
            "question": "Who?",
            "answer": {"value": "Ana", "aliases": ["Anna"]},
            "entity_pages": {
                "title": ["Ben", "Ana"],
                "wiki_context": ["Ben did not.", "No.\nIt was Anna.\nAnna."],
            },
        }
    ],
    "hotpotqa/hotpot_qa": [
        {
            "id": "h",
            "question": "Who?",
            "answer": "Ana",
            "context": {"title": ["A", "B"], "sentences": [["Ana ", "did."], ["Ben."]]},
        }
    ],
}


@pytest.mark.parametrize(
    ("name", "context", "answers"),
    [
        ("ms_marco", "Ana did.", ("Ana",)),
        ("squad2", "Ana did.", ("Ana",)),
        ("triviaqa", "It was Anna.", ("Ana", "Anna")),
        ("hotpotqa", "A: Ana did.\nB: Ben.", ("Ana",)),
    ],
)
def test_a_data_set_of_the_hub_is_read_in_its_own_fields(monkeypatch, name, context, answers):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: HUB[path])
    [example] = open_dataset(name, DatasetParams(source=f"hub:{name}"), 0).examples
    assert (example.context, example.answers) == (context, answers)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    import datasets

    def fails(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(KvguardError, match="squad_v2: ConnectionError: no network: check the network"):
        open_dataset("mine", DatasetParams(source="hub:squad2"), 0)


def test_the_made_data_set_is_the_same_for_a_seed_and_knows_its_answers():
    made = open_dataset("reading", DatasetParams(source="embedded:reading"), 3)
    again = open_dataset("reading", DatasetParams(source="embedded:reading"), 3)
    assert made.fingerprint == again.fingerprint
    other = open_dataset("reading", DatasetParams(source="embedded:reading"), 4)
    assert made.fingerprint != other.fingerprint
    for example in islice(made.examples, 20):
        assert made.judge(example.target, example)
        assert not made.judge("Answer: 1000", example)
        assert example.paraphrase.startswith("What is the sum of the things of ")
        assert example.context.startswith("Read this.")


def test_an_answer_counts_on_the_first_line_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "context": "c", "answers": ["Ana"]}\n')
    mine = open_dataset("mine", DatasetParams(source=f"path:{path}"), 0)
    [example] = mine.examples
    assert mine.judge("\n It was ana.", example)
    assert not mine.judge("It was Ben.\nAna", example)
    assert not mine.judge("", example)


class _Handler(BaseHTTPRequestHandler):
    asked: list = []  # noqa: RUF012
    failing = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _Handler.asked.append((body, self.headers.get("Authorization")))
        if _Handler.failing:
            _Handler.failing -= 1
            self.send_response(503)
            self.end_headers()
            return
        said = json.dumps({"choices": [{"message": {"content": "\n A  fact.\nMore."}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    _Handler.asked, _Handler.failing = [], 0
    http = HTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()


def test_an_endpoint_is_asked_once_for_each_text_and_again_when_it_fails_in_passing(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("SOME_KEY", "secret")
    params = WriterParams(
        base_url=server,
        model="m",
        api_key_env="SOME_KEY",
        instructions={"llm_extract": "Extract.", "paraphrase": "Say"},
    )
    examples = open_dataset("reading", DatasetParams(source="embedded:reading"), 3).examples[:2]
    _Handler.failing = 1
    for _ in range(2):
        with open_journal(tmp_path / "written.jsonl") as journal:
            writer = Writer(endpoint(params), params.instructions, journal)
            writer.prepare(["llm_extract", "paraphrase"], examples)
            assert [writer.text("llm_extract", example) for example in examples] == ["A fact.", "A fact."]
    assert len(_Handler.asked) == 3  # two texts, one of them twice; examples have paraphrases of their own
    body, key = _Handler.asked[0]
    assert key == "Bearer secret"
    assert body["model"] == "m"
    assert body["messages"][0]["content"].endswith("\n\nExtract.")
    assert "secret" not in (tmp_path / "written.jsonl").read_text()


def test_an_endpoint_that_is_not_there_or_has_no_key_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("kvguard.studies.directed.writer._ATTEMPTS", 1)
    params = WriterParams(
        base_url="http://127.0.0.1:9/v1", model="m", instructions={"llm_extract": "Extract."}
    )
    examples = open_dataset("reading", DatasetParams(source="embedded:reading"), 3).examples[:1]
    with open_journal(tmp_path / "w.jsonl") as journal:
        writer = Writer(endpoint(params), params.instructions, journal)
        with pytest.raises(KvguardError, match=r"check writer\.base_url"):
            writer.prepare(["llm_extract"], examples)
        with pytest.raises(KvguardError, match=r"writer.instructions: there is none for llm_question"):
            writer.prepare(["llm_question"], examples)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(KvguardError, match="NO_SUCH_KEY is not set"):
        endpoint(params.model_copy(update={"api_key_env": "NO_SUCH_KEY"}))


def test_every_source_of_the_hub_is_named_where_another_is_asked():
    with pytest.raises(KvguardError, match=", ".join(sources.HUB)):
        open_dataset("mine", DatasetParams(source="hub:squad"), 0)
