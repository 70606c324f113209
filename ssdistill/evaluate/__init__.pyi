# Written by `make stubs`; do not edit.

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import device

from ssdistill.evaluate.result import Result

def cluster(
    encoder: Any,
    data: Any = ...,
    *,
    split: Literal["test", "train"] = ...,
    clusters: int | None = ...,
    restarts: int = ...,
    seed: int = ...,
    batch_size: int | None = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """k-means on embeddings of length 1, compared with the classes."""

def finetune(
    encoder: Any,
    data: Any = ...,
    *,
    preset: Literal["lightly", "1pct", "10pct"] | None = ...,
    epochs: float | None = ...,
    steps: int | None = ...,
    batch_size: int | None = ...,
    optimizer: Literal["adamw", "sgd"] | None = ...,
    lr: float | None = ...,
    momentum: float | None = ...,
    weight_decay: float | None = ...,
    warmup: float | None = ...,
    lr_end: float | None = ...,
    layer_decay: float | None = ...,
    label_smoothing: float | None = ...,
    fraction: float | None = ...,
    head_init: Literal["zero", "normal", "uniform"] | None = ...,
    recipe: Any = ...,
    seed: int = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """Fine-tune the whole encoder with a linear layer on labels."""

def knn(
    encoder: Any,
    data: Any = ...,
    *,
    preset: Literal["dinov2", "instdisc", "lightly", "compress", "simreg", "solo_learn"]
    | None = ...,
    k: int | None = ...,
    temperature: float | None = ...,
    ks: Sequence[int] | None = ...,
    temperatures: Sequence[float] | None = ...,
    distance: Literal["cosine", "euclidean"] | None = ...,
    weights: Literal["softmax", "inverse", "uniform"] | None = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """Weighted vote of the nearest training images."""

def linear(
    encoder: Any,
    data: Any = ...,
    *,
    strengths: Sequence[float] = ...,
    holdout: float = ...,
    folds: int | None = ...,
    seed: int = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """Multinomial logistic regression on standardized frozen features."""

def linear_sgd(
    encoder: Any,
    data: Any = ...,
    *,
    preset: Literal["solo", "lightly", "moco", "seed", "compress", "simreg", "dinov2"] | None = ...,
    epochs: float | None = ...,
    steps: int | None = ...,
    batch_size: int | None = ...,
    lrs: Sequence[float] | None = ...,
    momentum: float | None = ...,
    weight_decay: float | None = ...,
    schedule: Literal["constant", "cosine", "step"] | None = ...,
    milestones: Sequence[float] | None = ...,
    lr_end: float | None = ...,
    scaling: Literal["raw", "standard", "unit_standard"] | None = ...,
    head_init: Literal["zero", "normal", "uniform"] | None = ...,
    recipe: Any = ...,
    holdout: float = ...,
    seed: int = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """A linear layer by SGD on random crops and mirror images, the encoder frozen."""

def low_shot(
    encoder: Any,
    data: Any = ...,
    *,
    preset: Literal["1pct", "10pct"] | None = ...,
    labels_per_class: int | None = ...,
    fraction: float | None = ...,
    draws: int | None = ...,
    seed: int = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """Logistic regression on a few of the labels, several times."""

def retrieval(
    encoder: Any,
    data: Any = ...,
    *,
    gallery: Literal["train", "test"] = ...,
    ks: Sequence[int] | None = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """Every test image as a query, by cosine similarity; no label is used to rank."""

def robust(
    encoder: Any,
    data: Any = ...,
    *,
    corruptions: Sequence[
        Literal[
            "gaussian_noise",
            "shot_noise",
            "impulse_noise",
            "defocus_blur",
            "glass_blur",
            "motion_blur",
            "zoom_blur",
            "snow",
            "frost",
            "fog",
            "brightness",
            "contrast",
            "elastic_transform",
            "pixelate",
            "jpeg_compression",
        ]
    ] = ...,
    severities: Sequence[Literal[1, 2, 3, 4, 5]] = ...,
    images: int = ...,
    seed: int = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """Linear classifier on clean features, tested on corrupted images."""

def transfer(
    encoder: Any,
    data: Any = ...,
    *,
    datasets: Sequence[Any],
    protocol: Literal["linear", "knn"] = ...,
    name: str | None = ...,
    image_size: int | Sequence[int] | None = ...,
    mean: Sequence[float] | None = ...,
    std: Sequence[float] | None = ...,
    device: str | device | None = ...,
    precision: Literal["fp32", "bf16"] = ...,
    root: str | Path = ...,
    progress: bool = ...,
    trust: bool = ...,
) -> Result:
    """The encoder as it is, probed on the training and test images of other data sets."""
