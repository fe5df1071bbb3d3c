"""Profiles: exact quantiles on a fake clock, round trip, errors."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from anytime.runtime.profile import Latency, Profile, profile


def test_quantiles_are_measured_values_not_below_the_quantile() -> None:
    latency = Latency.of([float(k) for k in range(1, 1001)][::-1])
    assert latency == (1000, 500.0, 900.0, 990.0, 999.0, 1000.0)
    assert Latency.of([3.0]) == (1, 3.0, 3.0, 3.0, 3.0, 3.0)
    assert latency.at("p999") == 999.0
    with pytest.raises(ValueError, match="quantile must be one of p50, p90, p99, p999, max, got 'p95'"):
        latency.at("p95")


def test_every_step_and_every_contract_answer_is_measured(timed_case) -> None:
    clock, model, _ = timed_case([0.01, 0.02])
    measured = profile(model, (3, 2, 2), batch_sizes=(4, 1), repeats=3, warmup=1, clock=clock)
    assert list(measured.batches) == [1, 4]
    for batch in measured.batches.values():
        assert [row.p50 for row in batch.steps] == pytest.approx([0.01, 0.02])
        assert [row.max for row in batch.reached] == pytest.approx([0.01, 0.03])
        assert [row.p99 for row in batch.contract] == pytest.approx([0.01, 0.03])
        assert {row.n for row in batch.steps} == {3}
    assert measured.at(2) is measured.batches[4]
    with pytest.raises(ValueError, match="knows batches up to 4, got 5"):
        measured.at(5)


def test_round_trip_and_damage(timed_case, tmp_path: Path) -> None:
    *_, measured = timed_case([0.01, 0.02])
    path = tmp_path / "profile.json"
    measured.save(path)
    assert Profile.load(path) == measured
    for damage in ("{", "[]", "{}", json.dumps({"format": 99}), path.read_text().replace('"steps"', '"stops"')):
        (tmp_path / "bad.json").write_text(damage)
        with pytest.raises(ValueError, match=r"bad\.json is not a profile of this version"):
            Profile.load(tmp_path / "bad.json")
    with pytest.raises(FileNotFoundError):
        Profile.load(tmp_path / "none.json")


def test_other_hardware_is_refused_unless_asked_for(timed_case) -> None:
    _, model, measured = timed_case([0.01])
    elsewhere = dataclasses.replace(measured, fingerprint={**measured.fingerprint, "hardware": "Abacus", "threads": 99})
    with pytest.raises(ValueError, match=r"measured elsewhere \(hardware 'Abacus', here '.*'; threads 99, here"):
        elsewhere.check(model)
    elsewhere.check(model, foreign=True)


def test_weights_do_not_matter_but_the_architecture_does(timed_case) -> None:
    _, model, measured = timed_case([0.01])
    torch.nn.init.ones_(model.bias)
    measured.check(model)
    _, other, _ = timed_case([0.01, 0.01])
    with pytest.raises(ValueError, match="of another model"):
        measured.check(other)


def test_bad_arguments(timed_case) -> None:
    _, model, _ = timed_case([0.01])
    with pytest.raises(ValueError, match="repeats and batch_sizes must be at least 1, got 0"):
        profile(model, (3, 2, 2), repeats=0)
    with pytest.raises(ValueError, match="got 200 and"):
        profile(model, (3, 2, 2), batch_sizes=())
