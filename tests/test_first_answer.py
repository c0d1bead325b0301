"""The first answer of a text is one for the task, the judge, and a guard that sees it token by token."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvguard.guard.answers import Answers
from kvguard.guard.text import told
from kvguard.judging.catastrophes import CatastropheParams
from kvguard.judging.judge import judge
from kvguard.models.load import load_tokenizer
from kvguard.models.spec import ModelSpec
from kvguard.tasks import make_task

TASK = make_task("arithmetic", max_new_tokens=1)  # so that every text counts as cut off
STEPS = st.lists(
    st.sampled_from(["Ana has 3 + 4 = 7 pens. ", "7 / 2 = 3.5 nuts.", "\n", " So", " about 12 eggs. "]),
    max_size=4,
)
STATED = st.sampled_from(["#### 7", "\n#### 1,250", "The answer is 42.", "#### $18", "Answer: **9**", ""])
RUNS_ON = st.sampled_from(["\n", "\n\nQ: How many?\nA: 2 + 2 = 4.\n#### 4\n", " and so on", "\n#### 8\n", ""])
TEXTS = st.tuples(STEPS.map("".join), STATED, RUNS_ON).map("".join)


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def tokenizer(request):
    return load_tokenizer("reference", ModelSpec(source=f"embedded:{request.param}", task="arithmetic"))


@given(TEXTS)
def test_all_who_read_a_text_find_the_same_first_answer_however_much_of_it_they_have_seen(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    answers = Answers(tokenizer, TASK.answered)
    found = None
    for n in range(len(ids) + 1):
        seen = told(tokenizer, ids[:n], None)
        ends = answers.ends(ids[:n])
        if found is None and ends:
            found = ends[0], TASK.extract(seen)
        if found is not None:
            assert ends[0] == found[0]  # the guard, as the tokens come
            assert TASK.extract(seen) == found[1]  # the task, of any longer text
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    raw = pd.DataFrame(
        {
            "prompt_id": ["a"],
            "token_ids": [np.array(ids, dtype=np.int32)],
            "text": [whole],
            "stop_reason": ["length"],
        }
    )
    [judged] = judge(raw, TASK, CatastropheParams(), tokenizer.decode).to_dict("records")
    assert judged["predicted"] == TASK.extract(whole)  # what the report shows
    if found is not None:
        assert judged["predicted"] == found[1]
        if found[0] < len(ids):
            assert (judged["onset"], judged["onset_by"]) == (found[0], "answer")
