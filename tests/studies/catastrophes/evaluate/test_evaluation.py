"""Evaluation end to end on synthetic traces: chosen on the tune part, measured on the test part."""

import pandas as pd
import pytest

import synthetic
from kvguard.stats.bootstrap import resample_weights
from kvguard.store.files import write_json
from kvguard.store.results import Results
from kvguard.store.schemas import check_table, conform
from kvguard.studies.catastrophes.evaluate.evaluation import evaluate, load_replay
from kvguard.studies.catastrophes.evaluate.simulate import metrics_by_condition, recorded
from kvguard.studies.catastrophes.params import EvaluateParams
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.score.controllers import add_controllers, replay_test
from kvguard.studies.catastrophes.score.controllers import headline as headline_of
from kvguard.studies.catastrophes.train.fit import fit_hazard
from kvguard.studies.catastrophes.train.rows import load_rows
from kvguard.studies.catastrophes.train.splits import make_split, part_of_traces

POINTS = ("conservative", "balanced", "aggressive")


class Case:
    """Synthetic traces, their split and a hazard model under one protocol."""

    def __init__(self, folder, name):
        self.protocol = PROTOCOLS[name]
        self.features = folder / "features.parquet"
        self.traces = self.protocol.select(synthetic.build(folder, n_prompts=24))
        self.split = make_split(self.traces, self.protocol, synthetic.TRAIN.split, 17)
        self.part = part_of_traces(self.traces, self.split)
        fitting, tuning = (
            load_rows(self.features, self.protocol.features, self.of(part)).labelled(synthetic.TRAIN.horizon)
            for part in ("train", self.protocol.tune_part)
        )
        self.hazard_model = fit_hazard(fitting, tuning, synthetic.TRAIN, 17)

    def of(self, part):
        return self.traces[self.part == part]

    def evaluate(self, traces=None):
        return evaluate(
            self.features,
            self.traces if traces is None else traces,
            self.split,
            self.hazard_model,
            self.protocol,
            EvaluateParams(n_trials=20),
            model="toy",
            seed=17,
        )

    def score(self, evaluation):
        """What the operating points do to the test traces: results, and the ``controlled`` table."""
        results = Results("evaluate", "toy", self.protocol.name)
        results.add_frame(evaluation.facts.frame)
        rows = load_rows(self.features, self.hazard_model.features, self.of("test"))
        hazard = self.hazard_model.predict(rows.features)
        hazards = pd.DataFrame({"trace_id": rows.trace_id, "t": rows.t, "hazard": hazard})
        test = replay_test(hazards, self.traces, self.split, self.protocol, synthetic.TRAIN.horizon)
        points = {name: point.params for name, point in evaluation.points.items()}
        return results, conform("controlled", add_controllers(results, test, points, 100, 17))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return {name: Case(tmp_path_factory.mktemp(name), name) for name in PROTOCOLS}


@pytest.fixture(scope="module")
def found(cases):
    return {name: case.evaluate() for name, case in cases.items()}


@pytest.fixture(scope="module")
def scored(cases, found):
    return {name: case.score(found[name]) for name, case in cases.items()}


def test_a_planted_hazard_is_met_by_nearly_the_whole_horizon(cases):
    case = cases[HEADLINE]
    traces = recorded(case.traces, case.protocol)[case.part == "test"]
    per_trace = load_replay(case.features, traces, case.hazard_model).run(synthetic.CONTROLLER)
    weights = resample_weights(traces["prompt_id"].nunique(), 0, 17)
    overall = {k: v[0] for k, v in metrics_by_condition(weights, per_trace)["overall"].items()}
    assert overall["cbr_uncontrolled"] > 0.2
    assert overall["cbr_controlled"] == 0  # no baseline fails, and every onset is announced 32 tokens ahead
    assert overall["reduction_relative"] == overall["ceiling_share"] == 1
    assert overall["lead_time_median"] == synthetic.TRAIN.horizon - (synthetic.CONTROLLER.k_escalate - 1)
    assert overall["accuracy_controlled"] == 1
    assert 0 < overall["kv_saved_controlled"] < overall["kv_saved_uncontrolled"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_table_holds_what_the_report_asks_for(cases, found, scored, name):
    results, controlled = scored[name][0].frame, scored[name][1]
    assert set(results["table"]) == {"operating_points", *(f"controller-{point}" for point in POINTS)}
    conditions = {"none", "snapkv@0.5", "snapkv@0.875", "knorm@0.875", "overall"}
    balanced = results[results["table"] == "controller-balanced"]
    assert set(balanced["subject"]) == conditions
    known = balanced.dropna(subset=["value"])
    assert (known["low"] <= known["high"]).all()
    for kind, frame in (
        ("results", results),
        ("pareto", found[name].pareto),
        ("controlled", controlled),
    ):
        check_table(kind, frame, "here")
    assert set(controlled["trace_id"]) == set(cases[name].of("test")["trace_id"])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_headline_is_the_operating_points_and_the_whole(scored, name):
    headline = headline_of(scored[name][0])
    assert list(headline) == ["operating_points", *(f"controller-{point}" for point in POINTS)]
    assert set(headline["operating_points"]) == set(POINTS)
    assert headline["operating_points"]["balanced"]["k_escalate"]["value"] >= 1
    assert all(list(headline[f"controller-{point}"]) == ["overall"] for point in POINTS)
    assert headline["controller-aggressive"]["overall"]["reduction"]["value"] > 0


def test_the_same_seed_gives_the_same_metrics_file_byte_for_byte(cases, scored, tmp_path):
    again = cases[HEADLINE].score(cases[HEADLINE].evaluate())
    for number, (results, _) in enumerate((scored[HEADLINE], again)):
        write_json(tmp_path / f"{number}.json", headline_of(results))
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()


def test_what_happens_to_test_prompts_moves_an_operating_point_under_v1_only(cases, found):
    """A planted leak: the failures of the test part are wished away."""
    points = {}
    for name, case in cases.items():
        failed = (case.part == "test") & case.traces["onset"].notna().to_numpy()
        healed = case.traces.assign(
            catastrophes=[
                [] if heals else kinds for heals, kinds in zip(failed, case.traces["catastrophes"])
            ],
            **{
                name: case.traces[name].where(~failed, pd.NA if name.endswith("onset") else None)
                for name in ("onset", "onset_by", "proxy_onset", "proxy_onset_by")
            },
            correct=case.traces["correct"].mask(failed, 1.0),
        )
        points[name] = case.evaluate(healed).points
    same = {name for name in points if points[name] == found[name].points}
    assert same == set(PROTOCOLS) - {"v1"}
