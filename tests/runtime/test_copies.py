"""Copies of a predictor, by deepcopy, pickle and fork, and what is no anytime model."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

import anytime
from anytime import Predictor, create_model, profile
from anytime.stopping import Confidence

SIZE = (3, 8, 8)
X = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))
COPIES: dict[str, Callable] = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def tiny():
    torch.manual_seed(0)
    return create_model("anytimenet", blocks=(2, 2, 2), scheme=(1, 1), width=4).eval()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_answers_like_the_original_with_a_model_of_its_own(how: str, compiled: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    model = tiny()
    measured = profile(model, SIZE, (2,), repeats=1, warmup=0, compile=compiled)
    original = Predictor(model, measured, "product", Confidence(0.99), guard=0.001, compile=compiled)
    with original.session(X) as session:
        expected = session.wait(60)
    made = COPIES[how](original)
    with made.session(X) as session:
        assert torch.equal(session.wait(60).probabilities, expected.probabilities)
    assert torch.equal(made(X).probabilities, expected.probabilities)
    assert made(X, contract=True).reason == "complete"
    assert made.profile == measured
    assert made.model is not model
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.zero_()
    assert not torch.equal(made(X).probabilities, expected.probabilities)
    assert torch.equal(original(X).probabilities, expected.probabilities)


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_other_families(how: str) -> None:
    ann = create_model("ann", units=1, width=4).eval()
    attached = anytime.attach_exits(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 5)), exits=2, input_size=SIZE
    ).eval()
    for original in (Predictor(ann, lazy_exits=True), Predictor(attached)):
        assert torch.equal(COPIES[how](original)(X).probabilities, original(X).probabilities)


FORK = """
import faulthandler, os, time, torch, anytime
torch.set_num_threads(2)
torch.manual_seed(0)
model = anytime.create_model("anytimenet", width=8).eval()
predictor, x = anytime.Predictor(model), torch.rand(4, 3, 64, 64)
expected = predictor(x)  # this thread has a pool of threads from now on
with predictor.session(x) as ended:
    ended.wait()
inner = model.step
go, began = [], []
def step(state):
    began.append(1)
    while not go:
        time.sleep(0.001)
    return inner(state)
model.step = step
opened = predictor.session(x)
while not began:
    time.sleep(0.001)
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later(40, exit=True)
    model.step = inner
    with predictor.session(x) as session:
        assert torch.allclose(session.wait(30).probabilities, expected.probabilities, atol=1e-5)
    assert torch.allclose(predictor(x).probabilities, expected.probabilities, atol=1e-5)
    assert ended.best().step == model.num_steps
    assert opened.best().step == -1 and opened.done
    try:
        opened.wait()
        raise SystemExit("an open session went on")
    except RuntimeError as error:
        assert "a forked process does not have" in str(error)
    opened.close()
    model.train()
    assert torch.allclose(predictor(x).probabilities, expected.probabilities, atol=1e-5) and model.training
    print("child", flush=True)
    os._exit(0)
status = os.waitpid(child, 0)[1]
go.append(1)
assert status == 0
assert opened.wait(50).step == model.num_steps
print("parent", torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sessions_and_calls_after_a_fork() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "child\nparent 2\n"


@pytest.mark.parametrize("network", [nn.Linear(3, 2), nn.Sequential(nn.Flatten()), "runs/demo", None, nn.DataParallel(tiny())])
def test_what_is_no_anytime_model_is_named(network) -> None:
    for use in (Predictor, lambda network: profile(network, SIZE)):
        with pytest.raises(
            TypeError, match=r"only an anytime model .* is none: give a network exits, anytime.attach_exits\("
        ) as e:
            use(network)
        assert type(network).__name__ in str(e.value)
