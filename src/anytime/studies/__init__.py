"""Papers whose tables and figures can be made again: one file each, ours beside the paper's numbers."""

from anytime.studies.optimal import train_family
from anytime.studies.runner import Run, Standing, TrainingStopped, find_recipe, run_all, standing
from anytime.studies.study import Item, Result, Study, find_study, list_studies

__all__ = [
    "Item",
    "Result",
    "Run",
    "Standing",
    "Study",
    "TrainingStopped",
    "find_recipe",
    "find_study",
    "list_studies",
    "run_all",
    "standing",
    "train_family",
]
