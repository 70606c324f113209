"""Protocol ``retrieval``: image retrieval by cosine similarity."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich import get_console
from rich.progress import track
from torch import Tensor

from ssdistill.data.labels import class_labels
from ssdistill.errors import UserError
from ssdistill.evaluate.labels import check_pair
from ssdistill.evaluate.protocols import Measurements, Protocol
from ssdistill.evaluate.subject import Subject
from ssdistill.evaluate.targets import as_labels
from ssdistill.label_free.nearest import exact, ranking_keys
from ssdistill.label_free.vectors import Vectors, as_rows
from ssdistill.settings import PositiveInt

RANKED = 2**24
"""Ranks held at a time (128 MiB)."""
LAST = torch.iinfo(torch.int64).max


USUAL = (1, 5, 10)


class Retrieval(Protocol):
    """Every test image as a query, by cosine similarity; no label is used to rank.

    Measures, in percent: ``recall_at_1`` and so on, queries with an image of their class among
    the k nearest; ``map``, mean average precision of the whole ranking; ``map_r``, mean average
    precision at R. If images may have several labels, those that share at least one with the query
    are of its class; queries without labels are skipped.

    Args:
        gallery: where to look: ``train`` images, or the other ``test`` images.
        ks: of the recall; by default 1, 5 and 10.
    """

    kind = "retrieval"
    paper = "Musgrave et al., ECCV 2020, arXiv:2003.08505 (mAP@R)"
    several = True

    def __init__(
        self,
        *,
        gallery: Literal["train", "test"] = "train",
        ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None,
    ):
        self.gallery: Literal["train", "test"] = gallery
        self._requested = ks is not None
        self.ks: tuple[int, ...] = tuple(USUAL if ks is None else ks)

    def evaluate(self, subject: Subject) -> Measurements:
        query_labels, others = subject.labels("test"), self.gallery == "test"
        if not others:
            check_pair(subject.labels("train"), query_labels)
        count = len(query_labels) - 1 if others else len(subject.labels("train"))
        beyond = [k for k in self.ks if k > count]
        if beyond and (self._requested or len(beyond) == len(self.ks)):
            raise UserError(
                f"{self.name}: k={beyond[0]} exceeds the {count} {self.gallery} images to search; "
                "lower ks"
            )
        rows = () if others else (subject.features("train"), subject.labels("train"))
        scores = retrieve(
            subject.features("test"),
            query_labels,
            *rows,
            ks=[k for k in self.ks if k <= count],
            device=subject.device,
            progress=subject.progress,
        )
        measures = {f"recall_at_{k}": share for k, share in scores.recall_at_k.items()}
        details: dict[str, Any] = {"queries": scores.n_queries, "gallery": scores.n_gallery}
        details["queries_without_match"] = scores.unmatched
        if beyond:
            details["left_out"] = f"recall at {', '.join(map(str, beyond))}: {count} images"
        return Measurements(
            measures=measures | {"map": scores.map, "map_r": scores.map_r},
            details=details,
            arrays={"average_precision_N": scores.average_precision_N},
        )


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """Retrieval metrics in percent, over the queries whose class the gallery has.

    Attributes:
        recall_at_k: fraction of queries with their class among the k nearest.
        map: mean average precision over the whole ranking.
        map_r: mean average precision at R, the number of gallery images of a query's class.
        average_precision_N: by query, in percent; NaN where the gallery lacks its class.
        unmatched: queries skipped because the gallery lacks their class.
    """

    recall_at_k: dict[int, float]
    map: float
    map_r: float
    average_precision_N: np.ndarray = field(repr=False)
    n_queries: int
    n_gallery: int
    unmatched: int


@torch.no_grad()
def retrieve(
    query_ND: Any,
    query_labels: Any,
    gallery_MD: Any = None,
    gallery_labels: Any = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    device: str | torch.device | None = None,
    progress: bool = False,
) -> RetrievalScores:
    """Rank the gallery by cosine similarity to every query.

    With R gallery images of the query's class at ranks r_1 < r_2 < …, average precision is the
    mean of i / r_i, and average precision at R the same sum over r_i <= R, divided by R (Musgrave
    et al., arXiv:2003.08505, eq. 4). Of equally similar images the one of smaller number comes
    first. Whole rankings are made, a few queries at a time; maps and float16 are read in chunks.

    Args:
        query_ND, query_labels: features and an integer for each; or (N, K) bool for several labels,
            where images that share one with the query are of its class.
        gallery_MD, gallery_labels: where to look; default: among the other queries.
        ks: of the recall.
        device: where to rank; default: where the gallery is.
        progress: a bar on the terminal.

    Raises:
        UserError: a k beyond the gallery, no query with an image of its class to be found, and
            what every probe refuses of features and labels.
    """
    queries = as_rows(query_ND, "query features")
    query_label_N = _labels_of(query_labels, len(queries), "query labels")
    others = gallery_MD is None
    rows = queries if others else as_rows(gallery_MD, "gallery features")
    label_M = query_label_N
    if not others:
        label_M = _labels_of(gallery_labels, len(rows), "gallery labels")
        check_pair(label_M, query_label_N)
    if rows.shape[1] != queries.shape[1]:
        raise UserError(
            f"gallery features are {rows.shape[1]} wide, queries {queries.shape[1]}; use features "
            "of one encoder"
        )
    count = len(rows) - others
    if not ks or min(ks) < 1 or max(ks) > count:
        raise UserError(
            f"ks={tuple(ks)} of retrieval: must be between 1 and {count}, the number of images to "
            "search"
        )
    gallery = Vectors(rows, device=device)
    label_M = label_M.to(gallery.device)
    size = max(1, RANKED // len(gallery))
    shown = progress and get_console().is_terminal
    chunks = track(
        Vectors(queries, device=gallery.device, keep=False).blocks(size),
        "retrieval",
        total=-(-len(queries) // size),
        transient=True,
        disable=not shown,
    )
    first_N, sums_2N = [], []
    for start, query_BD in chunks:
        own_B = query_label_N[start : start + len(query_BD)].to(gallery.device)
        relevant_BM = _ranked(query_BD, own_B, gallery, label_M, start if others else None)
        first_B, sums_2B = _scores(relevant_BM)
        first_N.append(first_B.cpu())
        sums_2N.append(sums_2B.cpu())
    first_N, (whole_N, within_N) = torch.cat(first_N), torch.cat(sums_2N, 1)
    known_N = first_N > 0
    if not known_N.any():
        raise UserError(
            "retrieval: no query has an image of its class in the gallery; add images of its class"
        )
    return RetrievalScores(
        recall_at_k={k: 100 * (first_N[known_N] <= k).double().mean().item() for k in ks},
        map=100 * whole_N[known_N].mean().item(),
        map_r=100 * within_N[known_N].mean().item(),
        average_precision_N=(100 * whole_N).numpy(),
        n_queries=len(queries),
        n_gallery=count,
        unmatched=int((~known_N).sum()),
    )


def _ranked(
    query_BD: Tensor, own_B: Tensor, gallery: Vectors, label_M: Tensor, start: int | None
) -> Tensor:
    """Whether each gallery image, the nearest first, has the query's class (B, M).

    Args:
        start: number of the first query in the gallery, where each is to be excluded: it then
            comes last, and not as one of its class.
    """
    keys_BM = torch.empty(len(query_BD), len(gallery), dtype=torch.int64, device=query_BD.device)
    for first, block_mD in gallery.blocks():
        index_m = torch.arange(first, first + len(block_mD), device=query_BD.device)
        same_Bm = _relevant(own_B, label_M[first : first + len(block_mD)])
        # The last bit of a key says what is to be known once the keys are in order.
        tail_Bm = (index_m << 1) | same_Bm
        keys_BM[:, first : first + len(block_mD)] = ranking_keys(exact(query_BD, block_mD), tail_Bm)
    if start is not None:
        row_B = torch.arange(len(query_BD), device=query_BD.device)
        keys_BM[row_B, start + row_B] = LAST - 1
    if keys_BM.device.type == "cpu":
        # Many times faster than torch's, which keeps an index for every number.
        keys_BM.numpy().sort(axis=1)
    else:
        keys_BM = keys_BM.sort(dim=1).values
    return (keys_BM & 1).bool()


def _labels_of(labels: Any, count: int, name: str) -> Tensor:
    """Labels (N,) int64, or (N, K) of 0 and 1 in float32, whose products count shared labels."""
    if np.ndim(labels) != 2:
        return as_labels(labels, torch.empty(count, 0), name)
    return torch.from_numpy(class_labels(labels, name, count)).float()


def _relevant(own_B: Tensor, label_m: Tensor) -> Tensor:
    """Whether each gallery image has the query's class, or one of its labels (B, m)."""
    if own_B.ndim == 1:
        return own_B[:, None] == label_m
    return own_B @ label_m.T > 0


def _scores(relevant_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of the first hit (0: none), average precision and the same at R (NaN: none)."""
    count_B = relevant_BM.sum(1)
    row_P, column_P = relevant_BM.nonzero(as_tuple=True)
    before_B = count_B.cumsum(0) - count_B
    hit_P = torch.arange(1, len(row_P) + 1, device=row_P.device) - before_B[row_P]
    precision_P = hit_P.double() / (column_P + 1)
    sums_2B = torch.zeros(2, len(count_B), dtype=torch.float64, device=row_P.device)
    sums_2B[0].index_add_(0, row_P, precision_P)
    sums_2B[1].index_add_(0, row_P, precision_P * (column_P < count_B[row_P]))
    first_B = relevant_BM.int().argmax(1) + 1
    return first_B * (count_B > 0), sums_2B / count_B
