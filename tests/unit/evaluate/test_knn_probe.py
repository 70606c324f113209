import warnings

import numpy as np
import pytest
import torch
from color_encoders import color_subject
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from ssdistill.errors import UserError
from ssdistill.evaluate.probes import knn_probe as knn
from ssdistill.evaluate.probes.knn_probe import knn_probe
from ssdistill.evaluate.protocols.knn import Knn
from ssdistill.label_free import nearest, vectors
from ssdistill.label_free.nearest import neighbors
from ssdistill.settings.registry import PROTOCOLS


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 6, 900)
    x_ND = rng.normal(size=(6, 16))[label_N] + 1.2 * rng.normal(size=(900, 16))
    x_ND = x_ND.astype(np.float32)
    return x_ND[:600], label_N[:600], x_ND[600:], label_N[600:]


class Features:
    """As much of a subject as the protocol asks for."""

    device, progress, class_names = None, False, None

    def __init__(self, data):
        self.data = dict(zip(("train", "test"), (data[:2], data[2:]), strict=True))

    def features(self, split):
        return torch.as_tensor(self.data[split][0])

    def labels(self, split):
        return torch.as_tensor(self.data[split][1])

    def probe_data(self):
        return tuple(part(split) for split in self.data for part in (self.features, self.labels))


def smaller_chunks(monkeypatch, queries, block, kept=0):
    monkeypatch.setattr(nearest, "QUERIES", queries)
    monkeypatch.setattr(vectors, "BLOCK", block)
    monkeypatch.setattr(vectors, "KEPT", kept)


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_uniform_votes_are_scikit_learns(data, k):
    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(data[0], data[1])
    probe = knn_probe(*data, k=k, weights="uniform")
    assert (probe.predictions == model.predict(data[2])).all()
    assert probe.top1 == pytest.approx(100 * model.score(data[2], data[3]))
    assert np.allclose(probe.probabilities_NK, model.predict_proba(data[2]))


@pytest.mark.parametrize("temperature", [0.02, 0.07, 1])
def test_softmax_votes_are_scikit_learns_with_that_weight(data, temperature):
    model = KNeighborsClassifier(
        20,
        metric="cosine",
        algorithm="brute",
        weights=lambda d_Nk: np.exp((1 - d_Nk) / temperature),
    ).fit(data[0].astype(float), data[1])
    probe = knn_probe(*data, temperature=temperature)
    assert (probe.predictions == model.predict(data[2].astype(float))).all()
    assert np.allclose(
        probe.probabilities_NK, model.predict_proba(data[2].astype(float)), atol=1e-5
    )


def test_inverse_distances_are_scikit_learns_with_that_weight(data):
    model = KNeighborsClassifier(20, algorithm="brute", weights=lambda d_Nk: 1 / (d_Nk + 1e-5))
    model.fit(data[0], data[1])
    probe = knn_probe(*data, distance="euclidean")
    assert (probe.predictions == model.predict(data[2])).all()


def test_softmax_votes_are_the_formula(data):
    train_ND, label_N, test_ND, _ = (np.asarray(part) for part in data)
    unit_ND = train_ND / np.linalg.norm(train_ND, axis=1, keepdims=True)
    for query_D, guess in zip(test_ND, knn_probe(*data, k=7).predictions, strict=True):
        similarity_N = unit_ND @ (query_D / np.linalg.norm(query_D))
        nearest = np.argsort(-similarity_N)[:7]
        votes = np.bincount(label_N[nearest], np.exp(similarity_N[nearest] / 0.07), minlength=6)
        assert guess == votes.argmax()


def test_equal_votes_go_to_the_smallest_label():
    bank_MD, label_M = np.ones((4, 3), np.float32), np.array([7, 5, 5, 7])
    assert knn_probe(bank_MD, label_M, bank_MD, label_M, k=4).predictions.tolist() == [5] * 4


def test_a_map_of_halves_is_read_in_chunks(data, tmp_path, monkeypatch):
    halves = [z_ND.astype(np.float16) for z_ND in data[::2]]
    expected = knn_probe(
        halves[0].astype(np.float32), data[1], halves[1].astype(np.float32), data[3]
    )
    for name, z_ND in zip("ab", halves, strict=True):
        np.save(tmp_path / f"{name}.npy", z_ND)
    bank_MD, query_ND = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "ab")
    smaller_chunks(monkeypatch, 50, 64)
    sizes, plain = [], vectors.Vectors.take

    def watched(self, rows):
        part = plain(self, rows)
        sizes.append(part.shape[0])
        return part

    monkeypatch.setattr(vectors.Vectors, "take", watched)
    monkeypatch.setattr(vectors, "SAMPLE", 100)
    monkeypatch.setattr(nearest, "NUMBERS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = knn_probe(bank_MD, data[1], query_ND, data[3])
    assert np.array_equal(probe.probabilities_NK, expected.probabilities_NK)
    assert max(sizes) <= 100


def test_a_grid_in_one_pass_is_each_pair_alone(data, monkeypatch):
    monkeypatch.setattr(knn, "VOTES", 50)
    probe = knn_probe(*data, k=20, ks=(1, 5, 50), temperatures=(0.05, 0.5))
    assert probe.top1_by_k_and_temperature == {
        k: {t: knn_probe(*data, k=k, ks=(), temperature=t).top1 for t in (0.05, 0.07, 0.5)}
        for k in (1, 5, 20, 50)
    }
    assert probe.top1 == probe.top1_by_k_and_temperature[20][0.07]
    assert probe.top1_by_k[5] == probe.top1_by_k_and_temperature[5][0.07]


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
        ({"k": 601}, "k=601 neighbors of 600"),
        ({"ks": (0,)}, "k=0 neighbors"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"weights": "unifrom"}, "weights='unifrom' .did you mean 'uniform'"),
        ({"weights": "inverse"}, "with distance='cosine' they are softmax or uniform"),
        ({"distance": "euclidian"}, "did you mean 'euclidean'"),
    ],
)
def test_mistakes_are_named(data, change, says):
    with pytest.raises(UserError, match=says):
        knn_probe(*data, **change)


def test_one_class_and_broken_features_are_refused(data):
    with pytest.raises(UserError, match="a single class"):
        knn_probe(data[0], np.zeros(600, int), data[2], np.zeros(300, int))
    broken = data[0].astype(np.float16)
    broken[3, 2] = np.nan
    with pytest.raises(UserError, match=r"training features have NaN .* 1 of 600"):
        knn_probe(broken, *data[1:])


def test_a_preset_is_what_its_source_says(data):
    settings = {name: Knn(preset=name) for name in Knn.presets}
    of = {name: (one.k, one.temperature, one.ks) for name, one in settings.items()}
    assert of["dinov2"] == (20, 0.07, (10, 20, 100, 200))
    assert of["lightly"][:2] == (200, 0.1)
    assert of["instdisc"][:2] == (200, 0.07)
    assert of["compress"][0] == of["simreg"][0] == 1
    solo = settings["solo_learn"]
    assert (solo.k, solo.distance, solo.weights) == (20, "euclidean", "inverse")
    found = settings["dinov2"].run(Features(data)).metrics
    assert {f"probe/knn_dinov2/top1_k{k}" for k in (1, 10, 20, 100, 200)} < set(found)
    assert found["probe/knn_dinov2/top1"] == found["probe/knn_dinov2/top1_k20"]


def test_every_preset_can_be_written_in_a_config():
    for name in Knn.presets:
        assert PROTOCOLS.build(PROTOCOLS.schema("knn")(preset=name)).name == f"knn_{name}"


def test_a_small_bank_limits_a_preset_and_refuses_what_was_asked(data):
    few = Features((data[0][:15], np.arange(15) % 6, *data[2:]))
    result = Knn(preset="lightly").run(few)
    assert result.details["left_out"].startswith("k of 20, 200: there are 15 training images")
    assert result.metrics["probe/knn_lightly/top1"] == result.metrics["probe/knn_lightly/top1_k15"]
    assert "probe/knn_lightly/top1_k20" not in result.metrics
    with pytest.raises(UserError, match="knn: k=16 neighbors of 15 training images"):
        Knn(k=16).run(few)
    with pytest.raises(UserError, match="knn: ks=30 neighbors"):
        Knn(ks=(2, 30)).run(few)


def test_as_many_neighbors_as_there_are_images_can_vote():
    z_ND = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    labels = np.arange(12) % 3
    probe = knn_probe(z_ND, labels, z_ND, labels, k=3, ks=(1, 11, 12, 13))
    assert set(probe.top1_by_k) == {1, 3, 11, 12}


def test_twenty_neighbors_vote_unless_something_else_is_said():
    assert (Knn().k, Knn().temperature, Knn().distance) == (20, 0.07, "cosine")
    subject = color_subject(spread=60.0)
    found, twenty = Knn().run(subject), Knn(k=20).run(subject)
    assert found["top1"] == twenty["top1"] == found["top1_k20"]


def test_a_bar_is_drawn_where_one_is_asked_for(data, monkeypatch):
    asked = []

    def watched(*args, progress, **options):
        asked.append(progress)
        return neighbors(*args, **options)

    monkeypatch.setattr(knn, "neighbors", watched)
    for progress in (True, False):
        knn_probe(*data, progress=progress)
    assert asked == [True, False]
