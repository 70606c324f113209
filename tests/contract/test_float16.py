"""Losses and methods whose networks compute in float16: near those in float32, and finite."""

import copy

import pytest
import torch
from own_kinds import OWN_LOSSES, OWN_METHODS, every_case
from test_methods import ELSEWHERE
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distill.distiller import Distiller
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs
from ssdistill.testing.float16 import LARGE, LOSSES_IN_FLOAT16, distill, make_layers
from ssdistill.testing.methods import IN_ONE_PROCESS
from ssdistill.testing.synthetic import make_shapes


@every_case(LOSSES_IN_FLOAT16, OWN_LOSSES)
def test_a_loss(check, candidate):
    check.run(candidate)


@every_case({name: IN_ONE_PROCESS[name] for name in sorted(ELSEWHERE)}, OWN_METHODS)
def test_a_method(check, candidate):
    check.run(candidate)


class Careless(Loss):
    """Sums squares in whatever format it is given, behind a head."""

    student_taps = teacher_taps = ("layer1",)

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.head = nn.Conv2d(shapes.student_maps["layer1"][0], shapes.teacher_maps["layer1"][0], 1)

    def per_image(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s_BCHW, t_BCHW = self.head(student[0].maps["layer1"]), teacher[0].maps["layer1"]
        return (s_BCHW - t_BCHW.to(s_BCHW.dtype)).square().flatten(1).sum(1)


@pytest.mark.parametrize("dropping", [None, 0.5])
def test_a_loss_need_not_care_for_formats(dropping):
    torch.manual_seed(0)
    known = make_shapes()
    student, teachers = make_layers(LARGE, *("a", "b")[: 1 + (dropping is not None)])
    names = ["it/a", "it/b"] if dropping else ["it"]
    losses = {name: Careless(known) for name in names}
    distiller = Distiller(student, teachers, losses, teacher_dropping=dropping).train()
    half = copy.deepcopy(distiller)
    expected, found = distill(distiller, False), distill(half, True)
    assert float(found) > 65_504 and found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=0.01)
