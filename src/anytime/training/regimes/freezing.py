"""Which parts of a model are its heads, and how everything else is frozen."""

from __future__ import annotations

from torch import nn

from anytime.model import AnytimeModel

CONVENTIONAL = ("head", "heads")


def find_heads(model: AnytimeModel) -> dict[str, nn.Module]:
    """The parts of a model that only answers depend on, by name.

    They are listed in the model's attribute `head_names`, which may include e.g. the norms of exits. If it is None, they are
    the parts called `head` or `heads` in the model itself, and the heads of the models that it contains. Parts without
    parameters are left out.

    Raises:
        ValueError: There are none, or none with parameters.

    Example:
        >>> from anytime import create_model
        >>> from anytime.training.regimes.freezing import find_heads
        >>> list(find_heads(create_model("anytimenet", width=4)))
        ['head']
    """
    names = model.head_names
    if names is None:
        known = dict(model.named_modules())
        inner = [(f"{name}." if name else "", part) for name, part in known.items() if isinstance(part, AnytimeModel)]
        candidates = [f"{prefix}{name}" for prefix, part in inner for name in part.head_names or CONVENTIONAL]
        names = [name for name in candidates if name in known]
    try:
        heads = {name: model.get_submodule(name) for name in names}
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__}.head_names is {tuple(names)}, but {error}") from error
    trained = {name: head for name, head in heads.items() if next(head.parameters(), None) is not None}
    if not trained:
        reason = f"those found ({', '.join(heads)}) have no parameters" if heads else "it has no part called head or heads"
        raise ValueError(
            f"the heads of {type(model).__name__} are not known: {reason}; give it more than one answer, or name them by an "
            "attribute of the class, head_names = ('classifier',)"
        )
    return trained


def freeze_trunk(model: AnytimeModel) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """Puts all but the heads into eval mode, without gradients; heads, and the models that contain them, into train mode.

    Returns:
        The modules of the trunk, and its parameters that had gradients before.
    """
    heads = find_heads(model)
    trained = {id(p) for head in heads.values() for p in head.parameters()}
    frozen = [p for p in model.parameters() if id(p) not in trained and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    model.train()
    trunk = []
    for name, module in model.named_modules():
        contains = isinstance(module, AnytimeModel) and (not name or any(head.startswith(f"{name}.") for head in heads))
        inside = any(f"{name}.".startswith(f"{head}.") for head in heads)
        if not contains and not inside:
            module.training = False
            trunk.append(module)
    return trunk, frozen
