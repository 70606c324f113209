"""Every number of a table is readable at every width: cells are parsed from the output."""

import io
import re

import pytest
from rich.console import Console

from ssdistill.report.tables.models import Table, results_table
from ssdistill.report.tables.protocols import protocols_table
from ssdistill.report.tables.steps import steps_table
from ssdistill.terminal.fitted_table import FittedTable

NAMES = ("untrained", "prune_rank_unfitted_recovered", "[bold]", "[/red] x", "größer", "模型量化")
STEP = {
    "params": 40_400.0,
    "params_before": 77_400.0,
    "macs": 413_000.0,
    "macs_before": 781_000.0,
    "bytes": 50_100.0,
    "bytes_before": 169_000.0,
    "smaller": 3.36,
    "latency_ms": 0.048,
    "latency_ms_before": 0.038,
    "cka": 0.94,
    "cka_before": 0.99,
} | {f"speedup{size}{end}": 0.8 for size in ("", "_batch64") for end in ("", "_low", "_high")}


def metrics_of(number):
    costs = {
        "params": 77_400 + number,
        "macs": 781_000,
        "bytes": 317_000 * (number + 1),
        "latency_ms": 0.043 + number,
        "smaller": 6.32,
        "speedup": 0.91,
        "speedup_low": 0.90,
        "speedup_high": 123456.7,
        "runtime_gain": 7.6,
        "memory": 1e9,
    }
    probes = {f"probe/{name}/top1": 97.5 - number for name in ("linear", "knn", "low_shot", "new")}
    return (
        probes
        | {f"compress/{name}": value for name, value in costs.items()}
        | {f"step/{name}": value for name, value in STEP.items()}
        | {"agree/cka": -0.001, "time/probe/new": 1e-9}
    )


RECORDS = [
    {"model": name, "seed": seed, "metrics": {k: v + seed / 7 for k, v in metrics_of(i).items()}}
    for i, name in enumerate(NAMES)
    for seed in (0, 1)
]
TABLES = {
    "results": results_table(RECORDS, "a [title]"),
    "steps": steps_table(RECORDS),
    "protocols": protocols_table(RECORDS),
}


def printed(table, width):
    console = Console(file=io.StringIO(), width=width, markup=True)
    console.print(table, crop=False)
    return console.file.getvalue()


def words(text):
    return text.replace(":", " ").split()


def cells_read(text, names):
    """What stands behind each name, in every table or list that ``text`` shows."""
    found, name, parts = {name: [] for name in names}, None, text.splitlines()
    for line in parts:
        starts = [n for n in names if line == n or line.startswith(f"{n} ")]
        if starts:
            name = max(starts, key=len)
            found[name].append(line.removeprefix(name))
        elif line.startswith("  ") and name and not found[name][0].strip():
            found[name].append(line)
        else:
            name = None
    return {name: " ".join(parts) for name, parts in found.items()}


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200, 1000])
@pytest.mark.parametrize("name", ["results", "steps"])
def test_every_cell_is_read_back_at_every_width(name, width):
    table = TABLES[name]
    text = printed(table.to_rich(), width)
    read = cells_read(text, [row[0] for row in table.rows])
    for label, *cells in table.rows:
        for cell in cells:
            assert cell in read[label], (label, cell)
            read[label] = read[label].replace(cell, "", 1)
    assert "…" not in text


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", list(TABLES))
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(name, width):
    table = TABLES[name]
    text = printed(table.to_rich(), width)
    assert max(map(len, text.splitlines())) <= width
    shown = words(text)
    cells = [cell for row in table.rows for cell in row]
    # A list of rows says of each what it is called, not what names are.
    for part in (*table.header[table.keys :], table.title, table.caption, *cells):
        assert [word for word in words(part) if word not in shown] == []


def test_all_columns_stand_beside_each_other_where_there_is_room():
    table = TABLES["results"]
    lines = printed(table.to_rich(), 1000).splitlines()
    header = lines[1]
    assert [header.index(name) for name in table.header] == sorted(map(header.index, table.header))
    assert sum(line.startswith("untrained") for line in lines) == 1


def test_one_accuracy_and_its_costs_come_first_at_80_columns():
    first = printed(TABLES["results"].to_rich(), 80).split("\n\n")[0]
    for number in ("97.57 ± 0.10", "317 kB", "0.114 ± 0.101"):
        assert number in first


@pytest.mark.parametrize("width", [1, 5, 20])
def test_a_terminal_narrower_than_a_number_still_shows_whole_numbers(width):
    table = TABLES["results"]
    shown = printed(table.to_rich(), width).split()
    numbers = [n for row in table.rows for c in row[1:] for n in re.findall(r"\d+\.\d+", c)]
    for number in numbers:
        assert any(number in word for word in shown)


def test_prose_is_wrapped_between_words_and_numbers_never():
    table = FittedTable("kind", "what it does")
    table.add_row("simreg", "The student predicts the embedding of the teacher from its own")
    table.add_row("longest-name-of-all", "Short")
    text = printed(table, 40)
    assert max(map(len, text.splitlines())) <= 40
    assert {"predicts", "embedding", "longest-name-of-all"} <= set(text.split())


def test_numbers_stand_below_each_other_to_the_right():
    text = printed(Table(("model", "n"), (("a", "1"), ("b", "100"))).to_rich(), 80)
    # How wide a gap rich leaves depends on its version.
    lines = text.splitlines()[-3:-1]
    assert [line.split() for line in lines] == [["a", "1"], ["b", "100"]]
    assert len(lines[0]) == len(lines[1])


@pytest.mark.parametrize(
    ("width", "lines"),
    [(10, ["longname", "  n: 100"]), (9, ["longname", "  n:", "    100"])],
)
def test_a_number_of_a_list_stands_beside_its_heading_where_both_fit(width, lines):
    table = Table(("model", "n"), (("longname", "100"),)).to_rich()
    assert printed(table, width).split("\n")[: len(lines) + 1] == [*lines, ""]


def test_a_table_without_rows_and_one_without_columns_are_printed():
    assert "model" in printed(Table(("model", "n"), ()).to_rich(), 80)
    assert printed(FittedTable(title="empty"), 80).startswith("empty")


def test_every_part_names_its_rows_by_all_columns_that_do():
    table = Table(
        ("protocol", "measure", *(f"value {i}" for i in range(4))),
        (("linear", "top1", *"1234"), ("", "top5", *"5678")),
        keys=2,
    )
    text = printed(table.to_rich(), 32)
    assert text.count("top5") == 2 and text.count("linear") == 2
    assert "linear top1" in printed(table.to_rich(), 12)
    assert [piece[:2] for piece in table.pieces(250)] == [(0, 1)] * len(table.pieces(250))


@pytest.mark.parametrize(("width", "tables"), [(41, 2), (40, 0)])
def test_prose_gets_sixteen_columns_where_not_all_fit_beside_each_other(width, tables):
    table = FittedTable("name", "one", "two", "long", box=None)
    table.add_row("a", "half a line " * 4, "half a line " * 4, "x" * 30)
    assert printed(table, width).count("name") == tables
