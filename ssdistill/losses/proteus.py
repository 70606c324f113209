"""Proteus: three levels of tokens, one of them masked (Zhang et al., ICLR 2025)."""

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.masking import random_masks
from ssdistill.distributed import world_size
from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapLoss, resize_map, tokens
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings import Fraction, NonNegative, OpenFraction


def normed_linear(in_dim: int, out_dim: int) -> nn.Sequential:
    """LayerNorm and a linear layer."""
    return nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, out_dim))


class Proteus(MapLoss):
    """Match class token, all tokens, and patches that the student does not see.

    L = L_token + w_fea L_fea + w_patch L_patch (arXiv:2407.10366, eq. 2 to 5), each a mean of
    squared differences over rows and components, to the teacher's tokens as they are:
    L_token = |h(c) - c*|^2 of the class token; L_fea = |[h(c); f(p)] - [c*; p*]|^2 of class token
    and patches; L_patch = |g(p~) - p*|^2 of the masked patches p~ of a second pass of the student,
    whose mask token replaces them. h, f and g are LayerNorm and a linear layer each. Masks are as
    coded: half of the patches, at random, of the first half of the batch. Where the grids differ,
    the teacher's patches are brought to the student's. Networks without a class token have their
    embedding in its place.

    ```yaml
    losses:
      tokens: {kind: proteus, weight: 1.0}
    ```

    Args:
        feature_weight: w_fea; 0 for teachers like CLIP, as published.
        patch_weight: w_patch; 0 runs the student once, and takes any student.
        images: fraction of the batch with a mask; at least one image has one.
        fraction: of the patches of such an image that are masked; at least one is.

    Raises:
        UserError: a network without a grid of patches, one whose embedding is not as wide as its
            patches, or a student that cannot be masked.
    """

    kind = "proteus"
    family = "feature matching"
    paper = "Zhang et al., ICLR 2025, arXiv:2407.10366"
    reads = "embedding, maps"
    prefix = "final"
    required = "grid of patches behind the last norm"
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        feature_weight: NonNegative = 1.0,
        patch_weight: NonNegative = 1.0,
        images: Fraction = 0.5,
        fraction: OpenFraction = 0.5,
    ):
        super().__init__(shapes, "last")
        (pair,) = self.map_pairs
        self.check_widths(pair)
        self.feature_weight, self.patch_weight = feature_weight, patch_weight
        self.images, self.fraction = images, fraction
        dims = shapes.student_dim, shapes.teacher_dim
        self.token_head, self.feature_head = normed_linear(*dims), normed_linear(*dims)
        self.num_patches = pair.student_shape[1] * pair.student_shape[2]
        self.masks_student = patch_weight > 0
        if self.masks_student:
            if shapes.student_mask_dim is None:
                raise self.fail(
                    f"the student ({shapes.student_name}) cannot be masked, as a vision "
                    "transformer of timm can; set patch_weight=0"
                )
            self.patch_head = normed_linear(*dims)
            self.mask_token_D = nn.Parameter(torch.zeros(shapes.student_mask_dim))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for view in range(len(student)):
            masked = student.masked[view] if self.masks_student else None
            mask_BN = self.student_mask(batch, view, len(student)) if self.masks_student else None
            terms = self.terms(student[view], teacher[view], masked, mask_BN, batch)
            losses.append(torch.stack([*terms.values()]).sum())
        return torch.stack(losses).mean()

    def terms(
        self,
        student: Representation,
        teacher: Representation,
        masked: Representation | None,
        mask_BN: Tensor | None,
        batch: Batch,
    ) -> dict[str, Tensor]:
        """The weighted terms by name, for one view."""
        (maps,) = self.pairs_of(student, teacher)
        s_BNC, t_BND = tokens(maps[0]), tokens(resize_map(maps[1], maps[0].shape[-2:])).float()
        t_BD = teacher.embedding_BD.float()
        class_BD = self.token_head(student.embedding_BD).float()
        found = {"token": (class_BD - t_BD).square().mean()}
        if self.feature_weight:
            found_BND = torch.cat([class_BD[:, None], self.feature_head(s_BNC).float()], 1)
            target_BND = torch.cat([t_BD[:, None], t_BND], 1)
            found["feature"] = self.feature_weight * (found_BND - target_BND).square().mean()
        if masked is not None and mask_BN is not None:
            hidden_BNC = tokens(masked.maps[self.student_taps[0]])
            error_MD = self.patch_head(hidden_BNC[mask_BN]).float() - t_BND[mask_BN]
            # The mean over the masked patches of all processes, of which this one may have none.
            rows = self._masked_images(batch) * self._masked_patches / world_size()
            found["patch"] = self.patch_weight * error_MD.square().mean(1).sum() / rows
        return found

    def student_mask(self, batch: Batch, view: int, num_views: int) -> Tensor:
        whole, rows = batch.place
        place_B = torch.arange(whole, device=batch.index_B.device)[rows]
        count_B = (place_B < self._masked_images(batch)) * self._masked_patches
        return random_masks(batch, view, count_B, self.num_patches)

    @property
    def _masked_patches(self) -> int:
        return max(1, int(self.fraction * self.num_patches))

    def _masked_images(self, batch: Batch) -> int:
        """Images with a mask in the batches of all processes together."""
        return max(1, int(self.images * batch.place[0]))
