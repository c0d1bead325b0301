"""Figures: each is drawn, and the same data gives the same bytes."""

import pytest

import synthetic
from kvguard.guard.simulate import evaluate
from kvguard.hazard.train import train
from kvguard.report import figures


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    traces = synthetic.build(folder, n_prompts=12)
    features = folder / "features.parquet"
    training = train(features, traces, synthetic.TRAIN, seed=17)
    evaluation = evaluate(features, traces, training.split, training.model, synthetic.CONTROLLER)

    def draw(name):
        title = figures.model_title("toy", is_reference=True)
        return [
            *figures.training_figures(training, title, folder / name),
            *figures.evaluation_figures(
                evaluation, features, traces, synthetic.CONTROLLER, title, folder / name
            ),
        ]

    return draw


def test_the_figures_of_both_stages_are_drawn_the_same_each_time(drawn):
    first, second = drawn("a"), drawn("b")
    assert [path.name for path in first] == [
        "pre-onset.png", "outcome-by-ratio.png", "hazard-example.png", "entropy-by-condition.png"
    ]  # fmt: skip
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes().startswith(b"\x89PNG")
        assert one.read_bytes() == other.read_bytes()


def test_a_reference_model_is_called_one():
    assert figures.model_title("small", is_reference=True) == "small (reference model)"
    assert figures.model_title("llama8b", is_reference=False) == "llama8b"
