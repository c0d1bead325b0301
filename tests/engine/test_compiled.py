"""Compiled loops: kept on the disk, and what they need where they cannot be."""

import subprocess
import sys

import numpy as np

from kvguard.engine.compiled import compiled


def test_a_function_without_a_file_is_compiled_all_the_same():
    scope = {}
    exec("def double(x):\n    return x + x", scope)
    assert compiled()(scope["double"])(21) == 42


def test_a_second_process_finds_it_on_the_disk(tmp_path):
    (tmp_path / "loops.py").write_text(
        "from kvguard.engine.compiled import compiled\n\n"
        "@compiled()\ndef double(x):\n    return x + x\n\n"
        "double(21)\nprint(sum(double.stats.cache_hits.values()))\n"
    )
    hits = [
        subprocess.run([sys.executable, "loops.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout.strip() for run in hits] == ["0", "1"]


def test_sums_in_any_order_still_see_what_is_no_number():
    @compiled(any_order=True)
    def total(values):
        found = np.float32(0)
        for value in values:
            found += value
        return found

    assert np.isnan(total(np.array([1, np.nan] * 40, dtype=np.float32)))
    assert total(np.ones(100, dtype=np.float32)) == 100
