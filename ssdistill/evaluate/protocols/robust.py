"""Protocol ``robust``: accuracy on corrupted test images."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich import get_console
from rich.progress import track
from torch import Tensor

from ssdistill.data.recipes import is_rgb
from ssdistill.data.recipes_of_images import channels_of
from ssdistill.errors import UserError
from ssdistill.evaluate.corruptions import CORRUPTIONS, SEVERITIES, SMALLEST, corrupt
from ssdistill.evaluate.protocols import Measurements, Protocol
from ssdistill.evaluate.protocols.linear import LinearProbe, linear_probe
from ssdistill.evaluate.subject import Subject
from ssdistill.settings import NonNegativeInt, PositiveInt, as_size, size_text

if TYPE_CHECKING:
    Name = str
    Severity = int
else:
    Name = Literal[tuple(CORRUPTIONS)]
    Severity = Literal[SEVERITIES]


class Robust(Protocol):
    """Linear classifier on clean features, tested on corrupted images.

    The 15 common corruptions of CIFAR-10-C at 5 severities, made on the fly. The classifier is
    protocol ``linear``'s, fitted once to clean training features. ``top1`` is the mean over
    corruptions and severities, ``error`` what it lacks of 100 (the mean corruption error, not
    normalized by another model's), ``top1_clean`` the accuracy on the same images uncorrupted.
    Frost is drawn rather than photographed and some parameters are derived anew (see
    ``ssdistill.evaluate.corruptions``): the numbers are not comparable with those published on
    CIFAR-10-C.

    Args:
        corruptions: which of the 15.
        severities: which of 1 to 5.
        images: test images looked at, at most, evenly spread.
        seed: of the corruptions; the same for every model, so that models see the same images.
    """

    kind = "robust"
    paper = "Hendrycks and Dietterich, arXiv:1903.12261 (corruptions made anew)"

    def __init__(
        self,
        *,
        corruptions: Annotated[tuple[Name, ...], Field(min_length=1)] = tuple(CORRUPTIONS),
        severities: Annotated[tuple[Severity, ...], Field(min_length=1)] = SEVERITIES,
        images: PositiveInt = 2000,
        seed: NonNegativeInt = 0,
    ):
        for key, chosen in (("corruptions", corruptions), ("severities", severities)):
            if not chosen or len(set(chosen)) < len(chosen):
                raise UserError(
                    f"robust.{key}: must be non-empty, without duplicates, got {tuple(chosen)}"
                )
        self.corruptions, self.severities = tuple(corruptions), tuple(severities)
        self.images, self.seed = images, seed

    def check_pixels(self, images: Any) -> None:
        """Check that images are 8-bit RGB, of which alone corruptions are defined."""
        channels, names = channels_of(images)
        _, height, width, _ = images.images.shape
        if is_rgb(channels, names) and images.images.dtype == np.uint8:
            if min(height, width) >= SMALLEST:
                return
            found = f"{size_text(as_size(height, width))} pixels"
        else:
            named = f" ({', '.join(names)})" if names else ""
            found = f"{channels} channel{'s' if channels > 1 else ''}{named} of "
            found += "8 bits" if images.images.dtype == np.uint8 else str(images.images.dtype)
        raise UserError(
            f"corruptions require 8-bit RGB images of {SMALLEST} pixels a side or more, got "
            f"{found}; remove this protocol"
        )

    def evaluate(self, subject: Subject) -> Measurements:
        try:
            self.check_pixels(subject.test)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None
        count = len(subject.test.images)
        num_images = min(self.images, count)
        index_N = torch.arange(num_images) * count // num_images
        labels_N = subject.labels("test")[index_N]
        clean_ND = subject.features("test")[index_N]
        probe = linear_probe(subject.features("train"), subject.labels("train"), clean_ND, labels_N)
        target_N = labels_N.numpy()
        hit_CSN = np.zeros((len(self.corruptions), len(self.severities), num_images), dtype=bool)
        for c, s in self._cells(subject):
            corrupted = _Corrupted(
                subject.test.images, index_N, self.corruptions[c], self.severities[s], self.seed
            )
            # Without its bar: only one can be shown at a time.
            z_ND = subject.encode(corrupted, progress=False)
            hit_CSN[c, s] = _answered(probe, z_ND) == target_N
        clean_N = _answered(probe, clean_ND) == target_N
        return self._measurements(hit_CSN, clean_N, probe.strength)

    def _cells(self, subject: Subject) -> Iterable[tuple[int, int]]:
        cells = list(np.ndindex(len(self.corruptions), len(self.severities)))
        shown = subject.progress and get_console().is_terminal
        return track(cells, "corrupting", transient=True, disable=not shown)

    def _measurements(
        self, hit_CSN: np.ndarray, clean_N: np.ndarray, strength: float
    ) -> Measurements:
        top1_CS = 100 * hit_CSN.mean(2)
        # Versions of one image are no independent trials; images are.
        share_N = 100 * hit_CSN.mean((0, 1))
        measures = {
            "top1": float(top1_CS.mean()),
            "top1_stderr": float(share_N.std() / len(share_N) ** 0.5),
            "top1_clean": 100 * float(clean_N.mean()),
            "error": 100 - float(top1_CS.mean()),
        }
        measures |= {
            f"top1_s{severity}": float(top1_CS[:, s].mean())
            for s, severity in enumerate(self.severities)
        }
        measures |= {name: float(top1_CS[c].mean()) for c, name in enumerate(self.corruptions)}
        table = {
            name: dict(zip(map(str, self.severities), top1_CS[c].tolist(), strict=True))
            for c, name in enumerate(self.corruptions)
        }
        details = {"top1": table, "images": len(share_N), "strength": strength}
        return Measurements(
            measures, details=details, arrays={"hit_CSN": hit_CSN, "clean_hit_N": clean_N}
        )


class _Corrupted:
    """Test images that are corrupted when a slice of them is read: memory stays small."""

    def __init__(self, images_NHWC: Any, index_N: Tensor, name: str, severity: int, seed: int):
        self.images_NHWC, self.index_N = images_NHWC, index_N
        self.name, self.severity, self.seed = name, severity, seed
        self.shape, self.dtype = (len(index_N), *images_NHWC.shape[1:]), images_NHWC.dtype

    def __len__(self) -> int:
        return len(self.index_N)

    def __getitem__(self, rows: slice) -> np.ndarray:
        index_B = self.index_N[rows]
        images_BHWC = self.images_NHWC[index_B.numpy()]
        return corrupt(images_BHWC, self.name, self.severity, seed=self.seed, index_N=index_B)


def _answered(probe: LinearProbe, z_ND: Tensor) -> np.ndarray:
    """Labels (N,) that a fitted probe gives to features."""
    logits_NK = z_ND @ probe.weight_KD.T + probe.bias_K
    return probe.classes[logits_NK.argmax(1).numpy()]
