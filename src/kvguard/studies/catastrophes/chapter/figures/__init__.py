"""The figures of the pipeline, a module for each stage that draws: PNG files, see ``drawing``."""

from kvguard.studies.catastrophes.chapter.figures.ablation import ablation_figures, transfer_figures
from kvguard.studies.catastrophes.chapter.figures.certificates import certified_figures
from kvguard.studies.catastrophes.chapter.figures.evaluation import evaluation_figures
from kvguard.studies.catastrophes.chapter.figures.labels import model_title
from kvguard.studies.catastrophes.chapter.figures.live import live_figures
from kvguard.studies.catastrophes.chapter.figures.machine import state_machine
from kvguard.studies.catastrophes.chapter.figures.training import training_figures

__all__ = [
    "ablation_figures",
    "certified_figures",
    "evaluation_figures",
    "live_figures",
    "model_title",
    "state_machine",
    "training_figures",
    "transfer_figures",
]
