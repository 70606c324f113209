"""What is asked of an encoder once it is finished."""

from typing import Annotated

from pydantic import Field

from ssdistill.evaluate.linear_probe import STRENGTHS
from ssdistill.settings import NonNegativeInt, Positive, PositiveInt, Settings


class LinearSettings(Settings):
    """Protocol ``linear``: logistic regression on standardised frozen features.

    Args:
        strengths: L2 strengths to choose from, on held-out training images.
    """

    strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = STRENGTHS


class KnnSettings(Settings):
    """Protocol ``knn``: cosine-weighted vote of the nearest training images.

    Args:
        k: neighbours that vote.
        temperature: their weights are exp(cosine / temperature).
    """

    k: PositiveInt = 20
    temperature: Positive = 0.07


class LowShotSettings(Settings):
    """Protocol ``low_shot``: logistic regression on a few labels a class, several times.

    Args:
        labels_per_class: labels in a draw.
        draws: how often they are drawn.
        seed: of the draws; the same for every model, so that models share them.
    """

    labels_per_class: PositiveInt = 5
    draws: Annotated[int, Field(ge=2)] = 10
    seed: NonNegativeInt = 0


class EvaluateSettings(Settings):
    """Which probes, and what else is looked at.

    Args:
        linear, knn, low_shot: the probes; null leaves one out.
        pixels: probe the raw pixels too (shrunk to at most 16x16), as the row to beat.
        gauge_images: test images the label-free gauges look at, at most.
    """

    linear: LinearSettings | None = LinearSettings()
    knn: KnnSettings | None = KnnSettings()
    low_shot: LowShotSettings | None = LowShotSettings()
    pixels: bool = False
    gauge_images: Annotated[int, Field(ge=20)] = 2000
