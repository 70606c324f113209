import copy

import pytest
import torch

from ssdistill.data.batch import Batch
from ssdistill.distill.dropping import (
    TeacherDropping,
    draw_dropped,
    kept_weights,
    mean_pulled_by,
)
from ssdistill.distill.teachers import Origin
from ssdistill.losses import Loss, Shapes
from ssdistill.losses.base import dropping
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings.registry import LOSSES

COUNT, NUM_SAMPLES = 6, 64
MAPS = {"layer1": (6, 8, 8), "layer2": (6, 4, 4), "final:patches": (6, 4, 4)}
SHAPES = Shapes(12, 16, NUM_SAMPLES, student_maps=MAPS, teacher_maps=MAPS)


def make_batch(step=0, index_B=None):
    images = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(COUNT) if index_B is None else index_B, 0, step, 10)


def test_a_mean_keeps_its_value_and_takes_the_gradient_of_the_shares():
    loss_B = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    value = mean_pulled_by(loss_B, torch.tensor([0.0, 1.5, 1.5]))
    value.backward()
    assert float(value.detach()) == pytest.approx(3)
    assert loss_B.grad.tolist() == [0, 0.5, 0.5]


def test_teachers_are_compared_by_the_weighted_sum_of_their_losses():
    # By weight, image 0 is furthest from y and image 1 from x; without weights it is the reverse.
    values = {"a/x": [9.0, 0.0], "a/y": [2.0, 1.0], "b/x": [0.0, 1.0], "b/y": [2.0, 0.5]}
    weights = {"a/x": 0.1, "a/y": 0.1, "b/x": 1.0, "b/y": 1.0}
    loss_B = {name: torch.tensor(x, requires_grad=True) for name, x in values.items()}
    losses = {name: LOSSES["mse"](SHAPES) for name in values}
    drop = TeacherDropping(1.0, {name: Origin(*name.split("/")) for name in values}, losses)
    found = drop(loss_B, weights, make_batch(index_B=torch.arange(2)))
    sum(weights[name] * loss for name, loss in found.items()).backward()
    expected = {"a/x": [0, 0.1], "a/y": [0.1, 0], "b/x": [0, 1], "b/y": [1, 0]}
    for name, grad in expected.items():
        assert loss_B[name].grad.tolist() == pytest.approx(grad), name
        assert float(found[name].detach()) == pytest.approx(sum(values[name]) / 2)


def test_the_teacher_of_the_largest_loss_is_always_kept():
    torch.manual_seed(0)
    loss_TB = torch.rand(3, 50)
    share_TB = kept_weights(loss_TB, torch.ones(3, 50, dtype=torch.bool))
    assert torch.equal(share_TB.argmax(0), loss_TB.argmax(0))
    assert torch.equal((share_TB > 0).sum(0), torch.ones(50, dtype=torch.int64))
    assert share_TB.mean() == pytest.approx(1)
    nothing = torch.zeros(3, 50, dtype=torch.bool)
    assert torch.equal(kept_weights(loss_TB, nothing), torch.ones(3, 50))


def test_draws_belong_to_step_and_image_and_not_to_the_batch():
    index_B = torch.randperm(4000)
    batch = make_batch(7, index_B)
    dropped_TB = draw_dropped(batch, 3, 0.3)
    assert dropped_TB.shape == (3, 4000)
    assert dropped_TB.float().mean(1).numpy() == pytest.approx([0.3] * 3, abs=0.03)
    assert (dropped_TB[0] & dropped_TB[1]).float().mean() == pytest.approx(0.09, abs=0.02)
    half = draw_dropped(make_batch(7, index_B[1000:1500]), 3, 0.3)
    assert torch.equal(half, dropped_TB[:, 1000:1500])
    other = draw_dropped(make_batch(8, index_B), 3, 0.3)
    assert (other & dropped_TB).float().mean() == pytest.approx(0.09, abs=0.02)


def test_shares_are_those_of_the_whole_batch_on_several_processes(monkeypatch):
    torch.manual_seed(0)
    loss_TB, dropped_TB = torch.rand(2, 8), torch.rand(2, 8) < 0.5
    dropped_TB[:, 4:] = True
    whole = kept_weights(loss_TB, dropped_TB)
    means = []
    for rows in (slice(0, 4), slice(4, 8)):
        with monkeypatch.context() as patch:
            patch.setattr(dropping, "mean_over_processes", lambda x: means.append(x) or x)
            kept_weights(loss_TB[:, rows], dropped_TB[:, rows])
    assert means[0] != means[1]
    monkeypatch.setattr(dropping, "mean_over_processes", lambda x: sum(means) / 2)
    halves = [kept_weights(loss_TB[:, r], dropped_TB[:, r]) for r in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(torch.cat(halves, 1), whole)


BY_IMAGE = [kind for kind, cls in LOSSES.classes.items() if cls.forward is Loss.forward]


def random_views(width, views=2):
    return Outputs(
        Representation(
            torch.randn(COUNT, width),
            maps={name: torch.randn(COUNT, *shape) for name, shape in MAPS.items()},
        )
        for _ in range(views)
    )


def test_the_losses_that_match_features_are_means_over_images():
    matching = {"cosine", "fd", "fitnet", "mse", "simreg", "smooth_l1", "theia", "unic"}
    assert matching <= set(BY_IMAGE)


@pytest.mark.parametrize("kind", BY_IMAGE)
def test_an_image_has_its_own_loss_and_their_mean_is_the_loss(kind):
    torch.manual_seed(0)
    loss = LOSSES.build(LOSSES.schema(kind)(), SHAPES)
    assert loss.is_mean_over_images
    loss.fit_teacher(Representation(torch.randn(NUM_SAMPLES, 16)))
    ours, theirs = random_views(12), random_views(16)
    twin = copy.deepcopy(loss)
    loss_B = loss.train().per_image(ours, theirs, make_batch())
    assert loss_B.shape == (COUNT,)
    assert loss_B.dtype == torch.float32
    assert torch.equal(loss_B.mean(), twin.train()(ours, theirs, make_batch()))
    # Out of training, so that no statistic of the batch ties images to one another.
    before_B = loss.eval().per_image(ours, theirs, make_batch())
    changed = copy.deepcopy(ours)
    for tensor in (changed[1].embedding_BD, *changed[1].maps.values()):
        tensor[2] += 1 + torch.randn_like(tensor[2])
    after_B = loss.per_image(changed, theirs, make_batch())
    moved_B = (after_B - before_B).abs() > 1e-5
    assert moved_B.tolist() == [number == 2 for number in range(COUNT)]
