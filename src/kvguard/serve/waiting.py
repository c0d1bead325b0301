"""The texts that wait for their turn, in order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from kvguard.serve.errors import Rejected
from kvguard.serve.tickets import Ticket


class Waiting:
    """A queue that any thread may add to, and the scheduler's takes from.

    Parameters
    ----------
    most
        Texts that may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._tickets: deque[Ticket] = deque()
        self._n_arrived = 0
        self._stopping = False

    def __len__(self) -> int:
        with self._changed:
            return len(self._tickets)

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Let texts wait, all of them or none.

        Raises
        ------
        Rejected
            The queue is full, or the server stops.
        """
        with self._changed:
            if self._stopping:
                raise stopped()
            if len(self._tickets) + len(tickets) > self._most:
                message = f"{len(self._tickets)} texts wait already: try again later, or with fewer prompts"
                raise Rejected(message, status=429, code="queue_full", retry_after=1)
            for ticket in tickets:
                ticket.place = self._n_arrived = self._n_arrived + 1
            self._tickets.extend(tickets)
            self._changed.notify()

    def wait(self, busy: bool) -> bool:
        """Wait for something to do, unless there is; tell whether there is any, or the end has come."""
        with self._changed:
            while not (self._tickets or busy or self._stopping):
                self._changed.wait()
            return bool(self._tickets or busy)

    def sort_out(self, now: float) -> list[Ticket]:
        """Let go of what nobody waits for any more, and of what is late, which is returned."""
        with self._changed:
            late = [ticket for ticket in self._tickets if ticket.deadline <= now and not ticket.cancelled]
            stay = [t for t in self._tickets if t.deadline > now and not t.cancelled]
            self._tickets = deque(stay)
        return late

    def take(self, fits: Callable[[Ticket], bool]) -> Ticket | None:
        """Return the text whose turn it is, if it fits; nothing overtakes it."""
        with self._changed:
            if self._tickets and fits(self._tickets[0]):
                return self._tickets.popleft()
            return None

    def put_back(self, ticket: Ticket) -> None:
        """Let a text wait again, before all that came after it."""
        with self._changed:
            later = (at for at, other in enumerate(self._tickets) if other.place > ticket.place)
            self._tickets.insert(next(later, len(self._tickets)), ticket)

    def stop(self) -> None:
        """Take no more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def empty(self) -> list[Ticket]:
        """Take no more, and return all that wait."""
        self.stop()
        with self._changed:
            left, self._tickets = list(self._tickets), deque()
            return left


def stopped() -> Rejected:
    """Return what those are told who come too late."""
    return Rejected("the server is stopping", status=503, retry_after=5)
