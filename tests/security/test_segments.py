"""The code that is made of a network's graph holds nothing that the names of its layers say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

from anytime.models.surgery.attach.segments import Segment

EVIL = ['a")(h) or __import__("pathlib").Path("executed").touch() or getattr(self, "a', "a\\", "a\nb", 'a"', "", "a.class"]


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("op", ["call_module", "get_attr", "call_method"])
def test_a_name_is_never_code(op: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = fx.Graph()
    h = graph.placeholder("h")
    graph.output(graph.create_node(op, name, () if op == "get_attr" else (h,)))
    with pytest.raises(ValueError, match="cannot be cut into stages"):
        Segment(graph)(nn.ReLU(), torch.ones(1))
    assert not Path("executed").exists()


def test_an_argument_is_never_code() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.relu, (graph.placeholder("h"),), {"inplace=print('x'), a": True}))
    with pytest.raises(ValueError, match="cannot be cut into stages"):
        Segment(graph)


@pytest.mark.parametrize("name", ["layer-1", "0", "größe", "a b"])
def test_other_names_stay(name: str) -> None:
    network = nn.Module()
    network.add_module(name, nn.Sequential(nn.ReLU()))
    graph = fx.Graph()
    graph.output(graph.call_module(f"{name}.0", (graph.placeholder("h"),)))
    assert Segment(graph)(network, -torch.ones(1)) == 0
