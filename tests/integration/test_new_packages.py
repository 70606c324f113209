"""Packages that `ssdistill new` writes are found, listed, checked and run.

One is installed by pip into an environment of its own. Of the others lies in a folder of the path
what pip would put there: the package, and the metadata with its entry point.
"""

import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest

from ssdistill.commands.new.package import FAMILIES, write_package

ROOT = Path(__file__).parents[2]
INSTALLED = "loss"
OTHERS = [family for family in FAMILIES if family != INSTALLED]
FEW = (
    *("distill.steps=2", "evaluate.knn=null", "evaluate.label_free_images=64"),
    *("device.precision=fp32", "device.memory_format=contiguous"),
)


def named(family):
    return f"own_{family}"


def environment(*path):
    """Variables in which the packages of ``path`` and this one can be imported."""
    places = os.pathsep.join(map(str, (*path, ROOT)))
    return os.environ | {"PYTHONPATH": places, "WANDB_MODE": "disabled", "PIP_NO_INDEX": "1"}


def said(words, env, cwd):
    done = subprocess.run(
        [str(word) for word in words], env=env, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def few_steps(family):
    """A few steps of everything that the config of a family trains."""
    pretraining = () if family == "teacher" else ("pretrain.steps=2",)
    return ["run", "config.yaml", *pretraining, *FEW]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Python of an environment with the package, and with what is installed here."""
    folder = tmp_path_factory.mktemp("installed")
    written = write_package(INSTALLED, named(INSTALLED), folder)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    here = sysconfig.get_paths()["purelib"]
    (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", *options]
    said([*pip, "-e", written], environment(), folder)
    return python, written


def test_what_pip_installs_is_found_listed_checked_and_run(installed):
    python, folder = installed
    env = environment()
    run = [python, "-m", "ssdistill"]
    assert "from own_loss 0.1.0" in said([*run, "list", "losses", "own_loss"], env, folder)
    assert "1 passed" in said([python, "-m", "pytest", "-p", "no:cacheprovider"], env, folder)
    assert "distilled model" in said([*run, *few_steps(INSTALLED)], env, folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of the path with every other package and its metadata."""
    folder = tmp_path_factory.mktemp("site")
    for family in OTHERS:
        name = named(family)
        written = write_package(family, name, folder / "written")
        (folder / name).symlink_to(written / name)
        metadata = folder / f"{name}-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        (metadata / "top_level.txt").write_text(f"{name}\n")
        (metadata / "entry_points.txt").write_text(f"[ssdistill.plugins]\n{name} = {name}\n")
    return folder


def test_tests_that_are_written_pass(site):
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib"]
    assert f"{len(OTHERS)} passed" in said([*words, "written"], environment(site), site)


def test_kinds_are_listed_and_configs_run(site):
    code = f"""
    import os
    from ssdistill.commands.main import main
    for family, table, words in {[(f, FAMILIES[f].table, few_steps(f)) for f in OTHERS]!r}:
        os.chdir({str(site / "written")!r} + "/own_" + family)
        assert main(["list", table]) == 0
        assert main([*words, "--runs", "../runs"]) == 0, family
        print("ran", family)
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    lines = said(words, environment(site), site).splitlines()
    assert [line for line in lines if line.startswith("ran ")] == [f"ran {f}" for f in OTHERS]
    for family in OTHERS:
        kind = named(family)
        assert any({kind, kind} <= set(line.split()) for line in lines), kind


def test_a_folder_that_is_named_is_imported_in_every_process(site):
    name = named("network")
    words = [sys.executable, "-m", "ssdistill", *few_steps("network"), "--import", name]
    words += ["device.devices=2", "device.accelerator=cpu", "--runs", "two"]
    folder = site / "written" / name
    assert "distilled model" in said(words, environment(), folder)
    records = [json.loads(file.read_text()) for file in folder.glob("two/stages/*/s0/run.json")]
    assert {record["status"] for record in records} == {"finished"}
    (distilled,) = (record for record in records if record["stage"] == "distill")
    assert list(distilled["config"]["plugins"]) == [name]
