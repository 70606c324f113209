"""Protocol ``cluster``: agreement of k-means clusters with the classes."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from rich import get_console
from rich.progress import track

from ssdistill.errors import UserError
from ssdistill.evaluate.protocols import Measurements, Protocol
from ssdistill.evaluate.subject import Subject
from ssdistill.evaluate.targets import as_labels
from ssdistill.label_free.features import as_features
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

    def evaluate(self, subject: Subject) -> Measurements:
        labels = subject.labels(self.split)
        clusters = cluster(
            subject.features(self.split),
            labels,
            clusters=self.clusters,
            restarts=self.restarts,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=subject.progress,
        )
        names = ("nmi", "ami", "ari", "purity", "accuracy")
        measures = {name: getattr(clusters, name) for name in names}
        names = ("inertia", "nmi_by_restart", "inertia_by_restart", "clusters", "found")
        details = {name: getattr(clusters, name) for name in names}
        return Measurements(
            measures=measures | {"nmi_std": float(np.std(clusters.nmi_by_restart))},
            details=details,
            arrays={"assignment_N": clusters.assignment_N},
        )


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of least inertia of several restarts; fractions and scores in percent.

    Attributes:
        nmi: mutual information of clusters and classes / mean of their entropies.
        ami: the same, corrected for chance.
        ari: adjusted Rand index.
        purity: images of the commonest class of their cluster.
        accuracy: images of the class their cluster is matched with, one to one, at best.
        assignment_N: cluster of every image.
        inertia: squared distances to the centers, summed; decides between restarts.
        nmi_by_restart, inertia_by_restart: in their order.
        clusters: as requested.
        found: that are not empty, fewer where there are fewer different embeddings.
    """

    nmi: float
    ami: float
    ari: float
    purity: float
    accuracy: float
    assignment_N: np.ndarray = field(repr=False)
    inertia: float
    nmi_by_restart: list[float]
    inertia_by_restart: list[float]
    clusters: int
    found: int


def cluster(
    features_ND: Any,
    labels: Any,
    *,
    clusters: int | None = None,
    restarts: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Clusters:
    """k-means on embeddings of length 1, labels being read only once it is done.

    Args:
        features_ND, labels: embeddings and an integer for each.
        clusters: how many; default: as there are classes.
        restarts: with other first centers (k-means++).
        seed: of the restarts.
        batch_size: images a step of mini-batch k-means (Sculley 2010); default: Lloyd's.
        progress: a bar on the terminal.

    Raises:
        UserError: more clusters than images, and what every probe refuses.
    """
    from sklearn.metrics import normalized_mutual_info_score

    z_ND = as_features(features_ND, "features")
    label_N = as_labels(labels, z_ND, "labels").cpu().numpy()
    z_ND = torch.nn.functional.normalize(z_ND, dim=1).cpu().numpy()
    size = len(np.unique(label_N)) if clusters is None else clusters
    if not 1 <= size <= len(z_ND):
        raise UserError(f"clusters={size} of {len(z_ND)} images: must be between 1 and {len(z_ND)}")
    if restarts < 1:
        raise UserError(f"restarts={restarts} of k-means: must be at least 1")
    shown = progress and get_console().is_terminal
    runs = list(
        track(
            _fits(z_ND, size, restarts, seed, batch_size),
            "k-means",
            total=restarts,
            transient=True,
            disable=not shown,
        )
    )
    inertia, best_N = min(runs, key=lambda run: run[0])
    return Clusters(
        **compare(label_N, best_N),
        assignment_N=best_N,
        inertia=inertia,
        nmi_by_restart=[100 * normalized_mutual_info_score(label_N, run_N) for _, run_N in runs],
        inertia_by_restart=[one for one, _ in runs],
        clusters=size,
        found=len(np.unique(best_N)),
    )


def compare(label_N: np.ndarray, assignment_N: np.ndarray) -> dict[str, float]:
    """``nmi``, ``ami``, ``ari``, ``purity`` and ``accuracy`` of clusters, in percent."""
    from scipy.optimize import linear_sum_assignment
    from sklearn import metrics
    from sklearn.metrics.cluster import contingency_matrix

    count_KC = contingency_matrix(label_N, assignment_N)
    matched = count_KC[linear_sum_assignment(count_KC, maximize=True)].sum()
    shares = {
        "nmi": metrics.normalized_mutual_info_score(label_N, assignment_N),
        "ami": metrics.adjusted_mutual_info_score(label_N, assignment_N),
        "ari": metrics.adjusted_rand_score(label_N, assignment_N),
        "purity": count_KC.max(0).sum() / len(label_N),
        "accuracy": matched / len(label_N),
    }
    return {name: 100 * float(share) for name, share in shares.items()}


def _fits(
    z_ND: np.ndarray, clusters: int, restarts: int, seed: int, batch_size: int | None
) -> Iterator[tuple[float, np.ndarray]]:
    """Inertia and assignment of every restart."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    for own in np.random.default_rng(seed).integers(2**31, size=restarts).tolist():
        # scikit-learn has no types; a checker takes those of the defaults.
        settings: dict[str, Any] = {"n_init": 1, "random_state": own}
        if batch_size is None:
            model = KMeans(clusters, **settings)
        else:
            model = MiniBatchKMeans(clusters, batch_size=batch_size, **settings)
        with warnings.catch_warnings():
            # Fewer different embeddings than clusters: said by the number of clusters found.
            warnings.simplefilter("ignore", ConvergenceWarning)
            assignment_N = model.fit_predict(z_ND)
        yield float(cast("float", model.inertia_)), assignment_N
