"""A line of the log about each text that has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvguard.serve.logs import say
from kvguard.serve.responses import telemetry

if TYPE_CHECKING:
    from kvguard.serve.served import Served
    from kvguard.serve.tickets import Done, Ticket


class TextLog:
    """Writes a line about each text that has ended.

    Parameters
    ----------
    verbatim
        With the prompt and the answer.
    """

    def __init__(self, served: Served, verbatim: bool) -> None:
        self._served, self._verbatim = served, verbatim

    def write(self, ticket: Ticket, done: Done) -> None:
        """Write a text's line."""
        ask, ids = ticket.ask, done.found.token_ids.tolist()
        fields = {"request_id": ticket.request_id, "index": ticket.number, "prompt_tokens": len(ask.ids)}
        fields |= {"tokens": len(ids), "stop_reason": done.found.stop_reason, **telemetry(ticket, done)}
        if self._verbatim:
            fields["prompt"] = self._served.detokenize(ask.ids)
            fields["answer"] = self._served.decode(ids, ask.stops)
        say("text", **fields)
