"""A policy rejects whatever was not certified, and names what differs."""

import json
from dataclasses import replace

import pytest
from kvpress import AdaKVPress, KnormPress, SnapKVPress

from kvguard import Guard
from kvguard.errors import KvguardError
from kvguard.guard.certificate import Bounds, Certificate, Certified, GuardOf, PressOf, Use, promise, usage
from kvguard.guard.settings import Action
from kvguard.models.identity import weights_digest

GUARD = GuardOf(digest="d" * 64, point="balanced", max_rewinds=2, resume=False, rewind_below=0.05)
BOUNDS = Bounds(max_added_cbr=0.02, max_lost_answers=0.05, confidence=0.95)


def entry(ratio, action="none", scores=(), compressor="snapkv"):
    return Certified(
        compressor=compressor,
        ratio=ratio,
        action=Action(action),
        added=0,
        lost=1,
        kv_saved=0.4,
        scores=scores,
    )


def certificate(weights="w", guard=GUARD, certified=None, n=300):
    return Certificate(
        model="reference",
        weights=weights,
        task="arithmetic",
        n=n,
        n_scored=n,
        max_new_tokens=256,
        bounds=BOUNDS,
        promise=promise("reference", "arithmetic", n, BOUNDS),
        compressors={
            "snapkv": PressOf(press="SnapKVPress", params={"window_size": 16, "kernel_size": 5}),
            "ada": PressOf(press="AdaKVPress", params={"press": {"press": "KnormPress"}}),
        },
        guard=guard,
        certified=certified
        or (
            entry(0.25),
            entry(0.25, "rollback"),
            entry(0.5, "rollback", scores=(0.1, 0.2, 1.0)),
            entry(0.5, compressor="ada"),
        ),
        recommended=2,
    )


FINE = Use("w", SnapKVPress(0.5, window_size=16), Action.ROLLBACK, 256, GUARD)


def test_what_was_certified_passes_and_says_by_what():
    found = certificate().check(FINE)
    assert (found.ratio, found.action, len(found.scores)) == (0.5, "rollback", 3)
    bare = replace(FINE, press=SnapKVPress(0.25, window_size=16), action=Action.NONE, guard=None)
    assert certificate().check(bare) == entry(0.25)
    assert certificate().check(replace(FINE, press=None)) is None
    assert certificate().check(replace(FINE, max_new_tokens=16)) == found
    assert certificate().check(
        replace(FINE, press=AdaKVPress(KnormPress(0.5)), action=Action.NONE, guard=None)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "x"}, ["model reference", "others"]),
        ({"press": SnapKVPress(0.75, window_size=16)}, ["0.75", "snapkv@0.5 under rollback"]),
        ({"press": SnapKVPress(0.4, window_size=16)}, ["0.4"]),
        ({"press": SnapKVPress(0.5, window_size=64)}, ["window_size=16", "64"]),
        ({"press": SnapKVPress(0.5, window_size=16, kernel_size=7)}, ["kernel_size=5", "7"]),
        ({"press": KnormPress(0.5)}, ["KnormPress", "not certified"]),
        ({"press": AdaKVPress(SnapKVPress(0.5))}, ["AdaKVPress", "press="]),
        ({"action": Action.NONE, "guard": None}, ["under rollback", "no guard"]),
        ({"action": Action.RESTORE}, ["under rollback", "restore"]),
        ({"guard": None}, ["another guard"]),
        ({"guard": GUARD.model_copy(update={"digest": "e" * 64})}, ["files differ"]),
        ({"guard": GUARD.model_copy(update={"point": "aggressive"})}, ["point is aggressive, not balanced"]),
        ({"guard": GUARD.model_copy(update={"max_rewinds": 5})}, ["max_rewinds is 5, not 2"]),
        ({"max_new_tokens": 257}, ["256", "257"]),
        ({"interval": 8}, ["while decoding"]),
        ({"greedy": False}, ["greedy", "temperature"]),
    ],
)
def test_whatever_differs_is_named_in_one_line(changes, words):
    with pytest.raises(KvguardError) as error:
        certificate().check(replace(FINE, **changes))
    assert len(str(error.value).splitlines()) == 1
    for word in ("policy", *words):
        assert word in str(error.value)


def test_a_certificate_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(certificate().model_dump(mode="json")))
    assert Certificate.load(path) == certificate()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("weights"),
        lambda data: data.update(stranger=1),
        lambda data: data["certified"][0].update(ratio=1.5),
        lambda data: data["certified"][0].update(compressor="knorm"),
        lambda data: data["certified"][0].update(stranger=1),
        lambda data: data.update(recommended=9),
        lambda data: data.update(certified=3),
    ],
)
def test_what_is_no_certificate_is_one_line(tmp_path, change):
    path = tmp_path / "certificate.json"
    data = certificate().model_dump(mode="json")
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(KvguardError, match="certificate"):
        Certificate.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_files_of_other_kinds_are_one_line(tmp_path, text):
    path = tmp_path / "certificate.json"
    path.write_text(text)
    for where in (path, tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(KvguardError) as error:
            Certificate.load(where)
        assert len(str(error.value).splitlines()) == 1


def test_the_line_that_builds_a_press_builds_the_certified_one():
    import kvpress

    for one in certificate().certified[:3]:
        built = eval(usage(one, certificate().compressors), vars(kvpress))
        assert built == SnapKVPress(one.ratio, window_size=16, kernel_size=5)


def test_a_guard_keeps_to_its_policy_and_looks_for_drift(tmp_path, guards, reference, prompts, caplog):
    import bundles

    folder = bundles.write_bundle(tmp_path / "late", reference[0], position=0.4)
    weights, guard = weights_digest(reference[0]), Guard.load(folder)
    scores = (0.01, 0.02) * 20
    certified = (entry(0.5, "rollback", scores=scores),)
    path = tmp_path / "certificate.json"
    made = certificate(weights, guard.identity, certified).model_copy(update={"recommended": 0})
    path.write_text(json.dumps(made.model_dump(mode="json")))
    kept = Guard.load(folder, policy=path)
    how = {"press": SnapKVPress(0.5, window_size=16), "max_new_tokens": 40}
    free, bound = guard.generate(*reference, prompts, **how), kept.generate(*reference, prompts, **how)
    assert [one.token_ids.tolist() for one in free] == [one.token_ids.tolist() for one in bound]
    assert kept.policy.drifts[str(certified[0])].n == len(prompts)
    for _ in kept.stream(*reference, prompts, **how):
        pass
    assert kept.policy.drifts[str(certified[0])].n == 2 * len(prompts)
    assert [one.score for one in bound] == [1.0 if one.actions else one.hazard.max() for one in bound]
    kept.generate(*reference, prompts * 4, **how)
    assert "do not look like those that certified it" in caplog.text  # all of them alarm, none did before
    for other in ({"press": SnapKVPress(0.75, window_size=16)}, {"action": "restore"}, {"temperature": 1.0}):
        with pytest.raises(KvguardError, match="policy"):
            kept.generate(*reference, prompts, **{**how, **other})
