"""What evaluating a model keeps (predictions, not labels), costs, and the label-free sample."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from color_encoders import color_subject
from torch import nn

from ssdistill.chain import evaluation as evaluation_module
from ssdistill.chain.evaluation import ANSWERS, costs, evaluate_on, label_free_sample
from ssdistill.evaluate.protocols.cluster import Cluster
from ssdistill.evaluate.protocols.finetune import Finetune
from ssdistill.evaluate.protocols.knn import Knn
from ssdistill.evaluate.protocols.linear import Linear


def answers_in(folder):
    with np.load(folder / ANSWERS) as file:
        return dict(file)


def test_kept_answers_are_the_models_and_the_targets_are_the_truth(tmp_path):
    subject = color_subject(spread=80.0)
    metrics = evaluate_on(subject, [Linear(), Knn()], tmp_path)
    answers = answers_in(tmp_path)
    assert answers.keys() == {"targets", "linear", "knn"}
    assert np.array_equal(answers["targets"], subject.test.labels)
    for protocol in (Linear(), Knn()):
        result = protocol.run(subject)
        assert np.array_equal(answers[result.protocol], result.classification.predictions)
        assert not np.array_equal(answers[result.protocol], answers["targets"])
        assert metrics.items() >= result.metrics.items()
        assert metrics[f"time/probe/{result.protocol}"] > 0


def test_a_protocol_without_an_answer_for_each_image_leaves_none(tmp_path):
    metrics = evaluate_on(color_subject(), [Cluster(restarts=1)], tmp_path)
    assert any(name.startswith("probe/cluster/") for name in metrics)
    assert not (tmp_path / ANSWERS).exists()


def test_a_mere_function_is_not_trained(tmp_path):
    ran = []

    class Noting(Finetune):
        def run(self, subject):
            ran.append(subject)
            return Knn().run(subject)

    network = color_subject()
    assert Noting.trains and not Knn.trains
    assert evaluate_on(network, [Noting()], tmp_path)
    function = color_subject(encoder=lambda x_BCHW: network.encoder(x_BCHW))
    assert evaluate_on(function, [Noting()], tmp_path) == {}
    assert ran == [network]
    assert evaluate_on(function, [Knn()], tmp_path)


@pytest.mark.parametrize(
    ("count", "most", "step"), [(50, 20, 3), (40, 20, 2), (41, 20, 3), (20, 20, 1), (5, 20, 1)]
)
def test_the_label_free_sample_are_spread_evenly_and_no_more_than_asked_for(count, most, step):
    shown = label_free_sample(count, most)
    assert shown == slice(0, count, step)
    assert len(range(count)[shown]) <= most


def test_macs_of_a_file_are_those_of_the_network_it_was_made_from(tmp_path, monkeypatch):
    network, seen = nn.Linear(2, 2), []
    stage = lambda role, parent=None: SimpleNamespace(  # noqa: E731
        role=role,
        parents={"model": parent} if parent else {},
        folder=lambda root, role=role: root / role,
    )
    pruned = stage("pruned")
    again = stage("exported", stage("int8", pruned))
    made = {"pruned": network, "int8": "a file", "exported": "another file"}
    workspace = SimpleNamespace(root=tmp_path, encoder=lambda s: made[s.role])
    monkeypatch.setattr(evaluation_module, "costs_of", lambda *args: seen.append(args) or {"a": 1})
    for s in (again, pruned):
        assert costs(s, workspace) == {"a": 1}
    assert seen == [
        ("another file", tmp_path / "exported" / "model", network),
        (network, tmp_path / "pruned" / "model", network),
    ]


def test_views_are_drawn_by_the_recipe_of_the_data(monkeypatch):
    subject, seen = color_subject(n_test=9), []

    def measured(*args, **where):
        assert where == {"device": subject.device, "team": subject.team}
        return seen.append(args) or {}

    monkeypatch.setattr(evaluation_module, "view_metrics", measured)
    for recipe, name in ((None, "strong"), ("digits", "digits")):
        source = SimpleNamespace(default_recipe=recipe)
        workspace = SimpleNamespace(source=source, test=subject.test)
        store = type("Store", (), {"__len__": lambda s: 9, "images": subject.test.images})()
        workspace.test = store
        evaluation_module.of_views(subject, workspace, slice(0, 9, 2))
        encoder, images, index_N, used, size = seen.pop()
        assert used == evaluation_module.RECIPES[name] and encoder is subject.encoder
        assert index_N.tolist() == [0, 2, 4, 6, 8] and size == subject.image_size
        assert np.array_equal(images, subject.test.images[::2])
        assert torch.is_tensor(index_N)
