import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.datasets import load_digits

from ssdistill.errors import UserError
from ssdistill.evaluate.protocols.cluster import Cluster, cluster, compare


@pytest.fixture(scope="module")
def digits():
    x_ND, label_N = load_digits(return_X_y=True)
    return x_ND[:400].astype(np.float32), label_N[:400]


def test_scores_are_scikit_learns_of_the_assignment(digits):
    found = cluster(*digits, restarts=3)
    label_N, assignment_N = digits[1], found.assignment_N
    nmi = metrics.normalized_mutual_info_score(label_N, assignment_N)
    assert found.nmi == pytest.approx(100 * nmi)
    assert found.ami == pytest.approx(
        100 * metrics.adjusted_mutual_info_score(label_N, assignment_N)
    )
    assert found.ari == pytest.approx(100 * metrics.adjusted_rand_score(label_N, assignment_N))
    assert nmi > 0.5
    assert found.clusters == found.found == 10


def test_purity_and_accuracy_by_hand():
    label_N = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    assignment_N = np.array([5, 5, 3, 3, 3, 5, 5, 3])
    found = compare(label_N, assignment_N)
    # Of cluster 5: two of class 0, two of class 1; of cluster 3: one of 0, two of 1, one of 2.
    assert found["purity"] == 100 * 4 / 8
    # Best one to one: cluster 5 is class 0 (2 images), cluster 3 is class 1 (2 images).
    assert found["accuracy"] == 100 * 4 / 8


def test_matching_is_the_best_of_all_orders():
    from itertools import permutations

    rng = np.random.default_rng(0)
    label_N, assignment_N = rng.integers(0, 4, (2, 60))
    best = max(np.mean(np.array(order)[assignment_N] == label_N)
               for order in permutations(range(4)))  # fmt: skip
    assert compare(label_N, assignment_N)["accuracy"] == pytest.approx(100 * best)


@pytest.mark.parametrize("batch_size", [None, 64])
def test_clouds_far_apart_are_found(batch_size):
    rng = np.random.default_rng(0)
    label_N = rng.permutation(np.repeat([3, 8], 60))
    z_ND = np.eye(2, 6)[(label_N == 8).astype(int)] * 5 + 0.1 * rng.normal(size=(120, 6))
    found = cluster(z_ND * rng.uniform(0.5, 2, (120, 1)), label_N, batch_size=batch_size)
    assert [found.nmi, found.ami, found.ari, found.purity, found.accuracy] == pytest.approx(
        [100] * 5
    )


def test_the_restart_of_least_inertia_counts(digits):
    found = cluster(*digits, restarts=5, seed=3)
    best = int(np.argmin(found.inertia_by_restart))
    assert found.inertia == found.inertia_by_restart[best]
    assert found.nmi == pytest.approx(found.nmi_by_restart[best])
    assert len(found.nmi_by_restart) == 5


def test_a_seed_decides_and_the_global_state_does_not(digits):
    first = cluster(*digits, restarts=2, seed=1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert np.array_equal(first.assignment_N, cluster(*digits, restarts=2, seed=1).assignment_N)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert first.inertia_by_restart != cluster(*digits, restarts=2, seed=2).inertia_by_restart


def test_more_clusters_than_classes_are_purer_and_matched_worse(digits):
    usual, many = cluster(*digits, restarts=2), cluster(*digits, restarts=2, clusters=40)
    assert many.purity > usual.purity
    assert many.accuracy < usual.accuracy
    assert many.clusters == 40


def test_collapsed_embeddings_are_one_cluster_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cluster(np.ones((30, 4), np.float32), np.arange(30) % 3, restarts=2)
    assert (found.found, found.nmi, found.ari) == (1, 0, 0)
    assert found.purity == found.accuracy == pytest.approx(100 / 3)


def test_one_class_and_zero_vectors_are_no_trouble():
    found = cluster(np.zeros((9, 4), np.float32), np.zeros(9, int), restarts=1)
    assert (found.clusters, found.accuracy, found.purity) == (1, 100, 100)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clusters": 401}, "clusters=401 of 400 images"),
        ({"clusters": 0}, "clusters=0"),
        ({"restarts": 0}, "restarts=0"),
    ],
)
def test_mistakes_are_named(digits, change, says):
    with pytest.raises(UserError, match=says):
        cluster(*digits, **change)


class ImageSpec:
    """As much of a subject as the protocol asks for."""

    progress = False

    def __init__(self, data):
        self.data = data

    def features(self, split):
        return torch.as_tensor(self.data[0][:200] if split == "train" else self.data[0][200:])

    def labels(self, split):
        return torch.as_tensor(self.data[1][:200] if split == "train" else self.data[1][200:])


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_protocol_clusters_the_split_it_is_told_to(digits, split):
    result = Cluster(split=split, restarts=2).run(ImageSpec(digits))
    names = ("nmi", "ami", "ari", "purity", "accuracy", "nmi_std")
    assert set(result.metrics) == {f"probe/cluster/{name}" for name in names}
    subject = ImageSpec(digits)
    alone = cluster(subject.features(split), subject.labels(split), restarts=2)
    assert result.metrics["probe/cluster/ami"] == alone.ami
