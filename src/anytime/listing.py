"""What there is: models to train, trained models, data sets; as text for the command line."""

from __future__ import annotations

import inspect
import os
from dataclasses import asdict

from anytime.analysis.tables import Column, format_table, macs_text
from anytime.cost import step_macs
from anytime.pretrained import list_pretrained, load, pretrained_folder
from anytime.registry import create_model, find_factory, list_models


def _first_sentence(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n")[0]


def list_all_models() -> str:
    """Families that can be trained, and trained models inside the package."""
    rows = [{"name": name, "what": _first_sentence(find_factory(name).__doc__)} for name in list_models()]
    text = "models to train (`anytime models NAME` describes one):\n" + format_table(
        rows, [Column("name", "name"), Column("what", "what it is")]
    )
    trained = []
    for name in list_pretrained():
        metadata = load(name).metadata
        trained.append({"name": name, "data": metadata.get("data"), "result": metadata.get("result", "")})
    if trained:
        columns = [Column("name", "name"), Column("data", "data set"), Column("result", "measured")]
        text += "\n\ntrained models (`anytime predict NAME IMAGE`):\n" + format_table(trained, columns)
    return text


def describe_model(name: str) -> str:
    """Arguments, parameters and steps of a model; of a trained one its model card."""
    if name in list_pretrained():
        return (pretrained_folder(name) / "README.md").read_text(encoding="utf-8")
    factory = find_factory(name)
    model = create_model(name)
    size = (model.in_channels, 32, 32)
    macs = step_macs(model, size)
    arguments = "\n".join(f"  --model.{p}" for p in inspect.signature(factory).parameters.values() if p.name != "num_classes")
    rows = [{"step": t + 1, "macs": m, "share": m / macs[-1]} for t, m in enumerate(macs)]
    columns = [Column("step", "step"), Column("macs", "MACs", macs_text), Column("share", "% of full", ".1%")]
    return (
        f"{name}\n\n{inspect.cleandoc(factory.__doc__ or '')}\n\narguments and defaults:\n{arguments}\n\n"
        f"with these: {sum(p.numel() for p in model.parameters()):,} parameters, {model.num_steps} steps, at "
        f"{size[1]}x{size[2]} pixels:\n{format_table(rows, columns)}"
    )


def list_all_datasets(root: str | os.PathLike[str] | None = None) -> str:
    """All data sets with their sizes, and whether they are under `root`."""
    from anytime.data import describe

    rows = [asdict(row) for row in describe(root)]
    return format_table(rows, [Column(key, key.replace("_", " ")) for key in rows[0]])
