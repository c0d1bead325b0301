"""Which compression is safe for a workload, certified."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvguard import stage
from kvguard.cli.asking import Asked, asking_options, check_model, n_prompts, recall, remember

if TYPE_CHECKING:
    from kvguard.studies.catastrophes.params import Params
    from kvguard.sweep.settings import Preset

EXAMPLES = """\b
The commonest uses, as they are typed:
  kvguard recommend --model reference
  kvguard recommend --model reference --guard models/reference --compressors snapkv,streaming_llm
  kvguard recommend --model path:DIR --prompts mine.jsonl -n 500 --max-added-cbr 0.01 --confidence 0.99
"""


@click.command(epilog=EXAMPLES)
@asking_options
@click.option("-n", "n", type=click.IntRange(min=1), help="Calibration prompts; 300, of --prompts all.")
@click.option(
    "--max-added-cbr",
    type=float,
    default=0.02,
    show_default=True,
    help="The share of texts that compression may make loop or never end.",
)
@click.option(
    "--max-lost-answers",
    type=float,
    help="The share of texts whose right answer it may turn wrong; 0.05 by default, if there are answers.",
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of all that is certified.")
@click.option(
    "--guard",
    "bundle",
    type=click.Path(path_type=Path, file_okay=False),
    help="Certify with the guard in this folder too, models/reference say.",
)
@click.option(
    "--action",
    type=click.Choice(["restore", "rollback", "restart", "stop"]),
    help="What the guard does when it alarms; rollback by default.",
)
@click.option(
    "--point",
    type=click.Choice(["conservative", "balanced", "aggressive"]),
    help="When it alarms: the operating point; balanced by default.",
)
@click.option(
    "--compressors",
    metavar="A,B@0.5",
    help="Names from compressors in the settings; those of generate's preset.",
)
@click.option("--ratios", metavar="0.25,0.5", help="For the names without one; those of generate's preset.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the traces and certificate.json go; recommend/MODEL by default. Started again, it goes on.",
)
@stage.one_line_errors
def recommend(
    asked: Asked,
    n: int | None,
    max_added_cbr: float,
    max_lost_answers: float | None,
    confidence: float,
    bundle: Path | None,
    action: str | None,
    point: str | None,
    compressors: str | None,
    ratios: str | None,
    out: Path | None,
) -> None:
    """Find how far a model's cache may be compressed on a workload, with a guarantee."""
    if bundle is None and (action or point):
        raise click.UsageError("--action and --point go with --guard")
    from kvguard.guard.certificate import FILE
    from kvguard.models.identity import weights_digest
    from kvguard.models.load import load_model
    from kvguard.store.files import write_json
    from kvguard.studies.catastrophes.certify import make
    from kvguard.studies.catastrophes.certify.recommend import Limits, check_enough
    from kvguard.studies.catastrophes.certify.recommend import recommend as certify
    from kvguard.studies.catastrophes.certify.rounds import in_rounds
    from kvguard.studies.catastrophes.certify.screen import About, certificate, screen

    model, params = asked.settings()
    limits = Limits(max_added_cbr, max_lost_answers, confidence)
    preset = _preset(params, compressors, ratios)
    guarded = make.Guarded(bundle, action or "rollback", point or "balanced") if bundle is not None else None
    guard_of = make.guard_of(params, guarded) if guarded is not None else None
    check_model(params, model)
    task, folder = params.task(model), out or Path("recommend") / re.sub(r"[^\w.-]+", "-", model).strip("-")
    prompts = make.calibration_prompts(params, model, n_prompts(params, model, n, 300) or 300)
    n_scored = make.n_scored(task, prompts)
    limits = limits.with_default_lost(0.05 if n_scored else None)
    n_policies = len({name for name, _ in preset.pairs()[1:]}) * (1 if guarded is None else 2)
    check_enough(len(prompts), n_scored, n_policies, limits)
    recall(folder, params, model)
    loaded = load_model(model, params.spec(model), params.device)
    folder.mkdir(parents=True, exist_ok=True)
    remember(folder, params, model)
    maker = make.Maker(params, model, loaded, prompts, guarded)
    traces = in_rounds(preset, limits, maker, folder / ("live" if guarded is not None else "sweep"))
    found = certify(traces, limits, model=model)
    about = About(
        model=model,
        weights=weights_digest(loaded.model),
        source=asked.model,
        task=task.name,
        max_new_tokens=task.max_new_tokens,
        compressors=params.compressors,
        guard=guarded,
        guard_of=guard_of,
        price=maker.price(preset),
    )
    path = folder / FILE
    write_json(path, certificate(found, about).model_dump(mode="json"))
    click.echo(screen(found, about, path))


def _preset(params: Params, compressors: str | None, ratios: str | None) -> Preset:
    """Return the compressors and ratios that are tested."""
    from kvguard.config import check_known
    from kvguard.errors import KvguardError
    from kvguard.sweep.settings import Preset

    names = [name.strip() for name in (compressors or "").split(",") if name.strip()]
    try:
        numbers = [float(text) for text in (ratios or "").split(",") if text.strip()]
        preset = Preset(
            compressors=tuple(names) or params.preset.compressors,
            ratios=tuple(numbers) or params.preset.ratios,
        )
    except ValueError as error:  # pydantic's too
        said = " ".join(str(error).split())
        raise KvguardError(
            f"--compressors, --ratios: {said[:200]}: write snapkv,knorm@0.5 and 0.25,0.5"
        ) from None
    for name, ratio in preset.pairs()[1:]:
        check_known("--compressors", name, params.compressors)
        if not ratio:
            raise KvguardError(f"--ratios: at 0 {name} removes nothing: give ratios above 0")
    if len(preset.pairs()) == 1:
        raise KvguardError("--compressors: none is named but the baseline: add one, snapkv say")
    return preset
