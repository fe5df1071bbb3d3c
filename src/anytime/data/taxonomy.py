"""Label levels from a tree of labels: rows of a CSV file, paths of hypernyms, or WordNet's file of nouns."""

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
from anytime.data.names import composed
from anytime.support.files import atomic_write
from anytime.support.names import nearest

_SYNSET = re.compile(r"\d{8} \d\d n [0-9a-f]{2} ")
NOT_IN_WORDNET = {"Gadwall": "duck", "Green_Violetear": "hummingbird"}
"""Classes of CUB-200 whose names, and parts of names, WordNet 3.0 lacks, and what they are."""


@dataclass(frozen=True)
class LabelLevels:
    """Classes at D levels, fine to coarse: class k of the first level is class `table[d][k]` of level d.

    Attributes:
        names: The class names of each level.
        table: Int `[D][K_1]`; the first row is 0, 1, ..., K_1 - 1.
    """

    names: tuple[tuple[str, ...], ...]
    table: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each level; in a tree K_1 > ... > K_D."""
        return tuple(map(len, self.names))

    def targets(self, labels: Tensor) -> Tensor:
        """The labels of all levels, int64 `[N, D]`, given the finest labels `[N]`."""
        return torch.tensor(self.table).T[labels]


@dataclass(frozen=True)
class Taxonomy:
    """One or more trees of labels: each label's parent, `None` for a root.

    Args:
        parents: One entry per label.
        source: Name for error messages, such as a file.

    Raises:
        ValueError: There is a cycle, or a parent without an entry.
    """

    parents: Mapping[str, str | None]
    source: str = "taxonomy"

    def __post_init__(self) -> None:
        if not self.parents:
            raise ValueError(f"{self.source}: it holds no label")
        checked: set[str] = set()
        for name in self.parents:
            path: dict[str, None] = {}  # in order
            at: str | None = name
            while at is not None and at not in checked:
                if at in path:
                    raise ValueError(f"{self.source}: cycle {_chain([*list(path)[list(path).index(at) :], at])}")
                if at not in self.parents:
                    raise ValueError(f"{self.source}: there is no label {at!r}, the parent of {list(path)[-1]!r}")
                path[at] = None
                at = self.parents[at]
            checked |= path.keys()

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """The children of each label that is not a leaf."""
        children: dict[str, list[str]] = defaultdict(list)
        for name, parent in self.parents.items():
            if parent is not None:
                children[parent].append(name)
        return dict(children)

    def path(self, name: str) -> list[str]:
        """The label and its ancestors, up to the root."""
        path: list[str] = []
        at: str | None = name
        while at is not None:
            path.append(at)
            at = self.parents[at]
        return path

    def levels(self, classes: Sequence[str], number: int | None = None) -> LabelLevels:
        """Cuts the tree at depths H, H - 1, ..., H - D + 1, where H is the depth of the deepest class.

        A class deeper than the cut takes the name of its ancestor there; the others keep their names. So labels of one level
        never overlap, and each level has fewer labels: a cut that only changes names is left out. (The paper has "ancestors
        up to distance 3" of 200 birds with 99 nodes above them, and 183, 149 and 80 labels, so it also cuts by depth.)

        Args:
            classes: Names of the finest classes in label order: all leaves of the tree.
            number: D, the number of levels; default: all that distinguish classes.

        Raises:
            ValueError: A class is missing from the tree, not a leaf, or has the name of another; a leaf is not a class; the
                number is wrong.

        Source: Lee, Shin 2018, section 3.3 and appendix A.
        """
        leaves = [name for name in self.parents if name not in self.children]
        if double := sorted({name for name in classes if list(classes).count(name) > 1}):
            raise ValueError(f"{self.source}: {double[0]!r} is the name of several classes, which a tree cannot distinguish")
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
        for depth in range(max(map(len, paths)), 0, -1):
            labels = [path[min(depth, len(path)) - 1] for path in paths]
            numbers = {name: number for number, name in enumerate(dict.fromkeys(labels))}
            if names and len(numbers) in (1, len(names[-1])):
                continue  # it distinguishes nothing, or the same classes as the level below
            names.append(tuple(numbers))
            table.append(tuple(numbers[label] for label in labels))
        if len(names) < 2:
            raise ValueError(f"{self.source}: no label stands for some of the {len(classes)} classes but not all")
        if number is not None and not 2 <= number <= len(names):
            raise ValueError(f"{self.source} allows 2 to {len(names)} label levels, got {number!r}")
        return LabelLevels(tuple(names[:number]), tuple(table[:number]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a CSV file for `read_taxonomy`: each leaf followed by its ancestors.

        Raises:
            ValueError: A label begins with `#` or contains ` > `, which have another meaning in such a file.
        """
        for name in self.parents:
            if name.startswith("#") or " > " in name:
                raise ValueError(f"a file of labels cannot hold {name!r}: '#' begins a comment, ' > ' a path")
        with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(self.path(name) for name in self.parents if name not in self.children)


def read_taxonomy(path: str | os.PathLike[str], classes: Sequence[str]) -> Taxonomy:
    """Reads a tree of labels in one of three formats, detected by content. Lines that begin with `#` are comments.

    - CSV without a header: each row holds a label, its parent, its parent's parent and so on: `albatross,seabird,bird`. Rows
      may overlap and differ in length: one row per class, or one per pair of child and parent.
    - Paths from the root, as WordNet's hypernyms are printed: `bird > seabird > albatross`.
    - WordNet's `data.noun`: see `wordnet`.

    Args:
        path: The file.
        classes: Names to look up in WordNet; the other formats must name the classes exactly.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: A label has two parents, there is a cycle or an empty cell, or WordNet lacks a class.
    """
    path = Path(path).expanduser()
    with errors_naming(path):
        text = path.read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if any(map(_SYNSET.match, lines[:100])):
        return wordnet(lines, classes, str(path))
    printed = any(" > " in line for line in lines)
    with errors_naming(path):
        rows = [line.split(" > ")[::-1] for line in lines] if printed else list(csv.reader(lines))
    return from_paths([[composed(cell.strip()) for cell in row] for row in rows], str(path))


def from_paths(paths: Sequence[Sequence[str]], source: str = "taxonomy") -> Taxonomy:
    """The tree made of some paths, each a label followed by its ancestors; trailing empty cells are ignored.

    Raises:
        ValueError: A label has two parents, there is a cycle, or an empty cell between others.
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
    """The part of WordNet's tree of nouns above some classes.

    A class is looked up by its whole name, then without its first word and so on (a Laysan albatross is an albatross),
    ignoring case, `'s`, hyphens and spaces; a genus stands for its members. The root is the deepest noun that every class can
    be a kind of, which distinguishes the bird `cardinal` from the priest. Among several birds of one name, one that lists it
    first takes precedence, then the first in the file. Labels with a single child are left out: they distinguish nothing.

    Args:
        lines: Lines of `data.noun` (format wndb of WordNet 3.x).
        classes: Class names, words separated by `_` or blanks.
        source: Name for error messages.

    Raises:
        ValueError: A class is not found.
    """
    with errors_naming(source):
        nouns = _Nouns(lines)
    senses = {name: list(nouns.senses(NOT_IN_WORDNET.get(name, name))) for name in classes}
    if missing := [name for name, of_class in senses.items() if not of_class]:
        raise ValueError(f"{source}: WordNet has no noun for {', '.join(missing)}; give a CSV file that says what they are")
    roots = set.intersection(*({up for _, noun in of_class for up in nouns.hypernyms(noun)} for of_class in senses.values()))
    if not roots:
        raise ValueError(f"{source}: nothing in WordNet stands for all {len(classes)} classes; give a CSV file instead")
    root = max(sorted(roots), key=nouns.depth)
    chosen: dict[str, tuple[bool, list[str]]] = {}
    for name, of_class in senses.items():
        whole, noun = next(sense for sense in of_class if root in nouns.hypernyms(sense[1]))
        chosen[name] = (whole and name not in NOT_IN_WORDNET, nouns.path(noun, root))
    uses = Counter(noun for _, path in chosen.values() for noun in path)
    # A noun that is the class itself, and is above no other class, is not a separate label.
    paths = {name: path[1:] if whole and uses[path[0]] == 1 else path for name, (whole, path) in chosen.items()}
    children: dict[str, set[str]] = defaultdict(set)
    for name, path in paths.items():
        for child, noun in zip([f"class {name}", *path], path, strict=False):
            children[noun].add(child)
    labels = nouns.unique_names({noun for noun, below in children.items() if len(below) > 1}, set(classes))
    return from_paths([[name, *(labels[noun] for noun in path if noun in labels)] for name, path in paths.items()], source)


class _Nouns:
    """WordNet's nouns by their offset in the file: names, hypernyms, and the members of a genus."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.names: dict[str, list[str]] = {}
        self.parents: dict[str, list[str]] = {}
        self.members: dict[str, list[str]] = {}
        self.offsets: dict[str, list[str]] = defaultdict(list)
        self._hypernyms: dict[str, frozenset[str]] = {}
        self._below: dict[str, set[str]] = {}
        self._depths: dict[str, int] = {}
        for line in filter(_SYNSET.match, lines):
            fields = line.partition(" | ")[0].split()
            end = 4 + 2 * int(fields[3], 16)  # after the names, each followed by a number
            offset, names, pointers = fields[0], fields[4:end:2], fields[end + 1 :]
            relations = list(zip(pointers[::4], pointers[1::4], strict=False))
            self.names[offset] = names
            self.parents[offset] = [target for symbol, target in relations if symbol in ("@", "@i")]
            self.members[offset] = [target for symbol, target in relations if symbol == "%m"]
            for name in dict.fromkeys(map(_key, names)):
                self.offsets[name].append(offset)

    def senses(self, name: str) -> Iterator[tuple[bool, str]]:
        """Nouns that a class may be, the best first, and whether its whole name matches."""
        words = name.replace("_", " ").split()
        for first in range(len(words)):
            key = _key("".join(words[first:]))
            nouns = sorted(self.offsets.get(key, ()), key=lambda noun: _key(self.names[noun][0]) != key)
            yield from ((not first, noun) for noun in nouns)
            yield from ((not first, member) for noun in nouns for member in self.members[noun])

    def hypernyms(self, noun: str) -> frozenset[str]:
        """The noun and everything it is a kind of."""
        if noun not in self._hypernyms:
            reached, todo = {noun}, [noun]
            while todo:
                new = set(self.parents.get(todo.pop(), ())) - reached
                reached |= new
                todo.extend(new)
            self._hypernyms[noun] = frozenset(reached)
        return self._hypernyms[noun]

    def depth(self, noun: str) -> int:
        """The number of nouns from this one up to the top by first parents, both included."""
        path: dict[str, None] = {}
        at: str | None = noun
        while at is not None and at not in path and at not in self._depths:
            path[at] = None
            at = next(iter(self.parents.get(at, ())), None)
        depth = self._depths.get(at or "", 0)
        for above in reversed(path):
            self._depths[above] = depth = depth + 1
        return self._depths[noun]

    def path(self, noun: str, root: str) -> list[str]:
        """The path from a noun up to `root` by the first parent that leads there."""
        path = {noun: None}  # in order
        at = noun
        while at != root:
            parents = self.parents.get(at, ())
            parent = next((up for up in parents if up not in path and up in self.below(root)), None)
            if parent is None:
                break
            path[parent] = None
            at = parent
        return list(path)

    def below(self, root: str) -> set[str]:
        """The noun and every kind of it."""
        if root not in self._below:
            children: dict[str, list[str]] = defaultdict(list)
            for noun, parents in self.parents.items():
                for parent in parents:
                    children[parent].append(noun)
            reached, todo = {root}, [root]
            while todo:
                new = set(children.get(todo.pop(), ())) - reached
                reached |= new
                todo.extend(new)
            self._below[root] = reached
        return self._below[root]

    def unique_names(self, nouns: set[str], taken: set[str]) -> dict[str, str]:
        """The first name of each noun, with its offset in the file if that name is not unique."""
        first = {noun: self.names[noun][0].replace("_", " ") for noun in nouns}
        uses = Counter(first.values())
        return {noun: f"{name} ({noun})" if name in taken or uses[name] > 1 else name for noun, name in first.items()}


def _chain(labels: Sequence[str]) -> str:
    """`"a < b < c"`; of a long chain only its ends."""
    return " < ".join(labels if len(labels) <= 10 else [*labels[:5], "...", *labels[-4:]])


def _near(name: str, valid: Sequence[str]) -> str:
    """The nearest valid name, if one is near: a list of hundreds would not help."""
    return nearest(name, valid).partition("; valid")[0]


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("'s", ""))
