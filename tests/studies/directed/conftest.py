"""A tiny random decoder with a byte tokenizer, real enough to be read and asked, and a small data set."""

import json

import pytest

from kvguard.models.spec import ModelSpec
from kvguard.studies.directed.params import load_params
from kvguard.studies.directed.sources import open_dataset
from kvguard.studies.directed.tracks import TRACKS, Opening

ROWS = [
    {
        "id": f"q{n}",
        "question": f"Who has {n} {thing}?",
        "context": f"{name} has {n} {thing}. Nobody else has any of them. It is day {n}.",
        "answers": [name, f"It is {name}"],
    }
    for n, (name, thing) in enumerate(
        zip(("Ana", "Ben", "Cleo", "Dan", "Eve", "Fay"), ("pens", "keys", "hats", "cups", "maps", "nuts"))
    )
]


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "small.jsonl", ROWS)


@pytest.fixture
def settings(rows, tmp_path):
    """The study's settings, made small."""
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"datasets: {{small: {{source: 'path:{rows}'}}}}\n"
        "scoring: {chunk: 2, batch_rows: 8, max_new_tokens: 6}\n"
        "writer: {max_new_tokens: 4}\n"
        "analysis: {n_resamples: 100, n_permutations: 99}\n"
    )
    return path


@pytest.fixture
def bench(tiny_models, settings, tmp_path):
    """Open a track's bench on the small data set: a context manager, with the data set beside it."""
    params = load_params(settings)

    def opened(experiment="decoder-01", **changes):
        protocol = params.protocol(experiment).model_copy(update=changes)
        name, where = params.dataset("small")
        dataset = open_dataset(name, where, params.seed)
        spec = ModelSpec(source=f"path:{tiny_models['tiny']}", task="gsm8k")
        opening = Opening(experiment, "tiny", spec, params, protocol, dataset, tmp_path / "tiny")
        return TRACKS[protocol.track](opening), dataset, protocol

    return opened
