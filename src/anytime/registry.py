"""Models by name: `register_model`, `create_model`, `list_models` (in timm's manner)."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from anytime.support.names import nearest

if TYPE_CHECKING:
    from anytime.model import AnytimeModel

_FACTORIES: dict[str, Callable[..., AnytimeModel]] = {}


def register_model(factory: Callable[..., AnytimeModel]) -> Callable[..., AnytimeModel]:
    """Decorator: makes a function `f(num_classes=10, ...) -> AnytimeModel` known under its own name."""
    name = factory.__name__
    other = _FACTORIES.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (factory.__module__, factory.__qualname__):
        raise ValueError(f"model {name!r} is registered already, by {other.__module__}")
    _FACTORIES[name] = factory
    return factory


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell pattern, sorted.

    Example:
        >>> list_models("anytimenet*")
        ['anytimenet', 'anytimenet_baseline']
    """
    return sorted(fnmatch.filter(_FACTORIES, pattern))


def find_factory(name: str) -> Callable[..., AnytimeModel]:
    """The function or class behind a registered name or an import path (`package.module.Class`).

    Nothing else can be called by name: the name may come from a file of unknown origin.

    Raises:
        ValueError: No model has this name, or the import path leads nowhere or to something else than a model.
    """
    if name in _FACTORIES:
        return _FACTORIES[name]
    if "." not in name:
        raise ValueError(f"unknown model {name!r}{nearest(name, list_models())}")
    module_name, _, attribute = name.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be imported: {error}") from error
    from anytime.model import AnytimeModel  # here, for that module imports this one

    subclass = isinstance(factory, type) and issubclass(factory, AnytimeModel)
    if not subclass and not any(factory is registered for registered in _FACTORIES.values()):
        raise ValueError(f"model {name!r} is neither a subclass of AnytimeModel nor a function marked @register_model")
    return factory


def import_path(name: str) -> str:
    """The import path of a model given by name or by import path."""
    factory = find_factory(name)
    return f"{factory.__module__}.{factory.__qualname__}"


def create_model(name: str, num_classes: int = 10, **arguments: Any) -> AnytimeModel:
    """Builds a model by registered name or by import path of a user's own class (or function marked `register_model`).

    The name and all arguments (defaults included) are kept in `model.config`, so that a saved model can be built again. What
    a model has in `settled` takes the place of what was given, such as the names of exits of which a number was asked for.

    Args:
        name: A name of `list_models()`, or `package.module.Class`.
        num_classes: Number of classes, K of the logits `[B, K]`.
        **arguments: Constructor arguments of the model, see `help(...)` of its function or `anytime models NAME`.

    Raises:
        ValueError: Unknown name or argument (the message names the nearest valid one), or an argument out of range.

    Example:
        >>> create_model("anytimenet", width=8).num_steps
        7
    """
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
        | getattr(model, "settled", {}),
    }
    return model
