"""Drawings of the figures of Hu et al. (2017)."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from anytime.studies.hu2017.figures import _over_units, read_probabilities


def test_a_network_has_one_colour_in_all_panels() -> None:
    """Also where another network is missing, as midfeat among the training losses."""
    names = ["constant", "midfeat", "no-grad"]
    first, second = Figure().subplots(1, 2)
    _over_units(first, [1, 2], {name: [0.5, 0.4] for name in names}, names, "errors")
    _over_units(second, [1, 2], {name: [0.5, 0.4] for name in names[::2]}, names, "losses")
    looks = [{line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes.lines} for axes in (first, second)]
    assert looks[1] == {name: looks[0][name] for name in ("constant", "no-grad")}
    assert len(set(looks[0].values())) == 3


@pytest.mark.parametrize(
    "table",
    [
        "train/probability_1\n0.5\n",
        "step,train/probability_1\ninf,0.5\n",
        "step,train/probability_1\n1,a\n",
        "step,train/probability_1,train/probability_b\n1,0.5,0.5\n",
        "step,train/probability_1,train/probability_2\n1,0.5,0.5\n2,0.5,\n",
        f"step,train/probability_1\n1,{'1' * 200_000}\n",
    ],
)
def test_damaged_probabilities_are_one_sentence(tmp_path: Path, table: str) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "metrics.csv").write_text(table)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged: "):
        read_probabilities(tmp_path)
