"""Several labels per image: mean average precision, probes and refusals."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from ssdistill.errors import UserError
from ssdistill.evaluate.average_precision import average_precisions, mean_interval
from ssdistill.evaluate.labels import (
    check_pair,
    excluded_classes,
    has_several,
    labels_digest,
    look_at_labels,
)
from ssdistill.evaluate.multi_label import multi_label_metrics
from ssdistill.evaluate.opening.images import open_images
from ssdistill.evaluate.probes.several_knn import knn_probe_of_several
from ssdistill.evaluate.probes.several_linear import linear_probe_of_several
from ssdistill.evaluate.probes.strength import Folds, rarest_label
from ssdistill.evaluate.protocols.retrieval import retrieve
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.models.representation import Representation
from ssdistill.settings.registry import PROTOCOLS

T = torch.from_numpy


def data(seed=0, count=300, width=12, classes=5):
    """Features of which some directions tell of a label each."""
    rng = np.random.default_rng(seed)
    weights_DK = np.random.default_rng(99).normal(size=(width, classes))
    x_ND = rng.normal(size=(count, width)).astype(np.float32)
    return x_ND, x_ND @ weights_DK + rng.normal(size=(count, classes)) > 2


def test_average_precision_is_what_one_counts_by_hand():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    targets = np.array([[1], [0], [1], [0]], dtype=bool)
    # Found at the places 1 and 3: (1/1 + 2/3) / 2.
    assert average_precisions(targets, scores)[0] == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)
    # All of one score are at one threshold: half of them have the label.
    assert average_precisions(targets, np.zeros((4, 1)))[0] == 0.5
    assert np.isnan(average_precisions(np.zeros((4, 1), bool), scores)[0])


@pytest.mark.parametrize("digits", [1, 6])
def test_average_precision_is_scikit_learns_with_ties_and_without(digits):
    rng = np.random.default_rng(digits)
    targets = rng.random((200, 6)) < 0.3
    scores = np.round(rng.random((200, 6)) + 0.3 * targets, digits)
    found = average_precisions(targets, scores)
    np.testing.assert_allclose(found, average_precision_score(targets, scores, average=None))
    judged = multi_label_metrics(targets, scores / 2)
    assert judged.map == pytest.approx(100 * average_precision_score(targets, scores))
    micro = average_precision_score(targets, scores, average="micro")
    assert judged.micro_map == pytest.approx(100 * micro)
    for average, value in (("macro", judged.macro_f1), ("micro", judged.micro_f1)):
        assert value == pytest.approx(100 * f1_score(targets, scores / 2 > 0.5, average=average))


def test_the_interval_is_that_of_images_resampled_one_by_one():
    rng = np.random.default_rng(0)
    targets = rng.random((60, 3)) < 0.4
    scores = np.round(rng.random((60, 3)) + 0.5 * targets, 1)
    found = mean_interval(targets, scores)
    generator, means = np.random.default_rng(0), []
    for drawn in generator.integers(60, size=(2000, 60)):
        means.append(100 * average_precision_score(targets[drawn], scores[drawn]))
    low, high = np.percentile(means, [2.5, 97.5])
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert found.error == pytest.approx(np.std(means), abs=1e-3)


def test_a_class_without_images_is_left_out_of_the_means_and_named():
    rng = np.random.default_rng(0)
    targets, scores = rng.random((50, 4)) < 0.4, rng.random((50, 4))
    trained = np.ones((10, 4), dtype=bool)
    targets[:, 1], trained[:, 2] = False, False
    judged = multi_label_metrics(
        targets, scores, trained_NK=trained, class_names=("a", "b", "c", "d")
    )
    kept = [0, 3]
    assert judged.map == pytest.approx(
        100 * average_precision_score(targets[:, kept], scores[:, kept])
    )
    assert np.isnan(judged.average_precision_K).tolist() == [False, True, True, False]
    assert judged.left_out == "c (1 without training images); b (1 without test images)"
    assert judged.by_class()[1]["average_precision"] is None
    with pytest.raises(UserError, match="no class has both training and test images"):
        multi_label_metrics(targets, scores, trained_NK=np.zeros((10, 4)))


@pytest.mark.parametrize("broken", [np.full((50, 4), np.nan), np.zeros((50, 3)), np.zeros(50)])
def test_scores_that_do_not_fit_are_refused(broken):
    with pytest.raises(UserError, match=r"scores (must have the shape|are NaN)"):
        multi_label_metrics(np.ones((50, 4)), broken)


def test_each_class_has_scikit_learns_logistic_regression():
    (x_ND, y_NK), (x_MD, y_MK) = data(0), data(1)
    y_NK[:, 4], y_NK[7, 4] = False, True
    found = linear_probe_of_several(
        *map(T, (x_ND, y_NK, x_MD, y_MK)), strengths=(1e-2,), split=Folds(0.1, None, 0)
    )
    mean, std = x_ND.mean(0), x_ND.std(0)
    for k in range(5):
        theirs = LogisticRegression(C=1 / (len(x_ND) * 1e-2), tol=1e-10, max_iter=5000)
        theirs.fit((x_ND - mean) / std, y_NK[:, k])
        expected = theirs.predict_proba((x_MD - mean) / std)[:, 1]
        np.testing.assert_allclose(found.probabilities_NK[:, k], expected, atol=2e-3)
    raw = torch.sigmoid(T(x_MD) @ found.weight_KD.T + found.bias_K)
    np.testing.assert_allclose(raw, found.probabilities_NK, atol=1e-5)


def test_the_strength_is_chosen_by_the_held_out_loss_of_all_classes():
    (x_ND, y_NK), (x_MD, y_MK) = data(0), data(1)
    arrays = [*map(T, (x_ND, y_NK, x_MD, y_MK))]
    split = Folds(0.2, 5, 0)
    found = linear_probe_of_several(*arrays, strengths=(1.0, 1e-2, 1e-4), split=split)
    assert len(x_ND) - 10 <= found.held_out <= len(x_ND) + 10
    assert found.strength == min(found.held_out_loss, key=found.held_out_loss.get)
    alone = linear_probe_of_several(*arrays, strengths=(found.strength,), split=split)
    np.testing.assert_allclose(alone.probabilities_NK, found.probabilities_NK, atol=1e-3)
    other = linear_probe_of_several(
        *arrays[:3], ~arrays[3], strengths=(1.0, 1e-2, 1e-4), split=split
    )
    assert np.array_equal(other.probabilities_NK, found.probabilities_NK)


def test_a_strength_at_an_end_is_warned_of_where_another_could_be_better():
    arrays = [*map(T, (*data(0), *data(1)))]
    strong = linear_probe_of_several(*arrays, strengths=(3.0, 0.1), split=Folds(0.2, 5, 0))
    assert "weakest of the L2 strengths, 0.1, is better on held-out labels" in strong.warning
    usual = linear_probe_of_several(
        *arrays, strengths=(1.0, 1e-2, 1e-3, 1e-5), split=Folds(0.2, 5, 0)
    )
    assert usual.warning is None


def test_a_class_of_all_or_none_of_the_training_images_is_a_constant():
    (x_ND, y_NK), (x_MD, y_MK) = data(0), data(1)
    y_NK[:, 0], y_NK[:, 1] = True, False
    found = linear_probe_of_several(
        *map(T, (x_ND, y_NK, x_MD, y_MK)), strengths=(1e-2, 1e-3), split=Folds(0.1, None, 0)
    )
    assert (np.ptp(found.probabilities_NK[:, :2], axis=0) == 0).all()
    assert found.probabilities_NK[0, 0] > 0.99 and found.probabilities_NK[0, 1] < 0.01
    assert np.isfinite(found.weight_KD).all() and np.isfinite(found.bias_K).all()
    with pytest.raises(UserError, match="all training images have the same labels"):
        linear_probe_of_several(
            *map(T, (x_ND, y_NK | True, x_MD, y_MK)), strengths=(1.0,), split=Folds(0.1, None, 0)
        )


def test_folds_deal_every_image_by_its_rarest_label():
    labels = T(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 1], [0, 1, 0]]) > 0)
    assert rarest_label(labels).tolist() == [0, 0, 3, 2, 2, 1]


@pytest.mark.parametrize("weights", ["softmax", "uniform"])
def test_votes_of_neighbors_are_the_formula(weights):
    (x_ND, y_NK), (x_MD, y_MK) = data(0), data(1, count=40)
    found = knn_probe_of_several(
        *map(T, (x_ND, y_NK, x_MD, y_MK)), k=7, temperature=0.1, ks=(1,), weights=weights
    )
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (x_ND.astype(float), x_MD)]
    cosine = unit[1] @ unit[0].T
    for i, row in enumerate(cosine):
        near = np.argsort(-row)[:7]
        vote = np.exp((row[near] - row[near[0]]) / 0.1) if weights == "softmax" else np.ones(7)
        expected = (vote[:, None] * y_NK[near]).sum(0) / vote.sum()
        np.testing.assert_allclose(found.fractions_NK[i], expected, atol=1e-5)
    by_k = {k: by_heat[0.1] for k, by_heat in found.map_by_k_and_temperature.items()}
    expected = 100 * average_precision_score(y_MK, found.fractions_NK)
    assert by_k.keys() == {1, 7} and by_k[7] == pytest.approx(expected)


def test_an_image_that_shares_a_label_is_found():
    query = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    gallery = np.array([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0]], np.float32)
    labels = np.array([[1, 1, 0], [0, 0, 0]]) > 0
    near = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0]]) > 0
    found = retrieve(query, labels, gallery, near, ks=(1, 2))
    assert found.unmatched == 1 and found.n_queries == 2
    assert found.recall_at_k == {1: 0.0, 2: 100.0}
    assert found.map == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    one = retrieve(gallery, np.array([0, 1, 1]), ks=(1,))
    hot = retrieve(gallery, np.eye(3, dtype=bool)[[0, 1, 1]], ks=(1,))
    assert one.map == hot.map and one.map_r == hot.map_r


def images_of(labels, names=None):
    labels = np.asarray(labels)
    return LabeledImages(np.zeros((len(labels), 4, 4, 3), np.uint8), labels, names)


def test_one_line_says_how_many_images_have_each_label_and_how_many_none():
    train, test = [[1, 1, 0], [0, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 1, 0]]
    names = ("cat", "dog", "emu")
    splits = images_of(np.array(train) > 0, names), images_of(np.array(test) > 0)
    assert look_at_labels(*splits) == (
        "3 classes (training+test images): cat: 2+2, dog: 1+1, emu: 0+0; 1.2 labels per image, 1 "
        "images without labels"
    )
    words = "excluded from means over classes: emu (1 without training or test images)"
    assert excluded_classes(*splits) == words
    assert excluded_classes(images_of(np.ones((2, 2)) > 0), images_of(np.ones((1, 2)) > 0)) == ""


def test_a_separator_that_was_forgotten_is_noticed():
    line = look_at_labels(images_of([0, 1, 2], ("cat", "cat|dog", "dog")), images_of([0, 1]))
    assert "; 'cat|dog' consists of other classes" in line and "label_separator='|'" in line
    line = look_at_labels(images_of([0, 1], ("[0, 1]", "[1]")), images_of([0, 1]))
    assert "; '[0, 1]' is a list, read as the name of a class" in line
    line = look_at_labels(images_of([0, 1, 2], ("cat", "cat|emu", "dog")), images_of([0, 1]))
    assert line.endswith("dog: 1+0")


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([[1, 1], [0, 1]], [0, 1], r"training images have several labels each \(2 x 2\), but test"),
        ([0, 1], [[1, 1], [0, 1]], r"training images have one label each \(2\), but test images"),
        ([[1, 1], [0, 1]], [[1, 1, 0]], "the training labels have 2 classes, the test labels 3"),
        (np.eye(2), np.eye(2), "one-hot"),
        ([[1, 0], [1, 0]], [[0, 1], [0, 1], [0, 0]], "no class has both training and test images"),
    ],
)
def test_labels_that_do_not_suit_each_other_are_refused_in_one_line(train, test, words):
    with pytest.raises(UserError, match=words) as caught:
        check_pair(np.array(train, int), np.array(test, int))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=words):
        open_images(
            tuple((np.zeros((len(y), 4, 4, 3), np.uint8), y) for y in map(np.array, (train, test)))
        )


def test_names_are_as_many_as_classes():
    labels = np.array([[1, 1], [0, 1]])
    with pytest.raises(UserError, match=r"the training labels have 2 classes.* class_names 3"):
        check_pair(labels, labels, ("a", "b", "c"))


def test_a_test_image_with_one_label_is_no_class_number():
    check_pair(np.array([[1, 1], [0, 1]]) > 0, np.array([[1, 0]]) > 0)


def test_a_digest_tells_labels_apart():
    one, two = np.array([[1, 0], [1, 1]]) > 0, np.array([[1, 0, 1, 1]]) > 0
    digests = {labels_digest(images_of(x), images_of(one)) for x in (one, ~one, two)}
    assert len(digests) == 3
    assert labels_digest(images_of(one), images_of(one)) == labels_digest(
        images_of(one.astype(np.int64)), images_of(one)
    )


def subject_of(seed=0, train=None):
    """The encoder takes the mean color, and a label is a color."""
    rng = np.random.default_rng(seed)
    splits = []
    for count in (80, 40):
        labels = rng.random((count, 3)) < 0.4
        images = rng.integers(0, 100, (count, 8, 8, 3)) + 120 * labels[:, None, None]
        splits.append(LabeledImages(images.astype(np.uint8), labels, ("red", "green", "blue")))

    def encode(x_BCHW):
        return Representation(x_BCHW.mean((2, 3)))

    return Subject(encode, splits[0] if train is None else train, splits[1], progress=False)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_colors_are_recognized_with_an_interval(kind):
    result = PROTOCOLS.build(PROTOCOLS.schema(kind)()).run(subject_of())
    assert result["map"] > 95 and result["map_low"] <= result["map"] <= result["map_high"]
    assert {"map", "map_stderr", "map_low", "map_high", "micro_map", "macro_f1", "micro_f1"} <= {
        name.removeprefix(f"probe/{kind}/") for name in result.metrics
    }
    assert result.classification is None and result.multi_label.names == ("red", "green", "blue")
    json.dumps(result.details, allow_nan=False)


@pytest.mark.parametrize("gallery", ["train", "test"])
def test_retrieval_of_shared_labels(gallery):
    result = PROTOCOLS.build(PROTOCOLS.schema("retrieval")(gallery=gallery)).run(subject_of())
    assert result["recall_at_1"] > 90 and result.details["queries_without_match"] > 0


@pytest.mark.parametrize(
    "kind", sorted(k for k, c in PROTOCOLS.classes.items() if not c.takes_several())
)
def test_the_others_say_what_takes_several_labels(kind):
    schema = PROTOCOLS.schema(kind)
    with pytest.raises(UserError) as caught:
        PROTOCOLS.build(schema()).run(subject_of())
    message = str(caught.value)
    assert message.startswith(f"{kind} requires one label per image") and "\n" not in message
    assert "use knn, linear, retrieval" in message


def test_one_kind_of_labels_in_both_splits():
    train = LabeledImages(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1]))
    for kind in ("linear", "knn", "retrieval"):
        with pytest.raises(UserError, match="training images have one label each"):
            PROTOCOLS.build(PROTOCOLS.schema(kind)()).run(subject_of(train=train))


def test_defaults_that_do_not_suit_are_left_out_and_requested_ones_are_refused():
    notice = EvaluateSettings().left_out_of_several()
    assert "low_shot (default) skipped" in notice and "\n" not in notice
    assert EvaluateSettings(low_shot=None).left_out_of_several() == ""
    with pytest.raises(
        UserError, match=r"evaluate\.cluster: cluster requires .*evaluate\.cluster=nul"
    ):
        EvaluateSettings(low_shot=None, cluster={}).left_out_of_several()
    with pytest.raises(UserError, match=r"evaluate\.also\.more: low_shot requires"):
        EvaluateSettings(also={"more": {"kind": "low_shot"}}, low_shot=None).left_out_of_several()


def test_a_split_knows_whether_it_has_several():
    assert has_several(images_of(np.array([[True], [False]])))
    assert not has_several(images_of([[0], [1]])) and not has_several(images_of([0, 1]))
    assert not has_several(LabeledImages(np.zeros((2, 4, 4, 3)), None))
