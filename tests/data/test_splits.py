import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime.data.splits import choose_classes, hold_out, stratified_order

label_lists = st.lists(st.integers(0, 6), min_size=2, max_size=200)


@given(labels=label_lists, seed=st.integers(0, 10))
@settings(max_examples=50, deadline=None)
def test_every_prefix_of_the_order_is_stratified(labels, seed):
    labels = torch.tensor(labels)
    order = stratified_order(labels, seed)
    assert order.sort().values.equal(torch.arange(len(labels)))
    total = torch.bincount(labels)
    for size in range(len(labels) + 1):
        share = torch.bincount(labels[order[:size]], minlength=len(total)) - total * size / len(labels)
        # Each class is within half a sample of a common share, which all classes together determine.
        assert share.abs().max() <= 1 + 0.5 * (total > 0).sum() / len(labels) * total.max()


@given(labels=label_lists, share=st.floats(0, 0.9), seed=st.integers(0, 10))
@settings(max_examples=50, deadline=None)
def test_splits_are_disjoint_complete_and_reproducible(labels, share, seed):
    labels = torch.tensor(labels)
    rest, held_out = hold_out(labels, share, seed)
    assert len(held_out) == min(round(share * len(labels)), len(labels) - 1)
    assert torch.cat([rest, held_out]).sort().values.equal(torch.arange(len(labels)))
    again = hold_out(labels, share, seed)
    assert again[0].equal(rest)
    assert again[1].equal(held_out)


@given(tracks=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=2, max_size=40))
@settings(max_examples=50, deadline=None)
def test_groups_are_not_divided(tracks):
    labels = torch.tensor([label for label, size in tracks for _ in range(size)])
    groups = torch.tensor([7 * number for number, (_, size) in enumerate(tracks) for _ in range(size)])
    rest, held_out = hold_out(labels, 0.5, 0, groups)
    assert len(rest) + len(held_out) == len(labels)
    assert not set(groups[rest].tolist()) & set(groups[held_out].tolist())
    assert abs(len(held_out) - len(labels) / 2) <= 5


def test_stratified_by_class():
    labels = torch.arange(1000) % 10
    _, held_out = hold_out(labels, 100, 0)
    assert torch.bincount(labels[held_out]).tolist() == [10] * 10
    assert not held_out.equal(hold_out(labels, 100, 1)[1])


@pytest.mark.parametrize(("amount", "message"), [(-0.1, "got -0.1"), (1.5, "got 1.5"), (10, "cannot hold out 10 of 10")])
def test_invalid_amounts(amount, message):
    with pytest.raises(ValueError, match=message):
        hold_out(torch.zeros(10, dtype=torch.int64), amount, 0)


NAMES = ["cat", "Boston terrier", "deer", "fox terrier", "dog"]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("*terrier*", [1, 3]), (["dog", "CAT"], [0, 4]), ("d*", [2, 4]), (["boston terrier", "*terrier"], [1, 3])],
)
def test_classes_by_name_and_pattern(wanted, chosen):
    assert choose_classes(NAMES, wanted) == chosen


def test_a_pattern_without_a_match_names_the_nearest():
    with pytest.raises(ValueError, match=r"no class matches 'terier'.*'fox terrier'"):
        choose_classes(NAMES, ["cat", "terier"])
    with pytest.raises(ValueError, match="empty list"):
        choose_classes(NAMES, [])
