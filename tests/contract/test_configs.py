"""Every packaged config can be run."""

import re
from pathlib import Path

import pytest
import yaml

from ssdistill.experiment.reading import load_experiment
from ssdistill.settings.registry import LOSSES, METHODS, STEPS

FOLDER = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
EXPERIMENTS = [path for path in FILES if "name" in yaml.safe_load(path.read_text())]


def name_of(path):
    return str(path.relative_to(FOLDER))


def test_there_are_configs_to_check():
    assert FOLDER / "quickstart.yaml" in EXPERIMENTS
    assert len(EXPERIMENTS) < len(FILES)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_a_config_is_valid(path):
    experiment, notices = load_experiment(path)
    assert experiment.name and notices == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_what_a_config_names_can_be_built(path):
    """Settings that only a constructor can judge, e.g. that pruning has one target."""
    experiment, _ = load_experiment(path)
    for step in [step for plan in experiment.compression_variants.values() for step in plan]:
        for stage in STEPS[step.kind].expand(step):
            STEPS.build(stage)
    assert METHODS[experiment.pretrain.kind].recipes
    for loss in experiment.distill.losses.values() if experiment.distill else ():
        assert LOSSES[loss.kind].paper


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_config_says_first_what_it_is(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first.removeprefix("# ").split()) >= 3


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_a_config_is_named_like_its_file(path):
    # Of the recipes in pretrain/byol each is called after its method and its data.
    both = f"{path.parent.name}_{path.stem}"
    assert load_experiment(path)[0].name == (both if "pretrain" in path.parts else path.stem)


def test_the_experiments_in_the_readme_are_valid(tmp_path):
    readme = (FOLDER.parent / "README.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert len(examples) >= 2
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}.yaml"
        whole = "schema:" in example
        file.write_text(
            example
            if whole
            else f"extends: base/distill.yaml\nschema: 1\nname: an-example\n{example}"
        )
        experiment, notices = load_experiment(file)
        assert (experiment.distill or experiment.all_teachers) and notices == []
