"""From recipe and flags to the parts of a training: names resolved, keys checked, everything written down."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import ArgumentParser

import anytime.data
import anytime.models  # registers the models
from anytime import objectives, registry
from anytime.data import ImageData
from anytime.model import AnytimeModel
from anytime.objectives import Objective
from anytime.registry import nearest
from anytime.training import schedules
from anytime.training.fit import Settings
from anytime.training.schedules import Schedule

Config = dict[str, Any]

FROM_DATA = {"num_classes", "in_channels"}  # arguments of a model that the data set decides
DEFAULTS: Config = {
    "objective": {"class_path": "anytime.objectives.Weighted"},
    "optimizer": {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    },
    "schedule": {"class_path": "anytime.training.OneCycle"},
}


class UsageError(ValueError):
    """The command or recipe asks for something that does not exist or makes no sense."""

    exit_code = 2


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _class_path(name: str, module: ModuleType, base: type, kind: str) -> str:
    """Import path of a class by its name in `module` (any case) or by import path."""
    if "." in name:
        module_name, _, attribute = name.rpartition(".")
        try:
            if callable(getattr(importlib.import_module(module_name), attribute)):
                return name
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{kind} {name!r} cannot be imported: {error}") from error
    classes = {k: v for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, base) and v is not base}
    for key in classes:
        if _plain(key) == _plain(name):
            return f"{module.__name__}.{key}"
    raise UsageError(f"unknown {kind} {name!r}{nearest(name, classes)}")


def _resolve(section: str, name: str) -> str:
    try:
        if section == "model":
            return registry.import_path(name)
        if section == "data":
            return anytime.data.resolve(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    modules: dict[str, tuple[ModuleType, type]] = {
        "objective": (objectives, Objective),
        "optimizer": (torch.optim, torch.optim.Optimizer),
        "schedule": (schedules, Schedule),
    }
    return _class_path(name, *modules[section], section)


SECTIONS = ("model", "data", "objective", "optimizer", "schedule")


def _imported(path: str) -> Callable[..., Any]:
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _parameters(path: str) -> set[str] | None:
    """Names a class or function can be given; None if it takes any."""
    target = _imported(path)
    classes: Iterable[Any] = target.__mro__[:-1] if inspect.isclass(target) else [target]
    names: set[str] = set()
    for owner in classes:
        if inspect.isclass(owner) and "__init__" not in vars(owner):
            continue
        parameters = inspect.signature(owner.__init__ if inspect.isclass(owner) else owner).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {
            "self",
            "params",
        }
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None


def _check_key(section: str, path: str, key: str) -> None:
    if section == "model" and key in FROM_DATA:
        raise UsageError(f"model.{key} is given by the data set, leave it out")
    if section == "data" and key == "seed":
        raise UsageError("data.seed follows --seed, leave it out")
    valid = _parameters(path)
    if valid is not None and key not in valid - (FROM_DATA if section == "model" else set()):
        raise UsageError(f"{path.rpartition('.')[2]} has no argument {section}.{key}{nearest(key, sorted(valid))}")


def top_level_keys() -> list[str]:
    """What a recipe may hold at its top level."""
    return [*SECTIONS, *(field.name for field in fields(Settings))]


def read_recipe(path: str | Path) -> Config:
    """A recipe file with names resolved to import paths and every key checked.

    Raises:
        UsageError: No such file, not a YAML mapping, an unknown key or name (the message names the nearest valid one).
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"recipe {path} must be a mapping like 'model: anytimenet', got {type(recipe).__name__}")
    try:
        return resolve_recipe(recipe)
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from error


def resolve_recipe(recipe: Config) -> Config:
    """The same recipe with names resolved to import paths; raises `UsageError` for what is unknown."""
    resolved: Config = {}
    for key, value in recipe.items():
        if key not in top_level_keys():
            raise UsageError(f"unknown key {key!r}{nearest(str(key), top_level_keys())}")
        if key in SECTIONS:
            value = {"class_path": value} if isinstance(value, str) else value
            if not isinstance(value, dict) or not isinstance(value.get("class_path"), str):
                raise UsageError(f"{key} must be a name, or a mapping with class_path and init_args, got {value!r}")
            if extra := value.keys() - {"class_path", "init_args"}:
                raise UsageError(f"unknown key {key}.{min(extra)}; valid: class_path, init_args")
            path, arguments = _resolve(key, value["class_path"]), value.get("init_args") or {}
            for argument in arguments:
                _check_key(key, path, argument)
            value = {"class_path": path, "init_args": arguments}
        resolved[key] = value
    return resolved


def build_parser() -> ArgumentParser:
    """The parser of `anytime train`, made from the constructors' signatures."""
    parser = ArgumentParser(prog="anytime train", exit_on_error=False, description=__doc__)
    parser.add_subclass_arguments(
        AnytimeModel, "model", skip=FROM_DATA, help="a name of `anytime models`, or package.module.Class"
    )
    parser.add_subclass_arguments(
        ImageData, "data", skip={"seed"}, help="a name of `anytime datasets`, or package.module.Class"
    )
    parser.add_subclass_arguments(Objective, "objective", help="what to minimise, e.g. weighted")
    parser.add_subclass_arguments(torch.optim.Optimizer, "optimizer", skip={"params"}, help="a class of torch.optim, e.g. SGD")
    parser.add_subclass_arguments(Schedule, "schedule", help="one_cycle, cosine, steps or constant")
    parser.add_class_arguments(Settings)
    return parser


def _resolve_flags(flags: list[str], paths: dict[str, str]) -> list[str]:
    """Flags with names replaced by import paths; unknown ones are refused with the nearest valid name."""
    resolved: list[str] = []
    pending: str | None = None
    for flag in flags:
        if pending is not None:
            paths[pending] = flag = _resolve(pending, flag)
            pending = None
        elif flag.startswith("--"):
            name, equals, value = flag[2:].partition("=")
            section, dot, key = name.partition(".")
            if section not in top_level_keys():
                raise UsageError(f"unknown option --{name}{nearest(section, top_level_keys())}")
            if section in SECTIONS and not dot:
                if equals:
                    paths[section] = _resolve(section, value)
                    flag = f"--{section}={paths[section]}"
                else:
                    pending = section
            elif section in SECTIONS and key == "help":
                pending = section
            elif section in SECTIONS and section in paths and key != "class_path":
                _check_key(section, paths[section], key.removeprefix("init_args.").partition(".")[0])
        resolved.append(flag)
    if pending is not None:
        raise UsageError(f"--{pending} needs a name")
    return resolved


def parse(flags: list[str], recipes: Iterable[str | Path] = ()) -> Config:
    """Defaults, then recipes in order, then flags: the resolved configuration of a training.

    Raises:
        UsageError: Unknown names or keys, values of the wrong type, no model or no data set.
    """
    base: Config = dict(DEFAULTS)
    for recipe in recipes:
        base |= read_recipe(recipe)
    paths = {section: base[section]["class_path"] for section in SECTIONS if section in base}
    flags = _resolve_flags(flags, paths)
    for section in ("model", "data"):
        if section not in paths:
            raise UsageError(f"say which {section}: --{section} NAME (see `anytime {section.replace('data', 'dataset')}s`)")
    parser = build_parser()
    try:
        parsed = parser.parse_args(flags, namespace=parser.parse_object(base, defaults=True))
    except Exception as error:  # jsonargparse raises several kinds
        raise UsageError(str(error)) from error
    config = yaml.safe_load(parser.dump(parsed, skip_none=False))
    for section in SECTIONS:
        config[section].setdefault("init_args", {})
    return config


def short_names(config: Config) -> Config:
    """The configuration as people write it: names in place of the library's own import paths."""
    short = {}
    for key, value in config.items():
        if key in SECTIONS:
            path = value["class_path"]
            name = path.rpartition(".")[2]
            try:
                same = _imported(_resolve(key, name)) is _imported(path)
            except UsageError:
                same = False
            value = {"class_path": name if same else path, "init_args": value["init_args"]}
        short[key] = value
    return short


@dataclass
class Parts:
    """What `anytime.training.fit` is called with."""

    model: AnytimeModel
    data: ImageData
    objective: Objective
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    settings: Settings


def build(config: Config) -> Parts:
    """Builds all parts of a training from a resolved configuration, after seeding; reads the data.

    Raises:
        UsageError: An argument out of range.
        ValueError, FileNotFoundError, OSError: Data that are missing or damaged.
    """

    def create(section: str, **more: Any) -> Any:
        return _imported(config[section]["class_path"])(**config[section]["init_args"], **more)

    try:
        settings = Settings(**{field.name: config[field.name] for field in fields(Settings) if field.name in config})
        objective, schedule = create("objective"), create("schedule")
        data = create("data", seed=settings.seed)
        optimizer = functools.partial(_imported(config["optimizer"]["class_path"]), **config["optimizer"]["init_args"])
        optimizer([torch.nn.Parameter(torch.zeros(1))])  # refuses bad values now and not after reading the data
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    L.seed_everything(settings.seed, workers=True, verbose=False)
    data.setup("fit")
    path = short_names({"model": config["model"]})["model"]["class_path"]
    valid = _parameters(config["model"]["class_path"])
    channels = {"in_channels": data.input_size[0]} if valid is None or "in_channels" in valid else {}
    classes = data.levels if data.levels else data.num_classes
    try:
        model = registry.create_model(path, classes, **channels, **config["model"]["init_args"])
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    if settings.normalize:
        model.set_normalization(data.mean, data.std)
    model.metadata = {
        "data": type(data).__name__,
        "input_size": list(data.input_size),
        "class_names": list(data.class_names),
        "recipe": short_names(config),
        "settings": asdict(settings),
    }
    return Parts(model, data, objective, optimizer, schedule, settings)
