"""Protocol ``retrieval``: image retrieval by cosine similarity."""

from typing import Annotated, Literal

from pydantic import Field

from ssdistill.errors import UserError
from ssdistill.evaluate.probes.retrieval_probe import retrieve
from ssdistill.evaluate.protocols import Found, Protocol
from ssdistill.evaluate.subject import Subject
from ssdistill.settings import PositiveInt

USUAL = (1, 5, 10)


class Retrieval(Protocol):
    """Every test image as a query, by cosine similarity; no label is used to rank.

    Measures, in percent: ``recall_at_1`` and so on, queries with an image of their class among
    the k nearest; ``map``, mean average precision of the whole ranking; ``map_r``, mean average
    precision at R.

    Args:
        gallery: where to look: ``train`` images, or the other ``test`` images.
        ks: of the recall; by default 1, 5 and 10.
    """

    kind = "retrieval"
    paper = "Musgrave et al., ECCV 2020, arXiv:2003.08505 (mAP@R)"

    def __init__(
        self,
        *,
        gallery: Literal["train", "test"] = "train",
        ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None,
    ):
        self.gallery: Literal["train", "test"] = gallery
        self._asked = ks is not None
        self.ks: tuple[int, ...] = tuple(USUAL if ks is None else ks)

    def judge(self, subject: Subject) -> Found:
        query_labels, others = subject.labels("test"), self.gallery == "test"
        count = len(query_labels) - 1 if others else len(subject.labels("train"))
        beyond = [k for k in self.ks if k > count]
        if beyond and (self._asked or len(beyond) == len(self.ks)):
            raise UserError(
                f"{self.name}: ks has {beyond[0]}, and there are {count} {self.gallery} images "
                "to search"
            )
        rows = () if others else (subject.features("train"), subject.labels("train"))
        retrieval = retrieve(
            subject.features("test"),
            query_labels,
            *rows,
            ks=[k for k in self.ks if k <= count],
            device=subject.device,
            progress=subject.progress,
        )
        measures = {f"recall_at_{k}": share for k, share in retrieval.recall_at_k.items()}
        details = {"queries": retrieval.n_queries, "gallery": retrieval.n_gallery}
        details["queries_without_match"] = retrieval.unmatched
        if beyond:
            details["left_out"] = f"recall at {', '.join(map(str, beyond))}: {count} images"
        return Found(
            measures=measures | {"map": retrieval.map, "map_r": retrieval.map_r},
            details=details,
            arrays={"average_precision_N": retrieval.average_precision_N},
        )
