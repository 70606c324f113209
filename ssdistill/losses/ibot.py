"""Assignments of patches to prototypes (Zhou et al., ICLR 2022; Siméoni et al., 2025)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.block_masks import block_masks
from ssdistill.data.masking import mask_fractions, random_masks
from ssdistill.losses import Shapes
from ssdistill.losses.base.assignments import Assigning, Targets
from ssdistill.losses.base.maps import MapLoss, resize_map, tokens
from ssdistill.losses.base.prototypes import DINOHead, Prototypes, default_prototypes
from ssdistill.models.final_patches import FINAL_PATCHES
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings import Fraction, Positive, PositiveInt

Fractions = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


def masked_cross_entropy(target_MK: Tensor, log_MK: Tensor, mask_BN: Tensor) -> Tensor:
    """(1/B) sum_b (1/M_b) sum over the M_b masked patches of b of -sum_k p_k log q_k.

    Images without a mask count 0 in the mean over images.

    Args:
        target_MK: p of all masked patches, image after image.
        log_MK: log q.
        mask_BN: true where masked.
    """
    count_B = mask_BN.sum(1)
    weight_M = (1.0 / count_B.clamp(min=1)).repeat_interleave(count_B)
    return -((target_MK * log_MK).sum(1) * weight_M).sum() / len(mask_BN)


class IBOT(Assigning, MapLoss):
    """Match the teacher's assignments of patches to prototypes, at random places.

    L = mean over views and images of the mean over masked patches of -sum_k p_k log softmax(
    h(s) / T_s)_k: s the student's patches behind its last norm, on the teacher's grid, h the
    student's own head, p the teacher's assignment of the same patch, as in
    :class:`ssdistill.losses.dino.DINO` by ``targets``. The masks choose places, and hide nothing:
    so DINOv3's small models learn from the large one (arXiv:2508.10104, and its code), where the
    loss is called after iBOT (arXiv:2111.07832). As no published weights have the teacher's head,
    prototypes found by spherical k-means among the teacher's patches of training images stand in.
    With ``dino`` for class tokens and ``koleo`` it is the whole of that distillation
    (``configs/distill/dinov3.yaml``).

    ```yaml
    losses:
      patches: {kind: ibot, hidden_dim: 256, weight: 1.0}
    ```

    Args:
        prototypes: how many, K; at most as many as patches of the training images are looked
            at, some 30,000. By default 1024, or an eighth of the images if fewer.
        targets: ``sinkhorn`` or ``centering``.
        masks: places in ``blocks``, or ``random`` ones.
        images: fraction of the views with a mask.
        fraction: smallest and largest fraction of the patches of a view that are masked.
        temperature_student: T_s.
        temperature_start: T_t at the first step.
        temperature_teacher: T_t once the warm-up is over.
        temperature_warmup: fraction of the training over which T_t rises linearly.
        center_momentum: of the moving average c.
        hidden_dim: width of the two hidden layers of the student's head.
        bottleneck_dim: width of the space in which the head compares by cosine.

    Raises:
        UserError: a network without a grid of patches, a grid of one row, or fewer patches than
            prototypes.
    """

    kind = "ibot"
    family = "prototype and logit"
    paper = "Zhou et al., ICLR 2022, arXiv:2111.07832"
    exact_under_sharding = True
    fits_teacher = True
    fit_taps = (FINAL_PATCHES,)

    def __init__(
        self,
        shapes: Shapes,
        *,
        prototypes: PositiveInt | None = None,
        targets: Targets = "sinkhorn",
        masks: Literal["blocks", "random"] = "blocks",
        images: Annotated[float, Field(gt=0, le=1)] = 0.5,
        fraction: Fractions = (0.1, 0.5),
        temperature_student: Positive = 0.1,
        temperature_start: Positive = 0.04,
        temperature_teacher: Positive = 0.07,
        temperature_warmup: Fraction = 0.3,
        center_momentum: Fraction = 0.9,
        hidden_dim: PositiveInt = 2048,
        bottleneck_dim: PositiveInt = 256,
    ):
        super().__init__(shapes, "final")
        (pair,) = self.map_pairs
        width, *grid = pair.teacher_shape
        if masks == "blocks" and min(grid) < 2:
            raise self.fail(
                f"the teacher ({shapes.teacher_name}) has {grid[0]} x {grid[1]} patches, too few "
                "for blocks; set masks=random, or use larger images"
            )
        if fraction[0] > fraction[1]:
            raise self.fail(f"fraction={list(fraction)}: the smallest comes first")
        self.masks, self.images, self.fraction = masks, images, fraction
        self.temperature_student = temperature_student
        count = prototypes or default_prototypes(shapes.num_samples)
        if count < 2:
            raise self.fail("at least two prototypes required, got 1; use more images")
        self.classify = Prototypes(count, width)
        self.head = DINOHead(pair.student_shape[0], count, hidden_dim, bottleneck_dim)
        temperatures = temperature_start, temperature_teacher
        self.set_assignments(targets, temperatures, temperature_warmup, center_momentum, count)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pairs = [self.pairs_of(s, t)[0] for s, t in zip(student, teacher, strict=True)]
        mask_VBN = [self.mask(batch, v, len(pairs), t.shape[-2:]) for v, (_, t) in enumerate(pairs)]
        s_MC, t_MD = [], []
        for (s_BCHW, t_BDHW), mask_BN in zip(pairs, mask_VBN, strict=True):
            s_MC.append(tokens(resize_map(s_BCHW, t_BDHW.shape[-2:]))[mask_BN])
            t_MD.append(tokens(t_BDHW)[mask_BN])
        temperature = self.temperature_at(batch.step, batch.num_steps)
        target_MK = self.assign(self.classify(torch.cat(t_MD)), temperature)
        log_MK = (self.head(torch.cat(s_MC)).float() / self.temperature_student).log_softmax(1)
        return masked_cross_entropy(target_MK, log_MK, torch.cat(mask_VBN))

    def fit_teacher(self, teacher: Representation) -> None:
        """Find the prototypes among the patches of some training images.

        Raises:
            UserError: there are fewer patches.
        """
        t_ND = tokens(teacher.maps[FINAL_PATCHES]).flatten(0, 1)
        count = len(self.classify.prototype_KD)
        if len(t_ND) < count:
            raise self.fail(
                f"prototypes={count} exceeds the {len(t_ND)} patches of the training images; lower "
                "prototypes"
            )
        self.classify.fit(t_ND)

    def mask(self, batch: Batch, view: int, num_views: int, grid: torch.Size) -> Tensor:
        """The places (B, H W) in one view of each image, true where a patch is compared."""
        fraction_BV = mask_fractions(batch, num_views, self.images, self.fraction, exact=True)
        rows, columns = grid
        count_B = (fraction_BV[:, view] * rows * columns).long()
        # Of few patches every fraction above 0 masks at least one.
        count_B = count_B.clamp(min=1) * (fraction_BV[:, view] > 0)
        if self.masks == "random":
            return random_masks(batch, view, count_B, rows * columns)
        return block_masks(batch, view, count_B, (rows, columns), complete=True)
