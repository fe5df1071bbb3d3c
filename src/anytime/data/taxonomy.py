"""Label levels from a tree of labels: rows of a CSV file, paths of hypernyms, or WordNet's own file of nouns."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from anytime.data.files import errors_naming
from anytime.support.names import nearest

_SYNSET = re.compile(r"\d{8} \d\d n [0-9a-f]{2} ")
NOT_IN_WORDNET = {"Gadwall": "duck", "Green_Violetear": "hummingbird"}
"""Classes of CUB-200 of which WordNet 3.0 knows no part of the name, and what they are."""


@dataclass(frozen=True)
class LabelLevels:
    """Classes at D levels, fine to coarse: class k of the first is class `table[d][k]` of level d.

    Attributes:
        names: The class names of each level.
        table: Int `[D][K_1]`; the first row counts 0, 1, ..., K_1 - 1.
    """

    names: tuple[tuple[str, ...], ...]
    table: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each level; of a tree K_1 > ... > K_D."""
        return tuple(map(len, self.names))

    def targets(self, labels: Tensor) -> Tensor:
        """int64 `[N, D]`, the label of each level, from the finest labels `[N]`."""
        return torch.tensor(self.table).T[labels]


@dataclass(frozen=True)
class Taxonomy:
    """A tree of labels, or several: each label's parent, `None` for a root.

    Args:
        parents: One entry for each label.
        source: What errors name, such as a file.

    Raises:
        ValueError: A cycle, or a parent without an entry.
    """

    parents: Mapping[str, str | None]
    source: str = "taxonomy"

    def __post_init__(self) -> None:
        if not self.parents:
            raise ValueError(f"{self.source}: it holds no label")
        for name in self.parents:
            self.path(name)

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """The children of each label that has some."""
        children: dict[str, list[str]] = defaultdict(list)
        for name, parent in self.parents.items():
            if parent is not None:
                children[parent].append(name)
        return dict(children)

    def path(self, name: str) -> list[str]:
        """The label and all above it, up to the root."""
        path: list[str] = []
        at: str | None = name
        while at is not None:
            if at in path:
                raise ValueError(f"{self.source}: cycle {' < '.join([*path[path.index(at) :], at])}")
            if at not in self.parents:
                raise ValueError(f"{self.source}: there is no label {at!r}, the parent of {path[-1]!r}")
            path.append(at)
            at = self.parents[at]
        return path

    def levels(self, classes: Sequence[str], number: int | None = None) -> LabelLevels:
        """The tree cut at depths H, H - 1, ..., H - D + 1, H being the depth of the deepest class.

        A class deeper than the cut is called by its ancestor there, others keep their names. So labels of one level never
        overlap, and each level has fewer of them: a cut that changes names alone is left out. (The paper has "ancestors up to
        distance 3" of 200 birds with 99 nodes above them, and 183, 149 and 80 labels, so it cuts by depth, too.)

        Args:
            classes: Names of the finest classes in label order: all leaves of the tree.
            number: D, the number of levels; default: as many as tell something apart.

        Raises:
            ValueError: A class that the tree lacks or that is no leaf, a leaf that is no class, two classes of one name, a
                wrong number.

        Source: Lee, Shin 2018, section 3.3 and appendix A.
        """
        leaves = [name for name in self.parents if name not in self.children]
        if double := sorted({name for name in classes if list(classes).count(name) > 1}):
            raise ValueError(f"{self.source}: {double[0]!r} is the name of several classes, which a tree cannot tell apart")
        for name in classes:
            if name not in self.parents:
                raise ValueError(f"{self.source}: class {name!r} is missing{_near(name, leaves)}")
            if name in self.children:
                raise ValueError(f"{self.source}: class {name!r} must be a leaf, but {self.children[name][0]!r} lies below it")
        if unknown := sorted(set(leaves) - set(classes)):
            raise ValueError(
                f"{self.source}: {unknown[0]!r} is none of the {len(classes)} classes{_near(unknown[0], classes)}"
            )
        paths = [self.path(name)[::-1] for name in classes]
        names: list[tuple[str, ...]] = []
        table: list[tuple[int, ...]] = []
        for cut in range(max(map(len, paths)), 0, -1):
            labels = [path[min(cut, len(path)) - 1] for path in paths]
            places = {name: place for place, name in enumerate(dict.fromkeys(labels))}
            if names and (len(places) == 1 or len(places) == len(names[-1])):
                continue  # it says the same of everything, or what the level below says
            names.append(tuple(places))
            table.append(tuple(places[label] for label in labels))
        if len(names) < 2:
            raise ValueError(f"{self.source}: no label stands for some of the {len(classes)} classes but not all")
        if number is not None and not 2 <= number <= len(names):
            raise ValueError(f"{self.source} has up to {len(names)} label levels, at least 2 make sense, got {number!r}")
        return LabelLevels(tuple(names[:number]), tuple(table[:number]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a CSV file that `read_taxonomy` reads: each leaf with all labels above it.

        Raises:
            ValueError: A label that begins with `#` or holds ` > `, which mean something else in such a file.
        """
        for name in self.parents:
            if name.startswith("#") or " > " in name:
                raise ValueError(f"a file of labels cannot hold {name!r}: '#' begins a comment, ' > ' a path")
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(self.path(name) for name in self.parents if name not in self.children)


def read_taxonomy(path: str | os.PathLike[str], classes: Sequence[str]) -> Taxonomy:
    """Reads a tree of labels; its content says which of three formats it has. Lines that begin with `#` are comments.

    - CSV, without a header: each row a label, its parent, its parent's parent and so on: `albatross,seabird,bird`. Rows may
      overlap and differ in length: one row for each class, or one for each pair of child and parent.
    - Paths from the root, as WordNet's hypernyms are printed: `bird > seabird > albatross`.
    - WordNet's `data.noun`: see `wordnet`.

    Args:
        path: The file.
        classes: What to look for in WordNet; the other formats name the classes exactly.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A label with two parents, a cycle, an empty cell; in WordNet a class that is not found.
    """
    path = Path(path).expanduser()
    with errors_naming(path):
        text = path.read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if any(map(_SYNSET.match, lines[:100])):
        return wordnet(lines, classes, str(path))
    printed = any(" > " in line for line in lines)
    rows = [line.split(" > ")[::-1] for line in lines] if printed else csv.reader(lines)
    return from_paths([[cell.strip() for cell in row] for row in rows], str(path))


def from_paths(paths: Sequence[Sequence[str]], source: str = "taxonomy") -> Taxonomy:
    """The tree of some paths, each a label with labels above it, from the lowest up; empty cells at the end do not count.

    Raises:
        ValueError: A label with two parents, a cycle, an empty cell between others.
    """
    parents: dict[str, str | None] = {}
    for path in paths:
        names = list(path)
        while names and not names[-1]:
            names.pop()
        if "" in names:
            raise ValueError(f"{source}: empty label in {','.join(names)!r}")
        for name, parent in zip(names, [*names[1:], None], strict=True):
            known = parents.get(name)
            if None not in (known, parent) and known != parent:
                raise ValueError(f"{source}: {name!r} has two parents, {known!r} and {parent!r}")
            parents[name] = known if parent is None else parent
    return Taxonomy(parents, source)


def wordnet(lines: Sequence[str], classes: Sequence[str], source: str = "data.noun") -> Taxonomy:
    """The part of WordNet's tree of nouns that lies above some classes.

    A class is looked up by its whole name, then without its first word and so on (a Laysan albatross is an albatross), with
    case, `'s`, hyphens and spaces left out; a genus stands for its members. The root is the deepest noun of which every class
    can be a kind, which tells the bird `cardinal` from the priest. Of several birds of one name that counts of which it is
    the first name, then the first in the file. Labels with a single child are left out, since they tell nothing apart.

    Args:
        lines: Of `data.noun` (format wndb of WordNet 3.x).
        classes: Names, words apart by `_` or blanks.
        source: What errors name.

    Raises:
        ValueError: A class that is not found.
    """
    with errors_naming(source):
        nouns = _Nouns(lines)
    found = {name: list(nouns.meanings(NOT_IN_WORDNET.get(name, name))) for name in classes}
    if missing := [name for name, meanings in found.items() if not meanings]:
        raise ValueError(f"{source}: WordNet has no noun for {', '.join(missing)}; give a CSV file that says what they are")
    shared = [{at for _, noun in meanings for at in nouns.above(noun)} for meanings in found.values()]
    roots = set.intersection(*shared)
    if not roots:
        raise ValueError(f"{source}: nothing in WordNet stands for all {len(classes)} classes; give a CSV file instead")
    root = max(sorted(roots), key=lambda at: len(nouns.up(at, None)))
    chosen: dict[str, tuple[bool, list[str]]] = {}
    for name, meanings in found.items():
        kinds = [(whole, noun) for whole, noun in meanings if root in nouns.above(noun)]
        whole, noun = kinds[0]
        chosen[name] = (whole and name not in NOT_IN_WORDNET, nouns.up(noun, root))
    uses = Counter(at for _, up in chosen.values() for at in up)
    # a noun that is the class itself, and stands above no other, is no label of its own
    paths = {name: up[1:] if whole and uses[up[0]] == 1 else up for name, (whole, up) in chosen.items()}
    below: dict[str, set[str]] = defaultdict(set)
    for name, up in paths.items():
        for child, at in zip([f"class {name}", *up], up, strict=False):
            below[at].add(child)
    kept = {at for at, children in below.items() if len(children) > 1}
    titles = nouns.titles(kept, set(classes))
    return from_paths([[name, *(titles[at] for at in up if at in kept)] for name, up in paths.items()], source)


class _Nouns:
    """WordNet's nouns by their offset in the file: names, what they are kinds of, and the members of a genus."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.names: dict[str, list[str]] = {}
        self.parents: dict[str, list[str]] = {}
        self.members: dict[str, list[str]] = {}
        self.places: dict[str, list[str]] = defaultdict(list)
        self._above: dict[str, frozenset[str]] = {}
        for line in filter(_SYNSET.match, lines):
            fields = line.partition(" | ")[0].split()
            end = 4 + 2 * int(fields[3], 16)  # after the names, each with a number
            offset, names, pointers = fields[0], fields[4:end:2], fields[end + 1 :]
            kinds = list(zip(pointers[::4], pointers[1::4], strict=False))
            self.names[offset] = names
            self.parents[offset] = [to for symbol, to in kinds if symbol in ("@", "@i")]
            self.members[offset] = [to for symbol, to in kinds if symbol == "%m"]
            for name in dict.fromkeys(map(_key, names)):
                self.places[name].append(offset)

    def meanings(self, name: str) -> Iterator[tuple[bool, str]]:
        """Nouns that a class may be, the best first, and whether by its whole name."""
        words = name.replace("_", " ").split()
        for first in range(len(words)):
            key = _key("".join(words[first:]))
            nouns = sorted(self.places.get(key, ()), key=lambda at: _key(self.names[at][0]) != key)
            yield from ((not first, noun) for noun in nouns)
            yield from ((not first, member) for noun in nouns for member in self.members[noun])

    def above(self, noun: str) -> frozenset[str]:
        """The noun and all that it is a kind of."""
        if noun not in self._above:
            reached, todo = {noun}, [noun]
            while todo:
                new = set(self.parents.get(todo.pop(), ())) - reached
                reached |= new
                todo.extend(new)
            self._above[noun] = frozenset(reached)
        return self._above[noun]

    def up(self, noun: str, root: str | None) -> list[str]:
        """A way from a noun up to `root`, by the first parent that leads there; without a root, by first parents."""
        way = [noun]
        while way[-1] != root:
            parents = self.parents.get(way[-1], ())
            further = [at for at in parents if at not in way and (root is None or root in self.above(at))]
            if not further:
                break
            way.append(further[0])
        return way

    def titles(self, nouns: set[str], taken: set[str]) -> dict[str, str]:
        """One name for each of some nouns: its first, with its place in the file where that name is taken twice."""
        first = {at: self.names[at][0].replace("_", " ") for at in nouns}
        uses = Counter(first.values())
        return {at: f"{name} ({at})" if name in taken or uses[name] > 1 else name for at, name in first.items()}


def _near(name: str, valid: Sequence[str]) -> str:
    """The nearest valid name, if one is near: hundreds of others would say nothing."""
    hint = nearest(name, valid)
    return hint if hint.startswith("; did") else ""


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("'s", ""))
