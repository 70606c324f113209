"""The student's outputs for masked views, for losses that ask for them."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss
from ssdistill.models.backbones import Encoder
from ssdistill.models.float16 import beyond_float16
from ssdistill.models.masked_tokens import masked_pass
from ssdistill.models.representation import Representation
from ssdistill.train.microbatch import by_parts


def masked_outputs(
    owner: nn.Module,
    student: Encoder,
    losses: Mapping[str, Loss],
    views: Sequence[Tensor],
    views_by_loss: Mapping[str, Sequence[int]],
    batch: Batch,
) -> dict[str, list[Representation]]:
    """Encode the views of every loss that masks the student, by its name, each with its masks.

    Args:
        owner: has the parameters of student and losses.
        views: (B, C, H, W) each.
        views_by_loss: numbers of the views that a loss compares.
    """
    found = {}
    for name, loss in losses.items():
        if not loss.masks_student:
            continue
        numbers = views_by_loss[name]
        masks = [loss.student_mask(batch, view, len(numbers)) for view in range(len(numbers))]
        call = partial(masked_pass, encoder=student, token_D=loss.mask_token_D)
        rows = torch.cat([views[i] for i in numbers]), torch.cat(masks)
        outputs = beyond_float16({0: by_parts(student, owner, call, *rows)})[0]
        found[name] = outputs.chunk(len(numbers))
    return found
