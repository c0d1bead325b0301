"""The study's chapter of the report: its sections, their tables, figures and findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kvguard.report.numbers import Numbers, Table
from kvguard.report.page import Appendix, Chapter, Findings, Picture, Section
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.chapter.findings import CAVEAT, HEADLINE, sentences, tiles
from kvguard.studies.catastrophes.chapter.live_findings import live_sentences
from kvguard.studies.catastrophes.chapter.onset_findings import alarms, answers, clocks, onsets
from kvguard.studies.catastrophes.chapter.pipeline import Pipeline

TITLE = "What KV cache compression breaks, and what a guard saves"
_LOADER = PackageLoader("kvguard.studies.catastrophes.chapter")
_TEMPLATES = Environment(loader=_LOADER, autoescape=True)


@dataclass(frozen=True)
class _Plan:
    """A section: its tables by name, its figures as (stage, file, caption), and its sentences.

    Attributes
    ----------
    sentences
        Numbers, model -> what was found on it, by heading.
    """

    anchor: str
    title: str
    text: str
    tables: tuple[str, ...]
    figures: tuple[tuple[str, str, str], ...] = ()
    sentences: Callable[[Numbers, str], dict[str, list[str]]] | None = None


def _plain(
    told: Callable[[Numbers, str], Iterator[str]],
) -> Callable[[Numbers, str], dict[str, list[str]]]:
    """Put sentences under no heading of their own."""

    def sentences_of(numbers: Numbers, model: str) -> dict[str, list[str]]:
        lines = list(told(numbers, model))
        return {"": lines} if lines else {}

    return sentences_of


PLANS = (
    _Plan(
        "outcomes",
        "What compression does",
        "How the traces of each condition end. The figures are of test prompts only, where the guard is "
        "simulated beside; bands are 95 % intervals.",
        ("experiment-001",),
        (("evaluate", "outcome-by-ratio.png", "CBR and accuracy against the ratio, without and with guard"),),
    ),
    _Plan(
        "answers",
        "Which answer counts",
        "A text that does not stop states its answer, then others. Accuracy is by the first complete one.",
        ("answers",),
        sentences=_plain(answers),
    ),
    _Plan(
        "significance",
        "Is it more than chance?",
        "Every compressor and ratio against the uncompressed model, and against evicting at random, on the "
        "same prompts.",
        ("against-none", "against-random"),
    ),
    _Plan(
        "signals",
        "Signals and failure",
        "What the logits show, by condition and before an onset, whichever sign comes out.",
        ("signals", "onset-entropy"),
        (("evaluate", "entropy-by-condition.png", "Mean entropy of traces with and without a failure"),),
    ),
    _Plan(
        "onsets",
        "Where failures begin",
        "A loop begins at its repeat; a text that does not end, where it should have ended, if known.",
        ("onsets",),
        sentences=_plain(onsets),
    ),
    _Plan(
        "hazard",
        "The hazard model",
        "A forecast, token by token, of a catastrophe within the next H tokens, from signals of the logits.",
        ("predictor", "matched", "horizons", "cross-validation"),
        (
            ("train", "pre-onset.png", "ROC and precision-recall of pre-onset tokens"),
            ("train", "reliability.png", "Reliability: predicted against observed"),
            ("train", "importance.png", "Features by SHAP value, and their gain"),
            ("train", "horizons.png", "The same features, other horizons"),
            ("train", "cross-validation.png", "Each compressor left out of the training"),
        ),
        _plain(clocks),
    ),
    _Plan(
        "controller",
        "The controller",
        "It watches the hazard and acts in SAFE. What it would have changed is simulated on recorded traces; "
        "what it changed stands in the next section.",
        ("operating-points", "controller", "controller-kinds", "controller-by-condition"),
        (
            ("report", "state-machine.png", "States and transitions"),
            ("evaluate", "pareto.png", "Trials of the threshold search and the three operating points"),
            ("evaluate", "lead-time.png", "Lead times of failures that were met before their onset"),
            ("evaluate", "hazard-example.png", "An example: the trace of median lead time"),
        ),
    ),
    _Plan(
        "alarms",
        "When the alarm comes",
        "Counted from the onset. What a failing text says from there up to its alarm is said in vain.",
        ("alarms", "live-alarms"),
        (
            ("evaluate", "alarm-delay.png", "Tokens from the onset to the alarm, simulated on test prompts"),
            ("live-validate", "alarm-delay.png", "The same on the fresh prompts of the live guard"),
        ),
        _plain(alarms),
    ),
    _Plan(
        "live",
        "Live guard",
        "The same controller, acting while the model writes, on fresh prompts; the offline simulation of "
        "these prompts stands beside what happened. Whether an aim is met is read off the numbers.",
        (
            "live-policies",
            "live-aims",
            "live-baselines",
            "live-gap",
            "live-switch",
            "live-differences",
            "live-by-condition",
            "live-latency",
        ),
        (
            ("live-validate", "cbr-by-policy.png", "CBR of every policy, by condition"),
            ("live-validate", "frontier.png", "KV memory saved against CBR, with the oracle"),
            ("live-validate", "causality-gap.png", "Predicted against really prevented"),
            ("live-validate", "switch-time.png", "Recovered traces against the moment of the restore"),
            ("live-validate", "latency.png", "Time of a token, with and without guard"),
        ),
        live_sentences,
    ),
    _Plan(
        "certified",
        "How far may one compress?",
        "Certified: texts to which compression adds a catastrophe, and texts whose right answer it turns "
        "wrong, are no larger shares than the limits, with the confidence asked for. A certificate is about "
        "prompts like those that it was made of; `kvguard recommend` makes one for a workload of your own.",
        ("certified-coverage", "certified-fresh"),
        (("certify", "certified-saving.png", "KV memory saving that is certified, against the limit"),),
    ),
    _Plan(
        "protocols",
        "The protocols beside one another",
        "The same traces, trained on and judged by each.",
        ("protocols",),
    ),
    _Plan(
        "ablation",
        "Ablations",
        "What is left when features, or parts of the controller, are taken away.",
        ("ablation-features", "ablation-controllers", "ablation-hysteresis", "ablation-thresholds"),
        (
            ("ablate", "features.png", "Feature sets"),
            ("ablate", "controllers.png", "Controllers"),
            ("ablate", "settings.png", "Hysteresis and threshold"),
        ),
    ),
    _Plan(
        "transfer",
        "Transfer",
        "A hazard model trained on one model's traces, at work on the other's.",
        ("transfer",),
        (("transfer", "transfer.png", "Beside the target's own hazard model"),),
    ),
)


def chapter(
    pipeline: Pipeline,
    tables: Mapping[str, Table],
    explorers: Sequence[Mapping[str, Any]],
    unexplored: Sequence[tuple[str, str]],
) -> Chapter:
    """Return the chapter.

    Parameters
    ----------
    explorers
        For each model that the trace explorer shows: its ``title`` and what
        :func:`kvguard.studies.catastrophes.chapter.explorer.packed` returns.
    unexplored
        Title and command of each model that it cannot show yet.
    """
    params = pipeline.params
    return Chapter(
        name="catastrophes",
        title=TITLE,
        lead=_scope(pipeline),
        caveat=CAVEAT if any(params.spec(model).is_reference for model in pipeline.models) else "",
        summaries=[
            Findings(pipeline.title(model), sentences(pipeline, model), tiles(pipeline, model))
            for model in pipeline.models
        ],
        note=f"Brackets are 95 % intervals from a bootstrap over prompts ({params.n_resamples} resamples).",
        sections=[
            Section(
                plan.anchor,
                plan.title,
                plan.text,
                _findings(pipeline, plan),
                _pictures(pipeline, plan),
                [tables[name] for name in plan.tables],
            )
            for plan in PLANS
        ],
        appendices=[_explorer(explorers, unexplored, params.report.traces_per_condition)],
        words=Markup(_source("words.html")),
    )


def _explorer(
    explorers: Sequence[Mapping[str, Any]], unexplored: Sequence[tuple[str, str]], per_condition: int
) -> Appendix:
    html = _TEMPLATES.get_template("explorer.html.j2").render(
        explorers=explorers, unexplored=unexplored, per_condition=per_condition, protocol=HEADLINE
    )
    parts = ("explorer", "Trace explorer", Markup(html))
    if not explorers:
        return Appendix(*parts)
    return Appendix(*parts, [get_plotlyjs(), _source("explorer.js")], {"traces": explorers})


def _source(name: str) -> str:
    """Return a template as it stands."""
    return _LOADER.get_source(_TEMPLATES, name)[0]


def _findings(pipeline: Pipeline, plan: _Plan) -> list[Findings]:
    """Return what a section says of each model that it has something to say of."""
    if plan.sentences is None:
        return []
    return [
        Findings(", ".join(filter(None, (pipeline.title(model), heading))), lines)
        for model in pipeline.models
        for heading, lines in plan.sentences(pipeline.numbers, model).items()
    ]


def _scope(pipeline: Pipeline) -> str:
    params = pipeline.params
    conditions = len(params.preset.pairs())
    return (
        f"{' and '.join(map(pipeline.title, pipeline.models))}: {params.sample.n} prompts each under "
        f"{conditions} conditions (preset {params.preset_name}), seed {params.seed}."
    )


def _pictures(pipeline: Pipeline, plan: _Plan) -> list[Picture]:
    """Read the figures of a section that were drawn, model by model."""
    found = []
    for stage, name, caption in plan.figures:
        protocol = HEADLINE if stage in ("train", "evaluate") else None
        places = {
            pipeline.title(model): layout.plots(stage, model, protocol) / name for model in pipeline.models
        }
        if stage == "report":
            places = {"the pipeline": layout.PLOTS / "report" / name}
        found += [Picture.read(path, caption, of) for of, path in places.items() if path.is_file()]
    return found
