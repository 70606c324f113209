"""A pytest plugin that records which lines each test executes, and how long each test takes.

``run.py map`` loads it, in the root of a tree. It writes to ``$MUTATION_CONTEXTS`` (coverage.py's
SQLite file) and to the same path with ``.seconds.json`` after it.

Line contexts are node ids. What a fixture of a wider scope executes is recorded under the file
of the test that used it first, as ``tests/unit/test_x.py::*``: it serves every test of that file.
"""

import json
import os
from pathlib import Path

import coverage
import pytest


class Recorder:
    """Switches coverage's context with the test; one instance per session."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self.coverage = coverage.Coverage(
            data_file=str(path), source=[str(Path("ssdistill").resolve())], messages=False
        )
        self.node = ""

    def pytest_sessionstart(self) -> None:
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.node = item.nodeid
        self.coverage.switch_context(self.node)
        try:
            return (yield)
        finally:
            self.coverage.switch_context("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        self.coverage.switch_context(self.node.split("::")[0] + "::*")
        try:
            return (yield)
        finally:
            self.coverage.switch_context(self.node)

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        self.coverage.save()
        rounded = {node: round(seconds, 4) for node, seconds in self.seconds.items()}
        content = {"seconds": rounded, "failed": sorted(self.failed)}
        Path(f"{self.path}.seconds.json").write_text(json.dumps(content))


def pytest_configure(config) -> None:
    config.pluginmanager.register(Recorder(Path(os.environ["MUTATION_CONTEXTS"])), "line-contexts")
