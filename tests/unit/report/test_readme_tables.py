import io
import json
import statistics

import pytest
import rich.console

from ssdistill.errors import UserError
from ssdistill.report.page import PageData, render_page
from ssdistill.report.readme import benchmark_table, write_reports
from ssdistill.report.tables.models import Table, read_records, results_rows, results_table, scaled

LINEAR = "probe/linear/top1"
PROVENANCE = {
    "hardware": {"cpu": "Xeon", "cores": 2, "gpus": []},
    "packages": {"torch": "2.9"},
    "python": "3.12",
}


def record(model, seed, value, **others):
    metrics = {LINEAR: value, "compress/bytes": 331_000, "agree/cka": 0.9}
    return {
        "experiment": "quickstart",
        "profile": "reduced",
        "model": model,
        "seed": seed,
        "metrics": metrics,
        "provenance": PROVENANCE,
        **others,
    }


RECORDS = [record("distilled", s, v) for s, v in enumerate((90.0, 92.0, 94.0))]
RECORDS += [record("control", s, v) for s, v in enumerate((80.0, 81.0, 82.0))]


def cell(table, row, column):
    (cells,) = [r for r in table.rows if r[0] == row]
    return cells[table.header.index(column)]


def test_cells_are_mean_and_sample_standard_deviation_over_seeds():
    table = results_table(RECORDS)
    assert cell(table, "distilled", "linear top-1 (%)") == "92.00 ± 2.00"
    spread = statistics.stdev((80, 81, 82))
    assert cell(table, "control", "linear top-1 (%)") == f"81.00 ± {spread:.2f}"
    assert cell(table, "control", "size") == "331 kB"
    assert "n = 3 seeds per model" in table.caption
    assert "standard deviation over seeds" in table.caption
    assert "profile reduced" in table.caption
    assert "2 CPU cores (Xeon)" in table.caption
    assert "torch 2.9" in table.caption


def test_columns_without_a_value_are_left_out():
    assert results_table(RECORDS).header == (
        "model",
        "linear top-1 (%)",
        "CKA with teacher",
        "size",
    )


def test_one_seed_shows_the_standard_error_and_says_so():
    metrics = {LINEAR: 90.0, f"{LINEAR}_stderr": 1.25}
    table = results_table([record("student", 0, 0.0, metrics=metrics)])
    assert cell(table, "student", "linear top-1 (%)") == "90.00 ± 1.25"
    assert "n = 1 seed per model" in table.caption
    assert "with one seed ± is the standard error of the test accuracy" in table.caption
    assert "standard deviation" not in table.caption


def test_one_seed_without_standard_error_shows_no_spread():
    table = results_table([record("student", 0, 90.0)])
    assert cell(table, "student", "linear top-1 (%)") == "90.00"
    assert "shows no spread" in table.caption


def test_plain_rows_with_metrics_beside_the_identity_are_understood():
    rows = results_rows({"model": "a", "seed": s, LINEAR: 80.0 + s} for s in (0, 1))
    assert rows[0].values == {LINEAR: {0: 80.0, 1: 81.0}}


def test_models_keep_the_order_of_the_records():
    assert [row[0] for row in results_table(RECORDS).rows] == ["distilled", "control"]


def test_later_record_of_the_same_seed_counts():
    rows = results_rows([*RECORDS, record("distilled", 0, 50.0)])
    assert rows[0].values[LINEAR] == {0: 50.0, 1: 92.0, 2: 94.0}


def test_failed_seed_is_named_and_different_counts_are_shown():
    failed = record("distilled", 2, 0.0, status="failed", metrics={})
    table = results_table([*RECORDS[:2], failed, *RECORDS[3:]])
    assert cell(table, "distilled", "seeds") == "2"
    assert cell(table, "control", "seeds") == "3"
    assert "distilled: seed 2 failed" in table.caption
    assert cell(table, "distilled", "linear top-1 (%)").startswith("91.00")


def test_model_whose_every_seed_failed_is_a_row_that_says_failed():
    table = results_table([*RECORDS, record("broken", 0, 0.0, status="failed", metrics={})])
    assert cell(table, "broken", "linear top-1 (%)") == "FAILED"


def test_profiles_are_never_averaged_together():
    table = results_table([*RECORDS, record("distilled", 0, 10.0, profile="smoke")])
    assert cell(table, "distilled (reduced)", "linear top-1 (%)") == "92.00 ± 2.00"
    assert cell(table, "distilled (smoke)", "linear top-1 (%)") == "10.00"


@pytest.mark.parametrize(
    ("value", "scale", "shown"),
    [
        (0, "count", "0"),
        (999, "count", "999"),
        (1000, "count", "1.00 k"),
        (11_170_000, "count", "11.2 M"),
        (999_600, "count", "1.00 M"),
        (44_800_000, "bytes", "44.8 MB"),
        (331, "bytes", "331 B"),
    ],
)
def test_sizes_are_written_with_three_digits_and_a_unit(value, scale, shown):
    assert scaled(value, scale) == shown


def page_of(table):
    return render_page(PageData("title", "summary", results=table))


def test_all_three_renderings_hold_every_cell_and_escape_what_they_must():
    table = Table(("model", "a|b"), (("<student>", "1|2"),), caption="n < 3")
    markdown = table.to_markdown()
    assert "| <student> | 1\\|2 |" in markdown
    assert "| :--- | ---: |" in markdown
    html = page_of(table)
    assert "&lt;student&gt;" in html and "<student>" not in html and "n &lt; 3" in html
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(table.to_rich())
    shown = console.file.getvalue()
    assert all(part in shown for part in ("<student>", "1|2", "n < 3"))


def block(name, content=""):
    return f"<!-- results:begin {name} -->\n{content}\n<!-- results:end {name} -->"


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "experiments" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    (folder / "README.md").write_text(f"# Notes\n\n{block('quickstart')}\n\nmore\n")
    (tmp_path / "README.md").write_text(f"# Title\n\n{block('quickstart')}\n\nEnd.\n")
    return tmp_path


def test_blocks_are_written_and_the_rest_is_left_alone(project):
    changed = write_reports(project)
    assert [str(c.file) for c in changed] == ["README.md", "experiments/quickstart/README.md"]
    text = (project / "README.md").read_text()
    assert "| distilled | 92.00 ± 2.00 |" in text
    assert text.startswith("# Title\n\n<!--") and text.endswith("-->\n\nEnd.\n")
    assert write_reports(project) == write_reports(project, check=True) == []


def test_check_finds_a_hand_edited_number_and_does_not_write(project):
    write_reports(project)
    edited = (project / "README.md").read_text().replace("92.00", "93.00")
    (project / "README.md").write_text(edited)
    (found,) = write_reports(project, check=True)
    assert str(found) == "README.md: block 'quickstart' differs from the records"
    assert (project / "README.md").read_text() == edited


@pytest.mark.parametrize("name", ["quickstrat", "quickstart/part", "benchmarks"])
def test_unknown_name_fails_the_check_and_stops_the_writing(project, name):
    (project / "README.md").write_text(block(name))
    (found, *_) = write_reports(project, check=True)
    assert found.block == name and "unknown experiment" in str(found)
    with pytest.raises(UserError, match=rf"README\.md.*{name}"):
        write_reports(project)
    assert "| distilled" not in (project / "experiments/quickstart/README.md").read_text()


def test_missing_records_fail_the_check(project):
    (project / "experiments/quickstart/records.jsonl").unlink()
    found = write_reports(project, check=True)
    assert len(found) == 2 and all("contains no records" in str(f) for f in found)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- results:begin quickstart -->\n",
        "<!-- results:end quickstart -->\n",
        "<!-- results:begin quickstart -->\n<!-- results:end other -->\n",
        "<!-- results:begin quickstart -->\n" * 2 + "<!-- results:end quickstart -->\n",
    ],
)
def test_marker_without_partner_is_an_error(project, text):
    (project / "README.md").write_text(text)
    with pytest.raises(UserError, match="no partner"):
        write_reports(project, check=True)


def test_damaged_record_names_file_and_line(project):
    path = project / "experiments/quickstart/records.jsonl"
    path.write_text('{"model": "a"}\n[1]\n')
    with pytest.raises(UserError, match="line 2"):
        read_records(path)


def test_blank_lines_between_records_are_no_records(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"model": "a"}\n \n\n{"model": "b"}\n')
    assert [record["model"] for record in read_records(path)] == ["a", "b"]


def test_benchmarks_show_ratios_and_the_latest_of_a_name(project):
    folder = project / "experiments" / "benchmarks"
    folder.mkdir()
    lines = [
        {"benchmark": "cache", "ratios": {"old": 9.0}},
        {
            "benchmark": "cache",
            "title": "Teacher cache",
            "ratios": {"cached / live": {"median": 3.214, "low": 3.1, "high": 3.4}, "plain": 2},
            "provenance": PROVENANCE,
        },
        {"benchmark": "loader", "rows": [{"name": "ours", "images/s": 1234.5}, {"name": "x"}]},
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (project / "README.md").write_text(block("benchmarks"))
    write_reports(project)
    text = (project / "README.md").read_text()
    assert "**Teacher cache**" in text and "old" not in text
    assert "| cached / live | 3.21× | 3.10 to 3.40 |" in text
    assert "| plain | 2.00× | – |" in text
    assert "| ours | 1234 |" in text and "| x | – |" in text
    (project / "README.md").write_text(block("benchmarks/loader"))
    write_reports(project)
    assert "cache" not in (project / "README.md").read_text()


def test_any_folder_may_hold_benchmarks(project):
    folder = project / "experiments" / "reach"
    folder.mkdir()
    lines = [{"benchmark": name, "ratios": {name: 2}} for name in ("views", "scale")]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (project / "README.md").write_text(block("reach/scale"))
    write_reports(project)
    text = (project / "README.md").read_text()
    assert "| scale | 2.00× | – |" in text and "views" not in text


def test_ratios_may_be_a_list():
    table = benchmark_table({"benchmark": "b", "ratios": [{"name": "a / b", "ratio": 1.5}]})
    assert table.rows == (("a / b", "1.50×", "–"),)


WIDE = Table(
    ("model", *(f"column {i}" for i in range(14)), "size"),
    tuple((name, *(f"{i}.{i:02} ± 0.50" for i in range(14)), "331 kB") for name in ("a", "b" * 30)),
    lead=("column 3", "size"),
)


def test_a_wide_table_becomes_several_on_a_page_and_loses_no_column():
    pieces = WIDE.pieces(1180)
    assert len(pieces) > 1 and all(piece[0] == 0 for piece in pieces)
    assert [WIDE.header[i] for i in pieces[0][1:3]] == ["column 3", "size"]
    shown = [i for piece in pieces for i in piece[1:]]
    assert sorted(shown) == list(range(1, len(WIDE.header)))
    assert all(sum(map(WIDE._pixels, piece)) <= 1180 for piece in pieces)
    html = page_of(WIDE)
    assert html.count("<table>") == len(pieces)
    assert all(f'<td class="num">{cell}</td>' in html for cell in WIDE.rows[0][1:])


def test_a_table_that_fits_is_one_on_a_page_and_in_markdown_every_table_is():
    assert page_of(results_table(RECORDS)).count("<table>") == 1
    assert WIDE.to_markdown().splitlines()[0].count("|") == len(WIDE.header) + 1
    assert page_of(Table(("model",), ())).count("<table>") == 1
