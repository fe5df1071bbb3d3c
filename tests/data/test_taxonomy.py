"""Trees of labels: the files they are read from, the levels cut from them, and data sets that use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anytime.data import CIFAR100, Digits, ImageFolder
from anytime.data.sets.cifar import CIFAR100_COARSE, CIFAR100_FINE, CIFAR100_SUPERCLASS, cifar100_levels
from anytime.data.taxonomy import Taxonomy, from_paths, read_taxonomy

BIRDS = """\
# leaf first
albatross,pelagic bird,seabird,bird
petrel,pelagic bird
gull,seabird

owl,bird
"""
CLASSES = ["owl", "gull", "petrel", "albatross"]


def write(folder: Path, text: str, name: str = "birds.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_levels_are_cuts_by_depth(tmp_path: Path) -> None:
    tree = read_taxonomy(write(tmp_path, BIRDS), CLASSES)
    assert tree.path("albatross") == ["albatross", "pelagic bird", "seabird", "bird"]
    levels = tree.levels(CLASSES)
    assert levels.sizes == (4, 3, 2)
    assert levels.names == (tuple(CLASSES), ("owl", "gull", "pelagic bird"), ("owl", "seabird"))
    assert levels.table == ((0, 1, 2, 3), (0, 1, 2, 2), (0, 1, 1, 1))
    assert levels.targets(torch.tensor([3, 0])).tolist() == [[3, 2, 1], [0, 0, 0]]
    assert tree.levels(CLASSES, 2).names == levels.names[:2]


def test_three_formats_of_one_tree(tmp_path: Path) -> None:
    tree = read_taxonomy(write(tmp_path, BIRDS), CLASSES)
    edges = "albatross,pelagic bird\npetrel,pelagic bird\npelagic bird,seabird\ngull,seabird\nseabird,bird,,\nowl,bird\n"
    printed = "bird > seabird > pelagic bird > albatross\nseabird > pelagic bird > petrel\nseabird > gull\nbird > owl\n"
    for text in (edges, printed):
        assert dict(read_taxonomy(write(tmp_path, text, "other"), CLASSES).parents) == dict(tree.parents)
    tree.save(tmp_path / "saved.csv")
    assert read_taxonomy(tmp_path / "saved.csv", CLASSES).parents == tree.parents


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\nb,c\nc,a\n", r"birds.csv: cycle a < b < c < a"),
        ("a,a\n", r"cycle a < a"),
        ("a,b\na,c\n", r"'a' has two parents, 'b' and 'c'"),
        ("a,,c\n", r"empty label in 'a,,c'"),
        ("# nothing\n", r"holds no label"),
        ("owl,bird\ngull,bird\npetrel,bird\n", r"class 'albatross' is missing"),
        (BIRDS + "penguin,bird\n", r"'penguin' is none of the 4 classes"),
        (BIRDS + "snowy owl,owl\n", r"class 'owl' must be a leaf, but 'snowy owl' lies below it"),
        ("albatross,bird\npetrel,bird\ngull,bird\nowl,bird\n", r"no label stands for some of the 4 classes but not all"),
    ],
)
def test_wrong_trees(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_taxonomy(write(tmp_path, text), CLASSES).levels(CLASSES)


def test_other_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.csv"):
        read_taxonomy(tmp_path / "none.csv", CLASSES)
    with pytest.raises(ValueError, match=r"there is no label 'bird', the parent of 'owl'"):
        Taxonomy({"owl": "bird"})
    tree = read_taxonomy(write(tmp_path, BIRDS), CLASSES)
    for number in (1, 4):
        with pytest.raises(ValueError, match=rf"allows 2 to 3 label levels, got {number}"):
            tree.levels(CLASSES, number)
    with pytest.raises(ValueError, match=r"'gul' is missing; did you mean 'gull'\?"):
        tree.levels(["gul"])
    with pytest.raises(ValueError, match="'owl' is the name of several classes"):
        tree.levels([*CLASSES, "owl"])
    for name in ("#1", "a > 1"):
        with pytest.raises(ValueError, match=f"a file of labels cannot hold '{name}'"):
            Taxonomy({name: "bird", "owl": "bird", "bird": None}).save(tmp_path / "tree.csv")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=2, max_size=12))
def test_levels_nest(choices: list[list[int]]) -> None:
    """Classes with the same label at a level share their labels at all coarser levels, and each level is smaller."""
    groups = [["root" + "".join(map(str, way[:n])) for n in range(len(way), -1, -1)] for way in choices]
    paths = [[f"class {k}", *above] for k, above in enumerate(groups)]
    tree = from_paths(paths)
    classes = [path[0] for path in paths]
    try:
        levels = tree.levels(classes)
    except ValueError as error:
        assert "no label stands for some" in str(error)  # noqa: PT017
        return
    assert levels.table[0] == tuple(range(len(classes)))
    for fine, coarse, size in zip(levels.table[:-1], levels.table[1:], levels.sizes[1:], strict=True):
        assert len(set(zip(fine, coarse, strict=True))) == len(set(fine))
        assert set(coarse) == set(range(size))
        assert 1 < size < len(set(fine))


def synset(offset: int, names: str, *pointers: str) -> str:
    words = names.split()
    fields = [f"{offset:08d} 05 n {len(words):02x}", *(f"{word} 0" for word in words), f"{len(pointers):03d}"]
    return " ".join([*fields, *(f"{pointer} n 0000" for pointer in pointers), "| a gloss | @"])


WORDNET = "\n".join(
    [
        "  1 This software is provided as is",
        synset(1, "entity"),
        synset(2, "animal", "@ 00000001"),
        synset(3, "bird", "@ 00000002"),
        synset(4, "seabird sea_bird", "@ 00000003"),
        synset(5, "pelagic_bird", "@ 00000004"),
        synset(6, "albatross mollymawk", "@ 00000005"),
        synset(7, "wandering_albatross", "@ 00000006"),
        synset(8, "petrel", "@ 00000005"),
        synset(9, "gull sea_gull", "@ 00000004"),
        synset(10, "Clark's_nutcracker", "@ 00000003"),
        synset(11, "whippoorwill", "@ 00000003"),
        synset(12, "person", "@ 00000002"),
        synset(13, "cardinal", "@ 00000012"),
        synset(14, "cardinal redbird", "@ 00000003"),
        synset(15, "Geococcyx genus_Geococcyx", "%m 00000016", "@ 00000001"),
        synset(16, "roadrunner", "@ 00000003", "#m 00000015"),
        synset(17, "hummingbird", "@ 00000003"),
    ]
)


def test_wordnet(tmp_path: Path) -> None:
    classes = [
        *("Laysan_Albatross", "Wandering_Albatross", "Petrel", "Sea_Gull", "Clark_Nutcracker", "Whip_poor_Will"),
        *("Cardinal", "Geococcyx", "Green_Violetear"),
    ]
    tree = read_taxonomy(write(tmp_path, WORDNET, "data.noun"), classes)
    assert {name: tree.path(name)[1:] for name in classes} == {
        "Laysan_Albatross": ["albatross", "pelagic bird", "seabird", "bird"],
        "Wandering_Albatross": ["albatross", "pelagic bird", "seabird", "bird"],
        "Petrel": ["pelagic bird", "seabird", "bird"],
        "Sea_Gull": ["seabird", "bird"],
        "Clark_Nutcracker": ["bird"],
        "Whip_poor_Will": ["bird"],
        "Cardinal": ["bird"],
        "Geococcyx": ["bird"],
        "Green_Violetear": ["bird"],
    }
    assert tree.levels(classes).sizes == (9, 8, 7, 6)
    with pytest.raises(ValueError, match=r"data\.noun: WordNet has no noun for Dodo, Roc; give a CSV file"):
        read_taxonomy(tmp_path / "data.noun", ["Petrel", "Dodo", "Roc"])
    write(tmp_path, WORDNET.replace("0a 0", "zz 0").replace("n 01 petrel", "n 7f petrel"), "data.noun")
    with pytest.raises(ValueError, match=r"data\.noun"):
        read_taxonomy(tmp_path / "data.noun", ["Petrel", "Sea_Gull"])


def test_wordnet_with_a_cycle_ends(tmp_path: Path) -> None:
    text = "\n".join([synset(1, "a", "@ 00000002"), synset(2, "b", "@ 00000001"), synset(3, "c", "@ 00000001"), "    "])
    assert read_taxonomy(write(tmp_path, text, "data.noun"), ["a", "c"]).path("c")[0] == "c"


def test_superclasses_of_cifar100() -> None:
    levels = cifar100_levels()
    assert levels.sizes == (100, 20)
    assert np.bincount(CIFAR100_SUPERCLASS).tolist() == [5] * 20
    members: dict[str, list[str]] = {}
    for name, coarse in zip(CIFAR100_FINE, CIFAR100_SUPERCLASS, strict=True):
        members.setdefault(CIFAR100_COARSE[coarse], []).append(name)
    assert members["aquatic_mammals"] == ["beaver", "dolphin", "otter", "seal", "whale"]
    assert members["trees"] == ["maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"]
    assert members["people"] == ["baby", "boy", "girl", "man", "woman"]
    tree = from_paths([[fine, CIFAR100_COARSE[k]] for fine, k in zip(CIFAR100_FINE, CIFAR100_SUPERCLASS, strict=True)])
    again = tree.levels(CIFAR100_FINE)
    order = [CIFAR100_COARSE.index(name) for name in again.names[1]]
    assert tuple(order[k] for k in again.table[1]) == levels.table[1]


def write_digits(folder: Path) -> str:
    rows = [f"{k},{'round' if k in (0, 6, 8, 9) else 'straight'}" for k in range(10)]
    return str(write(folder, "\n".join(rows), "digits.csv"))


def test_a_data_set_with_a_taxonomy(tmp_path: Path) -> None:
    plain, data = Digits(), Digits(taxonomy=write_digits(tmp_path))
    plain.setup()
    data.setup()
    assert (data.levels, data.num_classes) == ((10, 2), 12)
    assert data.class_names == [*plain.class_names, "round", "straight"]
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        fine, both = getattr(plain, name)().targets, getattr(data, name)().targets
        assert torch.equal(both[:, 0], fine)
        rounds = torch.isin(fine, torch.tensor([0, 6, 8, 9]))
        assert torch.equal(both[:, 1], (~rounds).long())
    images, targets = next(iter(data.train_dataloader()))
    assert targets.shape == (len(images), 2)


def test_chosen_classes_are_renumbered_on_every_level(tmp_path: Path) -> None:
    data = Digits(taxonomy=write_digits(tmp_path), classes=["7", "3", "1"])
    data.setup()
    assert (data.levels, data.class_names) == ((3, 1), ["1", "3", "7", "straight"])


def test_a_folder_with_a_taxonomy(tmp_path: Path) -> None:
    for name in CLASSES:
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(folder / f"{k}.png")
    path = str(write(tmp_path, BIRDS))
    data = ImageFolder(root=tmp_path / "images", size=8, taxonomy=path, label_levels=2, validation=0, test=4, batch_size=8)
    data.setup()
    assert data.levels == (4, 3)
    assert data.class_names == [*sorted(CLASSES), "pelagic bird", "gull", "owl"]
    _, targets = next(iter(data.train_dataloader()))
    assert {tuple(row) for row in targets.tolist()} == {(0, 0), (1, 1), (2, 2), (3, 0)}


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label_levels must be 2 or more with a taxonomy, got 3 with taxonomy=None"):
        Digits(label_levels=3)
    with pytest.raises(ValueError, match=r"got 1 with taxonomy='tree\.csv'"):
        Digits(taxonomy="tree.csv", label_levels=1)
    with pytest.raises(ValueError, match=r"already have 2 levels; leave out taxonomy='tree\.csv'"):
        CIFAR100(labels="both", taxonomy="tree.csv").setup()
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        Digits(taxonomy=str(tmp_path / "none.csv")).setup()
