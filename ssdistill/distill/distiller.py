"""The figure in code: one frozen teacher, one student, weighted losses between them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError, nearest
from ssdistill.losses import Loss, Shapes
from ssdistill.models.backbones import Encoder
from ssdistill.models.representation import Representation
from ssdistill.train.task import Task


def shapes(student: Encoder, teacher: Encoder, num_samples: int) -> Shapes:
    """What losses between these two encoders need to know before the first batch."""
    return Shapes(
        student_dim=student.embed_dim,
        teacher_dim=teacher.embed_dim,
        num_samples=num_samples,
        student_projection_dim=getattr(student, "projection_dim", None),
        teacher_projection_dim=getattr(teacher, "projection_dim", None),
        student_maps=_all_maps(student),
        teacher_maps=_all_maps(teacher),
    )


def _all_maps(encoder: Encoder) -> dict[str, tuple[int, int, int]]:
    if not hasattr(encoder.net, "forward_intermediates"):
        return {}
    taps = encoder.taps
    encoder.set_taps(tuple(encoder.tap_names))
    try:
        return encoder.map_shapes()
    finally:
        encoder.set_taps(taps)


class Distiller(Task):
    """Trains ``student`` by weighted losses against a frozen ``teacher``.

    The teacher follows the distiller from device to device but is no submodule of it: it is in
    neither ``parameters()`` nor ``state_dict()``, and ``train()`` leaves it in eval mode. Both
    networks take images in [0, 1] and normalise them for themselves. Feature maps that the losses
    read are tapped here.

    Args:
        student: the encoder to train, ``encoder`` to the training loop.
        teacher: the encoder to learn from; its parameters are frozen in place.
        losses: by the name they are logged under.
        weights: weight of each loss in the total, by the same names.

    Raises:
        UserError: for names that do not match, a name no module can have, or a feature map that
            neither network has.
    """

    def __init__(
        self,
        student: Encoder,
        teacher: Encoder,
        losses: dict[str, Loss],
        weights: dict[str, float],
    ):
        super().__init__()
        if not losses:
            raise UserError("losses: at least one is needed to distil")
        if losses.keys() != weights.keys():
            raise UserError(
                f"losses: {', '.join(losses)} are weighted by {', '.join(weights) or 'nothing'}"
            )
        self.encoder = student
        # In a tuple, nn.Module does not see the teacher.
        self._frozen = (teacher.requires_grad_(False).eval(),)
        self.losses = nn.ModuleDict()
        for name, loss in losses.items():
            try:
                self.losses[name] = loss
            except KeyError as error:
                raise UserError(f"losses: '{name}' cannot be a loss's name") from error
        self.weights = dict(weights)
        self.num_views = max(loss.views for loss in losses.values())
        self._tap(losses)

    @property
    def student(self) -> Encoder:
        """The encoder being trained."""
        return self.encoder

    @property
    def teacher(self) -> Encoder:
        """The frozen encoder."""
        return self._frozen[0]

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name.

        Args:
            views: one (B, 3, H, W) tensor in [0, 1] a view; both networks see every view.
            batch: where the images come from.
        """
        student = encode_views(self.encoder, views)
        teacher = self.targets(views, batch)
        self.last_embedding_BD = student[0].embedding_BD.detach()
        return {name: loss(student, teacher, batch) for name, loss in self.losses.items()}

    @torch.no_grad()
    def targets(self, views: list[Tensor], batch: Batch) -> list[Representation]:
        """The teacher's outputs, one a view, without gradient.

        Not under ``inference_mode``: autograd cannot save its tensors, and the copies that would
        take cost what it gains.
        """
        return encode_views(self.teacher, views)

    def train(self, mode: bool = True) -> "Distiller":
        """Switch student and losses; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _tap(self, losses: dict[str, Loss]) -> None:
        """Let each network return those of the losses' feature maps that it has."""
        known = {*self.student.tap_names, *self.teacher.tap_names}
        taps: dict[str, None] = {}
        for name, loss in losses.items():
            reads = (loss.reads,) if isinstance(loss.reads, str) else loss.reads
            for tap in reads:
                if tap in ("embedding", "projection"):
                    continue
                if tap not in known:
                    raise UserError(
                        f"losses.{name}: neither network has a feature map '{tap}'"
                        f"{nearest(tap, known)}"
                    )
                taps[tap] = None
        for encoder in (self.student, self.teacher):
            encoder.set_taps(tuple(tap for tap in taps if tap in encoder.tap_names))


def encode_views(encoder: Encoder, views: list[Tensor]) -> list[Representation]:
    """One representation a view, from one forward pass for all views of the same size."""
    positions: dict[torch.Size, list[int]] = {}
    for position, view in enumerate(views):
        positions.setdefault(view.shape, []).append(position)
    found: dict[int, Representation] = {}
    for same in positions.values():
        stacked = torch.cat([views[position] for position in same])
        found.update(zip(same, _split(encoder(stacked), len(same)), strict=True))
    return [found[position] for position in range(len(views))]


def _split(stacked: Representation, count: int) -> list[Representation]:
    """The ``count`` equal parts, along the batch, of a representation of stacked views."""
    embedding = stacked.embedding_BD.chunk(count)
    projection = [None] * count
    if stacked.projection_BP is not None:
        projection = stacked.projection_BP.chunk(count)
    maps = {name: m.chunk(count) for name, m in stacked.maps.items()}
    return [
        Representation(embedding[i], projection[i], {name: m[i] for name, m in maps.items()})
        for i in range(count)
    ]
