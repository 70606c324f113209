"""Teachers that can be loaded without a download pass the checks for those of plug-ins."""

import pytest
import timm
import torch
from own_kinds import every_case

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.settings.registry import TEACHERS
from ssdistill.testing import TEACHER_CHECKS, Candidate
from ssdistill.testing.candidate import DESCRIBED
from ssdistill.testing.tiny_networks import three_stages

ARGS = {"channels": [8, 16, 16, 16]}


def weights(folder):
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=0, **ARGS)
    torch.save(net.state_dict(), folder / "weights.pth")
    return str(folder / "weights.pth")


def timm_model(folder):
    return {"name": "resnet18", "args": ARGS, "weights": weights(folder), "input_size": 32}


def checkpoint(folder):
    return {"path": weights(folder), "encoder": {"name": "resnet18", "args": ARGS}}


def finished_run(folder):
    torch.manual_seed(0)
    save_encoder(three_stages((8, 16, 16, 16), 32), folder)
    return {"path": str(folder)}


MADE = {"timm": timm_model, "checkpoint": checkpoint, "run": finished_run}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """``teacher(kind)``: a candidate of it, with a tiny file."""
    known = {}

    def get(kind):
        if kind not in known:
            settings = MADE[kind](tmp_path_factory.mktemp(kind))
            known[kind] = Candidate(TEACHERS, TEACHERS[kind], settings)
        return known[kind]

    return get


@pytest.mark.parametrize("name", TEACHER_CHECKS)
@pytest.mark.parametrize("kind", MADE)
def test_a_teacher(kind, name, teacher):
    TEACHER_CHECKS[name].run(teacher(kind))


@every_case(DESCRIBED, {kind: Candidate(TEACHERS, cls) for kind, cls in TEACHERS.classes.items()})
def test_every_teacher_is_described(check, candidate):
    check.run(candidate)
