import pytest

from ssdistill.errors import UserError
from ssdistill.experiment.references import LONGEST, resolve


def refusal(tree):
    with pytest.raises(UserError) as caught:
        resolve(tree)
    return str(caught.value)


def test_a_variable_a_default_and_another_key_take_the_place_of_their_references(monkeypatch):
    monkeypatch.setenv("DATA_ROOT", "/data")
    monkeypatch.delenv("NOPE", raising=False)
    tree = {
        "name": "mine",
        "steps": 7,
        "path": "${oc.env:DATA_ROOT}/${name}.npz",
        "more": [{"steps": "${steps}"}, "${oc.env:NOPE,3}", "${path}", "${more.0.steps}"],
    }
    assert resolve(tree) == {
        "name": "mine",
        "steps": 7,
        "path": "/data/mine.npz",
        "more": [{"steps": 7}, "3", "/data/mine.npz", 7],
    }


def test_a_tree_without_references_stays_as_it_is():
    tree = {"a": [1, None, {"b": "$x {y}"}]}
    assert resolve(tree) == tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": "${a}"}, "a: circular references (a -> a)"),
        ({"a": "x${b}", "b": "${c.0}", "c": ["${a}"]}, "circular references (a -> b -> c.0 -> a)"),
        ({"x": "${a}", "a": "${b}", "b": "${a}"}, "a: circular references (a -> b -> a)"),
        ({"a": "${oc.env:SSDISTILL_NO}"}, "a: the environment variable SSDISTILL_NO is not set"),
        ({"steps": 1, "a": {"b": "${stepz}"}}, "a.b: ${stepz} refers to an unknown key "),
        ({"a": "${b}", "b": {"c": 1}}, "a: ${b} refers to a section"),
        ({"a": "${oc.decode:x}"}, "a: ${oc.decode:x} is unknown"),
        ({"a": "${"}, "a: '${' is not a reference"),
        ({"a": "${x${y}}", "y": "1"}, "a: "),
        ({"a": "${oc.env:}"}, "a: the environment variable (no name) is not set"),
        ({"a": "${}"}, "a: ${} refers to an unknown key"),
    ],
)  # fmt: skip
def test_a_reference_to_nothing_is_refused_with_its_key(tree, message):
    assert message in refusal(tree)


def test_references_that_double_each_other_have_an_end():
    tree = {f"a{i}": f"${{a{i + 1}}}${{a{i + 1}}}" for i in range(40)} | {"a40": "x"}
    assert f"longer than {LONGEST} characters" in refusal(tree)


def test_references_to_references_have_an_end():
    tree = {f"a{i}": f"${{a{i + 1}}}" for i in range(5000)} | {"a5000": "x"}
    assert "more than 100 deep" in refusal(tree)


def test_blanks_around_the_parts_of_a_reference_do_not_matter(monkeypatch):
    monkeypatch.setenv("DATA_ROOT", "/data")
    monkeypatch.delenv("NOPE", raising=False)
    tree = {
        "n": 3,
        "a": "${ n }",
        "b": "${ oc.env : DATA_ROOT }",
        "c": "${oc.env: NOPE , x y }",
    }
    assert resolve(tree) == {"n": 3, "a": 3, "b": "/data", "c": "x y"}


@pytest.mark.parametrize(("default", "value"), [(",", ""), (",a,b", "a,b")])
def test_a_default_may_be_empty_and_may_hold_a_comma(monkeypatch, default, value):
    monkeypatch.delenv("NOPE", raising=False)
    assert resolve({"a": f"${{oc.env:NOPE{default}}}"}) == {"a": value}


def test_a_variable_that_is_set_to_nothing_counts_as_set(monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    assert resolve({"a": "x${oc.env:EMPTY}", "b": "${oc.env:EMPTY,default}"}) == {"a": "x", "b": ""}


@pytest.mark.parametrize("below", [100, 101])
def test_a_hundred_references_may_stand_below_one(below):
    count = 1 + below
    tree = {f"a{i}": f"${{a{i + 1}}}" for i in range(count)} | {f"a{count}": "x"}
    if below == 100:
        assert resolve(tree)["a0"] == "x"
    else:
        assert "more than 100 deep" in refusal(tree)


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1])
def test_a_text_may_be_ten_thousand_characters_long(monkeypatch, length):
    monkeypatch.setenv("LONG", "x" * (length - 1))
    tree = {"a": "y${oc.env:LONG}"}
    if length == LONGEST:
        assert len(resolve(tree)["a"]) == LONGEST
    else:
        assert "longer than" in refusal(tree)
