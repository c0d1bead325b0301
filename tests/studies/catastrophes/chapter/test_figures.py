"""Figures: each is drawn, and the same data gives the same bytes."""

import made_up
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kvguard.guard.controller import ControllerParams
from kvguard.studies.catastrophes.chapter import figures
from kvguard.studies.catastrophes.protocols import HEADLINE
from kvguard.studies.catastrophes.train.metrics import Curve

POINT = ControllerParams(tau_low=0.3, tau_high=0.6, k_escalate=3, j_deescalate=8)
TITLE = figures.model_title("toy", is_reference=True)


def draw_training(folder, label_share=0.2):
    rng = np.random.default_rng(0)
    label = rng.random(400) < label_share
    curve = Curve.of(rng.random(400), label)
    columns = {name: getattr(curve, name) for name in ("threshold", "recall", "fpr", "precision")}
    counts = {"n_positive": label.sum(), "n_negative": (~label).sum()}
    results = made_up.results("train", "reference", HEADLINE)
    return figures.training_figures(results, pd.DataFrame(columns | counts), TITLE, folder)


def draw_evaluation(folder, fails=True):
    rng = np.random.default_rng(0)
    n = 30
    failed = (np.arange(n) % 3 == 0) & fails
    controlled = pd.DataFrame(
        {
            "trace_id": range(n),
            "failed": failed,
            "safe_at": np.where(failed, 10, -1),
            "lead_time": np.where(failed, 20.0, np.nan),
        }
    )
    traces = pd.DataFrame(
        {
            "trace_id": range(n),
            "prompt_id": [f"p{number}" for number in range(n)],
            "compressor": np.resize(["none", "snapkv"], n),
            "ratio": np.resize([0.0, 0.5], n),
            "catastrophes": [["looping"] if fail else [] for fail in failed],
            "onset": pd.array([30 if fail else None for fail in failed], dtype="Int32"),
        }
    )
    tokens = pd.DataFrame(
        {"trace_id": np.repeat(range(n), 40), "hazard": rng.random(40 * n), "entropy": rng.random(40 * n)}
    )
    results = made_up.results("evaluate", "reference", HEADLINE)
    return figures.evaluation_figures(
        results, made_up.pareto(), controlled, traces, tokens, POINT, TITLE, folder
    )


def draw_ablation(folder):
    return figures.ablation_figures(made_up.results("ablate", "reference"), TITLE, folder)


def draw_transfer(folder):
    return figures.transfer_figures(made_up.results("transfer", "reference"), TITLE, folder)


def draw_certified(folder):
    return figures.certified_figures(made_up.results("certify", "reference"), TITLE, folder)


def draw_live(folder):
    results, latency = made_up.results("live-validate", "reference", HEADLINE), made_up.latency("reference")
    return figures.live_figures(results, latency, folder, TITLE)


@pytest.fixture(scope="module")
def live_before(tmp_path_factory):
    """The live figures of made-up numbers, as bytes."""
    return {path.stem: path.read_bytes() for path in draw_live(tmp_path_factory.mktemp("live"))}


def draw_controller(folder):
    return [figures.state_machine(folder / "state-machine.png")]


@pytest.mark.parametrize(
    ("draw", "names"),
    [
        (draw_training, ["pre-onset", "reliability", "importance", "horizons", "cross-validation"]),
        (
            draw_evaluation,
            [
                "outcome-by-ratio",
                "pareto",
                "lead-time",
                "hazard-example",
                "entropy-by-condition",
                "alarm-delay",
            ],
        ),
        (draw_ablation, ["features", "controllers", "settings"]),
        (draw_transfer, ["transfer"]),
        (draw_certified, ["certified-saving"]),
        (draw_live, ["cbr-by-policy", "frontier", "causality-gap", "switch-time", "latency", "alarm-delay"]),
        (draw_controller, ["state-machine"]),
    ],
)
def test_the_figures_of_a_stage_are_drawn_the_same_each_time(tmp_path, draw, names):
    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    assert [path.name for path in first] == [f"{name}.png" for name in names]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes().startswith(b"\x89PNG")
        assert one.read_bytes() == other.read_bytes()


def test_other_numbers_make_another_figure(tmp_path):
    one, other = (
        figures.transfer_figures(
            made_up.results("transfer", "reference", seed=seed), TITLE, tmp_path / str(seed)
        )
        for seed in (0, 1)
    )
    assert one[0].read_bytes() != other[0].read_bytes()


def test_tokens_of_one_class_still_make_figures(tmp_path):
    assert all(path.is_file() for path in draw_training(tmp_path, label_share=0))


def test_a_run_without_failures_still_makes_figures(tmp_path):
    assert all(path.is_file() for path in draw_evaluation(tmp_path, fails=False))


def test_undefined_numbers_still_make_figures(tmp_path):
    for stage, draw in (("ablate", figures.ablation_figures), ("transfer", figures.transfer_figures)):
        results = made_up.results(stage, "reference").assign(value=np.nan, low=np.nan, high=np.nan)
        assert all(path.is_file() for path in draw(results, TITLE, tmp_path / stage))


def test_live_runs_without_failures_or_a_second_regime_still_make_figures(tmp_path):
    results, latency = made_up.results("live-validate", "reference", HEADLINE), made_up.latency("reference")
    undefined = results.assign(value=np.nan, low=np.nan, high=np.nan)
    once = results[~results["table"].isin(["policies-decoding", "switch"])]
    for name, frame in (("undefined", undefined), ("once", once)):
        assert all(path.is_file() for path in figures.live_figures(frame, latency, tmp_path / name, TITLE))


def test_what_was_not_run_live_has_no_panel(tmp_path):
    results, latency = made_up.results("live-validate", "reference", HEADLINE), made_up.latency("reference")
    left_out = results["table"].isin(["policies-decoding", "switch"])
    left_out |= (results["table"] == "gap") & results["subject"].str.startswith("restart")
    sizes = []
    for name, frame in (("all", results), ("some", results[~left_out])):
        figures.live_figures(frame, latency, tmp_path / name, TITLE)
        sizes.append({path.stem: Image.open(path).size for path in (tmp_path / name).iterdir()})
    whole, some = sizes
    for name, n_panels, n_left in (("cbr-by-policy", 2, 1), ("frontier", 2, 1), ("causality-gap", 3, 2)):
        assert some[name][0] == whole[name][0] * n_left // n_panels
    assert some["switch-time"][1] < whole["switch-time"][1]


@pytest.mark.parametrize(
    ("table", "subject", "metric", "name"),
    [
        ("policies-prefill", "rollback", "cbr", "cbr-by-policy"),
        ("policies-decoding", "hold/snapkv@0.875", "cbr", "cbr-by-policy"),
        ("gap", "rollback", "cbr_simulated", "cbr-by-policy"),
        ("gap", "rollback", "cbr_simulated", "frontier"),
        ("policies-prefill", "oracle", "kv_saved", "frontier"),
        ("policies-decoding", "always_safe", "cbr", "frontier"),
        ("policies-prefill", "loop", "kv_saved", "frontier"),
        ("gap", "restore", "prevented_only", "causality-gap"),
        ("gap", "restore", "gap", "causality-gap"),
        ("switch", "-8", "recovered", "switch-time"),
        ("switch", "128", "correct", "switch-time"),
        ("alarm_bins-rollback", "-8", "looping", "alarm-delay"),
        ("alarm_bins-rollback", "never", "non_termination", "alarm-delay"),
    ],
)
def test_live_figures_show_their_numbers(tmp_path, live_before, table, subject, metric, name):
    frame, latency = made_up.results("live-validate", "reference", HEADLINE), made_up.latency("reference")
    chosen = frame["table"].eq(table) & frame["subject"].eq(subject) & frame["metric"].eq(metric)
    assert chosen.sum() == 1
    frame.loc[chosen, ["value", "low", "high"]] = [0.01, 0.0, 0.02]
    after = {path.stem: path.read_bytes() for path in figures.live_figures(frame, latency, tmp_path, TITLE)}
    assert live_before[name] != after[name]


def test_a_reference_model_is_called_one():
    assert figures.model_title("small", is_reference=True) == "small (reference model)"
    assert figures.model_title("llama8b", is_reference=False) == "llama8b"
