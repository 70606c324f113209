import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from ssdistill.errors import UserError
from ssdistill.evaluate import knn
from ssdistill.evaluate.knn import knn_probe


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 6, 900)
    x_ND = rng.normal(size=(6, 16))[label_N] + 1.2 * rng.normal(size=(900, 16))
    x_ND = x_ND.astype(np.float32)
    return x_ND[:600], label_N[:600], x_ND[600:], label_N[600:]


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_uniform_votes_are_scikit_learns(data, k):
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(data[0], data[1])
    probe = knn_probe(*data, k=k, weights="uniform")
    assert (probe.predictions == model.predict(data[2])).all()
    assert probe.top1 == pytest.approx(100 * model.score(data[2], data[3]))


def test_softmax_votes_are_the_formula(data):
    train_ND, label_N, test_ND, _ = (np.asarray(part) for part in data)
    unit_ND = train_ND / np.linalg.norm(train_ND, axis=1, keepdims=True)
    for query_D, guess in zip(test_ND, knn_probe(*data, k=7).predictions, strict=True):
        similarity_N = unit_ND @ (query_D / np.linalg.norm(query_D))
        nearest = np.argsort(-similarity_N)[:7]
        votes = np.bincount(label_N[nearest], np.exp(similarity_N[nearest] / 0.07), minlength=6)
        assert guess == votes.argmax()


def test_small_chunks_change_nothing(data, monkeypatch):
    whole = knn_probe(*data)
    monkeypatch.setattr(knn, "CHUNK", 1234)
    chunked = knn_probe(*data)
    assert (whole.predictions == chunked.predictions).all()


def test_several_ks_in_one_pass_are_each_k_alone(data):
    grid = knn_probe(*data, k=20, also=(1, 5, 50)).top1_by_k
    assert grid == {k: knn_probe(*data, k=k, also=()).top1 for k in (1, 5, 20, 50)}


def test_own_images_are_their_own_nearest():
    x_ND, label_N = load_digits(return_X_y=True)
    assert knn_probe(x_ND, label_N + 5, x_ND, label_N + 5, k=1).top1 == 100


def test_scale_of_a_row_does_not_matter(data):
    x_ND, label_N, test_ND, test_label_N = data
    scale_N1 = np.random.default_rng(1).uniform(0.1, 10, (600, 1)).astype(np.float32)
    scaled = knn_probe(x_ND * scale_N1, label_N, torch.from_numpy(test_ND), test_label_N)
    assert scaled.top1 == knn_probe(*data).top1
    assert scaled.metrics() == {"probe/knn/top1": scaled.top1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 601}, "k=601 neighbours of 600"),
        ({"also": (0,)}, "k=0 neighbours"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"weights": "unifrom"}, "weights='unifrom'"),
    ],
)
def test_mistakes_are_named(data, change, says):
    with pytest.raises(UserError, match=says):
        knn_probe(*data, **change)
