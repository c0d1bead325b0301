"""``kvguard directed gate``: what a user sees of a model that passes, and of one that does not."""

import pytest
from click.testing import CliRunner

from kvguard.cli import main
from surgery_faults import FAULTS


def gate(folder):
    return CliRunner().invoke(main, ["directed", "gate", "--model", f"path:{folder}", "--device", "cpu"])


@pytest.mark.parametrize("name", ["tiny", "tiny_llama"])
def test_a_model_passes_with_its_errors(tiny_models, name):
    result = gate(tiny_models[name])
    assert result.exit_code == 0, result.output
    assert "FAIL" not in result.output
    assert all(f"\n{number} " in result.output for number in range(1, 7))
    assert result.output.rstrip().endswith("passed")


def test_a_failure_is_an_exit_of_one_and_says_which_check(tiny_models):
    with FAULTS["prefix_leak"]():
        result = gate(tiny_models["tiny"])
    assert result.exit_code == 1
    assert "FAIL" in result.output
    assert "the gate failed: directed caches of this model are not exact in float32" in result.output
