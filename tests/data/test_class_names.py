"""Class names stay as they are written, on the command line, in recipes and in Python."""

import json

import pytest
import yaml
from PIL import Image

from anytime.data import ImageFolder
from anytime.data.splits import choose_classes
from anytime.training.config import parse, read_recipe
from anytime.training.written import texts_of

LOOK_LIKE_VALUES = ["0x10", "1_0", "12:30", "yes", "no", "on", "1e3", "007", "1.50", "-5", "2020-01-01", "null", "true", "~"]
TRAINING = ["--model=anytimenet", "--data=ImageFolder", "--data.root=x"]


def classes(flags, recipes=()):
    return parse(flags, recipes)["data"]["init_args"]["classes"]


@pytest.mark.parametrize("name", [name for name in LOOK_LIKE_VALUES if name not in ("null", "~")])
def test_one_name_on_the_command_line(name):
    assert classes([*TRAINING, f"--data.classes={name}"]) == name


def test_a_list_on_the_command_line():
    written = f"[{', '.join(LOOK_LIKE_VALUES)}]"
    assert classes([*TRAINING, "--data.classes", written]) == LOOK_LIKE_VALUES
    quoted = yaml.safe_dump(LOOK_LIKE_VALUES, default_flow_style=True)
    assert classes([*TRAINING, f"--data.classes={quoted}"]) == LOOK_LIKE_VALUES
    assert classes([*TRAINING, "--data.classes=[cat]", "--data.classes+=007"]) == ["cat", "007"]
    assert classes([*TRAINING, "--data.classes=[a-c]*"]) == "[a-c]*"
    assert classes([*TRAINING, "--data.classes=null"]) is None


@pytest.mark.parametrize("style", ["[{}]", "\n    - {}\n"])
def test_names_in_a_recipe(tmp_path, style):
    separator = ", " if "[" in style else "\n    - "
    path = tmp_path / "recipe.yaml"
    head = "model: anytimenet\ndata:\n  class_path: ImageFolder\n  init_args:\n    root: x\n    classes: "
    path.write_text(head + style.format(separator.join(LOOK_LIKE_VALUES)) + "\n")
    resolved = parse([], [path])
    assert resolved["data"]["init_args"]["classes"] == LOOK_LIKE_VALUES
    path.write_text(yaml.safe_dump(resolved, sort_keys=False))  # as a run directory holds it
    assert read_recipe(path)["data"]["init_args"]["classes"] == LOOK_LIKE_VALUES
    assert classes([], [path]) == LOOK_LIKE_VALUES


@pytest.mark.parametrize(
    ("written", "expected"),
    [("007", "007"), ("cat", "cat"), ("null", None), ("'null'", ["null"]), ("'[12]'", ["[12]"]), ("'[12]*'", ["[12]*"])],
)
def test_one_name_in_a_recipe(tmp_path, written, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: anytimenet\ndata:\n  class_path: Digits\n  init_args:\n    classes: {written}\n")
    assert classes([], [path]) == expected


def test_folders_with_such_names(tmp_path):
    for name in (*LOOK_LIKE_VALUES, "[12]", "c*t", "cat", "a?"):
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{i}.png")
    chosen = ["007", "1e3", "[12]", "c*t"]
    data = ImageFolder(**parse([*TRAINING, f"--data.root={tmp_path}", f"--data.classes={chosen}"])["data"]["init_args"])
    assert data.split("train").labels.unique().tolist() == [0, 1, 2, 3]
    assert data.class_names == sorted(chosen)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("[12]", ["[12]"]), ("c*t", ["c*t"]), ("c?t", ["c*t", "cat"]), ("a", ["a"]), ("A", ["A"]), ([1, "[0-9]"], ["1", "2"])],
)
def test_a_name_takes_precedence_over_a_pattern(wanted, chosen):
    names = ["1", "2", "A", "[12]", "a", "c*t", "cat"]
    assert [names[i] for i in choose_classes(names, wanted)] == chosen


def test_forms_of_unicode_are_one_name():
    assert choose_classes(["caf\u00e9", "tea"], "cafe\u0301") == [0]
    assert choose_classes(["cafe\u0301", "tea"], ["CAF\u00c9"]) == [0]


YAML_MEANS_MORE = [
    "#1",
    "&a",
    "*a",
    "!b",
    "NULL",
    "Null",
    "---",
    "=",
    "<<",
    "a: b",
    "{x}",
    '"q"',
    "it's",
    "%p",
    "@h",
    "a #b",
    "[12]",
    "[#1]",
]


def by_flags(*texts):
    """What `--data.classes` gives, without the other arguments."""
    return texts_of({}, [("--data.classes", text) for text in texts], {})["data.classes"]


def test_names_that_yaml_reads_as_something_else(tmp_path):
    names = [*YAML_MEANS_MORE, "12", "1", "2", "b"]
    path = tmp_path / "config.yaml"
    resolved = parse([*TRAINING, "--data.classes=#1"])
    assert resolved["data"]["init_args"]["classes"] == "#1"
    for name in YAML_MEANS_MORE:
        given = by_flags(name)
        resolved["data"]["init_args"]["classes"] = given
        path.write_text(yaml.safe_dump(resolved, sort_keys=False))  # as a run directory holds it
        again = texts_of({"data.classes": read_recipe(path)["data"]["init_args"]["classes"]}, [], {})["data.classes"]
        for wanted in (given, again):
            assert [names[i] for i in choose_classes(names, wanted)] == [name]
        assert by_flags(json.dumps([name, "b"])) == [name, "b"]
        assert by_flags(f"[{name}, b]") == ["q" if name == '"q"' else name, "b"]


def test_lists_on_the_command_line_are_no_yaml():
    assert by_flags("[#1, b]") == ["#1", "b"]
    assert by_flags("""["a, b", 'it''s', [12], ]""") == ["a, b", "it's", "[12]"]
    assert by_flags("[]") == []
    assert choose_classes(["12", "cat"], by_flags("[cat]")) == [1]
    assert choose_classes(["12", "[12]"], by_flags("[12]")) == [1]
    assert choose_classes(["12", "1"], by_flags("[12]")) == [0]
    assert choose_classes(["1", "2", "3"], by_flags("[12]")) == [0, 1]
    assert [by_flags("null"), by_flags("~"), by_flags("NULL"), by_flags("a", "null")] == [None, None, "NULL", None]


TEXTS = ["007", "0x10", "1_0", "12:30", "yes", "2020-01-01", "1e3", "=", "<<"]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_in_a_recipe_stay_as_they_are_written(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"weights: {text}\nmodel:\n  class_path: attach\n  init_args:\n    backbone: {text}\n    pretrained: {text}\n"
        f"data:\n  class_path: ImageFolder\n  init_args:\n    root: {text}\n    taxonomy: {text}\n    label_levels: 2\n"
    )
    resolved = parse([], [path])
    model, data = (resolved[section]["init_args"] for section in ("model", "data"))
    assert [resolved["weights"], model["backbone"], data["root"], data["taxonomy"], data["label_levels"]] == [text] * 4 + [2]
    assert model["pretrained"] == (True if text == "yes" else text)
    path.write_text(yaml.safe_dump(resolved, sort_keys=False))  # as a run directory holds it
    assert read_recipe(path) == resolved


def test_texts_on_the_command_line_stay_as_they_are_written():
    for text in ("007", "#1", "&a", "a: b"):
        flags = [
            "--model=attach",
            f"--model.backbone={text}",
            "--data=ImageFolder",
            f"--data.root={text}",
            f"--weights={text}",
        ]
        resolved = parse(flags)
        found = resolved["model"]["init_args"]["backbone"], resolved["data"]["init_args"]["root"], resolved["weights"]
        assert found == (text, text, text)


def test_null_is_none_where_a_text_may_be_missing(tmp_path):
    assert parse([*TRAINING, "--weights=null"])["weights"] is None
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: anytimenet\nweights: null\ndata:\n  class_path: Digits\n  init_args:\n    root: ~\n    limit: 007\n"
    )
    resolved = parse([], [path])
    assert resolved["weights"] is None
    assert resolved["data"]["init_args"]["root"] is None
    assert resolved["data"]["init_args"]["limit"] == 7


def test_names_that_come_by_a_merge_key_stay_as_they_are_written(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: anytimenet\ndata:\n  class_path: Digits\n  init_args:\n    <<: {classes: [007, 1_0], root: 0x10}\n"
    )
    assert parse([], [path])["data"]["init_args"]["classes"] == ["007", "1_0"]
    assert parse([], [path])["data"]["init_args"]["root"] == "0x10"
