"""The card of a model on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from anytime.support.text import printable


def hub_card(model: Any) -> str:
    """The Markdown card of a model without measurements at hand, under the hub's heading."""
    info = model.info
    built = f"{model.config['model']}, {sum(p.numel() for p in model.parameters()):,} parameters, {model.num_steps} answers"
    names = printable(", ".join(info.class_names))
    pipeline = "pipeline_tag: image-classification\n" if info.task == "classification" else ""
    parts = [
        f"---\nlibrary_name: anytime\n{pipeline}tags: [anytime, early-exit]\n---",
        f"# {built}",
        "A network that holds an answer after each of its steps, and answers better the longer it may compute.",
        '```python\nimport anytime\n\nmodel = anytime.AnytimeModel.from_pretrained("OWNER/NAME")\n'
        "for logits in model.stream(images):  # RGB in [0, 1]\n    ...\n```",
        f"Images: {'x'.join(map(str, info.input_size))}, in [0, 1]." if info.input_size else "",
        f"Classes: {names}." if names else "",
        f"Measured: {printable(info.result)}" if info.result else "",
        recipe_text(info.recipe),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as a block of Markdown."""
    text = yaml.safe_dump(dict(recipe), sort_keys=False).strip()
    return f"Recipe (`anytime train --config`):\n\n```yaml\n{text}\n```" if recipe else ""
