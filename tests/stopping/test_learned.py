import json

import pytest
import torch

from anytime.stopping import Never, Rule, learned_stop, measure


def test_it_learns_to_stop_when_stopping_pays(make_trace):
    trace, test, price = make_trace(1500, steps=4), make_trace(1500, steps=4, seed=1), 4e-4

    def utility(rule):
        outcome = measure(rule, test)
        return outcome.accuracy - price * outcome.macs

    outcome = learned_stop(trace, price, epochs=15)
    least = min(trace.macs.tolist())
    first = measure(Rule.from_dict({"kind": "mac_budget", "macs": least}), test)
    assert utility(outcome.rule) > utility(Never()) + 0.02
    assert utility(outcome.rule) > first.accuracy - price * first.macs + 0.005


def test_it_is_repeatable_and_does_not_change_the_random_state(make_trace):
    trace = make_trace(50, steps=3)
    state = torch.get_rng_state()
    rules = [learned_stop(trace, 1e-3, epochs=2, units=3).rule for _ in range(2)]
    assert rules[0] == rules[1]
    assert torch.equal(state, torch.get_rng_state())
    assert Rule.from_dict(json.loads(json.dumps(rules[0].to_dict()))) == rules[0]


def test_it_runs_under_inference_mode(make_trace):
    trace = make_trace(20, steps=3)
    with torch.inference_mode():
        outcome = learned_stop(trace, 1e-3, epochs=1)
        assert measure(outcome.rule, trace) == outcome


def test_clear_errors(make_trace):
    with pytest.raises(ValueError, match="no earlier step to stop at"):
        learned_stop(make_trace(5, steps=1), 1)
    with pytest.raises(ValueError, match="price must be finite"):
        learned_stop(make_trace(5), -1)
