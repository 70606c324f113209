import pytest

from ssdistill.errors import UserError
from ssdistill.experiment import yaml_text
from ssdistill.experiment.yaml_text import read_file, read_text


def refusal(text):
    with pytest.raises(UserError) as caught:
        read_text(text, "tiny.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.5e+3", -2500.0),
        ("1_000", 1000),
        ("0x10", 16),
        ("2024-01-01", "2024-01-01"),
        ("yes", True),
        ("~", None),
        ("'1'", "1"),
        ("", None),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_plain_values_are_what_they_look_like(text, value):
    assert read_text(text, "x") == value


def test_an_alias_stands_for_a_value_of_its_own():
    tree = read_text("a: &a {x: [1]}\nb: *a\nc: {<<: *a, y: 2}\n", "x")
    assert tree == {"a": {"x": [1]}, "b": {"x": [1]}, "c": {"x": [1], "y": 2}}
    tree["a"]["x"].append(2)
    assert tree["b"]["x"] == [1]


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]", "a: &a {b: *a}", "&a [[*a]]", "a: &a {b: {c: [1, *a]}}"],
)
def test_a_value_that_contains_itself_is_refused(text):
    assert refusal(text) == "tiny.yaml: *a (line 1) contains itself; remove the alias"


@pytest.mark.parametrize("width", [2, 9])
def test_aliases_that_multiply_are_counted_before_anything_is_built(width):
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, 40)]
    assert "more than 50000 values" in refusal("a0: &a0 [x, x]\n" + "\n".join(lines))
    merges = [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], y: *a{i - 1}}}" for i in range(1, 40)]
    assert "more than 50000 values" in refusal("a0: &a0 {x: 1}\n" + "\n".join(merges))


@pytest.mark.parametrize("empty", ["[]", "{}", "''"])
def test_aliases_of_nothing_are_counted_as_well(empty):
    lines = [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 18)]
    assert "more than 50000 values" in refusal(f"a0: &a0 {empty}\n" + "\n".join(lines))


@pytest.mark.parametrize("text", ["[1, 2, 3]", "{a: 1, b: 2}", "[[1], [2]]", "[&a [x], *a]"])
def test_values_are_counted_one_by_one(text, monkeypatch):
    counts = {"[1, 2, 3]": 4, "{a: 1, b: 2}": 5, "[[1], [2]]": 5, "[&a [x], *a]": 6}
    monkeypatch.setattr(yaml_text, "MOST_VALUES", counts[text])
    assert read_text(text, "x")
    monkeypatch.setattr(yaml_text, "MOST_VALUES", counts[text] - 1)
    assert f"more than {counts[text] - 1} values (line 1)" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10_000,
        "[" * 10_000 + "]" * 10_000,
        "{a: " * 5000 + "1" + "}" * 5000,
        "\n".join(" " * i + "a:" for i in range(200)),
    ],
)
def test_nesting_has_an_end(text):
    message = refusal(text)
    assert "nest" in message and message.count("\n") == 0


def test_forty_levels_are_read():
    assert read_text("[" * 39 + "1" + "]" * 39, "x")


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", ".NaN", "1e400", "-1e999"])
def test_a_number_that_is_not_finite_is_refused_with_its_key(number):
    message = refusal(f"optim:\n  lr: [0, {number}]")
    assert message == f"tiny.yaml: optim.lr.1: {number} is not a finite number (line 2)"


@pytest.mark.parametrize("digits", [19, 30, 5000])
def test_a_number_that_no_setting_can_hold_is_refused(digits):
    message = refusal(f"steps: {'9' * digits}")
    assert "steps: 999" in message and "larger than any setting (line 1)" in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("a: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system"),
        ("!!python/name:os.system x", "!!python/name:os.system"),
        ("a: !!binary aGk=", "!!binary"),
        ("a: !!timestamp 2024-01-01", "!!timestamp"),
        ("a: !!set {b}", "!!set"),
        ("a: !own b", "!own"),
        ("!own a: b", "!own"),
    ],
)
def test_a_tag_is_refused_and_nothing_is_called(text, tag):
    assert refusal(text) == f"tiny.yaml: tag {tag} (line 1); write a plain value"


@pytest.mark.parametrize("key", ["1", "1.5", "true", "on", "~", "[a]", "{a: b}"])
def test_a_key_is_text(key):
    assert "is not text (line 2); quote it" in refusal(f"b: 1\n? {key}\n: 1\n")
    assert read_text("'1': 1", "x") == {"1": 1}


def test_every_problem_is_told_with_its_line():
    first, *others = refusal("a: .nan\nb: {c: 1, c: 2}\n1: 2\n").splitlines()
    assert first == "tiny.yaml: 3 problems"
    assert set(others) == {
        "  a: .nan is not a finite number (line 1)",
        "  b: duplicate key c (line 2); remove one",
        "  key 1 is not text (line 3); quote it",
    }


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: 'x",
        "a:\tb: c",
        "\tx: 1",
        "--- a\n--- b",
        "a: *nope",
        "a: }",
        "%YAML 3.0\n--- 1",
    ],
)
def test_what_is_no_yaml_is_refused_on_one_line(text):
    message = refusal(text)
    assert message.startswith("tiny.yaml: ") and "\n" not in message and "line" in message


@pytest.mark.parametrize("text", ['a: "x\\0y"', 'a: "\\ud800"', "a: b\0c"])
def test_text_that_nothing_can_be_called_is_refused(text):
    assert "\n" not in refusal(text)


def test_a_key_that_nothing_can_be_called_is_refused():
    assert refusal('"x\\0y": 1').endswith("holds a NUL character (line 1)")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_file(path) == {"name": "x"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name: x\n".encode("utf-16"), "not UTF-8 text (line 1)"),
        (b"a: 1\nb: \xff\n", "not UTF-8 text (line 2)"),
        (b"#" * (yaml_text.MOST_BYTES + 1), "larger than 1 MB"),
        (b"a: \0", "control characters"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, reason):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_file(path)
    assert str(caught.value).startswith(f"{path}: ") and reason in str(caught.value)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_file(tmp_path)


@pytest.mark.parametrize("kind", ["bool", "int", "float"])
def test_a_tag_that_does_not_suit_its_value_is_told(kind):
    """``!!bool 5`` was a KeyError."""
    assert refusal(f"a: !!{kind} x5") == f"tiny.yaml: a: x5 is not of type {kind} (line 1)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", "a bracket that is not closed (line 2); close it"),
        ("a: {b: 1\n", "a bracket that is not closed (line 2); close it"),
        ("a: x: y\n", "a colon and a blank within a value, or keys that are indented differently "
                      "(line 1); put the value in quotes, or indent the keys alike"),
        ("a: 1\n b: 2\n", "a colon and a blank within a value, or keys"),
        ("a:\n\tb: 1\n", "a tab before a key, or a value that begins with a sign of YAML's (line "
                         "2); indent by blanks, or put the value in quotes"),
        ("a: @x\n", "a tab before a key, or a value that begins with a sign"),
        ("a: 'x\n", "a quote that is not closed (line"),
        ("a: *b\n", "* refers to nothing (line 1); put the value in quotes"),
        ("a: 1\n---\nb: 2\n", "several documents (line 2); keep one"),
        ("a: |x\n", "not YAML: did not find expected comment or line break (line 1); correct it, "
                    "or quote the value"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_told_with_its_line_and_a_remedy(text, said):
    message = refusal(text)
    assert message.startswith(f"tiny.yaml: {said}") and "\n" not in message and "; " in message


def test_an_override_that_is_no_yaml_has_no_line():
    with pytest.raises(UserError) as raised:
        read_text("[1", "override 'seeds=[1'", "seeds")
    assert str(raised.value) == "override 'seeds=[1': a bracket that is not closed; close it"
