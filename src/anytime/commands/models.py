"""List the models that can be trained and the trained ones, or describe one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from anytime.commands.parser import Parser
from anytime.cost import step_macs
from anytime.model import create_model
from anytime.pretrained import list_pretrained, pretrained_folder
from anytime.registry import find_factory, list_models
from anytime.reporting.tables import Column, format_table
from anytime.saving import ModelInfo, read_config
from anytime.support.names import nearest
from anytime.support.units import macs_text


def run(arguments: Sequence[str]) -> int:
    parser = Parser("models", __doc__, "  anytime models\n  anytime models anytimenet")
    parser.add_argument("name", nargs="?", help="describe this model: its arguments, parameters and steps")
    name = parser.parse_args(arguments).name
    known = [*list_models(), *list_pretrained()]
    if name and name not in known:
        if "." not in name:
            parser.error(f"unknown model {name!r}{nearest(name, known)}")
        try:
            find_factory(name)
        except ValueError as error:
            parser.error(str(error))
    print(_description(name) if name else _overview())
    return 0


def _overview() -> str:
    """The families that can be trained, and the trained models of the package."""
    families = [
        {"name": name, "what": inspect.cleandoc(find_factory(name).__doc__ or "").partition("\n")[0]} for name in list_models()
    ]
    columns = [Column("name", "name"), Column("what", "what it is")]
    text = f"models to train (`anytime models NAME` describes one):\n{format_table(families, columns)}"
    trained = []
    for name in list_pretrained():
        info = ModelInfo.from_dict(read_config(pretrained_folder(name)).get("metadata", {}))
        trained.append({"name": name, "data": info.data, "result": info.result})
    if trained:
        columns = [Column("name", "name"), Column("data", "data set"), Column("result", "measured")]
        text += f"\n\ntrained models (`anytime predict NAME IMAGE`):\n{format_table(trained, columns)}"
    return text


def _description(name: str) -> str:
    """Arguments, parameters and steps of a family; the model card of a trained model."""
    if name in list_pretrained():
        return (pretrained_folder(name) / "README.md").read_text(encoding="utf-8")
    from anytime.commands.train_help import class_help  # late: imports Lightning

    model = create_model(name)
    size = (model.in_channels, 32, 32)
    macs = step_macs(model, size)
    rows = [{"step": t, "macs": m, "share": m / macs[-1]} for t, m in enumerate(macs, 1)]
    columns = [Column("step", "step"), Column("macs", "MACs", macs_text), Column("share", "% of full", ".1%")]
    return (
        f"{class_help('model', name)}\n\nwith these arguments: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{model.num_steps} steps, at {size[1]}x{size[2]} pixels:\n{format_table(rows, columns)}"
    )
