"""Does a hazard model know another language model's failures?

Both models may have been asked the same prompts, each with a split of its own. So the source's hazard
model is fitted anew here, on its train and tune prompts less those that test the target: no prompt is on
both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kvguard.errors import KvguardError
from kvguard.guard.controller import ControllerParams
from kvguard.guard.hazard_model import HazardModel
from kvguard.judging.judge import read_judged
from kvguard.studies.catastrophes import layout
from kvguard.studies.catastrophes.evaluate.simulate import Replay, recorded
from kvguard.studies.catastrophes.forecasts import choose_threshold
from kvguard.studies.catastrophes.params import EvaluateParams, TrainParams
from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS
from kvguard.studies.catastrophes.train.fit import fit_hazard
from kvguard.studies.catastrophes.train.rows import load_rows, rows_to_fit
from kvguard.studies.catastrophes.train.splits import part_of_traces, read_split
from kvguard.studies.catastrophes.variants import OTHER, OWN, Variant


@dataclass(frozen=True)
class Side:
    """One language model's recorded traces and what was made of them.

    Attributes
    ----------
    features_path
        Its features table.
    traces, split
        Its judged traces and the split of its prompts.
    hazard_model
        Its own hazard model.
    """

    model: str
    features_path: Path
    traces: pd.DataFrame
    split: pd.DataFrame
    hazard_model: HazardModel

    @classmethod
    def load(cls, model: str) -> "Side":
        """Read what the earlier stages left of ``model``."""
        trained = layout.trained(model, HEADLINE)
        return cls(
            model,
            layout.features(model),
            PROTOCOLS[HEADLINE].select(read_judged(layout.traces(model))),
            read_split(PROTOCOLS[HEADLINE], trained),
            HazardModel.load(trained),
        )

    def part(self, name: str, without: frozenset[str] = frozenset()) -> pd.DataFrame:
        """Return the traces of one part, those of the prompts ``without`` left out."""
        kept = (part_of_traces(self.traces, self.split) == name) & ~self.traces["prompt_id"].isin(without)
        return self.traces[kept.to_numpy()].reset_index(drop=True)


def transfer(
    source: Side,
    target: Side,
    point: ControllerParams,
    train: TrainParams,
    evaluate: EvaluateParams,
    grid: Sequence[float],
    *,
    seed: int,
) -> dict[str, Variant]:
    """Return what both hazard models say of the target's test prompts, as variants ``OWN`` and ``OTHER``.

    Parameters
    ----------
    point
        Gives the hysteresis; each model's threshold is chosen on its own tune prompts.
    grid
        The thresholds to choose from.

    Raises
    ------
    KvguardError
        The source is left without prompts to train on.
    """
    tested_prompts = frozenset(target.part("test")["prompt_id"])
    columns = target.hazard_model.features
    fitting, tuning = (source.part(name, without=tested_prompts) for name in ("train", "tune"))
    if fitting.empty or tuning.empty:
        raise KvguardError(
            f"transfer: every train or tune prompt of {source.model} tests {target.model}: raise sample.n"
        )
    learned, watched = (
        rows_to_fit(source.features_path, columns, part, train.max_tokens).labelled(train.horizon)
        for part in (fitting, tuning)
    )
    fitted = fit_hazard(learned, watched, train, seed)
    rows = load_rows(target.features_path, columns, target.part("test"))

    def variant(model: HazardModel, side: Side, tune: pd.DataFrame) -> Variant:
        known = recorded(tune, PROTOCOLS[HEADLINE])
        seen = load_rows(side.features_path, columns, known)
        replay = Replay.of(known, seen, model.predict(seen.features)).compressed
        setting = choose_threshold(replay, grid, point, evaluate)
        return Variant.of(rows, model.predict(rows.features), setting)

    own = variant(target.hazard_model, target, target.part("tune"))
    return {OWN: own, OTHER: variant(fitted, source, tuning)}
