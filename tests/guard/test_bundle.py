"""A guard's folder: whole, its own, and rejected where it cannot work."""

import json
import logging

import pytest
import torch

import bundles
from kvguard.errors import KvguardError
from kvguard.guard.bundle import load
from kvguard.guard.columns import FEATURES
from kvguard.guard.session import Guard
from kvguard.models.identity import weights_digest
from kvguard.studies.catastrophes.export import export


@pytest.fixture
def folder(tmp_path):
    return bundles.write_bundle(tmp_path / "guard", position=0.4)


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_exported_is_what_is_loaded(folder):
    hazard, point, card = load(folder, "conservative")
    rows = torch.rand(50, len(FEATURES)).numpy()
    assert (hazard.predict(rows) == bundles.hazard_model(0.4).predict(rows)).all()
    assert (point.k_escalate, card.max_new_tokens, card.thinking_words) == (3, 40, ("so", "then"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "booster.json", "guard.json", "hazard.json", "operating_points.json"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["booster.json", "hazard.json", "operating_points.json", "guard.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(KvguardError, match=f"{name} is missing.*dvc repro export"):
        load(folder, "balanced")


def test_files_of_different_guards_do_not_mix(folder, tmp_path):
    other = bundles.write_bundle(tmp_path / "other", position=0.7)
    (folder / "booster.json").write_bytes((other / "booster.json").read_bytes())
    with pytest.raises(KvguardError, match=r"not those that guard\.json was written for"):
        load(folder, "balanced")


def test_an_unreadable_card_is_one_line(folder):
    rewrite(folder / "guard.json", horizon="soon")
    with pytest.raises(KvguardError, match=r"guard.json cannot be read .*horizon") as found:
        load(folder, "balanced")
    assert "\n" not in str(found.value)


def test_an_unknown_operating_point_lists_those_there_are(folder):
    with pytest.raises(KvguardError, match=r"no operating point 'bold'; it has .*balanced"):
        load(folder, "bold")


def test_a_hazard_model_of_features_that_no_decoding_knows_is_rejected(tmp_path):
    features = [*FEATURES[:-1], "rank_of_chosen"]
    folder = bundles.write_bundle(tmp_path / "guard", features=features)
    with pytest.raises(KvguardError, match="rank_of_chosen"):
        load(folder, "balanced")


def test_trees_that_read_other_columns_than_their_card_names_are_rejected(tmp_path):
    folder = bundles.write_bundle(tmp_path / "guard", features=FEATURES[:5])
    source = tmp_path / "guard-source"
    rewrite(source / "hazard.json", features=FEATURES[:6])
    _, _, card = load(folder, "balanced")
    export(source, source, card, folder)
    with pytest.raises(KvguardError, match=r"5 features and hazard\.json names 6"):
        load(folder, "balanced")


@pytest.fixture(scope="module")
def tiny(tiny_models):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return {
        name: (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
        for name, folder in tiny_models.items()
    }


def test_a_model_is_known_by_its_weights_in_any_precision(tiny, tiny_models):
    from transformers import AutoModelForCausalLM

    (qwen, _), (llama, _) = tiny["tiny"], tiny["tiny_llama"]
    half = AutoModelForCausalLM.from_pretrained(tiny_models["tiny"], dtype=torch.bfloat16)
    assert weights_digest(qwen) == weights_digest(half)
    with torch.no_grad():
        half.model.norm.weight[0] += 1
    assert len({weights_digest(model) for model in (qwen, half, llama)}) == 3


def test_a_guard_of_another_model_says_so_once(tmp_path, tiny, caplog):
    guard = Guard.load(bundles.write_bundle(tmp_path / "guard", tiny["tiny"][0]))
    with caplog.at_level(logging.WARNING):
        guard.generate(*tiny["tiny"], ["abc"], max_new_tokens=2)
        assert not caplog.records
        for _ in range(2):
            guard.generate(*tiny["tiny_llama"], ["abc"], max_new_tokens=2)
    [record] = caplog.records
    assert "which is tiny (path:tiny)" in record.getMessage()
