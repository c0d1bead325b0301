"""Two protocols side by side, as typed, from a small store."""

import click.testing
import pytest

from kvguard import cli as commands
from kvguard import tracking


def kvguard(*arguments):
    return click.testing.CliRunner().invoke(commands.main, arguments)


def logged(model, protocol, auroc, cbr, tests=100):
    """A run of score as the stage logs it, and a trial of the search."""

    def number(value):
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    found = {"auroc": number(auroc), "recall_at_5pct_fpr": number(0.7), "f1": number(0.6)}
    facts = {"hazard": {"n_test_prompts": {"value": tests, "low": None, "high": None}}}
    overall = {
        "cbr_uncontrolled": number(cbr),
        "cbr_controlled": number(cbr / 2),
        "reduction_relative": number(0.5),
        "false_positive_rate": {"value": None, "low": None, "high": None},
    }
    with tracking.run("score", model=model, protocol=protocol) as run:
        run.log_metrics({"predictor": {"all": found, "pre_onset": found}, "model": facts})
        run.log_metrics({"controller-balanced": {"overall": overall}})
        run.log_trials([("trial-0", {"tau_low": 0.5}, {"reduction": 0.1})])


def row(output, name):
    [line] = [line for line in output.splitlines() if line.startswith(name)]
    return line


def test_protocols_stand_side_by_side_with_their_intervals(workspace):
    for model in ("tiny", "tiny_llama"):
        logged(model, "v1", auroc=0.99, cbr=0.8, tests=50)
        logged(model, "v2", auroc=0.75, cbr=0.4)
    result = kvguard("compare", "v1", "v2")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 110
    first, second = result.stdout.split("tiny_llama")
    for output in (first, second):
        assert row(output, "prompts in test").split()[-2:] == ["50", "100"]
        for name in ("AUROC, all tokens", "AUROC, pre-onset tokens"):
            assert "0.990 [0.980, 1.000]  0.750 [0.740, 0.760]" in row(output, name)
        assert "80.0 [79.0, 81.0]     40.0 [39.0, 41.0]" in row(output, "failures without guard, %")
        assert "40.0 [39.0, 41.0]     20.0 [19.0, 21.0]" in row(output, "failures with guard, %")
        assert row(output, "false positives, %").split()[-2:] == ["-", "-"]
    turned = kvguard("compare", "v2", "v1", "--model", "tiny")
    assert "0.750 [0.740, 0.760]  0.990 [0.980, 1.000]" in row(turned.stdout, "AUROC, all tokens")
    assert "tiny_llama" not in turned.stdout


def test_three_protocols_stand_beside_one_another_and_what_was_not_measured_is_a_dash(workspace):
    for protocol, auroc in (("v1", 0.99), ("v2", 0.75), ("v3", 0.65)):
        logged("tiny", protocol, auroc=auroc, cbr=0.4)
    output = kvguard("compare", "v1", "v2", "v3", "--model", "tiny").stdout
    assert row(output, "AUROC, all tokens").split()[3::3] == ["0.990", "0.750", "0.650"]
    assert row(output, "matched AUROC").split()[-3:] == ["-", "-", "-"]
    assert max(map(len, output.splitlines())) <= 110
    assert "CFR in v1, CBR in v2 and v3" in " ".join(output.split())


def test_the_last_finished_run_counts(workspace):
    for protocol in ("v1", "v2"):
        logged("tiny", protocol, auroc=0.6, cbr=0.4)
    logged("tiny", "v2", auroc=0.8, cbr=0.4)
    with pytest.raises(ZeroDivisionError), tracking.run("score", model="tiny", protocol="v2"):
        raise ZeroDivisionError
    result = kvguard("compare", "v1", "v2", "--model", "tiny")
    assert "0.600 [0.590, 0.610]  0.800 [0.790, 0.810]" in row(result.stdout, "AUROC, all tokens")


def test_a_missing_run_or_store_is_one_line_that_names_the_command(workspace):
    logged("tiny", "v1", auroc=0.6, cbr=0.4)
    for words in (["score", "tiny", "v2", "dvc repro score"], ["mlflow.db", "dvc repro score"]):
        result = kvguard("compare", "v1", "v2", "--model", "tiny")
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        for word in words:
            assert word in result.stderr
        assert not result.stdout
        (workspace / "mlflow.db").unlink(missing_ok=True)
    assert not (workspace / "mlflow.db").exists()


def test_wrong_usage_and_unknown_models_are_told_apart(workspace):
    for arguments in (["v1"], ["v1", "v1"], ["v1", "v0"], []):
        assert kvguard("compare", *arguments).exit_code == 2
    result = kvguard("compare", "v1", "v2", "--model", "tinny")
    assert result.exit_code == 1
    assert "did you mean 'tiny'" in result.stderr
