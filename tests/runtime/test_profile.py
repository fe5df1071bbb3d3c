"""Profiles: exact quantiles on a fake clock, round trip, errors."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anytime import Predictor
from anytime.runtime.profile import BatchProfile, Latency, Profile, profile
from anytime.runtime.transfer import Arrival, send

profile_module = sys.modules[Profile.__module__]  # `anytime.runtime` has a function of the same name


def test_quantiles_are_measured_values_not_below_the_quantile() -> None:
    latency = Latency.of([float(k) for k in range(1, 1001)][::-1])
    assert latency == (1000, 500.0, 900.0, 990.0, 999.0, 1000.0)
    assert Latency.of([3.0]) == (1, 3.0, 3.0, 3.0, 3.0, 3.0)
    assert latency.at("p999") == 999.0
    with pytest.raises(ValueError, match="quantile must be one of p50, p90, p99, p999, max, got 'p95'"):
        latency.at("p95")


def test_without_contract_answers_only_steps_are_run(timed_case, tmp_path: Path) -> None:
    clock, model, _ = timed_case([0.01, 0.02])
    measured = profile(model, (3, 2, 2), repeats=2, warmup=0, clock=clock, contract=False)
    assert [step for step, _ in model.started[:4]] == [1, 2, 1, 2]
    assert (len(measured.batches[1].reached), measured.batches[1].contract) == (2, ())
    measured.save(tmp_path / "profile.json")
    predictor = Predictor(model, Profile.load(tmp_path / "profile.json"), clock=clock)
    x = torch.full((1, 3, 2, 2), 0.5)
    assert predictor(x, 0.04).step == 2
    with pytest.raises(ValueError, match="contract=True plans by a profile of contract answers; give Predictor one"):
        predictor(x, 0.04, contract=True)


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


def test_what_it_takes_to_bring_an_answer_to_the_host_is_measured(timed_case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a contract answer, probabilities and outputs are sent one by one; of a step, both at once."""
    clock, model, _ = timed_case([0.01, 0.02])

    def slow_send(value: Any) -> Arrival:
        clock.now += 0.001
        return send(value)

    monkeypatch.setattr(profile_module, "send", slow_send)
    batch = profile(model, (3, 2, 2), repeats=2, warmup=0, clock=clock).batches[1]
    assert [row.p50 for row in batch.steps] == pytest.approx([0.011, 0.021])
    assert [row.p50 for row in batch.contract] == pytest.approx([0.012, 0.032])


def test_progress_is_shown_on_request(timed_case, capsys: pytest.CaptureFixture[str]) -> None:
    clock, model, _ = timed_case([0.01, 0.02])
    for shown in (False, True):
        profile(model, (3, 2, 2), batch_sizes=(4,), repeats=3, warmup=1, clock=clock, progress=shown)
        errors = capsys.readouterr().err
        assert ("profiling batches of 4" in errors, "counting MACs" in errors) == (shown, shown)


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


ROW = ["batches", "1", "steps", 0]
DAMAGES = {  # where, the value there (None: the entry is missing), what the message says
    "NaN": ([*ROW, 3], math.nan, "steps of batch size 1, step 1: seconds must be finite"),
    "infinity": ([*ROW, 5], math.inf, "seconds must be finite"),
    "negative": ([*ROW, 1], -0.01, "seconds must be finite and at least 0"),
    "text": ([*ROW, 1], "0.01", "seconds must be finite"),
    "bool": ([*ROW, 1], True, "seconds must be finite"),
    "no measurement": ([*ROW, 0], 0, "after their number, got \\[0, "),
    "quantiles fall": ([*ROW, 5], 0.001, "quantiles cannot fall"),
    "a short row": ([*ROW, 5], None, "missing 1 required positional argument: 'max'"),
    "a row missing": (
        ["batches", "8", "reached", 1],
        None,
        "reached of batch size 8 must have one row for each of 2 steps, got 1",
    ),
    "a row that is text": (ROW, "abcdef", "seconds must be finite"),
    "a row that is a number": (ROW, 3, "argument after"),
    "a list missing": (["batches", "1", "reached"], None, "missing 1 required positional argument: 'reached'"),
    "no batches": (["batches"], {}, "batches must be by batch size"),
    "batches in a list": (["batches"], [], "has no attribute 'items'"),
    "batch size 0": (["batches", "0"], {"steps": [], "reached": [], "contract": []}, "batches must be by batch size"),
    "batch size by name": (["batches", "one"], {}, "invalid literal"),
    "no MACs": (["macs"], [], "macs must be numbers"),
    "MACs missing": (["macs"], None, "'macs' is missing"),
    "negative MACs": (["contract_macs", 0], -10, "contract_macs must be numbers of at least 0"),
    "MACs NaN": (["macs", 1], math.nan, "macs must be numbers"),
    "MACs of fewer steps": (["contract_macs", 1], None, "one for each of 2 steps"),
    "MACs fall": (["macs", 1], 5, "cannot fall"),
    "image size": (["input_size", 0], None, "input_size must be"),
    "image size 0": (["input_size", 1], 0, "input_size must be"),
    "fingerprint": (["fingerprint"], [], "fingerprint an object"),
    "fingerprint missing": (["fingerprint"], None, "fingerprint"),
    "model": (["model"], 7, "model must be text"),
    "unknown entry": (["more"], 1, "unexpected keyword argument 'more'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_profile_is_refused_with_its_fault(timed_case, tmp_path: Path, name: str) -> None:
    *_, measured = timed_case([0.01, 0.02])
    path = tmp_path / "profile.json"
    measured.save(path)
    where, value, message = DAMAGES[name]
    data = place = json.loads(path.read_text())
    for key in where[:-1]:
        place = place[key]
    if value is None:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"profile\.json is not a profile of this version: .*" + message) as error:
        Profile.load(path)
    assert "\n" not in str(error.value)


def test_a_profile_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"format": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json is not a profile of this version"):
        Profile.load(path)


def test_a_predictor_refuses_a_profile_whose_values_are_damaged(timed_case) -> None:
    _, model, measured = timed_case([0.01, 0.02])
    nan = measured.batches[1].steps[0]._replace(p99=math.nan)
    for broken, message in (
        (dataclasses.replace(measured.batches[1], steps=(nan, nan)), "the profile is damaged: steps of batch size 1, step 1"),
        (dataclasses.replace(measured.batches[1], steps=()), "must have one row for each of 2 steps, got 0; measure again"),
    ):
        with pytest.raises(ValueError, match=message):
            Predictor(model, dataclasses.replace(measured, batches={1: broken}))
    row = measured.batches[1].steps[:1]
    short = BatchProfile(row, row, row)
    with pytest.raises(ValueError, match="the profile is of 1 steps, the model has 2; measure again"):
        Predictor(model, dataclasses.replace(measured, batches={1: short}, macs=(10,), contract_macs=(10,)))


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
