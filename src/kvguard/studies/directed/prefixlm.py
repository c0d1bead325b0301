"""The track of prefix LMs: a decoder whose prefix and document attend to one another, or not at all.

A setting says who sees whom while a document is read, see :func:`kvguard.engine.surgery.read`: ``none`` is
causal, as in the decoder's track; ``bidirectional`` lets prefix and document see all of one another, so that
the document is read with the prefix and the prefix with the document; ``isolated`` hides the prefix's words
from the document and leaves its length, so that what a prefix does beyond that is meaning. What is asked is
always read causally.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvguard.config import check_known
from kvguard.studies.directed.decoder import DecoderBench
from kvguard.studies.directed.params import PLAIN

if TYPE_CHECKING:
    from kvguard.studies.directed.params import Params

MASKS = ("bidirectional", "isolated")


class PrefixLMBench(DecoderBench):
    """A loaded decoder that reads under masks of its own."""

    @staticmethod
    def manner(setting: str, params: Params) -> dict[str, Any]:
        """Return how documents are read in a setting, as arguments of :func:`read`: under its mask.

        Raises
        ------
        KvguardError
            There is no such setting.
        """
        if setting == PLAIN:
            return {}
        check_known("settings", setting, [PLAIN, *MASKS])
        return {"attention": setting}
