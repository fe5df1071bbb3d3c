"""Models by name, as in timm: `register_model`, `list_models`, and what builds one of them."""

from __future__ import annotations

import fnmatch
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from anytime.support.names import import_object, nearest

Factory = Callable[..., Any]  # f(num_classes=10, ...) -> AnytimeModel
AnyFactory = TypeVar("AnyFactory", bound=Factory)

_FACTORIES: dict[str, Factory] = {}
_VARIANTS: dict[str, tuple[str, str]] = {}  # the base of each, so that a module may be reloaded
_CLASSES: dict[type, None] = {}  # in the order of their definition


def register_model(factory: AnyFactory) -> AnyFactory:
    """Decorator: makes a function `f(num_classes=10, ...) -> AnytimeModel` known under its own name."""
    name = factory.__name__
    other = _FACTORIES.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (factory.__module__, factory.__qualname__):
        raise ValueError(f"model {name!r} is registered already, by {other.__module__}")
    _FACTORIES[name] = factory
    return factory


def variant(base: Factory, name: str, summary: str, *, fixed: Mapping[str, Any] | None = None, **defaults: Any) -> Factory:
    """Registers `name`: a class or factory with some arguments fixed and other defaults for some.

    Signature, type hints and help are those of the base, so a family documents its arguments once.

    Args:
        base: The class or factory; its docstring has an `Args:` section.
        name: The name to register; assign the result to a module-level variable of this name.
        summary: First line of the docstring: what this variant is.
        fixed: Arguments that the variant does not offer, with their values.
        **defaults: Other defaults of arguments that it offers.

    Raises:
        ValueError: The base has no such argument.

    Example:
        >>> ann_resnet101 = variant(ANNResNet, "ann_resnet101", "ResNet-101 ...", fixed={"depths": (3, 4, 23, 3)}, period=3)
    """
    fixed = dict(fixed or {})
    parameters = dict(inspect.signature(base).parameters)
    for argument in (*fixed, *defaults):
        if argument not in parameters:
            raise ValueError(f"{base.__name__} has no argument {argument!r}{nearest(argument, parameters)}")

    def factory(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return base(**fixed, **bound.arguments)

    hints = get_type_hints(base.__init__ if isinstance(base, type) else base)  # type: ignore[misc]
    offered = [
        parameter.replace(default=defaults.get(key, parameter.default), annotation=hints.get(key, parameter.annotation))
        for key, parameter in parameters.items()
        if key not in fixed
    ]
    result = base if isinstance(base, type) else hints.get("return", Any)
    signature = inspect.Signature(offered, return_annotation=result)
    factory.__signature__ = signature  # type: ignore[attr-defined]
    factory.__annotations__ = {parameter.name: parameter.annotation for parameter in offered} | {"return": result}
    factory.__name__ = factory.__qualname__ = name
    factory.__module__ = base.__module__
    factory.__doc__ = f"{summary}\n\nArgs:\n" + "\n".join(_argument_lines(base, [p.name for p in offered]))
    if name in _FACTORIES and _VARIANTS.get(name) != (base.__module__, base.__qualname__):
        raise ValueError(f"model {name!r} is registered already, by {_FACTORIES[name].__module__}")
    _VARIANTS[name] = (base.__module__, base.__qualname__)
    return register_model(factory)


def _argument_lines(base: Factory, names: Sequence[str]) -> list[str]:
    """The lines of a docstring's `Args:` section that describe the arguments `names`."""
    lines = inspect.cleandoc(base.__doc__ or "").splitlines()
    section = itertools.takewhile(lambda line: not line or line.startswith(" "), lines[lines.index("Args:") + 1 :])
    kept, keep = [], False
    for line in section:
        if line.startswith("    ") and not line.startswith("     "):
            keep = line.strip().partition(":")[0] in names
        if keep and line:
            kept.append(line)
    return kept


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell pattern, sorted.

    Example:
        >>> list_models("anytimenet*")
        ['anytimenet', 'anytimenet_baseline']
    """
    return sorted(fnmatch.filter(_FACTORIES, pattern))


def register_class(model_class: type) -> None:
    """Makes a subclass of `AnytimeModel` known; every subclass registers itself when it is defined."""
    _CLASSES[model_class] = None


def find_factory(name: str) -> Factory:
    """The function or class behind a registered name or an import path (`package.module.Class`).

    Nothing else can be called by name. A path that comes from a file needs the user's consent, see `support.trust`.

    Raises:
        ValueError: No model has this name, or the import path leads nowhere or to something that is not a model.
        UntrustedName: The path comes from a file, and the user has not consented to importing it.
    """
    if name in _FACTORIES:
        return _FACTORIES[name]
    if "." not in name:
        raise ValueError(f"unknown model {name!r}{nearest(name, list_models())}")
    last = name.rpartition(".")[2]
    if name.startswith("anytime.") and last in _FACTORIES:  # its module may have moved
        return _FACTORIES[last]
    defined: list[Factory] = [*_FACTORIES.values(), *_CLASSES]
    for known in reversed(defined):  # the latest of a class that was defined again
        if f"{known.__module__}.{known.__qualname__}" == name:  # imported already
            return known
    factory = import_object(name, "model")
    if not (isinstance(factory, type) and factory in _CLASSES) and factory not in _FACTORIES.values():
        raise ValueError(f"model {name!r} is neither a subclass of AnytimeModel nor a function marked @register_model")
    return factory


def import_path(name: str) -> str:
    """The import path of a model given by name or by import path."""
    factory = find_factory(name)
    return f"{factory.__module__}.{factory.__qualname__}"


def build_model(name: str, num_classes: int | tuple[int, ...] = 10, **arguments: Any) -> Any:
    """What `anytime.create_model` returns and documents; this room does not know its class."""
    factory = find_factory(name)
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {"num_classes": num_classes, **arguments}
    for argument in arguments:
        if argument not in parameters and not open_ended:
            raise ValueError(f"model {name!r} has no argument {argument!r}{nearest(argument, parameters)}")
    model = factory(**arguments)
    bound = inspect.signature(factory).bind(**arguments)
    bound.apply_defaults()
    variable = {p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD}
    kept = {key: value for key, value in bound.arguments.items() if key not in variable}
    model.config = {
        "model": name,
        "arguments": kept
        | {k: v for key in variable for k, v in bound.arguments[key].items()}
        | dict(model.settled_arguments),
    }
    return model
