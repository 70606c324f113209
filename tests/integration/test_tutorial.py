"""The tutorial is run as it stands, in a fresh environment in a folder of its own.

What pip would fetch comes from here: a wheel of this package, and its dependencies as they are
installed. timm's published weights are a file with random ones.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import timm
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)\n```$", re.M | re.S)
STEP = re.compile(r"^## (\d\. .*)$", re.M)
PUBLISHED = '"name": "resnet18.a1_in1k"'
ROW = re.compile(r"^\| (\d\. .*?) \| (\d+) \|$", re.M)
PIP = """#!/bin/sh
exec python -m pip --disable-pip-version-check "$@"
"""
OTHERWISE = {
    "python -m venv env": "python -m venv --without-pip env",
    "pip install ssdistill pytest        # or the path of a checkout instead of ssdistill": (
        "pip install --ignore-installed ssdistill"
    ),
}
"""Commands for which pip would go to the network, or which it would find done already."""
PYTEST = """#!/bin/sh
exec python -m pytest -p no:cacheprovider "$@"
"""


def steps():
    """The blocks of every step: (language, code)."""
    parts = STEP.split(TEXT.split("## What each step took")[0])[1:]
    return {title: BLOCK.findall(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


def named_file(code):
    """The file that a block is, by the comment in its first line."""
    return code.splitlines()[0].removeprefix("# ")


def is_code(line):
    return bool(line.strip()) and not line.strip().startswith("#")


def test_the_table_counts_the_lines_of_each_step():
    counted = {
        title: str(sum(is_code(line) for _, code in blocks for line in code.splitlines()))
        for title, blocks in steps().items()
    }
    assert dict(ROW.findall(TEXT)) == counted


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder in which all steps were followed, and what they printed by command."""
    folder = tmp_path_factory.mktemp("stranger")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_FIND_LINKS": str(folder / "wheels"),
        "PIP_QUIET": "1",
        "WANDB_MODE": "disabled",
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }
    said = {}

    def do(command):
        active = "source env/bin/activate\n" if (folder / "env/bin/activate").is_file() else ""
        done = subprocess.run(
            ["bash", "-ec", active + command], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        said[command] = done.stdout

    # A build leaves files beside what it builds.
    source = folder / "source"
    for name in ("ssdistill", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = [sys.executable, "-m", "pip", "wheel", source, "--wheel-dir", folder / "wheels"]
    subprocess.run(wheel, env=env, check=True, capture_output=True)
    save_file(timm.create_model("resnet18").state_dict(), folder / "resnet18.safetensors")
    for blocks in steps().values():
        for language, code in blocks:
            if language == "sh":
                for command in code.splitlines():
                    do(OTHERWISE.get(command, command))
                    if " venv " in command:
                        _see_what_is_installed_here(folder / "env")
            else:
                file = folder / named_file(code)
                code = code.replace(PUBLISHED, f'{PUBLISHED}, "weights": "resnet18.safetensors"')
                file.write_text(code)
    return folder, said


def _see_what_is_installed_here(env):
    (site,) = env.glob("lib/python*/site-packages")
    here = sysconfig.get_paths()["purelib"]
    (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    for name, text in {"pip": PIP, "pytest": PYTEST}.items():
        (env / "bin" / name).write_text(text)
        (env / "bin" / name).chmod(0o755)


def test_a_stranger_can_follow_it(followed):
    folder, said = followed
    assert "2 passed" in said["pytest shape_kit"]
    assert "from shape_kit 0.1.0" in said["ssdistill list losses angle"]
    assert "shape_net" in said["ssdistill list networks"]
    trained = said["python small_shapes.py"]
    assert "distilled model" in trained and "pruned" in trained and "int8" in trained
    assert re.search(r"k-NN of the compressed student: \d+\.\d %", trained)
    rows = pyarrow.parquet.read_table(folder / "shapes.parquet")
    assert rows.num_rows == 200 and len(rows["embedding"][0]) == 128
    nearest_NK = np.load(folder / "shapes.neighbors.npz")["indices"]
    assert nearest_NK.shape == (200, 3) and f"{nearest_NK[0].tolist()}" in trained
    assert "pruned" in said["ssdistill run shape_kit/config.yaml --runs digits"]
    assert pyarrow.parquet.read_table(folder / "digits.parquet").num_rows > 300


def test_ssdistill_is_the_one_that_was_installed_there(followed):
    folder, _ = followed
    code = "import ssdistill, shape_kit; print(ssdistill.__file__, shape_kit.__file__)"
    python = folder / "env" / "bin" / "python"
    done = subprocess.run(
        [python, "-c", code], cwd=folder / "env", env={}, capture_output=True, text=True, check=True
    )
    package, kit = map(Path, done.stdout.split())
    assert package.is_relative_to(folder / "env") and kit.is_relative_to(folder / "shape_kit")
