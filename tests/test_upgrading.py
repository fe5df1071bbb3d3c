"""The page on upgrading: the new names exist, the old ones are gone, its code runs."""

import importlib
import re
from pathlib import Path

import pytest

import anytime
from anytime.saving import ModelInfo

PAGE = (Path(__file__).parents[1] / "docs/upgrading.md").read_text(encoding="utf-8")
RENAMED = {
    "anytime.stopping": ({"keep", "kept"}, {"save_rule", "saved_rules"}),
    "anytime.training": ({"Steps"}, {"MultiStep"}),
    "anytime.data": ({"Part", "Files"}, {"Split", "LazyImages"}),
    "anytime.runtime": ({"parse_seconds"}, set()),
    "anytime.studies": ({"Run", "standing", "Standing"}, {"TrainingRun", "run_status", "RunStatus"}),
    "anytime": (set(), {"chain_networks", "convert", "calibrate", "add_delays"}),
}


@pytest.mark.parametrize("module", RENAMED)
def test_names_of_the_page(module: str) -> None:
    names, (old, new) = vars(importlib.import_module(module)), RENAMED[module]
    assert not old & names.keys()
    assert new <= names.keys()
    assert all(re.search(rf"\b{name}\b", PAGE) for name in old | new)


def test_metadata_moved_to_info() -> None:
    info = ModelInfo.from_dict({"margin": 1.5, "class_names": ["a"], "fitted": {"half": {}}, "mine": 3})
    assert (info.resize_ratio, info.class_names, info.rules, info.other) == (1.5, ("a",), {"half": {}}, {"mine": 3})


def test_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(code, "upgrading.md", "exec"), {})
    assert "'airplane'" in capsys.readouterr().out
    assert not hasattr(anytime.load("anytimenet_cifar10").info, "margin")


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / target).exists(), target
