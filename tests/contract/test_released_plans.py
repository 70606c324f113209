"""Plans of version 0.1.0 have the same stages today: finished ones are cached."""

import json
from pathlib import Path

import pytest

from ssdistill.chain.plan import plan_stages
from ssdistill.chain.stages import Identity
from ssdistill.chain.workspace import open_workspace
from ssdistill.experiment.reading import load_experiment
from ssdistill.experiment.renamed_keys import DEVIATIONS

RELEASED = Path(__file__).parents[1] / "golden" / "released_0_1_0"
PLANS = json.loads((RELEASED / "plans.json").read_text())
"""By name: a config, and the folders that version 0.1.0 gave its experiment and its stages."""
EXPERIMENTS = json.loads((RELEASED / "experiments.json").read_text())
"""By packaged config: the folder of its experiment.

Not here are those that say something else now: quickstart and what extends it have fewer steps,
four keep ``stem: native`` of the file they extend, those of ImageNet cut views from originals and
see 224 of 256 pixels, and distill/lightly is another method (its stages are lightly_v1's).
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", PLANS)
def test_stages_of_the_first_release_keep_their_folders(name, root):
    released = PLANS[name]
    config = root / f"{name}.yaml"
    config.write_text(released["config"])
    experiment, _ = load_experiment(config)
    stages = plan_stages(open_workspace(experiment, root))
    assert [f"{s.kind} {s.role} {s.folder(root).parent.name}" for s in stages] == released["stages"]
    assert Identity.of(experiment).folder == released["experiment"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_packaged_experiments_keep_their_folders(name):
    experiment, _ = load_experiment(name)
    assert Identity.of(experiment).folder == EXPERIMENTS[name]


def test_every_sentence_with_an_old_wording_stands_in_a_packaged_config():
    configs = Path(__file__).parents[2] / "configs"
    text = "\n".join(path.read_text() for path in configs.rglob("*.yaml"))
    assert DEVIATIONS and not [sentence for sentence in DEVIATIONS if sentence not in text]
