"""LeJEPA (Balestriero and LeCun, 2025, arXiv:2511.08544)."""

from typing import Any, Literal

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses.base.sigreg import directions, sigreg
from ssdistill.models.backbones import Encoder
from ssdistill.models.heads import BatchNorm, MLPSettings
from ssdistill.pretrain import Method
from ssdistill.settings import Fraction, PositiveInt

Form = Literal["authors", "lightly", "lightly_local", "stable_pretraining"]
DEFAULTS: dict[Form, tuple[float, int]] = {
    "authors": (0.02, 256),
    "lightly": (0.05, 1024),
    "lightly_local": (0.05, 1024),
    "stable_pretraining": (0.02, 1024),
}
"""Weight and number of directions of each published form."""


class LeJEPAProjector(MLPSettings):
    hidden_dim: PositiveInt | None = 2048
    output_dim: PositiveInt = 16
    depth: PositiveInt = 3
    batch_norm: BatchNorm = "hidden"


class LeJEPA(Method):
    """Views of an image agree, and vectors are normally distributed in every direction.

    L = (1 - lambda) I + lambda S of projections z of V views: I = mean over views, images and
    dimensions of (c - z)^2, c the mean of an image's views, with gradients through both; S
    (SIGReg) = mean over views and random directions a of the statistic of Epps and Pulley of z a
    against N(0, 1). There is no momentum teacher, no predictor and no stop-gradient. The number
    of images in the batch is a factor of S, so that a good lambda depends on it. The projector
    must not end in a batch norm.

    Public implementations differ, and their values of lambda are not interchangeable:

    - ``authors``: as above, c from all views (rbalestr-lab/lejepa, MINIMAL.md).
    - ``lightly``: c from the views of full size alone, compared with all views.
    - ``lightly_local``: the same, but z of the smaller views alone enters both terms (lightly
      before its pull request 2023).
    - ``stable_pretraining``: c as in ``lightly``; the views of an image count as further samples
      in S, which grows by their number; L = I + lambda S.

    Directions are new in every step and the same in all processes. The default views are those of
    the authors' README, whose smaller views are a third entry, ``{recipe: lejepa_small, count:
    6}``.

    Args:
        form: which implementation.
        sigreg_weight: lambda; by default 0.05 in lightly's forms, 0.02 in the others.
        directions: how many; by default 256 for ``authors``, otherwise 1024.
        projector: the layers between the embedding and z.
    """

    kind = "lejepa"
    paper = "Balestriero and LeCun, 2025, arXiv:2511.08544"
    recipes = ("lejepa", "lejepa")
    multicrop = True
    together = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        form: Form = "authors",
        sigreg_weight: Fraction | None = None,
        directions: PositiveInt | None = None,
        projector: LeJEPAProjector = LeJEPAProjector(),
    ):
        super().__init__(encoder)
        default_weight, default_count = DEFAULTS[form]
        self.form = form
        self.sigreg_weight = default_weight if sigreg_weight is None else sigreg_weight
        self.num_directions = directions or default_count
        self.projector = projector.build(encoder.embed_dim)

    @classmethod
    def fewest_views(cls, settings: Any) -> int:
        return len(cls.recipes) + (settings.form == "lightly_local")

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        invariance = 1.0 if self.form == "stable_pretraining" else 1 - self.sigreg_weight
        return {"invariance": invariance, "sigreg": self.sigreg_weight}

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        z_VBP = self.projector(torch.cat(self.embed(views))).unflatten(0, (len(views), -1))
        count, width = self.num_directions, z_VBP.shape[-1]
        with torch.autocast(z_VBP.device.type, enabled=False):
            return self.terms(z_VBP.float(), directions(width, count, batch.step, z_VBP.device))

    def terms(self, z_VBP: Tensor, direction_PM: Tensor) -> dict[str, Tensor]:
        """I and S by name, for float32 projections (V, B, P); those of full size come first."""
        full_size = len(self.recipes)
        centering = z_VBP if self.form == "authors" else z_VBP[:full_size]
        compared = z_VBP[full_size:] if self.form == "lightly_local" else z_VBP
        samples = compared.flatten(0, 1) if self.form == "stable_pretraining" else compared
        return {
            "invariance": (centering.mean(0) - compared).square().mean(),
            "sigreg": sigreg(samples, direction_PM),
        }
