"""Where a table breaks its lines: to the column."""

import io

import pytest
from rich.console import Console

from ssdistill.terminal.fitted_table import FittedTable, wrapped


def printed(table, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(table, crop=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def table_of(columns, rows, **options):
    """``columns``: names; one that ends with > holds numbers, to the right."""
    table = FittedTable(**options)
    for name in columns:
        number = name.endswith(">")
        table.add_column(name.rstrip(">"), justify="right" if number else "left", no_wrap=number)
    for row in rows:
        table.add_row(*row)
    return table


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("ab cd", 5, ["ab cd"]),
        ("ab cd", 4, ["ab", "cd"]),
        ("ab cd ef", 5, ["ab cd", "ef"]),
        ("abcdef gh", 3, ["abcdef", "gh"]),
        ("gh abcdef", 3, ["gh", "abcdef"]),
        ("模型 量化", 9, ["模型 量化"]),
        ("模型 量化", 8, ["模型", "量化"]),
        ("ab\ncd ef", 5, ["ab", "cd ef"]),
        ("", 5, [""]),
    ],
)
def test_lines_hold_as_many_whole_words_as_fit(text, width, lines):
    assert wrapped(text, width).split("\n") == lines


def test_a_table_that_fits_to_the_column_is_not_broken():
    table = table_of(["name", "a>", "b>"], [("x", "1234", "5678"), ("y", "1", "2")])
    whole = ["name     a     b", "x     1234  5678", "y        1     2"]
    assert [printed(table, 17)[i] for i in (0, 2, 3)] == whole
    assert printed(table, 17) == printed(table, 200)
    parts = printed(table, 16)
    assert sum(line.startswith("name") for line in parts) == 2
    assert parts[parts.index("") + 1].split() == ["name", "b"]


def test_what_a_column_does_not_need_goes_to_the_one_that_is_furthest_from_its_width():
    table = table_of(["name", "prose", "n>"], [("x", "one two three four", "1")])
    assert printed(table, 200)[2] == "x     one two three four  1"
    # 24 columns in all: 4 for the name, 1 for the number, 5 between, 14 for the prose.
    assert [line.strip() for line in printed(table, 24)[2:4]] == ["x     one two three   1", "four"]


def test_headings_are_wrapped_where_the_numbers_below_are_shorter():
    table = table_of(["name", "a long heading>"], [("x", "1")])
    assert printed(table, 14)[:2] == ["       a long", "name  heading"]


def test_title_and_caption_stand_above_and_below_wrapped():
    table = table_of(["name", "n>"], [("x", "1")], title="of two words", caption="said below it")
    lines = printed(table, 9)
    assert lines[:2] == ["of two", "words"] and lines[-3:] == ["said", "below it", ""]
    assert printed(table, 200)[0] == "of two words" and printed(table, 200)[-2] == "said below it"


def test_a_list_of_rows_names_each_and_has_a_blank_line_between_two():
    rows = [("first row", "of it", "1.5", "two words"), ("second", "", "2.5", "x")]
    table = table_of(["name", "part", "number>", "prose"], rows, keys=2)
    assert printed(table, 10) == [
        "first row",
        "of it",
        "  number:",
        "    1.5",
        "  prose:",
        "    two",
        "    words",
        "",
        "second",
        "  number:",
        "    2.5",
        "  prose:",
        "    x",
        "",
    ]


def test_in_a_list_a_number_stands_beside_its_heading_where_there_is_room():
    table = table_of(["name", "n>", "long heading>"], [("x" * 18, "1", "22")])
    assert printed(table, 18) == ["x" * 18, "  n: 1", "  long heading:", "    22", ""]


def test_columns_to_be_first_come_first_and_others_keep_their_order():
    columns = ["name", *(f"{letter}{letter}>" for letter in "abcd")]
    table = table_of(columns, [("x", *["12345"] * 4)], lead=("dd", "bb"))
    heads = [line.split() for line in printed(table, 19) if line.startswith("name")]
    assert heads == [["name", "dd", "bb"], ["name", "aa", "cc"]]


@pytest.mark.parametrize(("width", "tables"), [(17, 1), (16, 2)])
def test_prose_is_wrapped_as_close_as_its_words_before_a_table_is_broken(width, tables):
    prose = "aaaa bbbb cccc dddd eeee"
    lines = printed(table_of(["name", "one", "two"], [("x", prose, prose)]), width)
    assert sum(line.startswith("name") for line in lines) == tables
