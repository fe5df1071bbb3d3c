"""The model card: what a trained model is, how it was trained, and the measured quality and cost of every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anytime.model import AnytimeModel
from anytime.reporting.columns import STEP_COLUMNS
from anytime.reporting.tables import markdown_table
from anytime.support.hub_card import recipe_text
from anytime.support.text import printable

KEYS = ("step", "macs", "share_of_macs", "contract_macs", "accuracy", "confidence", "true_class_probability", "ece", "seconds")


def model_card(name: str, model: AnytimeModel, numbers: Mapping[str, Any], trained_on: str = "", notes: str = "") -> str:
    """The card of a trained model as Markdown.

    Args:
        name: Heading.
        model: Holds the recipe in its `info`.
        numbers: `analysis.summary` of its test trace.
        trained_on: Hardware and duration of the training, in words.
        notes: Paragraphs after the table.
    """
    meta, recipe = numbers["meta"], model.info.recipe
    columns = [column for key in KEYS for column in STEP_COLUMNS if column.key == key]
    errors = numbers["error_at_cost"]["macs"]
    milestones = ", ".join(f"{share}: {'–' if value is None else f'{value:.2%}'}" for share, value in errors.items())
    channels, height, width = meta["input_size"]
    timed = any(row.get("seconds") is not None for row in numbers["steps"])
    timing = f"; ms are medians at batch 1 on {meta['hardware']}, torch {meta['torch']}, float32, eager" if timed else ""
    answers = "1 answer" if model.num_steps == 1 else f"{model.num_steps} answers"
    parts = [
        f"# {name}",
        f"{meta['model']}, {meta['parameters']:,} parameters, {answers} for images of {channels} channels "
        f"and {height}x{width} pixels in [0, 1]; classes: {printable(', '.join(model.info.class_names))}.",
        f"Measured on the {numbers['samples']:,} {meta.get('part', '')} images of {meta.get('dataset')}, which were not used "
        f"for training; seed {recipe.get('seed', 0)} (one run). MACs are multiply-adds per image, cumulative over "
        f"the stream (interruptible) or for only that answer (contract){timing}. Confidence is the mean max softmax, "
        "p(correct class) the measure of Kim et al. (2020), eq. 5.",
        markdown_table(numbers["steps"], columns),
        f"Average error over all steps {numbers['average_error']:.2%} (timeliness {numbers['timeliness']:.2%}); error at "
        f"share of the MACs: {milestones}; largest drop in accuracy from one step to the next: {numbers['largest_drop']:.2%}.",
        notes,
        f"Trained on {trained_on}." if trained_on else "",
        recipe_text(recipe),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
