import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from torch import nn

import ssdistill
from ssdistill.chain.plugged import check_plugins, with_plugins
from ssdistill.commands.listing import description, listings
from ssdistill.commands.main import main
from ssdistill.errors import UserError
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.experiment.reading import load_experiment
from ssdistill.experiment.sections import DistillSettings
from ssdistill.losses import Loss
from ssdistill.settings import plugin_classes
from ssdistill.settings import plugins as module
from ssdistill.settings.registry import LOSSES, PROTOCOLS

LOSS = '''
"""A loss of a plug-in."""

from ssdistill.losses import Loss, vectors


class Distance(Loss):
    """Distance of the first number of both embeddings.

    Args:
        scale: factor.
    """

    kind = "KIND"
    family = "feature matching"
    paper = "none, arXiv:0000.00000"

    def __init__(self, shapes, *, scale: float = 1.0):
        super().__init__(shapes)
        self.scale = scale

    def per_image(self, student, teacher, batch):
        (s,), (t,) = vectors(student), vectors(teacher)
        return self.scale * (s[:, 0] - t[:, 0]).abs()
'''


@pytest.fixture
def package(plugins, tmp_path, monkeypatch):
    """Write a package with one loss, of a name and kind of its own, into the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, kind: str, **files: str):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "distance.py").write_text(LOSS.replace("KIND", kind))
        for file, text in files.items():
            (folder / f"{file}.py").write_text(text)
        return folder

    yield write
    for name in [name for name in sys.modules if name.startswith("plugged_")]:
        del sys.modules[name]
    module._source_sha256.cache_clear()


def test_a_package_adds_a_loss_with_its_settings(package):
    package("plugged_a", "plugged_a_loss")
    ssdistill.add_plugin("plugged_a")
    losses = {"losses": {"first": {"kind": "plugged_a_loss", "scale": 2.0}}, "steps": 1}
    chosen = DistillSettings.model_validate(losses).losses["first"]
    assert chosen.scale == 2.0 and chosen.weight == 1.0
    assert LOSSES.plugin_of("plugged_a_loss").package == "plugged_a"
    assert LOSSES.plugin_of("simreg") is None
    with pytest.raises(UserError, match="did you mean 'plugged_a_loss'"):
        LOSSES["plugged_a_los"]


def test_a_whole_config_may_use_it(package):
    package("plugged_b", "plugged_b_loss")
    words = ["distill.losses={only: {kind: plugged_b_loss}}"]
    with pytest.raises(UserError, match=r"distill\.losses\.only\.kind"):
        load_experiment("quickstart", words)
    ssdistill.add_plugin("plugged_b")
    experiment, _ = load_experiment("quickstart", words)
    assert experiment.distill.losses["only"].kind == "plugged_b_loss"


def test_it_is_listed_with_its_package(package, capsys):
    package("plugged_c", "plugged_c_loss")
    assert main(["list", "losses", "--import", "plugged_c"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["plugged_c_loss", "plugged_c"] in [line[:2] for line in lines]
    assert ["simreg", "-"] in [line[:2] for line in lines]
    assert "from plugged_c" in str(description("losses", "plugged_c_loss")[0])
    assert all("package" not in [c.header for c in t.columns] for t in listings("steps"))


def test_version_and_source_are_in_the_hash_of_a_stage(package):
    folder = package("plugged_d", "plugged_d_loss")
    ssdistill.add_plugin("plugged_d")
    config = {"training": {"losses": {"x": {"kind": "plugged_d_loss"}}}}
    before = with_plugins(config)["plugins"]["plugged_d"]
    assert before["version"] == "" and len(before["sha256"]) == 64
    assert with_plugins({"training": {"losses": {"x": {"kind": "simreg"}}}}).keys() == {"training"}
    check_plugins(with_plugins(config))
    (folder / "more.py").write_text("X = 1\n")
    ssdistill.add_plugin("plugged_d")
    assert with_plugins(config)["plugins"]["plugged_d"] != before
    with pytest.raises(UserError, match="has no plug-in plugged_d, or another version"):
        check_plugins({**config, "plugins": {"plugged_d": before}})


def test_tests_of_a_package_are_neither_imported_nor_hashed(package):
    folder = package("plugged_e", "plugged_e_loss", test_it="raise RuntimeError")
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").write_text("raise RuntimeError")
    ssdistill.add_plugin("plugged_e")
    plugin = module.PLUGINS["plugged_e"]
    first = plugin.identity(LOSSES["plugged_e_loss"])
    (folder / "tests" / "__init__.py").write_text("raise ValueError")
    module._source_sha256.cache_clear()
    assert plugin.identity(LOSSES["plugged_e_loss"]) == first


def test_settings_bring_their_package_to_another_process(package, tmp_path):
    package("plugged_f", "plugged_f_loss")
    ssdistill.add_plugin("plugged_f")
    sent = tmp_path / "settings.pickle"
    sent.write_bytes(pickle.dumps(LOSSES.schema("plugged_f_loss")(scale=3.0)))
    code = f"""
    import pickle, pathlib, ssdistill.settings.registry
    print(pickle.loads(pathlib.Path({str(sent)!r}).read_bytes()).scale)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"},
    )
    assert done.stdout.strip() == "3.0", done.stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("plugged_broken", "raise ValueError('no such device')", "ValueError: no such device"),
        ("plugged_absent", None, "ModuleNotFoundError"),
        ("no-name", None, "no name of a package"),
    ],
)
def test_a_package_that_cannot_be_imported_is_named(package, capsys, name, text, said):
    if text:
        package(name, "x", more=text)
    assert main(["list", "losses", "--import", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --import {name}: ") and said in error
    assert error.count("\n") == 1
    assert main(["list", "losses", "--import"]) == 2
    assert "name a package" in capsys.readouterr().err


def test_a_package_in_the_current_folder_needs_no_installation(plugins, tmp_path):
    (tmp_path / "plugged_j").mkdir()
    (tmp_path / "plugged_j" / "__init__.py").write_text(LOSS.replace("KIND", "plugged_j_loss"))
    command = Path(sys.executable).with_name("ssdistill")
    words = [command, "list", "losses", "plugged_j_loss", "--import", "plugged_j"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "from plugged_j" in done.stdout, done.stderr


def test_a_kind_of_another_is_refused(package):
    package("plugged_g", "simreg")
    with pytest.raises(UserError, match=r"plug-in plugged_g: the kind 'simreg' of Distance is"):
        ssdistill.add_plugin("plugged_g")


def test_an_installed_plugin_that_is_broken_is_named_where_its_kind_is_missing(
    package, monkeypatch
):
    monkeypatch.setitem(module.FAILED, "plugged_h", "no torch")
    with pytest.raises(UserError, match="the plug-in plugged_h is ignored: no torch"):
        LOSSES["plugged_h_loss"]


class OfThisProgram(Loss):
    """A loss of a test."""

    kind = "of_this_program"
    family = "feature matching"
    paper = "none, arXiv:0000.00000"

    def __init__(self, shapes, *, power: int = 2):
        super().__init__(shapes)


def test_a_class_of_a_program_is_registered_and_its_source_hashed(plugins):
    assert ssdistill.register(OfThisProgram) is OfThisProgram
    settings = {"losses": {"x": {"kind": "of_this_program", "power": 3}}, "steps": 1}
    assert DistillSettings.model_validate(settings).losses["x"].power == 3
    (name,) = with_plugins({"training": settings})["plugins"]
    assert name.endswith(".OfThisProgram")


@pytest.mark.parametrize("cls", [nn.Linear, int])
def test_what_is_no_kind_is_not_registered(plugins, cls):
    with pytest.raises(UserError, match="a class with a kind"):
        ssdistill.register(cls)


PROTOCOL = '''
from ssdistill.evaluate.protocols import Protocol


class Constant(Protocol):
    """A constant, whatever the encoder."""

    kind = "plugged_constant"
    name = "plugged_constant"
    by_default = False

    def __init__(self, *, value: float = 0.5):
        self.value = value

    def evaluate(self, subject):
        return {"value": self.value}
'''


def test_a_protocol_becomes_a_key_of_evaluate(package):
    before = EvaluateSettings().model_dump(mode="json")
    package("plugged_i", "plugged_i_loss", constant=PROTOCOL)
    ssdistill.add_plugin("plugged_i")
    assert "plugged_constant" in PROTOCOLS.classes
    assert EvaluateSettings().model_dump(mode="json") == before
    chosen = EvaluateSettings.model_validate({"plugged_constant": {"value": 0.25}})
    assert chosen.plugged_constant.value == 0.25
    dumped = {"evaluate": chosen.model_dump(mode="json")}
    assert with_plugins(dumped)["plugins"].keys() == {"plugged_i"}


@pytest.mark.parametrize("known", [True, False])
def test_a_kind_that_is_taken_is_refused_and_the_rest_works(package, monkeypatch, known):
    package("plugged_same", "simreg")
    if known:
        assert "simreg" in LOSSES.classes
    else:
        LOSSES.forget()
    with pytest.raises(UserError, match="the kind 'simreg' of Distance is that of a loss of ssdis"):
        ssdistill.add_plugin("plugged_same")
    assert LOSSES["simreg"].__module__ == "ssdistill.losses.simreg"
    assert "plugged_same" not in module.PLUGINS
    assert "plugged_same" not in os.environ.get(module.NAMED, "")


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        (5, "", "kind=5: use lower-case letters"),
        ("", "", "kind='': use lower-case letters"),
        ("a b/../c", "", "kind='a b/../c'"),
        ("plugged_odd", "scale=1.0", "the argument scale has no type; annotate it"),
        ("plugged_odd", "scale: 'Nowhere' = 1.0", "no settings can be made"),
    ],
)
def test_a_class_that_cannot_be_a_kind_is_refused_and_the_rest_works(
    plugins, kind, arguments, said
):
    text = f"""
def __init__(self, shapes, *, {arguments or "scale: float = 1.0"}):
    Loss.__init__(self, shapes)
"""
    names = {"Loss": Loss}
    exec(text, names)
    cls = type("Odd", (Loss,), {"kind": kind, "__init__": names["__init__"], "__module__": "odd"})
    with pytest.raises(UserError, match=re.escape(said)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "identity_of", lambda member: "0")
        ssdistill.register(cls)
    assert "simreg" in LOSSES.classes and cls not in LOSSES.classes.values()


def test_a_package_that_exits_is_named(package):
    package("plugged_exits", "plugged_exits_loss", main="import sys; sys.exit('needs a licence')")
    with pytest.raises(UserError, match=r"cannot be imported .SystemExit: needs a licence"):
        ssdistill.add_plugin("plugged_exits")


def test_an_installed_package_with_a_kind_that_is_taken_is_ignored(package, monkeypatch):
    package("plugged_clash", "simreg", more=LOSS.replace("KIND", "plugged_clash_loss"))
    monkeypatch.setattr(plugin_classes, "INSTALLED", {"plugged_clash"})
    monkeypatch.setattr(plugin_classes, "FAILED", failed := {})
    module._import("plugged_clash")
    LOSSES.forget()
    assert LOSSES["simreg"].__module__ == "ssdistill.losses.simreg"
    assert "that of a loss of ssdistill" in failed["plugged_clash"]
    assert "plugged_clash_loss" in LOSSES.classes
