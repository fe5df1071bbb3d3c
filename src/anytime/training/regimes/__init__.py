"""What a training step computes, under any objective: all answers together, heads alone, some of them, other gradients."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from anytime.data import ImageData
from anytime.model import AnytimeModel, State, map_state
from anytime.objectives.weighted import Objective, StepObjective, step_losses
from anytime.training.regimes.base import Regime, answer_loss
from anytime.training.regimes.features import CachedFeatures, Precision, Trunk, keeps_features
from anytime.training.regimes.freezing import find_heads, freeze_trunk, require_frozen

if TYPE_CHECKING:
    from anytime.training.module import AnytimeModule
