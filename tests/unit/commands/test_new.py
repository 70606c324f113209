"""`ssdistill new`: names that it refuses, and what it writes."""

import ast
import tomllib

import pytest
import yaml

from ssdistill.commands.main import main
from ssdistill.commands.new import command, package
from ssdistill.commands.new.package import FAMILIES, package_files, write_package
from ssdistill.errors import UserError


def test_the_parser_knows_every_family():
    assert tuple(FAMILIES) == command.FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_written_as_they_are_read(family, tmp_path):
    folder = write_package(family, "my_own_thing", tmp_path)
    assert folder == tmp_path / "my_own_thing"
    texts = {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}
    assert texts == package_files(family, "my_own_thing")
    assert not [name for name, text in texts.items() if "$" in text]
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["entry-points"]["ssdistill.plugins"] == {"my_own_thing": "my_own_thing"}
    assert yaml.safe_load(texts["config.yaml"])["name"] == "my_own_thing"
    module = ast.parse(texts["my_own_thing/__init__.py"])
    classes = {n.name: n for n in module.body if isinstance(n, ast.ClassDef)}
    text = ast.get_docstring(classes["MyOwnThing"])
    assert "```yaml" in text and "Args:" in text
    assert f"check_{family}(MyOwnThing" in texts["tests/test_my_own_thing.py"]
    block = texts["README.md"].partition("```sh\n")[2].partition("```")[0]
    words = [line.split()[0] for line in block.splitlines()]
    assert words == ["pip", "ssdistill", "ssdistill", "pytest"]
    long = [line for n, t in texts.items() if n.endswith(".py") for line in t.splitlines()]
    assert max(map(len, long)) <= 100


@pytest.mark.parametrize(
    ("family", "name", "said"),
    [
        ("loss", "simreg", "there is a loss of this kind"),
        ("method", "byol", "there is a pretraining method of this kind"),
        ("network", "resnet18", "there is a network of this name"),
        ("loss", "class", "a word of Python"),
        ("loss", "match", "a word of Python"),
        ("loss", "numpy", "a package of this name is installed"),
        ("loss", "json", "a package of this name is installed"),
        ("loss", "tests", "a name that tests have"),
        ("loss", "My-Loss", "no name of a package"),
        ("loss", "2d", "no name of a package"),
        ("loss", "x_", "no name of a package"),
        ("loss", "null", "no text in YAML"),
        ("loss", "yes", "no text in YAML"),
        ("network", "off", "no text in YAML"),
        ("loss", "../x", "no name of a package"),
        ("loss", "x" * 51, "no name of a package"),
        ("loss", "outputs", "its class would be called Outputs, as one that it uses"),
        ("protocol", "subject", "its class would be called Subject, as one that it uses"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_line(family, name, said, tmp_path, capsys):
    assert main(["new", family, name, "--into", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: new {family} ") and said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_name_of_a_distribution_is_taken(monkeypatch):
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="a package of this name is installed"):
        write_package("loss", "scikit_learn", ".")


def test_a_folder_that_exists_is_left_alone(tmp_path, capsys):
    (tmp_path / "my_loss").mkdir()
    assert main(["new", "loss", "my_loss", "--into", str(tmp_path)]) == 2
    assert "my_loss exists; choose another name or --into" in capsys.readouterr().err
    assert not list((tmp_path / "my_loss").iterdir())


def test_it_says_what_it_wrote_and_how_to_install_it(tmp_path, capsys):
    assert main(["new", "step", "my_step", "--into", str(tmp_path / "deeper")]) == 0
    assert f"pip install -e {tmp_path / 'deeper' / 'my_step'}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["new", "--help"])
    text = capsys.readouterr().out
    assert "ssdistill new loss my_loss" in text and "protocol" in text and "--into" in text
