"""k-NN probe for several labels per image: the score of a label is its fraction of the votes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.evaluate.average_precision import average_precisions
from ssdistill.evaluate.multi_label import counted
from ssdistill.evaluate.probes.knn_probe import VOTES, Weights, checked_weights, votes_of
from ssdistill.label_free.nearest import neighbors
from ssdistill.label_free.vectors import Distance, as_rows


@dataclass(frozen=True, eq=False)
class SeveralKnnProbe:
    """Result of a k-NN probe for several labels per image.

    Attributes:
        map_by_k_and_temperature: mean average precision, in percent, for each number of neighbors
            and each temperature.
        fractions_NK: fraction of the votes of ``k`` neighbors for each label, at ``temperature``.
    """

    map_by_k_and_temperature: dict[int, dict[float, float]]
    fractions_NK: np.ndarray = field(repr=False)


def knn_probe_of_several(
    train_ND: Any,
    train_NK: Tensor,
    test_ND: Any,
    test_NK: Tensor,
    *,
    k: int,
    temperature: float,
    ks: Sequence[int],
    temperatures: Sequence[float] = (),
    distance: Distance = "cosine",
    weights: Weights | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> SeveralKnnProbe:
    """Score the labels of every test image by its ``k`` nearest training images.

    The score of a label is the sum of the votes of the neighbors that have it, divided by the sum
    of all votes, see :func:`ssdistill.evaluate.probes.knn_probe.knn_probe`. ML-KNN (Zhang and
    Zhou 2007, doi:10.1016/j.patcog.2006.12.019) corrects this estimate with a prior.

    Args:
        train_NK, test_NK: whether an image has each label, bool.
        k, temperature: of ``fractions_NK``; for the other arguments, see :func:`knn_probe`.

    Raises:
        UserError: invalid features, k, temperatures or weights, as in :func:`knn_probe`.
    """
    bank_MD, query_ND = as_rows(train_ND, "training features"), as_rows(test_ND, "test features")
    if bank_MD.shape[1] != query_ND.shape[1]:
        raise UserError(
            f"training features have {bank_MD.shape[1]} dimensions, test features "
            f"{query_ND.shape[1]}; use features of one encoder"
        )
    heats = (temperature, *temperatures)
    weights = checked_weights(len(bank_MD), ks, k, heats, distance, weights)
    sizes = sorted({k, *(size for size in ks if size <= len(bank_MD))})
    heats = sorted(set(heats)) if weights == "softmax" else [temperature]
    found = neighbors(
        query_ND, bank_MD, sizes[-1], distance=distance, device=device, progress=progress
    )
    fractions: dict[tuple[int, float], list[Tensor]] = {}
    for size, heat, fraction_BK in _fractions_of(found, train_NK, sizes, heats, weights):
        fractions.setdefault((size, heat), []).append(fraction_BK)
    target_NK = test_NK.numpy()
    counts_K, _ = counted(target_NK, train_NK.numpy(), None)
    maps: dict[int, dict[float, float]] = {}
    for (size, heat), parts in fractions.items():
        ap_C = average_precisions(target_NK[:, counts_K], torch.cat(parts).numpy()[:, counts_K])
        maps.setdefault(size, {})[heat] = 100 * float(ap_C.mean())
    return SeveralKnnProbe(maps, torch.cat(fractions[k, temperature]).numpy())


def _fractions_of(
    found: Iterator[tuple[Tensor, Tensor]],
    train_NK: Tensor,
    sizes: Sequence[int],
    heats: Sequence[float],
    weights: str,
) -> Iterator[tuple[int, float, Tensor]]:
    """Yield fractions (B, K) float32 of the votes, by number of neighbors and temperature."""
    classes = train_NK.shape[1]
    for closeness_Nk, index_Nk in found:
        size = max(1, VOTES // (classes * index_Nk.shape[1]))
        parts = (part.to(train_NK.device).split(size) for part in (closeness_Nk.double(), index_Nk))
        for closeness_Bk, index_Bk in zip(*parts, strict=True):
            label_BkK = train_NK[index_Bk].double()
            for heat in heats:
                vote_Bk = votes_of(closeness_Bk, weights, heat)
                for k in sizes:
                    total_BK = torch.einsum("bk,bkc->bc", vote_Bk[:, :k], label_BkK[:, :k])
                    # Rounded to float32, equal fractions are equal in any order of summation.
                    yield k, heat, (total_BK / vote_Bk[:, :k].sum(1, keepdim=True)).float()
