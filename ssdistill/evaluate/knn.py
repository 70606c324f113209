"""Protocol ``knn``: the label its nearest training images vote for, by cosine similarity."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssdistill.errors import UserError
from ssdistill.evaluate.features import as_probe_data, binomial_error

CHUNK = 2**24
"""Similarities held at a time (64 MiB)."""


@dataclass(frozen=True, eq=False)
class KnnProbe:
    """What a k-NN probe found. Accuracies in percent.

    Attributes:
        top1: test accuracy with ``k`` neighbours, a number fixed beforehand.
        top1_by_k: test accuracy of every number of neighbours asked for.
        standard_error: binomial standard error of ``top1``.
        predictions: predicted label of every test image with ``k`` neighbours.
        seconds: wall time, features given.
    """

    protocol: ClassVar[str] = "knn"
    top1: float
    top1_by_k: dict[int, float]
    standard_error: float
    k: int
    n_train: int
    n_test: int
    predictions: np.ndarray = field(repr=False)
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
    also: Sequence[int] = (1,),
    temperature: float = 0.07,
    weights: Literal["softmax", "uniform"] = "softmax",
) -> KnnProbe:
    """Classify every test image by its ``k`` most similar training images.

    ``softmax`` gives neighbour i the vote exp(similarity_i / temperature) (Wu et al.,
    arXiv:1805.01978, section 3.4), ``uniform`` one vote each. Equal votes go to the smallest
    label. Memory is bounded whatever the number of images.

    Args:
        train_ND, test_ND: features, numpy or torch; the work is done where ``train_ND`` is.
        train_labels, test_labels: integers, one per row.
        k: the reported number of neighbours.
        also: further numbers of neighbours, answered in the same pass.

    Raises:
        UserError: a k that is not between 1 and the number of training images, and what every
            probe refuses (see `features.as_probe_data`).
    """
    began = time.perf_counter()
    bank_ND, target_N, query_ND, query_target_N, classes_K = as_probe_data(
        train_ND, train_labels, test_ND, test_labels
    )
    ks = sorted({k, *also})
    if ks[0] < 1 or ks[-1] > len(bank_ND):
        wrong = ks[0] if ks[0] < 1 else ks[-1]
        raise UserError(f"k={wrong} neighbours of {len(bank_ND)} training images: out of range")
    if weights not in ("softmax", "uniform") or temperature <= 0:
        raise UserError(
            f"weights='{weights}', temperature={temperature}: weights are softmax or uniform, "
            "the temperature positive"
        )
    guesses = {size: [] for size in ks}
    for similarity_Bk, index_Bk in neighbours(query_ND, bank_ND, ks[-1]):
        # Cosines end at 1: subtracting it keeps the exponential from overflowing.
        vote_Bk = ((similarity_Bk - 1) / temperature).exp()
        if weights == "uniform":
            vote_Bk = torch.ones_like(similarity_Bk)
        label_Bk = target_N[index_Bk]
        for size in ks:
            total_BK = vote_Bk.new_zeros(len(vote_Bk), len(classes_K))
            total_BK.scatter_add_(1, label_Bk[:, :size], vote_Bk[:, :size])
            guesses[size].append(total_BK.argmax(1))
    predicted = {size: torch.cat(parts) for size, parts in guesses.items()}
    top1_by_k = {
        size: 100 * (guess_N == query_target_N).double().mean().item()
        for size, guess_N in predicted.items()
    }
    return KnnProbe(
        top1=top1_by_k[k],
        top1_by_k=top1_by_k,
        standard_error=binomial_error(top1_by_k[k], len(query_ND)),
        k=k,
        n_train=len(bank_ND),
        n_test=len(query_ND),
        predictions=classes_K[predicted[k]].cpu().numpy(),
        seconds=time.perf_counter() - began,
    )


def neighbours(query_ND: Tensor, bank_MD: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosine similarity and index of the k nearest bank rows, chunk by chunk of queries.

    Yields:
        similarity_Bk, falling, and index_Bk.
    """
    bank_DM = functional.normalize(bank_MD, dim=1).T
    for query_BD in query_ND.split(max(1, CHUNK // len(bank_MD))):
        similarity_BM = functional.normalize(query_BD, dim=1) @ bank_DM
        yield tuple(similarity_BM.topk(k, dim=1))
