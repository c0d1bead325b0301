import json
import re
from random import Random

import pytest
from click.testing import CliRunner
from doubles import double

from kvguard.cli.instructions_generate import generate
from kvguard.studies.instructions import generate as study
from kvguard.studies.instructions.suites import load_suite
from kvguard.studies.instructions.suites.library import library


def answer(asked):
    """What a model that does as it is told would write, in the rules' own words."""
    rules = library("ifeval")
    prompt, kwargs = [f"Write about {abs(hash(asked)) % 10**6} things."], []
    for id in re.findall(r"^\d+\. ([a-z_:-]+);", asked, re.MULTILINE):
        rule = rules._registry[id](id)
        names = rule.get_instruction_args_keys()
        given = {"prompt_to_repeat": prompt[0]} if "prompt_to_repeat" in names else {}
        for name, values in (
            ("keywords", ["tea"]),
            ("forbidden_words", ["tea"]),
            ("keyword", "tea"),
            ("letter", "t"),
        ):
            given |= {name: values} if name in names else {}
        prompt.append(rule.build_description(**given))
        kwargs.append(rule.get_instruction_args() or {})
    texts = [str(v) for one in kwargs for v in one.values() if isinstance(v, str)]
    return json.dumps({"prompt": " ".join([*prompt, *texts]), "kwargs": kwargs})


def run(server, out, *options):
    return CliRunner().invoke(generate, [str(out), "--url", server.openai, *options])


def test_rows_are_valid_distinct_and_say_where_they_are_from_and_more_can_be_added(tmp_path):
    out = tmp_path / "more.jsonl"
    with double(answer) as server:
        assert run(server, out, "-n", "4").exit_code == 0
        first = out.read_text()
        result = run(server, out, "-n", "6")
        assert result.exit_code == 0, result.output
    assert out.read_text().startswith(first)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len({row["prompt"] for row in rows}) == 6
    assert all({"model", "written", "seed", "attempt", "rules"} <= set(row["provenance"]) for row in rows)
    assert len(load_suite("ifeval", out, 6, 0, "user")) == 6


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("no JSON", "no JSON"),
        ("[]", "no object"),
        ('{"prompt": "x", "kwargs": [{"made_up": 1}]}', "made_up|lacks|kwargs"),
        ('{"prompt": "", "kwargs": []}', "empty|kwargs"),
        ("refusal", "refused"),
    ],
)
def test_what_is_not_valid_is_left_out_and_said(tmp_path, said, reason):
    out = tmp_path / "more.jsonl"
    with double(lambda asked: said) as server:
        result = run(server, out, "-n", "1")
    assert result.exit_code == 1
    assert re.search(rf"left out: .*({reason})", result.output)
    assert "0 of 1" in result.output
    assert out.read_text() == ""


def test_a_prompt_that_does_not_say_what_its_arguments_say_is_left_out():
    row = {"prompt": "Use the word tea.", "kwargs": [{"keywords": ["tea", "corn"], "relation": "at least"}]}
    with pytest.raises(Exception, match="does not say 'corn'"):
        study._check_said(row, "key")


def test_the_same_prompt_in_other_marks_is_a_repetition(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "draw", lambda rng, rules: ("punctuation:no_comma",))
    said = iter(["Tell me of tea. No commas.", "Tell me of TEA!  No commas.", "Of tea, no commas: tell me."])
    with double(lambda asked: json.dumps({"prompt": next(said, "of tea"), "kwargs": [{}]})) as server:
        result = run(server, tmp_path / "more.jsonl", "-n", "3")
    assert result.exit_code == 0
    assert result.output.count("repeats a prompt") == 1


def test_an_endpoint_that_is_down_ends_it_in_one_line_and_keeps_what_there_is(tmp_path, monkeypatch):
    from kvguard.studies.instructions.judge import endpoints

    monkeypatch.setattr(endpoints, "_RETRIES", 0)
    with double(lambda asked: "broken") as server:
        result = run(server, tmp_path / "more.jsonl", "-n", "2")
    assert result.exit_code == 1
    assert "failed 5 times in a row" in result.output


def test_instructions_that_are_drawn_do_not_contradict_one_another():
    rules = library("ifeval")
    drawn = [study.draw(Random(seed), rules) for seed in range(200)]
    assert {len(ids) for ids in drawn} == {1, 2, 3}
    for ids in drawn:
        assert len(set(ids)) == len(ids)
        assert not any(rules.contradict(one, other) for one in ids for other in ids if one != other)
