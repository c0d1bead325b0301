"""The rules of IFEval and IFBench, from the library ``if-verifiable``: nothing here is a rule of our own.

A verdict depends on the text alone, not on which texts were checked before:

- language detection draws at random unless it is given a seed, and is not safe in threads: it gets both;
- a rule whose arguments are incomplete would draw them at random: such an instruction is rejected when read;
  one that draws although they are complete (for a letter ``#``) cannot check: its verdict is None;
- a rule that needs data of NLTK which are not there cannot check, whatever the text: its verdict is None.
"""

from __future__ import annotations

import inspect
import json
import logging
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from importlib import import_module
from random import Random
from types import FunctionType
from typing import Any

from kvguard.errors import KvguardError, foreign
from kvguard.studies.instructions.examples import Example, Verdicts
from kvguard.studies.instructions.suites import nltk_data

logger = logging.getLogger(__name__)

_LANGUAGE_SEED = 0
_LOCK = threading.Lock()
_PROBE = "One line, and another.\n\nThe end of it."


class Library:
    """The rules of one benchmark.

    Parameters
    ----------
    benchmark : str
        ``ifeval`` or ``ifbench``.

    Raises
    ------
    KvguardError
        The library is not installed.
    """

    def __init__(self, benchmark: str) -> None:
        self.benchmark = benchmark
        self._drawing: dict[str, bool] = {}
        nltk_data.provide()
        try:
            self._evaluate = import_module("if_verifiable.common").evaluate_instructions
            registry = import_module(f"if_verifiable.{benchmark}.instructions_registry")
            self._registry = registry.INSTRUCTION_DICT
            self._conflicts = getattr(registry, "INSTRUCTION_CONFLICTS", {})
            import_module("langdetect").DetectorFactory.seed = _LANGUAGE_SEED
            logging.getLogger().addFilter(_not_of_the_library)
        except ImportError as error:
            raise KvguardError(
                f"the rules of suite {benchmark} are not installed ({error.name}): "
                "pip install 'kvguard[instructions]'"
            ) from None

    @property
    def ids(self) -> Sequence[str]:
        """Every instruction that there is a rule for."""
        return tuple(self._registry)

    def arguments(self, id: str) -> Sequence[str]:
        """Return the names of the arguments of a rule."""
        self._known(id)
        return tuple(self._registry[id](id).get_instruction_args_keys())

    def check(self, id: str, kwargs: Mapping[str, Any]) -> None:
        """Reject an instruction that has no rule, or not the arguments that its rule needs.

        Raises
        ------
        KvguardError
            What is wrong, without saying where.
        """
        needed = set(self.arguments(id))
        given = {name for name, value in kwargs.items() if value is not None}
        if needed - given:
            raise KvguardError(
                f"instruction {id} lacks {', '.join(sorted(needed - given))}: add it to its kwargs"
            )
        if given - needed:
            raise KvguardError(
                f"instruction {id} takes no {', '.join(sorted(given - needed))}: it takes "
                f"{', '.join(sorted(needed)) or 'nothing'}"
            )
        with foreign(f"instruction {id}", "correct its kwargs"), _LOCK:
            self._registry[id](id).build_description(**{name: kwargs[name] for name in given})
            if id not in self.unchecked:  # a wrong type may break it on texts alone
                self._evaluate(_PROBE, [id], [dict(kwargs)], _PROBE, self._registry)

    def example(self, id: str, rng: Random) -> str:
        """Return an instruction in the library's own words, with arguments that it draws."""
        with _LOCK, _seeded(rng.random()):
            try:
                return str(self._registry[id](id).build_description())
            except Exception:  # some cannot draw theirs
                return "see its arguments"

    def contradict(self, id: str, other: str) -> bool:
        """Return whether the library says that two instructions cannot be given together."""
        return id == other or other in self._conflicts.get(id, ()) or id in self._conflicts.get(other, ())

    @cached_property
    def unchecked(self) -> Mapping[str, str]:
        """Instructions that cannot be checked here, each with the data of NLTK that its rule lacks."""
        lacking = {id: nltk_data.lacking(_names(rule)) for id, rule in self._registry.items()}
        return {id: data for id, data in lacking.items() if data}

    def why_not(self, id: str, kwargs: Mapping[str, Any]) -> str | None:
        """Return why no text can be checked for an instruction; None where one can."""
        if id in self.unchecked:
            return f"NLTK lacks {self.unchecked[id]}"
        key = f"{id} {json.dumps(dict(kwargs), sort_keys=True)}"
        if key not in self._drawing:
            first, second = (self._built(id, kwargs, seed) for seed in (0, 1))
            self._drawing[key] = first != second
        return f"the rule {id} draws at random" if self._drawing[key] else None

    def _built(self, id: str, kwargs: Mapping[str, Any], seed: int) -> str:
        """Return what a rule knows of an instruction once it was built with this seed."""
        with _LOCK, _seeded(seed):
            rule = self._registry[id](id)
            rule.build_description(**kwargs)
        return str(vars(rule))

    def __call__(self, example: Example, text: str) -> Verdicts:
        """Return the library's verdicts; None where a rule cannot check."""
        found = [self._verdict(example, one.id, one.kwargs, text) for one in example.instructions]
        return Verdicts(strict=tuple(strict for strict, _ in found), loose=tuple(loose for _, loose in found))

    def _verdict(
        self, example: Example, id: str, kwargs: Mapping[str, Any], text: str
    ) -> tuple[bool | None, bool | None]:
        if self.why_not(id, kwargs) is not None:
            return None, None
        prompt = example.metadata.get("original", example.prompt)
        try:
            with _LOCK:
                found, _ = self._evaluate(text, [id], [dict(kwargs)], prompt, self._registry)
        except (Exception, RecursionError) as error:  # a rule that breaks on a text says nothing of it
            logger.warning("rule %s broke on a text (%s): not scored", id, type(error).__name__)
            return None, None
        # The library's answer to a blank text is no results: nothing was followed.
        return (found[0].strict_pass, found[0].loose_pass) if found else (False, False)

    def _known(self, id: str) -> None:
        if id not in self._registry:
            raise KvguardError(
                f"there is no rule for instruction {id!r} in {self.benchmark}: take one of "
                f"{', '.join(sorted(self._registry))}"
            )


def _not_of_the_library(record: logging.LogRecord) -> bool:
    """Keep the library from logging whole texts at the root, as it does where a language cannot be told."""
    return "if_verifiable" not in record.pathname


@contextmanager
def _seeded(seed: float) -> Iterator[None]:
    """Seed the random numbers that all share, and give everybody theirs back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@lru_cache
def library(benchmark: str) -> Library:
    """Return the rules of ``benchmark``, read once."""
    return Library(benchmark)


def _names(rule: type) -> set[str]:
    """Return every name that the code of a rule uses."""
    functions = [member for _, member in inspect.getmembers(rule, inspect.isfunction)]
    return {name for function in functions for name in _names_of(function)}


def _names_of(function: FunctionType) -> tuple[str, ...]:
    return function.__code__.co_names
