"""Models by name, as in timm: `register_model`, `list_models`, and what builds one of them; loaders of folders by file."""

from __future__ import annotations

import fnmatch
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from anytime.support.names import import_object, nearest

__all__ = ["list_models", "register_model", "variant"]

Factory = Callable[..., Any]  # f(num_classes=10, ...) -> AnytimeModel
AnyFactory = TypeVar("AnyFactory", bound=Factory)

_FACTORIES: dict[str, Factory] = {}
_VARIANTS: dict[str, tuple[str, str, str]] = {}  # module and base of each, so that a module may be reloaded
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
_CLASSES: dict[type, None] = {}  # in the order of their definition
_LOADERS: dict[str, Callable[..., Any]] = {}  # by the file that a folder of their kind holds
_SOURCES: list[Callable[[], object]] = []
_FILLING = threading.RLock()


def add_source(load: Callable[[], object]) -> None:
    """`load()` registers more models and loaders; it is called once, before the first name is looked up."""
    _SOURCES.append(load)


def _fill() -> None:
    with _FILLING:
        while _SOURCES:
            load = _SOURCES.pop()  # before it is called, because it may look up names itself
            try:
                load()
            except BaseException:
                _SOURCES.append(load)
                raise


def register_model(factory: AnyFactory) -> AnyFactory:
    """Decorator: makes a function `f(num_classes=10, ...) -> AnytimeModel` known under its own name."""
    name = factory.__name__
    if factory.__module__.partition(".")[0] != __package__:  # else while families are imported
        _fill()
    other = _FACTORIES.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (factory.__module__, factory.__qualname__):
        raise ValueError(f"model {name!r} is registered already, by {other.__module__}")
    _FACTORIES[name] = factory
    return factory


def variant(base: Factory, name: str, summary: str, /, *, fixed: Mapping[str, Any] | None = None, **defaults: Any) -> Factory:
    """Registers `name`: a class or factory with some arguments fixed and other defaults for some.

    Signature, type hints and help are those of the base, so a family documents its arguments once. Only arguments that can be
    given by name are offered.

    Args:
        base: The class or factory; the `Args:` section of its docstring, if there is one, becomes the help.
        name: The name to register; assign the result to a module-level variable of this name.
        summary: First line of the docstring: what this variant is.
        fixed: Arguments that the variant does not offer, with their values.
        **defaults: Other defaults of arguments that it offers.

    Raises:
        ValueError: The base has no such argument, its type hints cannot be read, or another model has this name. The variant
            raises it for an argument that is fixed.

    Example:
        >>> from anytime import create_model
        >>> from anytime.models.anytimenet import AnytimeNet
        >>> from anytime.registry import variant
        >>> two_sections = variant(AnytimeNet, "two_sections", "AnytimeNet of two sections.", blocks=(2, 2), scheme=(1, 1))
        >>> create_model("two_sections").num_steps
        3
    """
    fixed = dict(fixed or {})
    parameters = dict(inspect.signature(base).parameters)
    for argument in (*fixed, *defaults):
        if argument not in parameters:
            raise ValueError(f"{base.__name__} has no argument {argument!r}{nearest(argument, parameters)}")

    def factory(*args: Any, **kwargs: Any) -> Any:
        arguments = _all_arguments(signature, *args, **kwargs)
        if clash := fixed.keys() & arguments.keys():
            raise ValueError(f"model {name!r} has no argument {min(clash)!r}; it is fixed to {fixed[min(clash)]!r}")
        return base(**fixed, **arguments)

    try:
        hints = get_type_hints(base.__init__ if isinstance(base, type) else base)  # type: ignore[misc]
    except NameError as error:
        raise ValueError(f"the type hints of {base.__name__} cannot be read: {error}; import it where it is used") from error
    offered = [
        parameter.replace(default=defaults.get(key, parameter.default), annotation=hints.get(key, parameter.annotation))
        for key, parameter in parameters.items()
        if key not in fixed and parameter.kind in _BY_NAME
    ]
    result = base if isinstance(base, type) else hints.get("return", Any)
    signature = inspect.Signature(offered, return_annotation=result)
    factory.__signature__ = signature  # type: ignore[attr-defined]
    factory.__annotations__ = {parameter.name: parameter.annotation for parameter in offered} | {"return": result}
    factory.__name__ = factory.__qualname__ = name
    factory.__module__ = sys._getframe(1).f_globals.get("__name__", "__main__")  # the caller's, as namedtuple does
    described = _argument_lines(base, [p.name for p in offered])
    factory.__doc__ = "\n".join([summary, *(["", "Args:", *described] if described else [])])
    key = (factory.__module__, base.__module__, base.__qualname__)
    if name in _FACTORIES and _VARIANTS.get(name) != key:
        raise ValueError(f"model {name!r} is registered already, by {_FACTORIES[name].__module__}")
    _VARIANTS[name] = key
    return register_model(factory)


def _all_arguments(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name: defaults included, those of `**kwargs` beside the others, without `*args`."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            arguments |= dict(arguments.pop(parameter.name))
    return arguments


def _argument_lines(base: Factory, names: Sequence[str]) -> list[str]:
    """The lines of a docstring's `Args:` section that describe the arguments `names`; none without such a section."""
    lines = (inspect.getdoc(base) or "").splitlines()
    if "Args:" not in lines:
        return []
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
        >>> from anytime import list_models
        >>> list_models("anytimenet*")
        ['anytimenet', 'anytimenet_baseline']
    """
    _fill()
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
    _fill()
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


def register_loader(file: str) -> Callable[[AnyFactory], AnyFactory]:
    """Decorator: makes `f(directory, trust=False) -> AnytimeModel` what `anytime.load` calls for folders that hold `file`."""

    def register(loader: AnyFactory) -> AnyFactory:
        _LOADERS[file] = loader
        return loader

    return register


def find_loader(directory: Path) -> Callable[..., Any] | None:
    """What loads a folder, by the files that it holds; None if it holds none that a loader was registered for."""
    _fill()
    return next((loader for file, loader in _LOADERS.items() if (directory / file).is_file()), None)


def plain_numbers(value: Any) -> Any:
    """The same dict, list, tuple or value with numpy's numbers as Python's, which a file can hold."""
    import numpy as np  # here, because `anytime --help` does without

    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: plain_numbers(each) for key, each in value.items()}
    return type(value)(map(plain_numbers, value)) if type(value) in (list, tuple) else value


def build_model(name: str, num_classes: int | tuple[int, ...] = 10, **arguments: Any) -> Any:
    """What `anytime.create_model` returns and documents; this room does not know its class."""
    factory = find_factory(name)
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {"num_classes": num_classes, **arguments}
    for argument in arguments:
        if argument not in parameters and not open_ended:
            raise ValueError(f"model {name!r} has no argument {argument!r}{nearest(argument, parameters)}")
    arguments = plain_numbers(arguments)
    model = factory(**arguments)
    if type(model) not in _CLASSES:
        raise ValueError(f"model {name!r} must return an AnytimeModel, got a {type(model).__name__}")
    kept = _all_arguments(inspect.signature(factory), **arguments)
    model.config = {"model": name, "arguments": plain_numbers({**kept, **model.settled_arguments})}
    return model
