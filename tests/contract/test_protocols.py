"""What every registered protocol must do; a new one is tested without being named."""

import inspect
import json
import math
import random
import re

import numpy as np
import pytest
import torch
from tiny_subjects import (
    KINDS,
    TEST,
    TRAIN,
    build,
    documented,
    fingerprint,
    make_encoder,
    make_images,
    subject,
)

from ssdistill.errors import UserError
from ssdistill.evaluate.protocols import Protocol
from ssdistill.evaluate.subject import LabeledImages
from ssdistill.settings.registry import PROTOCOLS

TESTED = {
    "knn": {"top1_by_k_and_temperature"},
    "low_shot": {"top1_by_draw"},
    "robust": {"top1", "images"},
}
"""Details that tell of the test images, and so may change with them."""
CHOICES = {
    "strength",
    "held_out_loss",
    "held_out_top1",
    "lr",
    "lr_chosen_on",
    "loss",
    "steps",
    "n_train",
    "layer",
}
"""Details of a protocol that is not known here which must not."""
KNOWN = ("knn", "linear", "linear_sgd", "finetune", "low_shot", "robust", "transfer")

every_kind = pytest.mark.parametrize("kind", KINDS)


def global_states(seed=None):
    """Of torch, NumPy and Python, after seeding them where a seed is given."""
    if seed is not None:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
    numpys = np.random.get_state()[1:3]  # noqa: NPY002
    return torch.get_rng_state().numpy(), *numpys, np.array(random.getstate()[1])


@every_kind
def test_the_encoder_is_left_as_it_was(kind):
    encoder = make_encoder().train()
    encoder.net.bn1.eval()
    encoder.net.bn1.weight.requires_grad_(False)
    before = fingerprint(encoder)
    build(kind).run(subject(encoder))
    assert fingerprint(encoder) == before


@every_kind
def test_global_generators_are_left_as_they_were(kind):
    judged = subject()
    before = global_states(seed=11)
    build(kind).run(judged)
    for now, then in zip(global_states(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@every_kind
def test_the_same_call_finds_the_same_whatever_the_global_generators(kind, found):
    global_states(seed=1234)
    again = build(kind).run(subject())
    assert again.metrics == found(kind).metrics
    assert again.details == found(kind).details


@every_kind
def test_metrics_are_numbers_named_after_the_protocol(kind, found):
    assert found(kind).protocol == kind
    assert found(kind).metrics
    for name, value in found(kind).metrics.items():
        assert re.fullmatch(f"probe/{kind}/[a-z0-9_]+(/[a-z0-9_]+)*", name), name
        assert isinstance(value, int | float) and math.isfinite(value), name
        if "top" in name.rsplit("/", 1)[1]:
            assert 0 <= value <= 100, name


@every_kind
def test_settings_and_details_are_plain_values(kind, found):
    json.dumps(found(kind).details, allow_nan=False)
    settings = json.loads(json.dumps(found(kind).settings, allow_nan=False))
    assert settings.keys() == PROTOCOLS.schema(kind).model_fields.keys() - {"kind"}
    assert found(kind).seconds > 0


@every_kind
def test_the_settings_of_a_result_are_those_of_a_config_that_repeats_it(kind, found):
    schema = PROTOCOLS.schema(kind)
    settings = json.loads(json.dumps(found(kind).settings))
    assert PROTOCOLS.build(schema.model_validate(settings)).name == found(kind).protocol


@every_kind
def test_accuracies_are_those_of_the_answers(kind, found):
    """What is reported is one set of answers, not the best number of several."""
    classification = found(kind).classification
    if classification is None:
        pytest.skip("no answer per image")
    assert (classification.targets == TEST.labels).all()
    top1 = 100 * (classification.predictions == TEST.labels).mean()
    assert found(kind)["top1"] == pytest.approx(top1) and top1 > 20
    assert found(kind)["top1_low"] <= top1 <= found(kind)["top1_high"]


@every_kind
def test_it_names_its_source_and_explains_every_setting(kind):
    cls = PROTOCOLS[kind]
    assert issubclass(cls, Protocol) and re.fullmatch("[a-z][a-z0-9_]*", kind)
    assert len(cls.paper) > 10 and "\n" not in cls.paper
    assert cls.__doc__.splitlines()[0].endswith(".")
    settings = PROTOCOLS.schema(kind).model_fields.keys() - {"kind"}
    assert documented(cls) == settings
    for parameter in inspect.signature(cls.__init__).parameters.values():
        assert parameter.name == "self" or parameter.kind is parameter.KEYWORD_ONLY


@every_kind
def test_presets_set_what_a_config_may_leave_open(kind):
    cls, fields = PROTOCOLS[kind], PROTOCOLS.schema(kind).model_fields
    for preset, values in cls.presets.items():
        for name, value in values.items():
            assert fields[name].default is None, name
            # A preset's value is one that a config may give.
            given = PROTOCOLS.schema(kind)(**{name: value})
            assert getattr(given, name) == value
        made = cls(preset=preset)
        assert made.name == f"{kind}_{preset}" and re.fullmatch("[a-z0-9_]+", made.name)
        assert re.search(rf"``{preset}``", cls.__doc__), preset
    if cls.presets:
        with pytest.raises(UserError, match=f"{kind}.preset: 'solox' is unknown"):
            cls(preset="solox")
    else:
        assert "preset" not in fields


def test_no_two_protocols_have_one_name():
    names = [
        name
        for kind, cls in PROTOCOLS.classes.items()
        for name in (kind, *(f"{kind}_{preset}" for preset in cls.presets))
    ]
    assert len(names) == len(set(names))


@every_kind
def test_test_images_decide_nothing(kind, found):
    """Other test images, in another order, with other labels: everything chosen is the same."""
    other = make_images(7, seed=5)
    shuffled = LabeledImages(255 - other.images, np.random.default_rng(0).permutation(other.labels))
    result = build(kind).run(subject(test=shuffled))
    details = found(kind).details
    named = details.keys() - TESTED.get(kind, set()) if kind in KNOWN else details.keys() & CHOICES
    assert {k: result.details[k] for k in named} == {k: details[k] for k in named}
    for name in ("weight_KD", "bias_K"):
        if name in found(kind).arrays:
            assert torch.equal(result.arrays[name], found(kind).arrays[name])


@every_kind
@pytest.mark.parametrize("split", ["training", "test"])
def test_without_labels_there_is_one_line_that_says_so(kind, split, found):
    train, test = TRAIN, TEST
    if split == "training":
        train = LabeledImages(TRAIN.images, None)
    else:
        test = LabeledImages(TEST.images, None)
    try:
        result = build(kind).run(subject(train=train, test=test))
    except UserError as error:
        assert f"{split} labels are missing" in str(error) and "\n" not in str(error)
    else:
        # It never needed them.
        assert result.metrics == found(kind).metrics


@every_kind
def test_one_class_is_refused_in_one_line_or_judged(kind):
    one = LabeledImages(TRAIN.images, np.zeros(len(TRAIN), int))
    try:
        result = build(kind).run(subject(train=one, test=make_images(2, 3, classes=1)))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(map(math.isfinite, result.metrics.values()))
