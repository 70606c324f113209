import pytest
from pydantic import ValidationError

from ssdistill.losses import LossSettings
from ssdistill.losses.base.maps import stages


def weights(steps=11, **settings):
    return [LossSettings(**settings).weight_at(step, steps) for step in range(steps)]


def test_a_constant_weight_stays():
    assert set(weights(weight=2.0)) == {2.0}


def test_a_warm_up_rises_in_equal_steps_and_then_stays():
    found = weights(10, weight=2.0, warmup=0.4)
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.0] + [2.0] * 6)


def test_a_cosine_falls_to_its_end_at_the_last_step():
    found = weights(weight=4.0, schedule="cosine", weight_end=0.25)
    assert found[0] == 4.0
    assert found[5] == pytest.approx(2.5)
    assert found[-1] == pytest.approx(1.0)
    assert found == sorted(found, reverse=True)


def test_warm_up_and_cosine_follow_one_another():
    found = weights(20, schedule="cosine", warmup=0.25)
    assert found[4] == max(found) == pytest.approx(1.0)
    assert found[-1] == pytest.approx(0.0)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_trainings_have_weights(steps):
    assert all(0 <= w <= 1 for w in weights(steps, schedule="cosine", warmup=1.0))


@pytest.mark.parametrize("pairs", ["diagonal", [], [[0]], [[0, -1]]])
def test_pairs_that_are_none_are_refused(pairs):
    with pytest.raises(ValidationError, match="pairs"):
        LossSettings(pairs=pairs)


def test_stages_are_spread_over_the_depth_and_end_with_the_last():
    resnet = dict.fromkeys(("act1", "layer1", "layer2", "layer3", "layer4"), (1, 1, 1))
    blocks = {f"blocks.{i}": (1, 1, 1) for i in range(12)}
    special = {"before_relu:layer4": (1, 1, 1)}
    assert stages(resnet | special, 4) == ["layer1", "layer2", "layer3", "layer4"]
    assert stages(blocks, 4) == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    assert stages(resnet, 1) == ["layer4"]
