"""Papers whose tables and figures can be made again, with the paper's numbers beside ours; each study is a package here."""

from anytime.studies.optimal import train_family
from anytime.studies.runner import RunStatus, TrainingRun, TrainingStopped, find_recipe, run_all, run_status
from anytime.studies.study import Item, Result, Study, find_study, list_studies

__all__ = [
    "Item",
    "Result",
    "RunStatus",
    "Study",
    "TrainingRun",
    "TrainingStopped",
    "find_recipe",
    "find_study",
    "list_studies",
    "run_all",
    "run_status",
    "train_family",
]
