"""A prompt to token ids, through the chat template where there is one: text stays text.

Text never becomes a control token. Where the tokenizer would read one in it (``<|im_end|>`` typed by a user,
say), a mark is set inside, and the mark's tokens are dropped from those of the whole prompt. So what stands
around it is encoded as ever, and a text without control tokens is not touched at all.

A prompt is to be gone on with: an end token that the tokenizer appends by itself (T5's, or Llama's under
``add_eos_token``) is left out. One that a chat template writes ends a message, and stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kvguard.errors import KvguardError, foreign
from kvguard.models.controls import control_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = Sequence[Mapping[str, Any]]

_MARKS = range(
    0xE000, 0xF900
)  # for private use: no text has all of them, and tokenizers join them to nothing
_BREAKS = 8  # of one control token, before it counts as unbreakable


@dataclass(frozen=True)
class Encoder:
    """What makes token ids of prompts.

    Parameters
    ----------
    name
        The model's, for messages.
    end_ids
        Token ids that end a text: controls even where the tokenizer does not call them special.
    vocabulary
        Token ids that the model knows, from 0.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    vocabulary: int

    def encode(self, prompt: str | Mapping[str, Any], special: bool = True) -> list[int]:
        """Return the token ids of a prompt, see :meth:`kvguard.models.load.LoadedModel.encode`.

        Parameters
        ----------
        special
            With what the tokenizer puts around a text that goes through no chat template: BOS, say.

        Raises
        ------
        KvguardError
            The chat template or the tokenizer fails, the template leaves a message out, the text is no text,
            or the model has no such token.
        """
        if self.tokenizer.chat_template is None:
            text = prompt if isinstance(prompt, str) else prompt["text"]
            mark = _mark([_checked(text)])
            ids = self._ids(self._broken(text, mark), mark, special)
        else:
            chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt["messages"]
            contents = [_checked(message.get("content")) for message in chat]
            mark = _mark(contents)
            broken = [self._broken(content, mark) for content in contents]
            ids = self._ids(self._asked(chat, broken), mark, special=False)
        if self.appended and tuple(ids[-len(self.appended) :]) == self.appended:
            ids = ids[: -len(self.appended)]
        strange = next((token for token in ids if not 0 <= token < self.vocabulary), None)
        if strange is not None:
            raise KvguardError(
                f"model {self.name}: its tokenizer gives the token {strange}, but the model knows 0 to "
                f"{self.vocabulary - 1}: use the tokenizer that belongs to these weights"
            )
        return ids

    def around(self) -> tuple[list[int], list[int]]:
        """Return the token ids that the chat template writes before and after a user's only message.

        Both are empty where there is no template; BOS is among the first where the template writes it.

        Raises
        ------
        KvguardError
            The chat template or the tokenizer fails, or the template changes the message.
        """
        if self.tokenizer.chat_template is None:
            return [], []
        mark = chr(_MARKS[0])
        before, _, after = self._asked([{"role": "user", "content": mark}], [mark]).partition(mark)
        return self._tokens(before, special=False)[0], self._tokens(after, special=False)[0]

    @cached_property
    def appended(self) -> tuple[int, ...]:
        """Token ids that end a text, and that the tokenizer appends to any."""
        ids, spans = self._tokens("a", special=self.tokenizer.chat_template is None)
        ends = {*self.end_ids, self.tokenizer.eos_token_id, self.tokenizer.sep_token_id}
        kept = len(ids)
        while kept and ids[kept - 1] in ends and (not spans or spans[kept - 1][0] == spans[kept - 1][1]):
            kept -= 1
        return tuple(ids[kept:])

    @property
    def doubts(self) -> tuple[str, ...]:
        """One line for what about the prompts' encoding a user should know before a run."""
        if not self.appended:
            return ()
        said = "".join(map(str, self.tokenizer.convert_ids_to_tokens(list(self.appended))))
        return (
            f"model {self.name}: its tokenizer ends every text with {said!r}, after which a model has nothing"
            " to say; kvguard leaves it out of prompts: for other programs, set add_eos_token to false in "
            "its tokenizer_config.json, or drop it from the post_processor of its tokenizer.json",
        )

    def _asked(self, chat: Chat, contents: Sequence[str]) -> str:
        """Return the chat as the template writes it, given texts; or lists of parts where it wants those."""
        first = None
        for form in (str, _parts):
            try:
                self._check_complete(chat, contents, form)
                return self._rendered(chat, contents, form)
            except KvguardError as error:
                first = first or error
        assert first is not None
        raise first

    def _check_complete(self, chat: Chat, contents: Sequence[str], form: Callable[[str], Any]) -> None:
        """Reject a template that leaves out a message; each has a tail, so that none passes as another."""
        probes = [f"{content} [{place} of {len(chat)}, kvguard]" for place, content in enumerate(contents)]
        rendered = _squeezed(self._rendered(chat, probes, form))
        for message, probe in zip(chat, probes, strict=True):
            # Templates leave out what an earlier answer thought, and some write texts as JSON does.
            said = probe.rpartition("</think>")[2] if message.get("role") == "assistant" else probe
            if not any(
                _squeezed(text) in rendered for text in (said, json.dumps(said, ensure_ascii=False)[1:-1])
            ):
                raise KvguardError(
                    f"model {self.name}: its chat template leaves out or changes the text of a "
                    f"{message.get('role')} message: ask without that message, or fix its chat_template"
                )

    def _rendered(self, chat: Chat, contents: Sequence[str], form: Callable[[str], Any]) -> str:
        messages = [{**m, "content": form(content)} for m, content in zip(chat, contents, strict=True)]
        with foreign(
            f"model {self.name}: its chat template fails",
            "ask without what it names, or fix its chat_template",
        ):
            return str(
                self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            )

    @cached_property
    def _controls(self) -> frozenset[int]:
        """Token ids that no text may give."""
        return control_ids(self.tokenizer, self.end_ids, self._frame())

    def _frame(self) -> str:
        """Return what the chat template may write: its source, and a chat, as it may put names together."""
        template: Any = self.tokenizer.chat_template
        if template is None:
            return ""
        source = "\n".join(map(str, template.values() if isinstance(template, dict) else [template]))
        chat = [{"role": role} for role in ("user", "assistant", "user")]
        try:
            return source + self._rendered(chat, ["a"] * len(chat), str)
        except KvguardError:  # told when it is asked for a prompt
            return source

    def _broken(self, text: str, mark: str) -> str:
        """Return a text with a mark inside all that the tokenizer would read as a control token."""
        said = ""
        for _ in range(_BREAKS):
            found = self._control_spans(text)
            if not found:
                return text
            said = said or text[slice(*found[0])]
            if not self.tokenizer.is_fast:  # it does not tell which tokens the mark becomes
                break
            for start, _ in reversed(found):
                text = text[: start + 1] + mark + text[start + 1 :]
        raise self._unbreakable(said)

    def _unbreakable(self, said: str) -> KvguardError:
        return KvguardError(
            f"the text holds {said!r}, which the tokenizer of model {self.name} can only take for a control "
            "token: leave it out"
        )

    def _control_spans(self, text: str) -> list[tuple[int, int]]:
        """Return where a text has control tokens, the space around them left out.

        One of a single character, a line's end say, is text as anyone writes it; so is what is unknown.
        """
        if not self.tokenizer.is_fast:  # it does not tell places
            named = filter(None, self.tokenizer.convert_ids_to_tokens(list(self._controls)))
            places = [(text.find(token), len(token)) for token in named if len(token.strip()) > 1]
            return sorted((start, start + length) for start, length in places if start >= 0)
        found = []
        for token, (start, end) in zip(*self._tokens(text, special=False), strict=True):
            said = text[start:end].strip()
            unknown = token == self.tokenizer.unk_token_id and said != self.tokenizer.unk_token
            if token in self._controls and len(said) > 1 and not unknown:
                start += text[start:end].index(said)
                found.append((start, start + len(said)))
        return found

    def _ids(self, text: str, mark: str, special: bool) -> list[int]:
        """Return the token ids of a whole prompt, without those of the mark."""
        if mark not in text:
            return self._tokens(text, special)[0]
        kept = []
        for token, (start, end) in zip(*self._tokens(text, special), strict=True):
            if mark not in text[start:end]:
                kept.append(token)
            elif text[start:end].strip(mark):
                raise self._unbreakable(text[start:end].replace(mark, ""))
        return kept

    def _tokens(self, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of a text and, from a fast tokenizer, where in it they stand."""
        with foreign(f"model {self.name}: its tokenizer fails", "leave out what it cannot encode, or fix it"):
            fast = self.tokenizer.is_fast
            found = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=fast)
            return list(found["input_ids"]), list(found["offset_mapping"]) if fast else []


def _parts(text: str) -> list[dict[str, str]]:
    """Return a content as templates of models that also see or hear want it."""
    return [{"type": "text", "text": text}]


def _checked(text: object) -> str:
    """Return what is a text, and no half of a character."""
    if not isinstance(text, str):
        raise KvguardError(f"a message's content is a {type(text).__name__}: give it as a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise KvguardError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}: "
            "that is half of a character, leave it out"
        ) from None
    return text


def _mark(texts: Iterable[str]) -> str:
    """Return a character that none of the texts has."""
    used = set().union(*texts)
    return next(mark for mark in map(chr, _MARKS) if mark not in used)


def _squeezed(text: str) -> str:
    return "".join(text.split())
