"""Drawings of the figures of Hu et al. (2017)."""

from __future__ import annotations

from matplotlib.figure import Figure

from anytime.studies.hu2017.figures import _over_units


def test_a_network_has_one_colour_in_all_panels() -> None:
    """Also where another network is missing, as midfeat among the training losses."""
    names = ["constant", "midfeat", "no-grad"]
    first, second = Figure().subplots(1, 2)
    _over_units(first, [1, 2], {name: [0.5, 0.4] for name in names}, names, "errors")
    _over_units(second, [1, 2], {name: [0.5, 0.4] for name in names[::2]}, names, "losses")
    looks = [{line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes.lines} for axes in (first, second)]
    assert looks[1] == {name: looks[0][name] for name in ("constant", "no-grad")}
    assert len(set(looks[0].values())) == 3
