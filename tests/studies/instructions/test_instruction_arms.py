"""Arms as they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.errors import KvguardError
from kvguard.studies.instructions.arms import TREATMENTS, Arm, all_arms, parse_arm

NAMES = ["snapkv", "knorm"]
BUDGETS = ["@0.5", "@0.125", ":200", ":1"]


@given(
    press=st.sampled_from(["snapkv", "knorm", "random", "streaming_llm"]),
    budget=st.sampled_from(BUDGETS),
    treatment=st.sampled_from(["", *(f"+{name}" for name in TREATMENTS)]),
)
def test_an_arm_is_written_as_it_is_read(press, budget, treatment):
    text = f"{press}{budget}{treatment}"
    arm = parse_arm(text, NAMES)
    assert str(arm) == text
    assert parse_arm(str(arm), NAMES) == arm


def test_streaming_llm_keeps_both_ends_in_tokens_or_half_by_default():
    assert parse_arm("streaming_llm:100+50+fair", NAMES) == Arm(
        "streaming_llm", tokens=150, initial=100, treatment="fair"
    )
    assert str(parse_arm("streaming_llm:100+50+fair", NAMES)) == "streaming_llm:100+50+fair"
    assert parse_arm("streaming_llm", NAMES) == Arm("streaming_llm", ratio=0.5)


@given(tokens=st.integers(1, 400), length=st.integers(1, 400))
def test_a_budget_in_tokens_is_kept_to_the_token(tokens, length):
    from kvpress.utils import compute_n_kept

    ratio = Arm("random", tokens=tokens).ratio_of(length)
    assert compute_n_kept(length, ratio) == min(tokens, length)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("snapkvv@0.5", "did you mean 'snapkv'"),
        ("snapkv", "has no budget"),
        ("snapkv@", "is none"),
        ("snapkv@1", "no share to remove"),
        ("snapkv@0", "no share to remove"),
        ("snapkv@nan", "no share to remove"),
        ("snapkv@-1", "no share to remove"),
        ("snapkv@a", "no share to remove"),
        ("snapkv:0", "keeps nothing"),
        ("snapkv:10+10", "only streaming_llm"),
        ("snapkv@0.5+protected", "treatment"),
        ("baseline@0.5", "write baseline"),
        ("baseline+fair", "write baseline"),
        ("text_removal@0.5+fair", "evicts nothing"),
        ("", "is none"),
        ("snap kv@0.5", "is none"),
    ],
)
def test_an_arm_that_cannot_be_read_is_said_in_one_line(text, said):
    with pytest.raises(KvguardError, match=rf"^conditions: [^\n]*{said}[^\n]*$"):
        parse_arm(text, NAMES)


def test_the_baseline_comes_first_and_each_arm_once():
    arms = all_arms(["snapkv@0.5", "baseline", "snapkv@0.5", "text_removal@0.5"], ["fair"], NAMES)
    assert [str(arm) for arm in arms] == ["baseline", "snapkv@0.5", "snapkv@0.5+fair", "text_removal@0.5"]
