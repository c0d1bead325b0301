import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from kvguard.models.load import LoadedModel, load_model
from kvguard.models.reference import INSTRUCT, LONG, REFERENCE_PATHS
from kvguard.models.reference.corpus import Corpus, tokenizer_texts
from kvguard.models.reference.evaluate import greedy_scores, instruct_scores, long_scores
from kvguard.models.reference.instruct import Instructions
from kvguard.models.reference.long import LongTexts
from kvguard.models.reference.tokenizer import train_tokenizer
from kvguard.models.reference.train import TrainSettings, build_tokenizer, train
from kvguard.models.spec import ModelSpec
from kvguard.tasks import instructions


def test_padding_an_evaluation_batch_does_not_pad_the_training_rows() -> None:
    tokenizer = train_tokenizer(tokenizer_texts([], seed=0, n=200), max_length=256)
    corpus = Corpus(tokenizer, [], seed=0)
    before = corpus.batch(0, n_rows=4, row_length=128)
    tokenizer(["a", "a longer text"], padding=True)
    after = corpus.batch(0, n_rows=4, row_length=128)
    assert np.array_equal(before.ids, after.ids)
    assert tokenizer.pad_token_id not in after.ids


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file shaped like GSM8K's, with text of our own."""
    path = tmp_path_factory.mktemp("text") / "train.jsonl"
    row = {
        "question": "Two hens lay 3 eggs each. How many eggs?",
        "answer": "2 * 3 = <<2*3=6>>6 eggs.\n#### 6",
    }
    path.write_text(json.dumps(row) + "\n")
    return path


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    gsm8k: Path, tmp_path: Path
) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(metrics: dict[str, float], step: int) -> None:
        raise Interrupted

    settings = TrainSettings(
        architecture="llama",
        gsm8k=gsm8k,
        run_folder=tmp_path / "cut",
        total_tokens=4 * 2 * 64,
        rows=2,
        row_length=64,
        evaluate_every=2,
        evaluate_prompts=1,
        checkpoint_minutes=0.0,
    )
    with pytest.raises(Interrupted):
        train(settings, interrupt)
    resumed = train(settings)
    whole = train(dataclasses.replace(settings, run_folder=tmp_path / "whole"))
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", sorted(REFERENCE_PATHS))
class TestShippedModel:
    def load(self, name: str) -> LoadedModel:
        source = f"embedded:{REFERENCE_PATHS[name].name}"
        return load_model(name, ModelSpec(source=source, task="arithmetic"), "cpu")

    def test_any_text_survives_its_tokenizer_and_digits_stand_alone(self, name: str) -> None:
        tokenizer = self.load(name).tokenizer
        for text in ("12 + 345 = 357", "naïve\t\N{SNOWMAN} \x00 日本", " leading", "a  b\n\n c"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.decode(ids) == text
        digits = [tokenizer.decode([i]) for i in tokenizer.encode("1234 999", add_special_tokens=False)]
        assert all(sum(c.isdigit() for c in token) <= 1 for token in digits)

    def test_it_is_small_and_asks_for_an_answer_through_its_chat_template(self, name: str) -> None:
        loaded = self.load(name)
        assert loaded.window >= 2048
        assert sum(f.stat().st_size for f in REFERENCE_PATHS[name].iterdir()) < 16_000_000
        assert loaded.tokenizer.decode(loaded.encode("Hi")).endswith("<|assistant|>")
        assert loaded.eos_ids == [loaded.tokenizer.eos_token_id]

    def test_it_solves_held_out_problems_and_stops(self, name: str) -> None:
        loaded = self.load(name)
        scores = greedy_scores(loaded.model, loaded.tokenizer, n=40, seed=5)
        assert scores["accuracy"] >= 0.8  # a floor under 40 prompts; docs/reference-models.md has the figure
        assert scores["not_stopped"] <= 0.05


def test_the_long_model_finds_two_facts_in_texts_of_every_length() -> None:
    loaded = load_model("reference_long", ModelSpec(source=f"embedded:{LONG.name}", task="longarith"), "cpu")
    scores = long_scores(loaded.model, loaded.tokenizer, n=3, seed=5)
    assert sum(scores.values()) / len(scores) >= 0.75  # a floor under 12 texts
    assert loaded.window >= 2048
    assert sum(file.stat().st_size for file in LONG.iterdir()) < 16_000_000


def test_long_rows_grow_to_the_window_and_every_one_has_something_to_learn() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LONG)
    texts = LongTexts(tokenizer, seed=0, steps=100)
    lengths = []
    for index in (0, 10, 30, 50, 70, 99):
        batch = texts.batch(index, n_tokens=4096, longest=2048)
        assert (batch.weights > 0).any(axis=1).all()
        assert tokenizer.pad_token_id not in batch.ids
        assert np.array_equal(batch.ids, texts.batch(index, n_tokens=4096, longest=2048).ids)
        lengths.append(batch.ids.shape[1])
    assert lengths[0] == 192
    assert 192 < max(lengths) <= 2048


def test_the_instruct_model_follows_instructions_on_held_out_texts_and_stops() -> None:
    spec = ModelSpec(source=f"embedded:{INSTRUCT.name}", task="own")
    loaded = load_model("reference_instruct", spec, "cpu")
    scores = instruct_scores(loaded.model, loaded.tokenizer, n=48, seed=5)
    assert scores["followed"] >= 0.85  # a floor under 48 texts; docs/reference-models.md has the figure
    assert scores["not_stopped"] <= 0.05
    assert loaded.window >= 2048
    assert sum(file.stat().st_size for file in INSTRUCT.iterdir()) < 16_000_000


def test_instruct_rows_have_something_to_learn_and_no_held_out_question() -> None:
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    rows = Instructions(tokenizer, seed=0, steps=100)
    for index in (0, 50, 99):
        batch = rows.batch(index, n_rows=4, row_length=512)
        assert (batch.weights > 0).any(axis=1).all()
        assert np.array_equal(batch.ids, rows.batch(index, n_rows=4, row_length=512).ids)


def test_every_word_of_the_small_world_is_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(INSTRUCT)
    for thing in instructions.THINGS:
        for form in (thing, f" {thing}", thing.upper(), f" {thing.upper()}"):
            assert len(tokenizer.encode(form, add_special_tokens=False)) == 1


def test_a_training_with_another_tokenizer_takes_the_embeddings_of_tokens_that_both_have(
    tmp_path: Path,
) -> None:
    settings = TrainSettings(
        architecture="qwen2",
        run_folder=tmp_path,
        texts="instruct",
        start=LONG,
        total_tokens=2 * 128,
        rows=1,
        row_length=128,
        warmup_steps=10**9,  # nothing is learned
        evaluate_prompts=1,
    )
    model = train(settings)
    old, new = AutoTokenizer.from_pretrained(LONG).get_vocab(), build_tokenizer(settings).get_vocab()
    was = load_model("old", ModelSpec(source=f"embedded:{LONG.name}", task="longarith"), "cpu").model
    shared = sorted(set(old) & set(new))
    assert len(shared) > 300
    theirs = was.get_input_embeddings().weight[[old[token] for token in shared]]
    mine = model.get_input_embeddings().weight[[new[token] for token in shared]]
    assert torch.allclose(mine, theirs, atol=1e-4)
