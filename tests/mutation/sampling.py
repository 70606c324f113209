"""Draw the mutants to try: a fixed number for each room, every kind of fault in turn."""

import random
from collections import defaultdict
from pathlib import Path

from operators import Mutant, mutants_of, parses

PACKAGE = "ssdistill"
DEFAULTS = "defaults"
"""The room of defaults and named constants, whatever file they stand in."""
ROOT = "package"
"""The room of the files that stand directly in the package."""


def room_of(mutant: Mutant) -> str:
    """The folder of the package a mutant belongs to, :data:`ROOT` or :data:`DEFAULTS`."""
    if mutant.operator == "default":
        return DEFAULTS
    parts = Path(mutant.file).parts
    return parts[1] if len(parts) > 2 else ROOT


def all_mutants(tree: Path) -> dict[str, list[Mutant]]:
    """Every mutant of the package under ``tree``, by room."""
    rooms = defaultdict(list)
    for path in sorted((tree / PACKAGE).rglob("*.py")):
        file = path.relative_to(tree).as_posix()
        if file.startswith(f"{PACKAGE}/configs/"):
            continue
        for mutant in mutants_of(file, path.read_text()):
            rooms[room_of(mutant)].append(mutant)
    return dict(rooms)


def choose(mutants: list[Mutant], count: int, seed: int, room: str, tree: Path) -> list[Mutant]:
    """``count`` mutants of a room, drawn by ``seed``: operators in turn, no line twice.

    The first n of a larger draw are a draw of n.
    """
    generator = random.Random(f"{seed} {room}")
    by_operator = defaultdict(list)
    for mutant in mutants:
        by_operator[mutant.operator].append(mutant)
    for of_one_kind in by_operator.values():
        generator.shuffle(of_one_kind)
    chosen: list[Mutant] = []
    places: set[tuple[str, int]] = set()
    while len(chosen) < count and by_operator:
        for operator in sorted(by_operator):
            mutant = by_operator[operator].pop()
            if not by_operator[operator]:
                del by_operator[operator]
            text = (tree / mutant.file).read_text()
            if (mutant.file, mutant.line) not in places and parses(mutant.applied(text)):
                places.add((mutant.file, mutant.line))
                chosen.append(mutant)
    return chosen[:count]
