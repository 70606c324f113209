"""SimReg: regression of the teacher's embedding (Navaneet et al., BMVC 2021, arXiv:2201.05131)."""

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Shapes, vectors
from ssdistill.losses.base.bank import centering
from ssdistill.losses.base.matching import squared_distance
from ssdistill.models.heads import Depth, regressor
from ssdistill.models.representation import Outputs


class SimReg(Loss):
    """Cosine regression of the teacher embedding through an MLP head (discarded).

    L = mean (2 - 2 n(MLP(s))·n(t)) over images and views; student and teacher see the same view.
    arXiv:2201.05131.

    ```yaml
    losses:
      feature: {kind: simreg, depth: 4, weight: 1.0}
    ```

    Args:
        depth: linear layers of the MLP. The published code's depth 2 has no non-linearity;
            here it is Linear-BN-ReLU-Linear, half the head of depth 4.
        center_teacher: subtract the teacher's mean embedding first (not in the paper).
    """

    kind = "simreg"
    family = "feature matching"
    paper = "Navaneet et al., BMVC 2021, arXiv:2201.05131"
    accumulates = True
    reads = "embedding"
    views = 1

    def __init__(self, shapes: Shapes, *, depth: Depth = 4, center_teacher: bool = False):
        super().__init__(shapes)
        self.head = regressor(shapes.student_dim, shapes.teacher_dim, depth)
        self.center = centering(center_teacher, shapes.teacher_dim)
        self.accumulates = not center_teacher

    def per_image(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        targets = self.center(vectors(teacher))
        s_ND = self.head(torch.cat(vectors(student)))
        distance_N = squared_distance(s_ND, torch.cat(targets))
        return distance_N.reshape(len(student), -1).mean(0)
