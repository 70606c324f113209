"""MoCo v3 (Chen, Xie and He, ICCV 2021, arXiv:2104.02057)."""

from typing import TypeVar

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses.base.contrast import batch_contrast
from ssdistill.models.backbones import Encoder
from ssdistill.models.ema import cosine_momentum, momentum_copy, update_momentum
from ssdistill.models.heads import BatchNorm, MLPSettings, PredictorSettings
from ssdistill.pretrain import Method
from ssdistill.settings import Fraction, Positive, PositiveInt


class MoCoV3Projector(MLPSettings):
    """``depth: null`` is 3 after a vision transformer and 2 after other networks."""

    hidden_dim: PositiveInt | None = 4096
    output_dim: PositiveInt = 256
    depth: PositiveInt | None = None
    batch_norm: BatchNorm = "all"
    last_affine: bool = False


class MoCoV3Predictor(PredictorSettings):
    """``batch_norm: null`` is ``all`` for a vision transformer and ``hidden`` for others."""

    hidden_dim: PositiveInt | None = 4096
    batch_norm: BatchNorm | None = None
    last_affine: bool = False


class MoCoV3(Method):
    """InfoNCE of a prediction with a momentum network's key of the other view, in the batch.

    L = 2T (CE(q_1·K_2 / T) + CE(q_2·K_1 / T)), with q = predictor(projector(z)) and K the
    momentum network's projections of the other view of all images, all of length 1, an image's
    own key being its class (arXiv:2104.02057, alg. 1). The momentum rises from ``momentum`` to
    ``momentum_end`` by a cosine. There is no queue: the authors take batches of 4096.

    Each view has batch-norm statistics of its own; those of several processes are synchronized,
    as by the authors. As published, vision transformers and other networks differ where a
    setting is null. timm's position embedding and first weights stay as they are.

    Args:
        temperature: T; null is 0.2 for a vision transformer and 1.0 for other networks.
        momentum: of the key network at the first step.
        momentum_end: and at the last.
        freeze_patch_embedding: leave a vision transformer's projection of patches at its random
            start, the paper's remedy for unstable training (sec. 4.2).
        projector: the head whose output, of the moving average, is the key.
        predictor: the head of the trained network that predicts it; as wide as the projector.
    """

    kind = "moco_v3"
    paper = "Chen, Xie and He, ICCV 2021, arXiv:2104.02057"
    recipes = ("byol_a", "byol_b")

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive | None = None,
        momentum: Fraction = 0.99,
        momentum_end: Fraction = 1.0,
        freeze_patch_embedding: bool = True,
        projector: MoCoV3Projector = MoCoV3Projector(),
        predictor: MoCoV3Predictor = MoCoV3Predictor(),
    ):
        super().__init__(encoder)
        patches = getattr(encoder.net, "patch_embed", None)
        # Like the authors, who leave stems of several convolutions alone: other classes in timm.
        if freeze_patch_embedding and isinstance(patches, PatchEmbed):
            patches.proj.requires_grad_(False)
        transformer = patches is not None
        self.temperature = temperature or (0.2 if transformer else 1.0)
        self.momentum, self.momentum_end = momentum, momentum_end
        projector = _filled(projector, depth=3 if transformer else 2)
        predictor = _filled(predictor, batch_norm="all" if transformer else "hidden")
        self.projector = projector.build(encoder.embed_dim)
        self.predictor = predictor.build(projector.output_dim, output_dim=projector.output_dim)
        self.target = momentum_copy(nn.ModuleList([encoder, self.projector]))

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        q0_BP, q1_BP = (self.predictor(self.projector(z_BD)) for z_BD in self.embed(views))
        with torch.no_grad():
            target_encoder, target_projector = self.target
            k0_BP, k1_BP = map(target_projector, self.embeddings(target_encoder, views))
        directions = batch_contrast(q0_BP, k1_BP, self.temperature) + batch_contrast(
            q1_BP, k0_BP, self.temperature
        )
        return {self.kind: 2 * self.temperature * directions}

    def after_step(self, step: int, num_steps: int) -> None:
        momentum = cosine_momentum(self.momentum, step, num_steps, self.momentum_end)
        update_momentum(nn.ModuleList([self.encoder, self.projector]), self.target, momentum)


Head = TypeVar("Head", bound=MLPSettings)


def _filled(head: Head, **published: object) -> Head:
    """Replace null settings by the published ones."""
    unset = {name: value for name, value in published.items() if getattr(head, name) is None}
    return head.model_copy(update=unset)
