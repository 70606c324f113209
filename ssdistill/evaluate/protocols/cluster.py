"""Protocol ``cluster``: agreement of k-means clusters with the classes."""

from typing import Literal

import numpy as np

from ssdistill.evaluate.probes.cluster_probe import cluster
from ssdistill.evaluate.protocols import Found, Protocol
from ssdistill.evaluate.subject import Subject
from ssdistill.settings import NonNegativeInt, PositiveInt


class Cluster(Protocol):
    """k-means on embeddings of length 1, compared with the classes.

    Of several restarts the one of least inertia counts, which takes no label. Measures, all in
    percent: ``nmi`` (over the mean of the entropies), ``ami`` and ``ari`` (0 by chance),
    ``purity`` and ``accuracy`` (clusters matched with classes one to one).

    Args:
        split: images that are clustered: ``test`` or ``train``.
        clusters: how many; as many as there are classes by default.
        restarts: of k-means.
        seed: of the restarts.
        batch_size: images a step of mini-batch k-means, for very many images; all by default.
    """

    kind = "cluster"
    paper = "k-means, NMI and matched accuracy as in SCAN, arXiv:2005.12320"

    def __init__(
        self,
        *,
        split: Literal["test", "train"] = "test",
        clusters: PositiveInt | None = None,
        restarts: PositiveInt = 10,
        seed: NonNegativeInt = 0,
        batch_size: PositiveInt | None = None,
    ):
        self.split: Literal["test", "train"] = split
        self.clusters, self.restarts, self.seed = clusters, restarts, seed
        self.batch_size = batch_size

    def judge(self, subject: Subject) -> Found:
        labels = subject.labels(self.split)
        found = cluster(
            subject.features(self.split),
            labels,
            clusters=self.clusters,
            restarts=self.restarts,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=subject.progress,
        )
        names = ("nmi", "ami", "ari", "purity", "accuracy")
        measures = {name: getattr(found, name) for name in names}
        names = ("inertia", "nmi_by_restart", "inertia_by_restart", "clusters", "found")
        details = {name: getattr(found, name) for name in names}
        return Found(
            measures=measures | {"nmi_std": float(np.std(found.nmi_by_restart))},
            details=details,
            arrays={"assignment_N": found.assignment_N},
        )
