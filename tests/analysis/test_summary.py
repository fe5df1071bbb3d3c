import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from anytime.analysis.summary import comparison, grouped_comparison, summary, timing_differences
from anytime.reporting.columns import COMPARISON_COLUMNS, GROUP_COLUMNS, STEP_COLUMNS
from anytime.reporting.tables import Column, format_table
from anytime.support.units import macs_text, ms_text


def test_summary_is_strict_json_and_exact(trace):
    found = summary(trace)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["step"] for row in found["steps"]] == [1, 2, 3]
    second = found["steps"][1]
    assert {key: second[key] for key in ("macs", "contract_macs", "share_of_macs", "seconds")} == {
        "macs": 40, "contract_macs": 30, "share_of_macs": 0.4, "seconds": 0.003,
    }  # fmt: skip
    assert found["accuracy"] == 0.75
    assert found["error_at_cost"]["macs"] == {"0.25": 0.5, "0.5": 0.5, "0.75": 0.5, "1": 0.25}
    assert set(found["error_at_cost"]) == {"macs", "contract", "seconds"}
    assert found["overthinking"]["oracle_macs"] == 40
    assert found["answer_changes"] == [0.5, 0.25]
    assert found["threshold"]["lossless_share_of_macs"] < 0.475
    assert found["meta"]["dataset"] == "four"


def test_summary_leaves_out_what_was_not_measured(levels):
    found = summary(levels.level(1))
    assert set(found["error_at_cost"]) == {"macs"}
    assert "seconds" not in found["steps"][0]
    assert found["steps"][0]["pearson"] == pytest.approx(1)
    assert "median ms" not in format_table(found["steps"], STEP_COLUMNS)


def test_comparison(trace, levels):
    first, second = comparison({"one": trace, "two": levels.level(0)})
    assert (first["name"], first["parameters"], first["macs"], first["seconds"]) == ("one", 5, 100, 0.004)
    assert (first["error_at_0.25"], first["error_at_1"]) == (0.5, 0.25)
    assert first["average_error"] == pytest.approx(1.25 / 3)
    assert second["parameters"] is None
    lines = format_table([first, second], COMPARISON_COLUMNS).splitlines()
    assert lines[0].split("  ")[0] == "name"
    assert "41.67%" in lines[2]
    assert lines[3].rstrip().endswith("–")


def test_format_table():
    columns = [Column("name", "name"), Column("n", "count", ",d"), Column("x", "x", "<{}>".format), Column("no", "no")]
    rows = [{"name": "a", "n": 1234, "x": 1}, {"name": "long", "n": None, "x": float("nan")}]
    assert format_table(rows, columns) == (
        "name  count    x\n"
        "----  -----  ---\n"
        "a     1,234  <1>\n"
        "long      –    –"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("macs", "text"),
    [(7, "7"), (999.4, "999"), (1000, "1.000 k"), (999_960, "1.000 M"), (12_240_000, "12.24 M"), (1.8e9, "1.800 G")],
)
def test_macs_text(macs, text):
    assert macs_text(macs) == text


def test_ms_text():
    texts = [ms_text(seconds) for seconds in (0.000123, 0.0012, 0.05, 0.1234, 2)]
    assert texts == ["0.123", "1.20", "50.0", "123", "2,000"]


def test_worst_class(trace):
    steps = summary(trace)["steps"]
    assert [row["worst_class"] for row in steps] == ["bee", "cat", "ant"]
    assert [row["worst_class_accuracy"] for row in steps] == [0, 0, 0.5]


def test_grouped_comparison(trace):
    def run(seed, lr, right):
        logits = trace.logits.clone()
        logits[2] = torch.nn.functional.one_hot(trace.labels, 3) * (torch.arange(4) < right)[:, None]
        return replace(trace, logits=logits.float(), meta={**trace.meta, "recipe": {"seed": seed, "lr": lr}})

    traces = {"big_10": run(10, 0.1, 2), "big_11": run(11, 0.1, 4), "big_12": run(12, 0.1, 4), "small": run(10, 0.2, 4)}
    first, second = grouped_comparison(traces)
    assert (first["name"], first["seeds"], second["name"], second["seeds"]) == ("big", 3, "small", 1)
    accuracies = [comparison({"": t})[0]["accuracy"] for name, t in traces.items() if name != "small"]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(accuracies), scipy.stats.sem(accuracies))
    assert first["accuracy"] == pytest.approx(((low + high) / 2, (high - low) / 2))
    table = format_table([first, second], GROUP_COLUMNS)
    assert f"{np.mean(accuracies):.2%} ± {(high - low) / 2:.2%}" in table
    assert table.splitlines()[3].count("±") == 0
    other = replace(traces["big_11"], meta=traces["big_11"].meta | {"dataset": "another"})
    assert [row["seeds"] for row in grouped_comparison({"a_0": traces["big_10"], "a_1": other})] == [1, 1]
    elsewhere = replace(traces["big_11"], meta=traces["big_11"].meta | {"hardware": "B"})
    assert grouped_comparison({"a_0": traces["big_10"], "a_1": elsewhere})[0]["seconds"] is None
    with pytest.raises(ValueError, match="a and b have the same recipe and the same seed"):
        grouped_comparison({"a": traces["big_10"], "b": traces["big_10"]})
    assert grouped_comparison({"x": trace, "y": trace})[1]["name"] == "y"  # without recipes


def test_timing_differences(trace):
    def timed(**meta):
        return replace(trace, meta=trace.meta | meta)

    here, there = timed(hardware="A, 2 threads", load=0.1), timed(hardware="B, 2 threads", load=0.1)
    assert timing_differences({"x": here, "y": here, "z": trace}) is None
    assert timing_differences({"x": here, "y": there}) == (
        "the milliseconds were not measured under the same conditions: hardware of x: A, 2 threads; y: B, 2 threads"
    )
    busy = timed(hardware="A, 2 threads", load=1.3)
    assert timing_differences({"x": here, "y": busy}).endswith("load (busy cores) of x: 0.1; y: 1.3")
    one, many = timed(seconds_batch=1), timed(seconds_batch=64)
    assert timing_differences({"x": one, "y": many}).endswith("batch size of x: 1; y: 64")
    assert timing_differences({"x": here, "y": replace(there, seconds=None)}) is None
