"""The HTML report: one file that opens from disk and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image
from plotly.offline import get_plotlyjs

from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.chapter.findings import CAVEAT, HEADLINE, sentences, tiles
from kvguard.studies.catastrophes.chapter.live_findings import live_sentences
from kvguard.studies.catastrophes.chapter.numbers import Numbers, Pipeline, Table


@dataclass(frozen=True)
class Picture:
    """A figure in the page: base64 of a PNG, its caption, what it is of, its size in pixels."""

    data: str
    caption: str
    of: str
    width: int
    height: int

    @property
    def is_wide(self) -> bool:
        """Whether it takes a row of its own."""
        return self.width > 2.2 * self.height


@dataclass(frozen=True)
class Chapter:
    """A section of the page: its tables by name, its figures as (stage, file, caption), and its sentences.

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


CHAPTERS = (
    Chapter(
        "outcomes",
        "What compression does",
        "How the traces of each condition end. The figures are of test prompts only, where the guard is "
        "simulated beside; bands are 95 % intervals.",
        ("experiment-001",),
        (("evaluate", "outcome-by-ratio.png", "CBR and accuracy against the ratio, without and with guard"),),
    ),
    Chapter(
        "significance",
        "Is it more than chance?",
        "Every compressor and ratio against the uncompressed model, and against evicting at random, on the "
        "same prompts.",
        ("against-none", "against-random"),
    ),
    Chapter(
        "signals",
        "Signals and failure",
        "What the logits show, by condition and before an onset, whichever sign comes out.",
        ("signals", "onset-entropy"),
        (("evaluate", "entropy-by-condition.png", "Mean entropy of traces with and without a failure"),),
    ),
    Chapter(
        "hazard",
        "The hazard model",
        "A forecast, token by token, of a catastrophe within the next H tokens, from signals of the logits.",
        ("predictor", "horizons", "cross-validation"),
        (
            ("train", "pre-onset.png", "ROC and precision-recall of pre-onset tokens"),
            ("train", "reliability.png", "Reliability: predicted against observed"),
            ("train", "importance.png", "Features by SHAP value, and their gain"),
            ("train", "horizons.png", "The same features, other horizons"),
            ("train", "cross-validation.png", "Each compressor left out of the training"),
        ),
    ),
    Chapter(
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
    Chapter(
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
    Chapter(
        "protocols",
        "v1 beside v2",
        "The mistakes of earlier work, switched on, on the same traces.",
        ("protocols",),
    ),
    Chapter(
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
    Chapter(
        "transfer",
        "Transfer",
        "A hazard model trained on one model's traces, at work on the other's.",
        ("transfer",),
        (("transfer", "transfer.png", "Beside the target's own hazard model"),),
    ),
)


def render(
    pipeline: Pipeline,
    tables: Mapping[str, Table],
    explorers: Sequence[Mapping[str, Any]],
    unexplored: Sequence[tuple[str, str]],
) -> str:
    """Return the page.

    Parameters
    ----------
    explorers
        For each model that the trace explorer shows: its ``title`` and what
        :func:`kvguard.studies.catastrophes.chapter.explorer.packed` returns.
    unexplored
        Title and command of each model that it cannot show yet.
    """
    loader = PackageLoader("kvguard.studies.catastrophes.chapter")
    environment = Environment(loader=loader, autoescape=True)
    css, explorer = (loader.get_source(environment, name)[0] for name in ("report.css", "explorer.js"))
    scripts = [get_plotlyjs(), explorer]
    params = pipeline.params
    return environment.get_template("report.html.j2").render(
        css=css,
        scripts=scripts,
        script_hashes=[_csp_hash(script) for script in scripts],
        scope=_scope(pipeline),
        caveat=CAVEAT if any(params.spec(model).is_reference for model in pipeline.models) else "",
        n_resamples=params.n_resamples,
        summaries=[
            {
                "title": pipeline.title(model),
                "tiles": tiles(pipeline, model),
                "sentences": sentences(pipeline, model),
            }
            for model in pipeline.models
        ],
        sections=[
            {
                "anchor": chapter.anchor,
                "title": chapter.title,
                "text": chapter.text,
                "findings": _findings(pipeline, chapter),
                "tables": [tables[name] for name in chapter.tables],
                "pictures": list(_pictures(pipeline, chapter)),
            }
            for chapter in CHAPTERS
        ],
        explorers=explorers,
        unexplored=unexplored,
        per_condition=params.report.traces_per_condition,
    )


def _findings(pipeline: Pipeline, chapter: Chapter) -> list[dict[str, Any]]:
    """Return what a chapter says of each model that it has something to say of."""
    if chapter.sentences is None:
        return []
    return [
        {"title": f"{pipeline.title(model)}, {heading}", "sentences": lines}
        for model in pipeline.models
        for heading, lines in chapter.sentences(pipeline.numbers, model).items()
    ]


def _scope(pipeline: Pipeline) -> str:
    params = pipeline.params
    conditions = len(params.preset.pairs())
    return (
        f"{' and '.join(map(pipeline.title, pipeline.models))}: {params.sample.n} prompts each under "
        f"{conditions} conditions (preset {params.preset_name}), seed {params.seed}."
    )


def _pictures(pipeline: Pipeline, chapter: Chapter) -> list[Picture]:
    """Read the figures of a chapter that were drawn, model by model."""
    found = []
    for stage, name, caption in chapter.figures:
        protocol = HEADLINE if stage in ("train", "evaluate") else None
        places = {
            pipeline.title(model): layout.plots(stage, model, protocol) / name for model in pipeline.models
        }
        if stage == "report":
            places = {"the pipeline": layout.PLOTS / "report" / name}
        found += [_picture(path, caption, of) for of, path in places.items() if path.is_file()]
    return found


def _picture(path: Path, caption: str, of: str) -> Picture:
    with Image.open(path) as image:
        width, height = image.size
    return Picture(base64.b64encode(path.read_bytes()).decode(), caption, of, width, height)


def _csp_hash(script: str) -> str:
    """Return what allows this script, and no other, to run under a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
