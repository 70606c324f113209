import inspect
import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from torch import nn

from ssdistill.chain.run import PlannedStage
from ssdistill.chain.stages import Stage
from ssdistill.commands.listing import (
    REGISTRIES,
    description,
    fitted,
    listings,
    plain_text,
    plan_table,
)
from ssdistill.data.recipes import RECIPES
from ssdistill.errors import UserError
from ssdistill.models.networks import network
from ssdistill.settings.registry import LOSSES, METHODS


def text_of(table):
    console = Console(file=io.StringIO(), width=300)
    console.print(table)
    return console.file.getvalue()


def cells_of(table, header):
    column = next(c for c in table.columns if c.header == header)
    return [str(cell) for cell in column.cells]


def test_everything_is_listed_when_nothing_is_asked_for():
    titles = [table.title for table in listings()]
    assert len(titles) == len(set(titles)) == 8 + 7
    named = dict.fromkeys(title.split(":")[0] for title in titles)
    registries = ["losses", "methods", "teachers", "steps", "runtimes", "protocols", "sources"]
    assert list(named) == [*registries, "networks", "views", "configs"]


@pytest.mark.parametrize("name", REGISTRIES)
def test_every_kind_has_a_row_with_what_it_does(name):
    tables = listings(name)
    kinds = [kind for table in tables for kind in cells_of(table, "kind")]
    assert sorted(kinds) == list(REGISTRIES[name].classes)
    summaries = [summary for table in tables for summary in cells_of(table, "what it does")]
    for kind, summary in zip(kinds, summaries, strict=True):
        assert summary and summary == plain_text(REGISTRIES[name][kind].__doc__.splitlines()[0])


def test_one_kind_shows_its_settings_with_their_defaults_its_own_first():
    heading, documentation, settings = description("losses", "simreg")
    assert str(heading).startswith("simreg: feature matching, Navaneet et al.")
    assert "arXiv:2201.05131" in str(documentation)
    named = dict(zip(cells_of(settings, "setting"), cells_of(settings, "default"), strict=True))
    assert list(named)[:3] == ["depth", "center_teacher", "weight"]
    assert named["depth"] == "4" and named["center_teacher"] == "false"
    *_, sources = description("sources", "npz")
    defaults = dict(zip(cells_of(sources, "setting"), cells_of(sources, "default"), strict=True))
    assert defaults["path"] == "required"


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("losses", "simre", "unknown loss 'simre' \\(did you mean 'simreg'"),
        ("views", "weak", "list: 'views' has no kinds"),
    ],
)
def test_what_has_no_settings_to_show_is_refused(what, kind, message):
    with pytest.raises(UserError, match=message):
        description(what, kind)


def test_a_loss_is_listed_under_its_family_with_paper_and_what_it_reads():
    for table in listings("losses"):
        classes = [LOSSES[kind] for kind in cells_of(table, "kind")]
        assert {f"losses: {cls.family}" for cls in classes} == {table.title}
        for column in ("paper", "reads"):
            assert cells_of(table, column) == [getattr(cls, column) for cls in classes]
        views = dict(zip(cells_of(table, "kind"), cells_of(table, "views"), strict=True))
        expected = {"simreg": "1 same", "infonce": "2 other"}
        expected["bingo"] = "2 [[0, 1]] + cutmix, neighbor_0, neighbor_1"
        assert {k: v for k, v in views.items() if expected.get(k, v) != v} == {}
        means = dict(zip(cells_of(table, "kind"), cells_of(table, "accumulates"), strict=True))
        expected = {"simreg": "yes", "infonce": "no"}
        assert {k: v for k, v in means.items() if expected.get(k, v) != v} == {}
    assert cells_of(listings("methods")[0], "paper") == [
        cls.paper for cls in METHODS.classes.values()
    ]
    accumulated = dict(
        zip(*(cells_of(listings("methods")[0], c) for c in ("kind", "accumulates")), strict=True)
    )
    assert (accumulated["byol"], accumulated["simclr"]) == ("yes", "no")


def test_markup_in_a_docstring_is_shown_as_it_is():
    text = "".join(map(text_of, listings("losses")))
    for cls in LOSSES.classes.values():
        assert cls.paper in text


def test_every_view_recipe_and_config_is_listed():
    assert cells_of(listings("views")[0], "recipe") == list(RECIPES)
    (configs,) = listings("configs")
    named = dict(zip(cells_of(configs, "config"), cells_of(configs, "what it is"), strict=True))
    assert named["quickstart"].startswith("The whole chain on scikit-learn's digits")


def test_an_unknown_word_names_the_nearest():
    with pytest.raises(UserError) as caught:
        listings("lossess")
    assert "list: unknown table 'lossess' (did you mean 'losses'?); known: losses, " in str(
        caught.value
    )


def test_a_plan_shows_stage_parents_and_status():
    teacher = Stage("teacher", "pretrain", {}, "f" * 64, 0)
    student = Stage("distilled", "distill", {}, "f" * 64, 3, {"teacher": teacher})
    table = plan_table([PlannedStage(teacher, "finished"), PlannedStage(student, "missing")])
    lines = text_of(table).splitlines()
    (row,) = [line for line in lines if "distilled" in line]
    for part in ("distill", "3", student.digest[:8], f"teacher {teacher.digest[:8]}", "missing"):
        assert part in row


@pytest.mark.parametrize(
    ("documentation", "text"),
    [
        ("as :func:`ssdistill.load` does", "as ssdistill.load does"),
        ("of :class:`~ssdistill.losses.base.maps.MapLoss`.", "of MapLoss."),
        (":py:meth:`the call <a.b.C.call>` and :math:`x^2`", "the call and x^2"),
        ("``embedding``, or `kd`: ``{size: 96}``", "embedding, or kd: {size: 96}"),
        ("one\nline of ``a\nb``", "one\nline of a\nb"),
        ("so:\n\n```yaml\na: [b, 'c*']  # d_e\n```\nend", "so:\n\na: [b, 'c*']  # d_e\nend"),
    ],
)
def test_documentation_is_shown_without_its_marks(documentation, text):
    assert plain_text(documentation) == text


@pytest.mark.parametrize("name", REGISTRIES)
def test_no_kind_is_shown_with_marks(name):
    for kind in REGISTRIES[name].classes:
        _, documentation, _ = description(name, kind)
        assert "`" not in str(documentation), kind
    assert "`" not in "".join(map(text_of, listings(name)))


def test_hashes_of_a_plan_are_shown_by_their_first_eight_characters():
    parent = SimpleNamespace(digest="fedcba9876543210")
    facts = {"kind": "distill", "role": "distilled", "seed": 0, "parents": {"teacher": parent}}
    stage = SimpleNamespace(digest="0123456789abcdef", **facts)
    table = plan_table([SimpleNamespace(stage=stage, status="missing", known=True)])
    assert cells_of(table, "hash") == ["01234567"]
    assert cells_of(table, "made from") == ["teacher fedcba98"]


def test_a_paragraph_that_is_too_wide_is_wrapped_again_and_what_fits_stays():
    documentation = (
        "Sum of a few words that are too many for this width,\nbut not for another.\n\n"
        "losses:\n  a: {kind: b}\n\n- one: an entry of a list that is too long, too,\n  and ends\n"
        "- two\n\nArgs:\n    n: how many of them there are in all of it,\n"
        "        at most.\n    of: it"
    )
    assert fitted(documentation, 60) == documentation
    assert fitted(documentation, 30).splitlines() == [
        "Sum of a few words that are",
        "too many for this width, but",
        "not for another.",
        "",
        "losses:",
        "  a: {kind: b}",
        "",
        "- one: an entry of a list that",
        "  is too long, too, and ends",
        "- two",
        "",
        "Args:",
        "    n: how many of them there",
        "        are in all of it, at",
        "        most.",
        "    of: it",
    ]


@pytest.mark.parametrize("name", REGISTRIES)
def test_documentation_has_no_short_line_inside_of_a_paragraph(name):
    for kind in REGISTRIES[name].classes:
        lines = str(description(name, kind, 80)[1]).splitlines()
        assert max(map(len, lines)) <= 80, kind
        words = plain_text(inspect.getdoc(REGISTRIES[name][kind])).split()
        assert " ".join(lines).split()[: len(words)] == words, kind


def test_networks_of_plugins_are_listed_with_their_arguments(plugins):
    network("listed_cells", taps={})(Cells)
    (table,) = listings("networks")
    row = cells_of(table, "network").index("listed_cells")
    assert cells_of(table, "package")[row] == "test_listing"
    assert cells_of(table, "arguments")[row] == "width"


class Cells(nn.Module):
    """A network of a test."""

    def __init__(self, width: int = 8, in_chans: int = 3):
        super().__init__()
