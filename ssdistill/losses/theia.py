"""Theia and AM-RADIO: cosine of whole maps with a little smooth L1 (arXiv:2407.20179)."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.matching import StandardizedRegression
from ssdistill.losses.cosine import Cosine
from ssdistill.models.heads import MapHead
from ssdistill.models.representation import Outputs
from ssdistill.settings import Fraction, NonNegative


class Theia(StandardizedRegression):
    """Cosine and smooth L1 regression of the teacher's standardized map through a head.

    L = 0.9 (1 - cos(h(s), t')) + 0.1 smooth_l1(h(s), t'), the cosine of the flattened maps and
    t' the teacher's map standardized in each channel (arXiv:2407.20179). The paper's statistics
    are those of ImageNet, and its code passes variances where it means deviations; here they
    are running ones, as in ``unic``. With ``summary_weight`` above 0 the ``cosine`` loss of the
    embeddings is added, as in AM-RADIO (arXiv:2312.06709), whose spatial loss has the same form.

    ```yaml
    losses:
      feature: {kind: theia, summary_weight: 1.0, weight: 1.0}
    ```

    Args:
        maps: which maps: ``last``, ``middle``, ``stages``, ``final`` or names.
        head: ``mlp``, ``linear`` or ``conv``, at every position (the paper has a few
            convolutions).
        cosine_weight: of the cosine distance.
        smooth_l1_weight: of the smooth L1 distance.
        summary_weight: of the cosine distance of the embeddings.
        statistics_end: fraction of a batch in the running statistics at the end of the training;
            it falls to it from 1 by a cosine.

    Raises:
        UserError: maps that a network does not have.
    """

    kind = "theia"
    paper = "Shang et al., CoRL 2024, arXiv:2407.20179"
    reads = "embedding, maps"

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "last",
        head: MapHead = "mlp",
        cosine_weight: NonNegative = 0.9,
        smooth_l1_weight: NonNegative = 0.1,
        summary_weight: NonNegative = 0.0,
        statistics_end: Fraction = 0.001,
    ):
        super().__init__(shapes, reads="maps", maps=maps, head=head, statistics_end=statistics_end)
        self.cosine_weight, self.smooth_l1_weight = cosine_weight, smooth_l1_weight
        self.summary_weight, self.summary = summary_weight, None
        if summary_weight:
            self.summary, self.reads = Cosine(shapes), "embedding, maps"

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        cosine_B = F.cosine_similarity(s_BCHW.flatten(1), t_BCHW.flatten(1), dim=1)
        smooth_l1_B = F.smooth_l1_loss(s_BCHW, t_BCHW, reduction="none").mean((1, 2, 3))
        return self.cosine_weight * (1 - cosine_B) + self.smooth_l1_weight * smooth_l1_B

    def per_image(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        loss_B = super().per_image(student, teacher, batch)
        if self.summary is not None:
            summary_B = self.summary.per_image(student, teacher, batch)
            loss_B = loss_B + self.summary_weight * summary_B
        return loss_B
