"""Where failures begin: every rule by hand, its place in the trace, and what no forecast may see of it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import synthetic
import tokenizers_of_all_kinds
from kvguard.guard.answers import Answers
from kvguard.judging.catastrophes import CatastropheParams, is_catastrophic
from kvguard.judging.judge import judge
from kvguard.judging.onsets import RULES, kinds_of, tokens_up_to, uncompressed_lengths
from kvguard.models.load import load_tokenizer
from kvguard.models.spec import ModelSpec
from kvguard.store.tables import read_table
from kvguard.studies.catastrophes.featurize import featurize_tokens
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.rows import load_rows
from kvguard.tasks import make_task
from kvguard.tasks.base import Task

BUDGET = 40
PROXY = 30
TASK = make_task("arithmetic", max_new_tokens=BUDGET)
PARAMS = CatastropheParams(loop_window=4, loop_repeats=3, run_on_margin=5)
ANSWER = "So it is 4.\n#### 4"
SPELLING = ("bytes", "pieces, a space first", "pieces, no space")  # tokenizers that lose no character
RUN_ON = f"{ANSWER}\nQ: What now?"


def spelling(text):
    """Decode to as many characters of a text as there are tokens."""
    return lambda token_ids: text[: len(token_ids)]


def one(text, *, loops_from=None, n_tokens=BUDGET, stop_reason="length", prompt="a", **judging):
    """Judge one trace of a character a token; from ``loops_from`` on three tokens repeat."""
    token_ids = np.arange(100, 100 + n_tokens, dtype=np.int32)
    if loops_from is not None:
        token_ids[loops_from:] = np.resize([1, 2, 3], n_tokens - loops_from)
    raw = pd.DataFrame(
        {"prompt_id": [prompt], "token_ids": [token_ids], "text": [text], "stop_reason": [stop_reason]}
    )
    [found] = judge(raw, TASK, PARAMS, spelling(text), **judging).to_dict("records")
    return found


def true(found):
    return found["onset"], found["onset_by"]


def proxy(found):
    return found["proxy_onset"], found["proxy_onset_by"]


def test_a_run_on_begins_at_the_first_token_after_its_first_complete_answer():
    found = one(RUN_ON, uncompressed={"a": 10})
    assert true(found) == (len(ANSWER), "answer")
    assert proxy(found) == (PROXY, "non_termination")
    assert found["predicted"] == "4"


def test_later_answers_move_no_onset():
    assert true(one(f"{RUN_ON} #### 7\n\n#### 8\n")) == (len(ANSWER), "answer")


def test_without_an_answer_it_begins_a_margin_after_the_length_of_its_uncompressed_twin():
    assert true(one("So it goes on and on", uncompressed={"a": 12})) == (12 + 5, "uncompressed")
    assert true(one("So it goes on and on", uncompressed={"other": 12})) == (PROXY, "proxy")
    assert true(one("So it goes on and on")) == (PROXY, "proxy")


@pytest.mark.parametrize(("length", "found"), [(34, (39, "uncompressed")), (35, (PROXY, "proxy"))])
def test_what_would_begin_behind_the_last_token_is_left_to_the_next_rule(length, found):
    assert true(one("So on", uncompressed={"a": length})) == found


def test_an_answer_that_ends_with_the_trace_marks_nothing():
    late = f"{'#### 4'.rjust(BUDGET)}\n"
    assert TASK.answered(late) == [BUDGET]
    assert true(one(late)) == (PROXY, "proxy")
    assert true(one(late[1:])) == (BUDGET - 1, "answer")


@pytest.mark.parametrize("loops_from", [4, len(ANSWER) - 3, len(ANSWER) - 2, 25])
def test_of_a_loop_and_a_run_on_the_earlier_one_counts(loops_from):
    loop = loops_from + 3  # the second occurrence of the window
    found = one(RUN_ON, loops_from=loops_from)
    assert found["catastrophes"] == ["looping", "non_termination"]
    assert true(found) == ((loop, "looping") if loop <= len(ANSWER) else (len(ANSWER), "answer"))
    assert proxy(found) == (min(loop, PROXY), "looping" if loop <= PROXY else "non_termination")


def test_a_loop_that_ends_by_itself_keeps_its_onset_whatever_was_answered():
    found = one(RUN_ON, loops_from=20, stop_reason="eos", uncompressed={"a": 2})
    assert found["catastrophes"] == ["looping"]
    assert true(found) == proxy(found) == (23, "looping")


@pytest.mark.parametrize("stop_reason", ["eos", "stop", "guard", "invalid"])
def test_a_text_that_ends_has_no_onset(stop_reason):
    found = one(RUN_ON, stop_reason=stop_reason, uncompressed={"a": 2})
    for name in ("onset", "onset_by", "proxy_onset", "proxy_onset_by"):
        assert pd.isna(found[name])


def test_a_task_that_cannot_tell_has_no_onset_by_an_answer():
    class Deaf(type(TASK)):
        def answered(self, text):
            return Task.answered(self, text)

    raw = pd.DataFrame({"prompt_id": ["a"], "token_ids": [np.arange(BUDGET)], "text": [RUN_ON]})
    found = judge(raw.assign(stop_reason="length"), Deaf(max_new_tokens=BUDGET), PARAMS, spelling(RUN_ON))
    assert found["onset_by"].tolist() == ["proxy"]


def test_only_uncompressed_texts_that_ended_tell_a_length():
    traces = pd.DataFrame(
        [
            ("a", "none", [1, 2, 3], "eos"),
            ("a", "knorm", [1], "eos"),
            ("b", "none", [1, 2], "stop"),
            ("c", "none", [1, 2], "length"),
            ("d", "none", [], "invalid"),
            ("e", "knorm", [1], "eos"),
        ],
        columns=["prompt_id", "compressor", "token_ids", "stop_reason"],
    )
    assert uncompressed_lengths(traces) == {"a": 3, "b": 2}


def test_every_rule_finds_onsets_of_a_kind():
    found_by = pd.Series([*RULES, "non_termination", None])
    assert kinds_of(found_by).tolist() == ["looping", *["non_termination"] * 4, None]
    assert kinds_of(pd.Series([None, None])).tolist() == [None, None]


# How many tokens an answer takes


def brute_force(decode, token_ids, beginning):
    counts = range(len(token_ids) + 1)
    return next(n for n in counts if decode(token_ids[:n].tolist()).startswith(beginning))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("reference", ModelSpec(source="embedded:qwen2", task="arithmetic"))


@given(text=st.text(st.sampled_from("0123456789 Qqé#.\n€🙂"), max_size=60), share=st.floats(0, 1))
def test_tokens_are_counted_until_the_text_begins_so(tokenizer, text, share):
    token_ids = np.array(tokenizer.encode(text), dtype=np.int64)
    whole = tokenizer.decode(token_ids)
    beginning = whole[: round(share * len(whole))]
    n = tokens_up_to(tokenizer.decode, token_ids, beginning)
    assert n == brute_force(tokenizer.decode, token_ids, beginning)
    assert tokenizer.decode(token_ids[:n]).startswith(beginning)


@pytest.mark.parametrize("kind", tokenizers_of_all_kinds.KINDS)
@given(
    words=st.lists(st.sampled_from(["she", " said", " ####", "4", "\n", ".", "é", "€", "🙂"]), max_size=20)
)
def test_half_a_character_is_none_in_any_tokenizer(kind, words):
    made = tokenizers_of_all_kinds.make(kind)
    token_ids = np.array(made.encode("".join(words), add_special_tokens=False), dtype=np.int64)
    text = made.decode(token_ids)
    for position in (place + 1 for place, letter in enumerate(text) if letter in "shead4"):  # no lone bytes
        n = tokens_up_to(made.decode, token_ids, text[:position])
        assert n == brute_force(made.decode, token_ids, text[:position])


@pytest.mark.parametrize("kind", SPELLING)
@given(
    words=st.lists(st.sampled_from(["she", " said", " ####", "4", "\n", ".", "é", "€", "🙂"]), max_size=20)
)
def test_the_onset_by_an_answer_is_where_the_guard_would_stop(kind, words):
    made = tokenizers_of_all_kinds.make(kind)
    token_ids = made.encode("".join(words) + "🙂4. So", add_special_tokens=False)
    text = made.decode(token_ids)
    end = text.rindex("4") + 1
    [stops] = Answers(made, lambda text: [end]).ends(token_ids)
    assert tokens_up_to(made.decode, np.array(token_ids), text[:end]) == stops


def test_a_text_that_never_begins_so_takes_all_tokens(tokenizer):
    token_ids = np.array(tokenizer.encode("12 and 13"))
    assert tokens_up_to(tokenizer.decode, token_ids, "13") == len(token_ids)


# Labels only


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onsets")
    return folder, synthetic.build(folder, n_prompts=12)


def test_every_onset_lies_inside_its_trace_and_before_the_proxy(dataset):
    _, traces = dataset
    failing = traces[is_catastrophic(traces)]
    assert set(failing["onset_by"]) == {"looping", "answer", "uncompressed"}
    assert (failing["onset"] < failing["token_ids"].map(len)).all()
    assert (failing["onset"] <= failing["proxy_onset"]).all()
    assert (failing["onset"] < failing["proxy_onset"]).any()
    healthy = traces[~is_catastrophic(traces)]
    assert healthy[["onset", "onset_by", "proxy_onset", "proxy_onset_by"]].isna().all(axis=None)


def test_a_trace_cut_at_any_token_keeps_the_features_of_the_tokens_left(dataset):
    """The onset of a shorter trace is another, or none; its features are those of the whole one."""
    folder, traces = dataset
    features = PROTOCOLS[HEADLINE].features
    tokens = pd.concat(read_table("tokens", folder / "generate" / f"tokens-{part}.parquet") for part in "ab")
    failing = traces["trace_id"][is_catastrophic(traces)].to_numpy()[:3]
    moved = set()
    for trace_id in failing:
        own = tokens[tokens["trace_id"] == trace_id].sort_values("t", ignore_index=True)
        raw = traces[traces["trace_id"] == trace_id]
        whole = load_rows(folder / "features.parquet", features, raw).features
        for cut in range(1, len(own), 7):
            short = raw.assign(
                token_ids=[raw["token_ids"].iloc[0][:cut]],
                text=[raw["text"].iloc[0][:cut]],
                stop_reason="eos",
            ).drop(columns=["predicted", "catastrophes"])
            verdict = judge(short, synthetic.TASK, synthetic.CATASTROPHES, synthetic.spelling(short))
            moved.add(bool(verdict["onset"].isna().iloc[0]))
            known = short.assign(**{name: verdict[name] for name in verdict})
            found = featurize_tokens(own[:cut], known, synthetic.MAX_NEW_TOKENS, synthetic.MASK)
            assert found[list(features)].to_numpy().tobytes() == whole[:cut].tobytes()
    assert True in moved  # else nothing was at stake
