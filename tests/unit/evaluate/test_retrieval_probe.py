import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from ssdistill.errors import UserError
from ssdistill.evaluate.protocols import retrieval
from ssdistill.evaluate.protocols.retrieval import Retrieval, retrieve
from ssdistill.label_free import vectors


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 5, 260)
    x_ND = rng.normal(size=(5, 12))[label_N] + 1.5 * rng.normal(size=(260, 12))
    x_ND = x_ND.astype(np.float32)
    return x_ND[:60], label_N[:60], x_ND[60:], label_N[60:]


def brute_force(query_ND, query_labels, gallery_MD, gallery_labels, ks, others=False):
    """Recall at every k, mAP and mAP@R in percent, by loops over the definition."""
    unit = [z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
            for z in (query_ND.astype(float), gallery_MD.astype(float))]  # fmt: skip
    hits, whole, within = [], [], []
    for number, (query_D, label) in enumerate(zip(unit[0], query_labels, strict=True)):
        order = np.argsort(-(unit[1] @ query_D).astype(np.float32), kind="stable")
        if others:
            order = order[order != number]
        right = gallery_labels[order] == label
        total = right.sum()
        if not total:
            continue
        hits.append([right[:k].any() for k in ks])
        precision = [right[: i + 1].mean() for i in range(len(order))]
        whole.append(sum(p for p, r in zip(precision, right, strict=True) if r) / total)
        pairs = zip(precision[:total], right[:total], strict=True)
        within.append(sum(p for p, r in pairs if r) / total)
    return 100 * np.mean(hits, 0), 100 * np.mean(whole), 100 * np.mean(within)


@pytest.mark.parametrize("others", [False, True])
def test_numbers_are_those_of_brute_force(data, others, monkeypatch):
    monkeypatch.setattr(retrieval, "RANKED", 2000)
    args = data[:2] if others else data
    found = retrieve(*args, ks=(1, 3, 10))
    recall, whole, within = brute_force(*data[:2], *args[-2:], (1, 3, 10), others)
    assert list(found.recall_at_k.values()) == pytest.approx(recall.tolist())
    assert (found.map, found.map_r) == (pytest.approx(whole), pytest.approx(within))
    assert found.n_gallery == (59 if others else 200)


def test_average_precision_is_scikit_learns(data):
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in data[::2]]
    expected = [100 * average_precision_score(data[3] == label, unit[1] @ query_D)
                for query_D, label in zip(unit[0], data[1], strict=True)]  # fmt: skip
    assert np.allclose(retrieve(*data).average_precision_N, expected)


@pytest.mark.parametrize("seed", range(3))
def test_chunks_change_nothing(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    # Few values: equal similarities everywhere.
    z_ND = rng.integers(-1, 2, (90, 4)).astype(np.float16)
    label_N = rng.integers(0, 4, 90)
    whole = retrieve(z_ND, label_N)
    monkeypatch.setattr(retrieval, "RANKED", int(rng.integers(1, 5000)))
    monkeypatch.setattr(vectors, "BLOCK", int(rng.integers(1, 60)))
    monkeypatch.setattr(vectors, "KEPT", 0)
    parts = retrieve(torch.from_numpy(z_ND), label_N)
    assert np.array_equal(whole.average_precision_N, parts.average_precision_N)
    assert whole.recall_at_k == parts.recall_at_k
    recall, mean, _ = brute_force(z_ND, label_N, z_ND, label_N, (1, 5, 10), others=True)
    assert whole.map == pytest.approx(mean)
    assert list(whole.recall_at_k.values()) == pytest.approx(recall.tolist())


def test_an_example_by_hand():
    gallery_MD = np.array([[1, 0], [0.9, 0.1], [0.5, 0.5], [0, 1]], np.float32)
    found = retrieve(np.array([[1, 0]], np.float32), [1], gallery_MD, [0, 1, 0, 1], ks=(1, 2))
    assert found.recall_at_k == {1: 0, 2: 100}
    assert found.map == pytest.approx(100 * (1 / 2 + 2 / 4) / 2)
    assert found.map_r == pytest.approx(100 * (1 / 2) / 2)


def test_classes_apart_are_found_without_a_mistake():
    x_ND, label_N = np.repeat(np.eye(4, dtype=np.float32), 6, 0), np.repeat(np.arange(4), 6)
    found = retrieve(x_ND, label_N, ks=(1,))
    assert (found.recall_at_k[1], found.map, found.map_r) == (100, 100, 100)


def test_one_class_duplicates_and_zeros_are_no_trouble():
    x_ND = np.zeros((6, 3), np.float32)
    x_ND[:2] = 1
    assert retrieve(x_ND, np.zeros(6, int), ks=(1, 5)).map == 100


def test_queries_whose_class_is_not_there_are_left_out():
    x_ND = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    found = retrieve(x_ND, [0, 0, 1, 2], ks=(1,))
    assert (found.unmatched, found.recall_at_k[1], found.map) == (2, 100, 100)
    assert np.isnan(found.average_precision_N[2:]).all()
    with pytest.raises(UserError, match="no query has an image of its class"):
        retrieve(x_ND, [0, 1, 2, 3], ks=(1,))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ks": (201,)}, "between 1 and 200, the number of images"),
        ({"ks": (0, 1)}, "between 1 and"),
        ({"gallery_MD": np.ones((200, 3), np.float32)}, "gallery features are 3 wide, queries 12"),
        ({"gallery_labels": None}, "gallery labels are missing"),
    ],
)
def test_mistakes_are_named(data, change, says):
    names = ("query_ND", "query_labels", "gallery_MD", "gallery_labels")
    with pytest.raises(UserError, match=says):
        retrieve(**dict(zip(names, data, strict=True)) | change)


class Digits:
    """As much of a subject as the protocol asks for."""

    device, progress = None, False

    def __init__(self, train=200, test=100):
        x_ND, label_N = load_digits(return_X_y=True)
        rows = {"train": slice(0, train), "test": slice(train, train + test)}
        self.data = {split: (x_ND[row], label_N[row]) for split, row in rows.items()}

    def features(self, split):
        return torch.as_tensor(self.data[split][0])

    def labels(self, split):
        return torch.as_tensor(self.data[split][1])


def test_the_protocol_ranks_what_it_is_told_to():
    subject = Digits()
    among_train = Retrieval().run(subject)
    among_test = Retrieval(gallery="test", ks=(1,)).run(subject)
    assert set(among_train.metrics) == {
        f"probe/retrieval/{name}"
        for name in ("recall_at_1", "recall_at_5", "recall_at_10", "map", "map_r")
    }
    assert among_train.details["gallery"] == 200
    assert among_test.details["gallery"] == 99
    assert among_test.metrics["probe/retrieval/recall_at_1"] > 80


def test_a_small_gallery_limits_what_is_usual_and_refuses_what_was_asked():
    subject = Digits(train=8)
    assert "probe/retrieval/recall_at_10" not in Retrieval().run(subject).metrics
    with pytest.raises(UserError, match="k=10 exceeds the 8 train images"):
        Retrieval(ks=(1, 10)).run(subject)
