"""What a response says about answers."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from anytime.model import AnytimeModel
from anytime.runtime.answer import PRIOR
from anytime.server.tickets import Ticket
from anytime.server.worker import Served


def answered(model: AnytimeModel, ticket: Ticket) -> list[Served]:
    """The answers of a ticket; equal probabilities where there is none."""
    if all(ticket.answers):
        return [*filter(None, ticket.answers)]
    equal = np.concatenate([np.full(size, 1 / size, np.float32) for size in model.levels])
    pairs = zip(ticket.answers, ticket.reasons, strict=True)
    return [answer or Served(equal, PRIOR, float(equal[0]), 0, reason) for answer, reason in pairs]


def facts(model: AnytimeModel, answers: list[Served], ticket: Ticket) -> dict[str, Any]:
    """What every response says: about several images, that of the one that got least, and the sum of all MACs."""
    least = min(answers, key=lambda answer: (answer.step, answer.confidence))
    return {
        "step": least.step,
        "steps": model.num_steps,
        "reason": least.reason,
        "confidence": round(least.confidence, 6),
        "macs": sum(answer.macs for answer in answers),
        "missed": ticket.missed,
    }


def described(name: str, model: AnytimeModel, answer: Served, ticket: Ticket) -> dict[str, Any]:
    """An answer about one image as JSON: `label` and `class` of the first label level, `classes` of all."""
    known, ends = model.info.class_names, [*accumulate(model.levels)]
    starts = [0, *ends[:-1]]
    labels = [int(answer.probabilities[start:end].argmax()) for start, end in zip(starts, ends, strict=True)]
    places = [start + label for start, label in zip(starts, labels, strict=True)]
    classes = [known[place] if known else str(label) for place, label in zip(places, labels, strict=True)]
    return {
        "model": name, "label": labels[0], "class": classes[0], "classes": classes, **facts(model, [answer], ticket),
        "seconds": round(ticket.elapsed, 6), "probabilities": [round(p, 6) for p in answer.probabilities.tolist()],
    }  # fmt: skip
