"""The log: one JSON object a line, without what was asked and answered unless that is wanted."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

_log = logging.getLogger("kvguard.serve")


def say(event: str, **fields: Any) -> None:
    """Write a line about an event."""
    _log.info(event, extra={"fields": fields})


def begin(descriptor: int = 2, **always: Any) -> None:
    """Let all that is logged, warnings too, be lines of an open file, standard error by default.

    Parameters
    ----------
    always
        Fields of every line.
    """
    logging.getLogger().addHandler(Lines(descriptor, **always))
    _log.setLevel(logging.INFO)
    logging.captureWarnings(True)


class Lines(logging.Handler):
    """Writes records as lines of JSON.

    A line that cannot be written, to a full disk or a pipe that nobody reads any more, is dropped, and how
    many were is said as soon as one can be. Nothing is buffered, so nothing is left to fail at the end.
    """

    def __init__(self, descriptor: int, **always: Any) -> None:
        super().__init__()
        self._always = always
        self._descriptor, self._dropped, self._torn = descriptor, 0, False

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= self._always | getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = logging.Formatter().formatException(record.exc_info)
        return json.dumps(line, default=str)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it as dropped."""
        lines = [self.format(record)]
        if self._dropped:
            told = logging.makeLogRecord({"msg": "lines dropped", "levelname": "WARNING"})
            told.fields = {"count": self._dropped}
            lines.insert(0, self.format(told))
        if self._torn:
            lines.insert(0, "")  # end the line that was written in part
        try:
            self._write("".join(f"{line}\n" for line in lines).encode())
        except OSError:
            self._dropped += 1
        else:
            self._dropped = 0

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]
            self._torn = bool(data)
