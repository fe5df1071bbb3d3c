from pathlib import Path

import pytest
import torch
import yaml

from anytime.commands.train_help import class_help, help_wanted
from anytime.training.build import build
from anytime.training.config import SECTIONS, UsageError, canonical_name, find, parse, read_recipe, resolve_recipe

BASE = ["--model", "anytimenet", "--data", "digits"]
NOT_REGISTERED = "anytime.models.anytimenet.AnytimeNet"
OLD_STEPS = ("Steps", "steps", "anytime.training.schedules.Steps")


@pytest.fixture
def recipe(tmp_path: Path):
    def write(text: str, name: str = "recipe.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_defaults():
    config = parse(BASE)
    assert config["model"]["class_path"] == "anytimenet"
    assert config["model"]["init_args"]["scheme"] == [1, 4, 3]
    assert config["optimizer"] == {
        "class_path": "SGD",
        "init_args": config["optimizer"]["init_args"] | {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    }
    assert config["epochs"] == 10
    assert list(config)[: len(SECTIONS)] == list(SECTIONS)


@pytest.mark.parametrize(
    ("section", "name", "canonical", "path"),
    [
        ("model", "anytimenet_baseline", "anytimenet_baseline", "anytime.models.anytimenet.anytimenet_baseline"),
        ("model", "anytime.models.ann.ann", "ann", "anytime.models.ann.cifar.ann"),
        ("model", NOT_REGISTERED, NOT_REGISTERED, NOT_REGISTERED),
        ("data", "fashion-mnist", "FashionMNIST", "anytime.data.sets.mnist.FashionMNIST"),
        ("data", "anytime.data.cifar.CIFAR10", "CIFAR10", "anytime.data.sets.cifar.CIFAR10"),
        ("objective", "weighted", "Weighted", "anytime.objectives.weighted.Weighted"),
        ("objective", "anytime.objectives.td.TDLambda", "TDLambda", "anytime.objectives.td.TDLambda"),
        ("optimizer", "adamw", "AdamW", "torch.optim.adamw.AdamW"),
        ("optimizer", "torch.optim.Adam", "Adam", "torch.optim.adam.Adam"),
        ("optimizer", "torch.optim.adam.Adam", "Adam", "torch.optim.adam.Adam"),
        ("schedule", "one_cycle", "OneCycle", "anytime.training.schedules.OneCycle"),
        ("schedule", "OneCycle", "OneCycle", "anytime.training.schedules.OneCycle"),
        *[("schedule", old, "MultiStep", "anytime.training.schedules.MultiStep") for old in OLD_STEPS],
        ("regime", "anytime.training.regimes.HeadsOnly", "HeadsOnly", "anytime.training.regimes.heads_only.HeadsOnly"),
    ],
)
def test_names(section, name, canonical, path):
    assert canonical_name(section, name) == canonical
    found = find(section, canonical)
    assert f"{found.__module__}.{found.__qualname__}" == path


def test_every_constructor_argument_can_be_set():
    config = parse(
        [
            *BASE,
            *("--model.blocks", "[2,1,2]", "--model.scheme=[[1,1,1],[1,0,1]]", "--model.statistics", "shared"),
            *("--data.classes", '["1","7"]', "--data.augment", "none", "--data.validation", "100"),
            *("--objective.weights", "[1, 2]", "--schedule", "multi_step", "--schedule.milestones", "[0.3]"),
            *("--optimizer.lr", "1e-3", "--optimizer.nesterov", "false", "--gradient_clip", "1", "--devices", "2"),
        ]
    )
    assert config["model"]["init_args"]["scheme"] == [[1, 1, 1], [1, 0, 1]]
    assert config["model"]["init_args"]["statistics"] == "shared"
    assert config["data"]["init_args"]["classes"] == ["1", "7"]
    assert config["objective"]["init_args"]["weights"] == [1.0, 2.0]
    assert config["schedule"]["init_args"] == {"milestones": [0.3], "gamma": 0.1}
    assert config["optimizer"]["init_args"]["lr"] == 1e-3
    assert config["optimizer"]["init_args"]["momentum"] == 0.9
    assert (config["gradient_clip"], config["devices"]) == (1.0, 2)


def test_another_class_starts_from_its_own_defaults():
    optimizer = parse([*BASE, "--optimizer", "adamw"])["optimizer"]
    assert optimizer["class_path"] == "AdamW"
    assert optimizer["init_args"]["lr"] == 1e-3
    assert parse([*BASE, "--schedule", "constant"])["schedule"]["init_args"] == {}


def test_recipes_then_flags(recipe):
    first = recipe("model: {class_path: anytimenet, init_args: {width: 8, eps: 0.01}}\ndata: digits\nepochs: 3", "a.yaml")
    second = recipe("model: {class_path: anytimenet, init_args: {width: 4}}\nseed: 5", "b.yaml")
    config = parse(["--epochs", "7", "--model.eps", "0.1"], [first, second])
    assert (config["epochs"], config["seed"]) == (7, 5)
    assert (config["model"]["init_args"]["width"], config["model"]["init_args"]["eps"]) == (4, 0.1)
    other = parse(["--model", "anytimenet_baseline"], [first])
    assert other["model"]["init_args"]["width"] == 16


def test_configuration_written_down_is_a_recipe_for_the_same(recipe):
    config = parse(
        [*BASE, "--model.width", "4", "--data.classes", '["1","7"]', "--optimizer", "adam", "--schedule", "constant"]
    )
    assert config["model"]["class_path"] == "anytimenet"
    assert (config["data"]["class_path"], config["optimizer"]["class_path"]) == ("Digits", "Adam")
    assert parse([], [recipe(yaml.safe_dump(config))]) == config


def test_own_classes(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(
        "from anytime.data import Digits\n"
        "from anytime.models.anytimenet import AnytimeNet\n"
        "from anytime.objectives import Weighted\n"
        "from anytime.training import Schedule\n"
        "import torch\n"
        "class Net(AnytimeNet):\n"
        "    def __init__(self, num_classes, in_channels=3, depth: int = 1):\n"
        "        super().__init__(num_classes, in_channels, (depth,) * 3, (depth,), 4)\n"
        "class Data(Digits):\n"
        "    def __init__(self, only: int = 3, **kwargs):\n"
        "        super().__init__(classes=[str(i) for i in range(only)], **kwargs)\n"
        "class Loss(Weighted):\n"
        "    def __init__(self, factor: float):\n"
        "        super().__init__()\n"
        "        self.factor = factor\n"
        "class Half(Schedule):\n"
        "    def __call__(self, progress):\n"
        "        return 0.5\n"
        "class Slow(torch.optim.SGD):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    classes = {"model": "Net", "data": "Data", "objective": "Loss", "schedule": "Half", "optimizer": "Slow"}
    parts = [f"--{section}=own_parts.{name}" for section, name in classes.items()]
    more = ["--model.depth=2", "--data.only=4", "--data.limit=50", "--objective.factor=2"]
    built = build(parse([*parts, *more]))
    assert built.model.num_classes == 4
    assert built.model.config["arguments"]["depth"] == 2
    assert built.data.limit == 50
    assert built.objective.factor == 2.0
    assert built.schedule(0.3) == 0.5
    assert built.model.info.recipe["model"]["class_path"] == "own_parts.Net"
    with pytest.raises(UsageError, match=r"objective\.factor must be given"):
        parse(parts)
    assert "--data.only" in class_help("data", "own_parts.Data")
    assert "(required)" in class_help("objective", "own_parts.Loss")


def test_build_takes_classes_channels_and_normalization_from_the_data():
    torch.manual_seed(7)
    flags = [*BASE, "--model.blocks", "[1,1,1]", "--model.scheme", "[1]", "--model.width", "4", "--data.classes", '["1","7"]']
    model = build(parse(flags)).model
    assert (model.num_classes, model.in_channels) == (2, 1)
    assert 0.2 < model.mean.item() < 0.4
    assert model.info.class_names == ("1", "7")
    assert torch.equal(model.state_dict()["mean"], build(parse(flags)).model.mean)
    identity = build(parse([*flags, "--normalize", "false"])).model
    assert (identity.mean.item(), identity.std.item()) == (0.0, 1.0)


def test_recipes_of_the_library_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "recipes/anytimenet_cifar10.yaml"
    assert parse([], [name])["data"]["class_path"] == "CIFAR10"
    with pytest.raises(UsageError, match=r"recipe recipes/none\.yaml cannot be read: No such file"):
        parse([], ["recipes/none.yaml"])
    with pytest.raises(UsageError, match=r"recipe elsewhere/recipes/anytimenet_cifar10\.yaml cannot be read"):
        parse([], [f"elsewhere/{name}"])
    (tmp_path / "recipes").mkdir()
    (tmp_path / name).write_text("model: anytimenet\ndata: digits\n")
    assert parse([], [name])["data"]["class_path"] == "Digits", "a file in the working directory comes first"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"no model given; use --model NAME \(see `anytime models`\)"),
        (["--model", "anytimenet"], r"no data set given; use --data NAME \(see `anytime datasets`\)"),
        (["--model"], r"--model needs a name: .*anytimenet, .*import path"),
        (
            ["--model", "anytimenett", "--data", "digits"],
            r"unknown model 'anytimenett'; .*'anytimenet'\? \(or the import",
        ),
        (
            ["--model", "anytimenet", "--data", "digit"],
            r"unknown data set 'digit'; did you mean 'Digits'\? \(or",
        ),
        (["--model", "nowhere.Net", "--data", "digits"], "'nowhere.Net' cannot be imported: No module named 'nowhere'"),
        (["--model", "torch.nn.Linear", "--data", "digits"], "'torch.nn.Linear' is neither a subclass of AnytimeModel"),
        ([*BASE, "--objective", "weigted"], "unknown objective 'weigted'; did you mean 'Weighted'"),
        ([*BASE, "--optimizer", "adamm"], "unknown optimizer 'adamm'; did you mean 'Adam'"),
        ([*BASE, "--optimizer", "torch.nn.Linear"], "optimizer 'torch.nn.Linear' is not a subclass of Optimizer"),
        ([*BASE, "--optimizer", "torch.optim.Nope"], "'torch.optim.Nope' cannot be imported"),
        ([*BASE, "--schedule", "cosin"], "unknown schedule 'cosin'; did you mean 'Cosine'"),
        ([*BASE, "--epoch", "3"], "unknown option --epoch; did you mean '--epochs'"),
        ([*BASE, "--overwrit"], "unknown option --overwrit; did you mean '--overwrite'"),
        ([*BASE, "--model.widht", "3"], r"anytimenet has no argument model\.widht; did you mean 'width'"),
        ([*BASE, "--schedule", "constant", "--schedule.peak", "1"], r"Constant has no argument schedule\.peak; it takes none"),
        ([*BASE, "--model.num_classes", "3"], r"model\.num_classes is given by the data set"),
        ([*BASE, "--data.seed", "3"], r"data\.seed follows --seed"),
        ([*BASE, "--epochs", "x"], "epochs must be int, got 'x'"),
        ([*BASE, "--epochs", "1.5"], "epochs must be int, got '1.5'"),
        ([*BASE, "--epochs"], "--epochs needs a value"),
        ([*BASE, "--epochs", "--seed", "3"], "--epochs needs a value"),
        ([*BASE, "--model.scheme", "[x]"], r"model\.scheme must be tuple\[int, \.\.\.\] or tuple\[tuple\[.*, got '\[x\]'"),
        ([*BASE, "--deterministic", "yess"], "deterministic must be bool, got 'yess'"),
        ([*BASE, "--model.width", "abc"], r"model\.width must be int, got 'abc'"),
        ([*BASE, "--optimizer.lr", "x"], r"optimizer\.lr must be float, got 'x'"),
        ([*BASE, "--gradient_clip", "x"], "gradient_clip must be float or null, got 'x'"),
        ([*BASE, "--precision", "bf16"], "precision must be one of '32-true', .*, got 'bf16'; did you mean 'bf16-true'"),
        ([*BASE, "--data.augment", "flop"], r"data\.augment must be one of 'standard', .*, got 'flop'; did you mean 'flip'"),
        ([*BASE, "stray"], "unexpected 'stray': options begin with --"),
        ([*BASE, "--epochs", "3", "stray"], "unexpected 'stray': options begin with --"),
        (["anytimenet", "digits"], "unexpected 'anytimenet': options begin with --"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "must be a mapping like 'model: anytimenet', got list"),
        ("", "a recipe must be a mapping .* got NoneType"),
        ("model: [", "is not valid YAML"),
        ("epoch: 3", "unknown key 'epoch'; did you mean 'epochs'"),
        ("model: anytimenett", "unknown model 'anytimenett'; did you mean 'anytimenet'"),
        ("model: {init_args: {}}", "model must be a name, or a mapping with class_path"),
        ("model: {class_path: anytimenet, args: {}}", r"unknown key model\.args"),
        ("model: {class_path: anytimenet, init_args: 3}", r"model\.init_args must be a mapping, got 3"),
        ("model: {class_path: anytimenet, init_args: {widht: 3}}", r"has no argument model\.widht; did you mean 'width'"),
    ],
)
def test_wrong_recipes(recipe, text, message):
    path = recipe(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipe_that_is_missing_or_of_the_wrong_type(recipe):
    with pytest.raises(UsageError, match=r"recipe nowhere\.yaml cannot be read: No such file"):
        parse([], ["nowhere.yaml"])
    with pytest.raises(UsageError, match="epochs must be int, got 'many'"):
        parse([], [recipe("model: anytimenet\ndata: digits\nepochs: many")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--seed", "-3"], "seed must lie in .*, got -3"),
        (["--schedule.peak", "3"], r"peak must lie in \(0, 1\).*got peak=3"),
        (["--objective.weights", "const"], "unknown weights 'const'; did you mean 'constant'"),
        (["--optimizer.lr", "-1"], "Invalid learning rate: -1"),
        (["--optimizer", "lbfgs"], "LBFGS doesn't support per-parameter options"),
        (["--data.limit", "0"], "limit must be at least 1, got 0"),
        (["--model.scheme", "[1,2]"], r"\[1, 2\]"),
        (["--strategy", "dpp"], "strategy='dpp'"),
        (["--accelerator", "abacus"], "accelerator='abacus'"),
        (["--objective.weights", "[1, 2]"], r"2 weights for 7 answers: \[1\.0, 2\.0\]"),
        (["--objective", "optimal", "--objective.exit", "8"], r"exit must lie in 1\.\.7, got 8"),
        (
            [
                *("--objective", "SDNRamp", "--objective.epochs", "2", "--objective.epoch_steps", "1"),
                "--objective.largest",
                "[0.1]",
            ],
            r"largest needs 6 values, .* got \[0\.1\]",
        ),
        (
            ["--model", "ann", "--model.regime", "midfeat"],
            "heads need a trained network, but this one has no weights: give --weights RUN$",
        ),
    ],
)
def test_values_out_of_range(flags, message):
    with pytest.raises(UsageError, match=message):
        build(parse([*BASE, *flags]))


def test_resolve_recipe_leaves_settings_unchanged():
    assert resolve_recipe({"model": "anytimenet", "epochs": 3}) == {
        "model": {"class_path": "anytimenet", "init_args": {}},
        "epochs": 3,
    }


def test_help():
    text = help_wanted(["--help"])
    assert "--epochs" in text
    assert "examples:" in text
    assert max(map(len, text.splitlines())) <= 127
    assert "--model.width" not in text
    assert "--model.width" in help_wanted([*BASE, "-h"])
    model = help_wanted(["--model.help", "anytimenet"])
    assert "Channels of the first section. (default: 16)" in model
    assert help_wanted(["--model.help=anytimenet"]) == model
    assert "OneCycle" in help_wanted(["--schedule.help"])
    assert "--data takes: Digits, MNIST, " in help_wanted(["--data.help"])
    assert "takes no arguments" in help_wanted(["--schedule.help", "constant"])
    assert help_wanted(BASE) is None
    with pytest.raises(UsageError, match="did you mean 'Adam'"):
        help_wanted(["--optimizer.help", "adamm"])


def test_objective_gets_the_label_levels_of_the_data(tmp_path: Path) -> None:
    tree = tmp_path / "tree.csv"
    tree.write_text("".join(f"{digit},{'even' if digit % 2 == 0 else 'odd'}\n" for digit in range(10)))
    flags = ["--model=ann", "--model.units=1", "--model.width=4", "--data=digits", f"--data.taxonomy={tree}"]
    built = build(parse([*flags, "--objective=Hierarchical"]))
    assert built.model.levels == (10, 2) == built.objective.levels
    with pytest.raises(UsageError, match=r"levels are \(10, 3\) for this objective, but the data set has \(10, 2\)"):
        build(parse([*flags, "--objective=Hierarchical", "--objective.levels=[10,3]"]))
