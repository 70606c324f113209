"""What a run of a program returns: models, table, curves, and its config as YAML."""

from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ssdistill.errors import UserError, nearest
from ssdistill.record.metrics_file import read_metrics
from ssdistill.report.charts.plots import curves_of, line_chart

if TYPE_CHECKING:
    from ssdistill.artifacts.runtimes import RuntimeModel
    from ssdistill.chain.report import Report
    from ssdistill.models.backbones import Encoder

STYLE = """<style>.ssdistill td, .ssdistill th {padding: 2px 8px; text-align: right}
.ssdistill td:first-child, .ssdistill th:first-child {text-align: left}
.ssdistill {--c0: #1668c7; --c1: #c2571a; --c2: #16805b; --c3: #8f3fb0; --c4: #7a6a00}</style>"""


@dataclass(frozen=True)
class Result:
    """A finished experiment.

    Attributes:
        report: tables, records and notices; its page is at ``report.folder / "report.html"``.
        tree: the config, as it would be written in a file.
        main: name of the model that the function made.
    """

    report: "Report"
    tree: dict[str, Any]
    main: str

    @property
    def config(self) -> str:
        """The experiment as YAML.

        ``ssdistill run`` does the same with it where its networks and images are found by name or
        path; those that a program holds have to be named there again (``ssdistill.encoder``,
        ``ssdistill.use_data``), such as in a file that ``--import`` names.
        """
        return yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True)

    @property
    def models(self) -> dict[str, Path]:
        """Folders of the models of the first seed, by the names of the table."""
        return self.report.models

    @property
    def folder(self) -> Path:
        """Of the model that the function made, for ``ssdistill.load``."""
        return self.models[self.main]

    @cached_property
    def model(self) -> "Encoder | RuntimeModel":
        """The model that the function made."""
        return self.load(self.main)

    @property
    def student(self) -> "Encoder | RuntimeModel":
        """The distilled student.

        Raises:
            UserError: nothing was distilled.
        """
        return self.load("distilled")

    def load(self, name: str) -> "Encoder | RuntimeModel":
        """A model of the table, in eval mode.

        Raises:
            UserError: there is none of this name.
        """
        from ssdistill.artifacts.artifact import load

        if name not in self.models:
            raise UserError(
                f"no model '{name}'{nearest(name, self.models)}; there are {', '.join(self.models)}"
            )
        return load(self.models[name])

    def metrics(self, name: str | None = None, seed: int | None = None) -> dict[str, Any]:
        """Metrics of a model of the table.

        Args:
            name: by default the model that the function made.
            seed: by default the first.

        Raises:
            UserError: there is none of this name and seed.
        """
        name = name or self.main
        for record in self.report.records:
            if record["model"] == name and seed in (None, record["seed"]):
                return record["metrics"]
        known = sorted({record["model"] for record in self.report.records})
        raise UserError(f"no record of '{name}', seed {seed}; there are {', '.join(known)}")

    def __repr__(self) -> str:
        from rich.console import Console

        console = Console(width=100, record=False)
        with console.capture() as said:
            console.print(self.report.tables[0].to_rich())
        advice = "".join(f"\n{notice}" for notice in self._advice)
        return f"{said.get()}\n{self.main} model: {self.folder}{advice}"

    @property
    def _advice(self) -> list[str]:
        """What the report says of models that are no better than what they were made of."""
        return [notice for notice in self.report.notices if ": prefer " in notice]

    def _repr_html_(self) -> str:
        table = self.report.tables[0]
        head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in table.rows
        )
        return (
            f'{STYLE}<div class="ssdistill"><table><tr>{head}</tr>{rows}</table>'
            f"<p>{escape(' '.join([table.caption, *self._advice]))}</p>{self._curves()}</div>"
        )

    def _curves(self) -> str:
        folder = self.folder.parent
        charts = curves_of(read_metrics(folder), self.main)
        return line_chart(charts[0]) if charts else ""
