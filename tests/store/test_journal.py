"""A journal loses nothing that was added, however its writer ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kvguard.errors import KvguardError
from kvguard.store.journal import open_journal

WRITER = """
import sys
from pathlib import Path
from kvguard.store.journal import open_journal
with open_journal(Path(sys.argv[1])) as journal:
    for n in range(10**9):
        journal.add([{"n": n, "text": "é" * 200}])
"""


def test_records_are_found_again_and_gone_on_with(tmp_path):
    path = tmp_path / "deep" / "a.jsonl"
    with open_journal(path) as journal:
        journal.add([{"a": 1}, {"a": "ü\u2028"}])
    with open_journal(path) as journal:
        assert journal.records == [{"a": 1}, {"a": "ü\u2028"}]
        journal.add([{"a": 3}])
        assert journal.records[-1] == {"a": 3}


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_cut_short_is_taken_away(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    with open_journal(path) as journal:
        journal.add([{"a": 1}, {"b": "üü"}])
    path.write_bytes(path.read_bytes()[:-cut])
    with open_journal(path) as journal:
        assert journal.records == [{"a": 1}]
        journal.add([{"c": 2}])
    with open_journal(path) as journal:
        assert journal.records == [{"a": 1}, {"c": 2}]


def test_a_killed_writer_leaves_whole_records_in_order(tmp_path):
    path = tmp_path / "a.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path])
    deadline = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 2000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    with open_journal(path) as journal:
        assert [record["n"] for record in journal.records] == list(range(len(journal.records)))
        assert len(journal.records) > 2


def test_two_runs_do_not_add_to_one_journal(tmp_path):
    with (
        open_journal(tmp_path / "a.jsonl"),
        pytest.raises(KvguardError, match="another run"),
        open_journal(tmp_path / "a.jsonl"),
    ):
        pass


def test_what_is_no_record_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[1\n{"a": 2}\n')
    with pytest.raises(KvguardError, match=r"line 2: no record"), open_journal(tmp_path / "a.jsonl"):
        pass
