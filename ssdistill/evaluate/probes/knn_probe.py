"""Protocol ``knn``: weighted vote of the nearest training images."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ssdistill.errors import UserError, nearest
from ssdistill.evaluate.intervals import binomial_error
from ssdistill.evaluate.targets import as_labels, as_targets
from ssdistill.label_free.nearest import neighbors
from ssdistill.label_free.vectors import Distance, as_rows

Weights = Literal["softmax", "inverse", "uniform"]
SUITABLE: dict[Distance, tuple[Weights, ...]] = {
    "cosine": ("softmax", "uniform"),
    "euclidean": ("inverse", "uniform"),
}
"""Vote weights that suit each distance."""
VOTES = 2**23
"""Votes held at a time, all classes counted (64 MiB)."""
NO_DISTANCE = 1e-5
"""Added to a distance before it is inverted, as solo-learn does."""


@dataclass(frozen=True, eq=False)
class KnnProbe:
    """Result of a k-NN probe. Accuracies in percent.

    Attributes:
        top1: test accuracy with ``k`` neighbors and ``temperature``, both fixed beforehand.
        top1_by_k: test accuracy of every requested number of neighbors, at ``temperature``.
        top1_by_k_and_temperature: the same at every temperature; ``softmax`` only, else at the
            one that plays no part.
        standard_error: binomial standard error of ``top1``.
        classes: labels, in the order of the columns of ``probabilities_NK``.
        predictions: predicted label of every test image with ``k`` neighbors.
        probabilities_NK: every class's fraction of the votes of ``k`` neighbors.
        seconds: wall time, features given.
    """

    protocol: ClassVar[str] = "knn"
    top1: float
    top1_by_k: dict[int, float]
    top1_by_k_and_temperature: dict[int, dict[float, float]]
    standard_error: float
    k: int
    temperature: float
    n_train: int
    n_test: int
    classes: np.ndarray = field(repr=False)
    predictions: np.ndarray = field(repr=False)
    probabilities_NK: np.ndarray = field(repr=False)
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Under the names of the record."""
        return {"probe/knn/top1": self.top1}


def knn_probe(
    train_ND: Any,
    train_labels: Any,
    test_ND: Any,
    test_labels: Any,
    *,
    k: int = 20,
    temperature: float = 0.07,
    ks: Sequence[int] = (1, 20),
    temperatures: Sequence[float] = (),
    distance: Distance = "cosine",
    weights: Weights | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> KnnProbe:
    """Classify every test image by its ``k`` nearest training images.

    Neighbor i of a query has the vote exp(cosine_i / temperature) (``softmax``; Wu et al.,
    arXiv:1805.01978, section 3.4), 1 / (distance_i + 1e-5) (``inverse``) or one (``uniform``).
    Equally near images come in their order, equal votes go to the smallest label. Every k and
    temperature is answered from one search. Memory is bounded whatever the number of images;
    numpy maps and float16 are read in chunks.

    Args:
        train_ND, test_ND: features, numpy or torch.
        train_labels, test_labels: integers, one per row.
        k, temperature: of ``top1``, the predictions and the probabilities.
        ks, temperatures: further ones; numbers of neighbors beyond the training images are
            excluded.
        distance: ``cosine``, or ``euclidean`` between features as they are.
        weights: by default ``softmax`` of cosines and ``inverse`` of distances.
        device: where the search runs; default: where ``train_ND`` is.
        progress: a bar on the terminal.

    Raises:
        UserError: a k that is not between 1 and the number of training images, weights that do
            not suit the distance, and what every probe refuses (`targets.as_probe_data`).
    """
    began = time.perf_counter()
    bank_MD, query_ND = as_rows(train_ND, "training features"), as_rows(test_ND, "test features")
    if bank_MD.shape[1] != query_ND.shape[1]:
        raise UserError(
            f"training features are {bank_MD.shape[1]} wide, test features {query_ND.shape[1]}; "
            "use features of one encoder"
        )
    bank_label_M = as_labels(train_labels, torch.empty(len(bank_MD), 0), "training labels")
    query_label_N = as_labels(test_labels, torch.empty(len(query_ND), 0), "test labels")
    target_M, query_target_N, classes_K = as_targets(bank_label_M, query_label_N)
    weights = checked_weights(len(bank_MD), ks, k, (temperature, *temperatures), distance, weights)
    sizes = sorted({k, *(size for size in ks if size <= len(bank_MD))})
    heats = sorted({temperature, *temperatures}) if weights == "softmax" else [temperature]
    neighbors_by_chunk = neighbors(
        query_ND, bank_MD, sizes[-1], distance=distance, device=device, progress=progress
    )
    votes = _shares_of(neighbors_by_chunk, target_M, len(classes_K), sizes, heats, weights)
    hits = {size: dict.fromkeys(heats, 0) for size in sizes}
    shares = []
    for first, size, heat, share_BK in votes:
        true_B = query_target_N[first : first + len(share_BK)]
        hits[size][heat] += int((share_BK.argmax(1) == true_B).sum())
        if (size, heat) == (k, temperature):
            shares.append(share_BK)
    top1 = {size: {h: 100 * n / len(query_ND) for h, n in hits[size].items()} for size in sizes}
    probabilities_NK = torch.cat(shares)
    return KnnProbe(
        top1=top1[k][temperature],
        top1_by_k={size: top1[size][temperature] for size in sizes},
        top1_by_k_and_temperature=top1,
        standard_error=binomial_error(top1[k][temperature], len(query_ND)),
        k=k,
        temperature=temperature,
        n_train=len(bank_MD),
        n_test=len(query_ND),
        classes=classes_K.numpy(),
        predictions=classes_K[probabilities_NK.argmax(1)].numpy(),
        probabilities_NK=probabilities_NK.numpy(),
        seconds=time.perf_counter() - began,
    )


def checked_weights(
    bank_size: int,
    ks: Sequence[int],
    k: int,
    temperatures: Sequence[float],
    distance: Distance,
    weights: Weights | None,
) -> Weights:
    """Return the weights, the usual ones of a distance where they are None.

    Raises:
        UserError: see :func:`knn_probe`.
    """
    if wrong := [size for size in (k, *ks) if size < 1] or [k] * (k > bank_size):
        raise UserError(
            f"k={wrong[0]} neighbors of {bank_size} training images: "
            f"must be between 1 and {bank_size}"
        )
    if wrong := [heat for heat in temperatures if not heat > 0]:
        raise UserError(f"temperature={wrong[0]} of a k-NN vote: must be positive")
    if distance not in get_args(Distance):
        known = get_args(Distance)
        raise UserError(f"distance='{distance}'{nearest(distance, known)}: {' or '.join(known)}")
    suitable = SUITABLE[distance]
    if weights not in (None, *suitable):
        raise UserError(
            f"weights='{weights}'{nearest(weights, suitable)}: with distance='{distance}' "
            f"they are {' or '.join(suitable)}"
        )
    return weights or suitable[0]


def _shares_of(
    neighbors_by_chunk: Iterator[tuple[Tensor, Tensor]],
    target_M: Tensor,
    classes: int,
    sizes: Sequence[int],
    heats: Sequence[float],
    weights: str,
) -> Iterator[tuple[int, int, float, Tensor]]:
    """Fractions (B, K) float32 of the votes, by first query, number of neighbors, temperature."""
    first = 0
    for closeness_Nk, index_Nk in neighbors_by_chunk:
        # Where labels are, one vote is added after the other: equal votes have equal sums.
        parts = (part.to(target_M.device).split(max(1, VOTES // classes))
                 for part in (closeness_Nk.double(), index_Nk))  # fmt: skip
        for closeness_Bk, index_Bk in zip(*parts, strict=True):
            label_Bk = target_M[index_Bk]
            for heat in heats:
                vote_Bk = votes_of(closeness_Bk, weights, heat)
                total_BK, counted = vote_Bk.new_zeros(len(vote_Bk), classes), 0
                for size in sizes:
                    more = slice(counted, size)
                    total_BK.scatter_add_(1, label_Bk[:, more], vote_Bk[:, more])
                    counted = size
                    yield first, size, heat, (total_BK / total_BK.sum(1, keepdim=True)).float()
            first += len(label_Bk)


def votes_of(closeness_Bk: Tensor, weights: str, temperature: float) -> Tensor:
    """Return the vote (B, k) of each neighbor, see :func:`knn_probe`."""
    if weights == "uniform":
        return torch.ones_like(closeness_Bk)
    if weights == "inverse":
        return 1 / (NO_DISTANCE - closeness_Bk)
    # Taking the nearest's away divides all votes alike, and no exponential overflows.
    return ((closeness_Bk - closeness_Bk[:, :1]) / temperature).exp()
