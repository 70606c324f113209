"""Which tests execute a line: recorded once by ``contexts.py``, looked up for every mutant."""

import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from coverage import CoverageData

VARIANTS = 3
"""Parameter sets of one test function that come before all the other tests."""


OPENING = 0.3
"""Seconds that a further file of tests costs, to import it and what it imports."""


class LineMap:
    """The tests of every line.

    Args:
        path: what ``contexts.py`` wrote: one file of line contexts, and one of seconds.
        tree: the tree it was recorded in.
    """

    def __init__(self, path: Path, tree: Path):
        self.tree = tree
        self.data = CoverageData(str(path))
        self.data.read()
        recorded = json.loads(Path(f"{path}.seconds.json").read_text())
        # A test that fails without a mutant would notice every mutant.
        self.seconds = {n: s for n, s in recorded["seconds"].items() if n not in recorded["failed"]}
        self._lines = lru_cache(maxsize=8)(self._read_lines)
        self._breadth = lru_cache(maxsize=8)(self._count_lines)
        self.by_file = defaultdict(list)
        for node in self.seconds:
            self.by_file[node.split("::")[0]].append(node)

    def _read_lines(self, file: str) -> dict[int, list[str]]:
        return self.data.contexts_by_lineno(str(self.tree / file))

    def _count_lines(self, file: str) -> dict[str, int]:
        """Lines of the file that each context executes."""
        breadth: dict[str, int] = defaultdict(int)
        for contexts in self._lines(file).values():
            for context in contexts:
                breadth[context] += 1
        return breadth

    def tests_of(self, file: str, first: int, last: int, budget: float) -> list[str]:
        """Tests that execute one of the lines, narrowest first, of ``budget`` seconds together.

        Lines that run at import alone concern every test that executes anything of the file.
        """
        lines = self._lines(file)
        contexts = {c for line in range(first, last + 1) for c in lines.get(line, []) if c}
        contexts = contexts or {c for c in self._breadth(file) if c}
        shared = {c.removesuffix("::*") for c in contexts if c.endswith("::*")}
        tests = {c for c in contexts if c in self.seconds}
        tests |= {node for file_ in shared for node in self.by_file[file_]}
        return self._affordable(self._ordered(tests, file), budget)

    def _ordered(self, tests: set[str], file: str) -> list[str]:
        breadth = self._breadth(file)
        stem = Path(file).stem

        def rank(node: str) -> tuple:
            own = f"test_{stem}" in node
            return not own, round(self.seconds[node], 1), breadth.get(node, 0), node

        ordered = sorted(tests, key=rank)
        seen: dict[str, int] = defaultdict(int)
        first, later = [], []
        for node in ordered:
            function = node.split("[")[0]
            seen[function] += 1
            (first if seen[function] <= VARIANTS else later).append(node)
        return first + later

    def _affordable(self, tests: list[str], budget: float) -> list[str]:
        chosen, files, spent = [], set(), 0.0
        for node in tests:
            file = node.split("::")[0]
            cost = self.seconds[node] + (0.0 if file in files else OPENING)
            if spent + cost <= budget or not chosen:
                chosen.append(node)
                files.add(file)
                spent += cost
        return chosen
