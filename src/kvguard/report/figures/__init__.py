"""The figures of the pipeline, a module for each stage that draws: PNG files, see ``drawing``."""

from kvguard.report.figures.ablation import ablation_figures, transfer_figures
from kvguard.report.figures.drawing import metric, model_title
from kvguard.report.figures.evaluation import evaluation_figures
from kvguard.report.figures.live import live_figures
from kvguard.report.figures.machine import state_machine
from kvguard.report.figures.training import training_figures

__all__ = [
    "ablation_figures",
    "evaluation_figures",
    "live_figures",
    "metric",
    "model_title",
    "state_machine",
    "training_figures",
    "transfer_figures",
]
