"""`anytime exits` lists the places of a network, or says in one sentence what is wrong."""

from __future__ import annotations

import pytest

from anytime.commands import exits


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["torchvision:shufflenet_v2_x0_5", "--input-size", "3,32,32", "--exits", "3", "--classes", "10"]
    assert exits.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("torchvision:shufflenet_v2_x0_5, one image of 3 x 32 x 32, on ")
    assert lines[1].split() == ["exit", "cut", "after", "MACs", "%", "of", "MACs", "ms", "%", "of", "ms", "features"]
    rows = [line.split() for line in lines[3:]]
    assert [row[1] for row in rows if row[0] == "*"] == ["stage2.2", "stage4.0"]
    assert rows[0][0] == "conv1"
    assert lines[3].endswith("24 x 16 x 16")
    assert rows[-1][0] == "output"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "backbone must be 'torchvision:NAME', 'timm:NAME', 'hf:NAME' or the import path"),
        (["torchvision:resnet81"], "torchvision has no classifier 'resnet81'; did you mean 'resnet18'?"),
        (["torchvision:resnet18", "--input-size", "224,224"], "or 224 for square colour images, got '224,224'"),
        (["torchvision:resnet18", "--device", "abacus"], "torchvision:resnet18 cannot run on 'abacus'"),
    ],
)
def test_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        exits.run(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
