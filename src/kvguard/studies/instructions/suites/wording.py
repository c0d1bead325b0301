"""Which words of an IFEval prompt are an instruction, and its prompt with them in the system prompt instead.

Prompts come with the ids of their instructions and not with where these stand. A sentence is an instruction's
if it says what the instruction is about (a cue: "comma", the keyword, the number of words). The first
sentence is what is asked for, so one that is told in it cannot be told apart; nor can one whose cue stands in
sentences that are not neighbours.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from kvguard.studies.instructions.examples import Example

_Span = tuple[int, int]
_Cue = Callable[[str, Mapping[str, Any]], bool]

# A sentence ends at a line's end, or at a mark (with what closes it) before a space and what may begin one.
_SENTENCE = re.compile(r"""[^\n]*?(?:[.!?]["'”’)\]]*(?=\s+["'“‘(<\[*]*[A-Z0-9])|(?=\n)|\Z)""")
_DO_IT = "combination:repeat_prompt"


def words_of(prompt: str, id: str, kwargs: Mapping[str, Any]) -> str | None:
    """Return the exact words of an instruction in its prompt, None where they cannot be told apart."""
    cue = _CUES.get(id)
    if cue is None:
        return None
    spans = _sentences(prompt)
    hits = [place for place, (start, end) in enumerate(spans) if cue(prompt[start:end], kwargs)]
    if not hits or hits[0] == 0 or hits[-1] - hits[0] != len(hits) - 1:
        return None
    return prompt[spans[hits[0]][0] : spans[hits[-1]][1]]


def moved(example: Example) -> Example | None:
    """Return the example with its instructions in the system prompt, None where they cannot be told apart."""
    told = [one.text for one in example.instructions]
    if any(text is None for text in told):
        return None
    spans: list[_Span] = []
    for start, end in sorted(_place(example.prompt, text) for text in told if text is not None):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    system = "\n".join(example.prompt[start:end] for start, end in spans)
    rest = _without(example.prompt, spans)
    repeated = [one.kwargs["prompt_to_repeat"] for one in example.instructions if one.id == _DO_IT]
    if not re.search(r"\w", rest) or any(text.strip() not in rest for text in repeated):
        return None
    metadata = {**example.metadata, "original": example.prompt}
    return dataclasses.replace(example, prompt=rest, system=system, position="start", metadata=metadata)


def _place(prompt: str, text: str) -> _Span:
    start = prompt.index(text)
    return start, start + len(text)


def _without(prompt: str, spans: list[_Span]) -> str:
    kept, last = [], 0
    for start, end in spans:
        kept.append(prompt[last:start].rstrip(" "))
        last = end
    kept.append(prompt[last:])
    return re.sub(r"\n{3,}", "\n\n", "".join(kept)).strip()


def _sentences(prompt: str) -> list[_Span]:
    spans = []
    for found in _SENTENCE.finditer(prompt):
        text = found.group()
        lead = len(text) - len(text.lstrip())
        if text.strip():
            spans.append((found.start() + lead, found.end()))
    return spans


def _says(pattern: str) -> _Cue:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda sentence, kwargs: compiled.search(sentence) is not None


def _holds_all(name: str) -> _Cue:
    return lambda sentence, kwargs: all(word.lower() in sentence.lower() for word in kwargs[name])


def _number_of_words(sentence: str, kwargs: Mapping[str, Any]) -> bool:
    numbers = {int(found) for found in re.findall(r"\d+", sentence.replace(",", ""))}
    near = {kwargs["num_words"] + step for step in (-1, 0, 1)}
    return "word" in sentence.lower() and bool(numbers & near)


def _keyword_often(sentence: str, kwargs: Mapping[str, Any]) -> bool:
    often = re.search(r"\b(times?|once|twice|thrice|at least|less than|more than)\b", sentence, re.IGNORECASE)
    return often is not None and kwargs["keyword"].lower() in sentence.lower()


def _letter_often(sentence: str, kwargs: Mapping[str, Any]) -> bool:
    letter = re.escape(kwargs["letter"])
    return re.search(rf"\bletters?\b.*(?<!\w){letter}(?!\w)", sentence, re.IGNORECASE) is not None


def _language(sentence: str, kwargs: Mapping[str, Any]) -> bool:
    from if_verifiable.ifeval.instructions_util import LANGUAGE_CODES

    return LANGUAGE_CODES[kwargs["language"]].lower() in sentence.lower()


def _contains(name: str) -> _Cue:
    return lambda sentence, kwargs: str(kwargs[name]).strip(" .?!\"'").lower() in sentence.lower()


def _postscript(sentence: str, kwargs: Mapping[str, Any]) -> bool:
    return "postscript" in sentence.lower() or kwargs["postscript_marker"].rstrip(".") in sentence


_CUES: Mapping[str, _Cue] = {
    "change_case:capital_word_frequency": _says(r"capital|all[- ]caps|upper\s?-?case"),
    "change_case:english_capital": _says(r"capital|\bcaps\b|upper\s?-?case"),
    "change_case:english_lowercase": _says(r"lower\s?-?case|capital"),
    _DO_IT: _says(r"\brepeat"),
    "combination:two_responses": _says(r"\*{6}|asterisk|\btwo (different )?(responses|answers|versions)"),
    "detectable_content:number_placeholders": _says(r"placeholder|square bracket"),
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _says(r"my answer is"),
    "detectable_format:json_format": _says(r"\bjson\b"),
    "detectable_format:multiple_sections": _contains("section_spliter"),
    "detectable_format:number_bullet_lists": _says(r"bullet|^\s*\* "),
    "detectable_format:number_highlighted_sections": _says(r"highlight|italic|\bbold"),
    "detectable_format:title": _says(r"<<|\btitle\b"),
    "keywords:existence": _holds_all("keywords"),
    "keywords:forbidden_words": _holds_all("forbidden_words"),
    "keywords:frequency": _keyword_often,
    "keywords:letter_frequency": _letter_often,
    "language:response_language": _language,
    "length_constraints:nth_paragraph_first_word": _says(r"paragraph"),
    "length_constraints:number_paragraphs": _says(r"paragraph|\*\*\*|\bstanzas?\b"),
    "length_constraints:number_sentences": _says(r"\bsentences?\b"),
    "length_constraints:number_words": _number_of_words,
    "punctuation:no_comma": _says(r"\bcommas?\b"),
    "startend:end_checker": _contains("end_phrase"),
    "startend:quotation": _says(r"quotation|double quote"),
}
