"""Made-up results of every stage, under the names that the stages use."""

from pathlib import Path

import numpy as np
import pandas as pd

import synthetic
from kvguard.judging.onsets import RULES
from kvguard.stats.bootstrap import Interval
from kvguard.store.results import Results
from kvguard.store.tables import read_table, read_tokens
from kvguard.studies.catastrophes.chapter import explorer
from kvguard.studies.catastrophes.chapter.pipeline import Pipeline, numbers_of
from kvguard.studies.catastrophes.evaluate.operating_points import POINTS
from kvguard.studies.catastrophes.params import load_params
from kvguard.studies.catastrophes.protocols import HEADLINE

PARAMS = load_params(Path(__file__).parents[4] / "params.yaml")
CONDITIONS = ["none", "snapkv@0.5", "snapkv@0.875", "random@0.5", "random@0.875"]
RANKING = ["auroc", "auprc", "recall_at_5pct_fpr"]
MATCHED = [
    "matched_auroc", "matched_auroc_by_positives", "auroc_position_only", "auroc_best_clock",
    "matched_auroc_position_only",
]  # fmt: skip
KINDS = ["looping", "non_termination"]
ALARMS = [
    "n_failing", "delay_q25", "delay_median", "delay_q75", "close", "after_onset", "never",
    *(f"{name}_in_vain{suffix}" for name in ("tokens", "share") for suffix in ("", "_unguarded")),
]  # fmt: skip
GUARDED = ["reduction", "false_positive_rate", "kv_saved", "lead_time_median"]
VARIANT = [*RANKING, "matched_auroc", *GUARDED]
COMPARED = [
    f"{name}_{what}" for name in ("cbr", "accuracy") for what in ("difference", "p", "p_holm", "odds_ratio")
]
CONTROLLER = [
    "n_traces", "reduction", "reduction_relative", "ceiling_share", "false_positive_rate", "safe_rate",
    "lead_time_median", "lead_time_q25", "lead_time_q75",
    *(f"{name}_{how}" for name in ("cbr", "accuracy", "kv_saved", "looping", "non_termination")
      for how in ("uncontrolled", "controlled")),
]  # fmt: skip


POLICIES = [
    "uncompressed", "static", "restore", "rollback", "restart", "stop", "entropy", "clock", "loop",
    "stop_at_answer", "rollback_v2",
]  # fmt: skip
RATES = ["cbr", "looping", "non_termination", "accuracy", "accuracy_last", "kv_saved"]
ACTED = [
    *RATES, "safe_rate", "false_alarm_rate", "healthy_saving_kept", "saving_kept", "residual_cbr",
    "residual_accuracy", "residual_accuracy_last", "unchanged", "n_restores", "n_rewinds", "n_rewound",
    "steps_ratio",
    *(f"{name}_minus_{base}" for name in ("cbr", "accuracy") for base in ("static", "uncompressed")),
    "kv_saved_minus_static",
]  # fmt: skip
TO_ROLLBACK = [f"{name}_minus_rollback" for name in ("cbr", "kv_saved", "accuracy")]
GAP = [
    "n_failed", "predicted", "prevented", "both", "predicted_only", "prevented_only", "neither", "precision",
    "cbr_simulated", "cbr_live", "gap",
]  # fmt: skip
OFFSETS = ["128", "64", "32", "16", "8", "4", "0", "-8"]


def against(metrics: list[str], base: str) -> list[str]:
    return [*metrics, *(f"{name}_minus_{base}" for name in metrics)]


def tables(stage: str, model: str, other: str) -> dict[str, tuple[list[str], list[str]]]:
    """The tables of a stage: name -> subjects, metrics."""
    compressed = CONDITIONS[1:]
    if stage == "live-validate":
        return live_tables()
    if stage == "certify":
        return certified_tables()
    return {
        "measure": {
            "outcomes": (
                [*CONDITIONS, "overall"],
                [
                    "n",
                    "accuracy",
                    "accuracy_last",
                    "cbr",
                    "non_termination",
                    "looping",
                    "wrong",
                    "amnesia",
                    "cfr",
                    "tokens",
                ],
            ),
            "onsets": ([*compressed, "overall"], ["n_failing", *(f"by_{rule}" for rule in RULES)]),
            "signals": (CONDITIONS, ["mean_entropy", "max_entropy", "min_top1_prob"]),
            "max_entropy": ([*compressed, "overall"], ["auroc"]),
            "onset_entropy": (
                ["overall", "looping", "non_termination"],
                ["before_onset", "matched", "difference"],
            ),
            "against_none": (compressed, COMPARED),
            "against_random": (compressed[:2], COMPARED),
        },
        "train": {
            "predictor": (
                ["pre_onset", "all", "pre_onset_looping", "pre_onset_non_termination"],
                [*RANKING, *MATCHED, "f1", "brier", "trace_detection_rate", "lead_time_median", "n_tokens"],
            ),
            "horizons": (["16", "32"], RANKING),
            "cross_validation": (["snapkv", "random"], [*RANKING, "n_tokens", "n_positive"]),
            "importance": (["entropy", "top1_prob", "rep_count"], ["gain", "mean_abs_shap"]),
            "reliability": ([str(number) for number in range(10)], ["mean_hazard", "observed", "n_tokens"]),
        },
        "evaluate": {
            "operating_points": (
                list(POINTS),
                ["tau_low", "tau_high", "k_escalate", "j_deescalate", *GUARDED[:3]],
            ),
            **{f"controller-{point}": ([*CONDITIONS, "overall"], CONTROLLER) for point in POINTS},
            **alarms("balanced"),
        },
        "ablate": {
            "features": (
                ["full", "no_rep", "position_only"],
                against([*RANKING, "matched_auroc", *GUARDED], "full"),
            ),
            "controllers": (
                ["hazard", "always_safe", "random", "risk_score"],
                [*against(GUARDED, "hazard"), "looping_reduction", "non_termination_reduction"],
            ),
            "hysteresis": (["1", "2", "4"], GUARDED),
            "thresholds": (["0.1", "0.5", "0.9"], GUARDED),
        },
        "transfer": {
            "transfer": (
                [f"{model}->{other}", f"{other}->{other}"],
                against(VARIANT, "in_domain"),
            ),
        },
    }[stage]


def certified_tables() -> dict[str, tuple[list[str], list[str]]]:
    """The tables of ``certify``."""

    def subjects(names: list[str], guards: list[str], alphas: list[str]) -> list[str]:
        return [f"{name}/{guard}/{alpha}" for name in names for guard in guards for alpha in alphas]

    simulated = ["none", "simulated"]
    fine = ["0.01", "0.02", "0.05", "0.1", "0.2"]
    counted = ["violations", "contradicted", "violations_known", "certified", "kv_saved"]
    checked = ["certified", "tested", "ratio", "kv_saved", "added", "lost", "broken"]
    return {
        "coverage": (subjects(["snapkv", "random", "all"], simulated, ["0.02", "0.1"]), counted),
        "saving": (subjects(["snapkv", "random", "all"], simulated, fine), ["n", "kv_saved", "ratio"]),
        "saving-live": (subjects(["snapkv"], ["none", "rollback"], fine), ["n", "kv_saved", "ratio"]),
        "fresh": (subjects(["snapkv"], ["none", "rollback"], ["0.02"]), checked),
    }


def alarms(name: str) -> dict[str, tuple[list[str], list[str]]]:
    """The tables of when alarms come."""
    return {
        f"alarms-{name}": (["overall", *KINDS], ALARMS),
        f"alarm_bins-{name}": (["-16", "-8", "0", "8", "never"], KINDS),
    }


def live_tables() -> dict[str, tuple[list[str], list[str]]]:
    """The tables of ``live-validate``; those of the baselines have the differences to rollback besides."""
    regimes = {"prefill": POLICIES, "decoding": [*POLICIES, "hold"]}
    conditions = ["streaming_llm@0.75", "snapkv@0.875"]
    policies = {
        f"policies-{regime}": (
            [*names, "always_safe", "mixed", "mixed_loop", "mixed_entropy", "mixed_clock", "oracle",
             *(["rollback_fits"] if regime == "prefill" else []),
             *(f"{name}/{condition}" for name in names for condition in conditions)],
            [*ACTED, *TO_ROLLBACK, "cbr_minus_stop_at_answer"],
        )
        for regime, names in regimes.items()
    }  # fmt: skip
    actions = ["restore", "rollback", "restart"]
    return {
        **policies,
        "gap": ([*actions, *(f"{name}/{condition}" for name in actions for condition in conditions)], GAP),
        **{k: v for policy in ("rollback", "stop_at_answer", "loop") for k, v in alarms(policy).items()},
        "switch": (OFFSETS, ["recovered", "correct", "n_traces"]),
        "prompts": (["all"], ["n_prompts", "n_used"]),
    }


def latency(model: str) -> pd.DataFrame:
    """The second results table of ``live-validate``: its times."""
    found = Results("live-validate", model, HEADLINE)
    for subject, ms in (("unguarded", 0.2), ("guarded", 0.21)):
        found.add(
            "latency",
            subject,
            {"ms_per_token": Interval(ms, ms - 0.01, ms + 0.01), "tokens_per_second": 1000 / ms},
        )
    found.add("latency", "overhead", {"share": Interval(0.05, 0.04, 0.06)})
    found.add("latency", "restore", {"ms": 40.5})
    return found.frame


def results(stage: str, model: str, protocol: str = "", seed: int = 0) -> pd.DataFrame:
    """The results table of one stage; every number has an interval."""
    other = PARAMS.transfer_to if model == PARAMS.model else PARAMS.model
    rng = np.random.default_rng([seed, len(stage), len(model)])
    found = Results(stage, model, protocol)
    for table, (subjects, metrics) in tables(stage, model, other).items():
        for subject in subjects:
            values = {metric: rng.uniform(0.2, 0.8) for metric in metrics}
            found.add(
                table, subject, {metric: Interval(v, v - 0.05, v + 0.05) for metric, v in values.items()}
            )
    return found.frame


def stages(model: str) -> list[pd.DataFrame]:
    """The results of every stage of a model."""
    return [
        *(results(stage, model) for stage in ("measure", "ablate", "transfer", "certify")),
        *(
            results(stage, model, protocol)
            for stage in ("train", "evaluate")
            for protocol in PARAMS.protocols
        ),
        results("live-validate", model, HEADLINE),
        latency(model),
    ]


def pipeline(*frames: pd.DataFrame) -> Pipeline:
    """A pipeline with these results, all of both models by default."""
    chosen = frames or [*stages(PARAMS.model), *stages(PARAMS.transfer_to)]
    return Pipeline(PARAMS, numbers_of(pd.concat(chosen, ignore_index=True)))


def pareto() -> pd.DataFrame:
    """Trials of a threshold search; one of them is two operating points."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.random((20, 5)), columns=["tau_low", "tau_high", *GUARDED[:3]])
    names = pd.Series([None] * 20, dtype=object)
    names[3], names[7] = "conservative, balanced", "aggressive"
    return frame.assign(trial=range(20), k_escalate=3, j_deescalate=8, on_front=[True, False] * 10).assign(
        operating_point=names
    )


PLANTED = "<script>window.planted = true</script>"


def decode(token_ids):
    """Text of each token id; every seventh tries to be a script."""
    return [PLANTED if token_id % 7 == 3 else f" {token_id}" for token_id in token_ids]


def explored(folder, title, seed):
    """What the explorer holds of a synthetic data set; its hazards rise towards the onset."""
    traces = synthetic.build(folder, n_prompts=8, seed=seed)
    chosen = explorer.sample(traces, per_condition=3)
    tokens = read_tokens(folder / "generate", ["token_id", "entropy", "top1_prob"])
    tokens = tokens[tokens["trace_id"].isin(chosen["trace_id"])].reset_index(drop=True)
    onset = (
        chosen.set_index("trace_id")["onset"].fillna(10_000).reindex(tokens["trace_id"]).to_numpy(dtype=float)
    )
    tokens["hazard"] = np.where(tokens["t"] > onset - 20, 0.9, 0.05).astype(np.float32)
    prompts = read_table("prompts", folder / "prompts.parquet")
    prompts["question"] = prompts["question"] + PLANTED
    packed = explorer.packed(traces, chosen, tokens, prompts, synthetic.CONTROLLER, decode)
    return {"title": title, **packed}, chosen, tokens
