"""Checks of what protocols report of a tiny encoder on tiny labeled images.

The labels are made here; those of data sources are read in ``evaluate`` alone.
"""

import inspect
import json
import math
import random
import re
from functools import partial
from typing import Any

import numpy as np
import torch

from ssdistill.errors import UserError
from ssdistill.evaluate.protocols import Protocol
from ssdistill.evaluate.result import Result
from ssdistill.evaluate.subject import LabeledImages
from ssdistill.testing.candidate import (
    DESCRIBED,
    Candidate,
    Check,
    demand,
    demand_close,
    names_its_origin,
    one_line_error,
    refused,
    skip,
)
from ssdistill.testing.tiny_subjects import (
    TEST,
    TRAIN,
    fingerprint,
    make_encoder,
    make_images,
    subject,
)

CHANCE = 20
"""Percent; of ten classes, and images that are neither hopeless nor easy."""
PARTS = "values", "devices", "dtypes", "trained", "gradients", "modes", "hooks"


def found(candidate: Candidate) -> Result:
    """Its result on the tiny images, made once."""
    return candidate.once("result", lambda: candidate.build().run(subject()))


def global_states(seed: int | None = None) -> tuple[np.ndarray, ...]:
    """Of torch, NumPy and Python, after seeding them where a seed is given."""
    if seed is not None:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
    numpys: Any = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy(), *numpys[1:3], np.array(random.getstate()[1])


def encoder_is_left_as_it_was(candidate: Candidate) -> None:
    """Weights, buffers, gradients, modes and hooks of the encoder stay."""
    encoder = make_encoder().train()
    first: Any = encoder.net.bn1
    first.eval()
    first.weight.requires_grad_(False)
    before = fingerprint(encoder)
    candidate.build().run(subject(encoder))
    after = fingerprint(encoder)
    changed = [part for part in PARTS if after[part] != before[part]]
    demand(not changed, f"the encoder is not left as it was: {', '.join(changed)} of its parts")


def global_generators_are_left(candidate: Candidate) -> None:
    """Random numbers of torch, NumPy and Python go on as if it had not run."""
    evaluated = subject()
    before = global_states(seed=11)
    candidate.build().run(evaluated)
    for name, now, then in zip(
        ("torch", "numpy", "numpy", "random"), global_states(), before, strict=True
    ):
        demand(np.array_equal(now, then), f"it draws from the global generator of {name}")


def same_call_finds_the_same(candidate: Candidate) -> None:
    """Global random numbers change nothing."""
    global_states(seed=1234)
    again = candidate.build().run(subject())
    demand(again.metrics == found(candidate).metrics, "another run has other metrics; set a seed")
    demand(again.details == found(candidate).details, "another run has other details; set a seed")


def metrics_are_named_numbers(candidate: Candidate) -> None:
    """Metrics are finite numbers, named after the protocol; accuracies are percentages."""
    result = found(candidate)
    demand(result.protocol == result_name(candidate), f"protocol={result.protocol!r}")
    demand(result.metrics, "it reports no metric")
    for name, value in result.metrics.items():
        usable = re.fullmatch(f"probe/{result.protocol}/[a-z0-9_]+(/[a-z0-9_]+)*", name)
        demand(usable, f"'{name}' is no name of a metric; use a-z, 0-9, _ and /")
        demand(isinstance(value, int | float) and math.isfinite(value), f"{name} is {value!r}")
        if "top" in name.rsplit("/", 1)[1]:
            demand(0 <= value <= 100, f"{name} is {value}; accuracies are percentages")


def result_name(candidate: Candidate) -> str:
    """What metrics are named after: the kind and, where one is chosen, the preset."""
    preset = candidate.settings.get("preset")
    return f"{candidate.kind}_{preset}" if preset else candidate.kind


def settings_and_details_are_plain(candidate: Candidate) -> None:
    """Settings and details can be written as JSON, and all settings are kept."""
    json.dumps(found(candidate).details, allow_nan=False)
    settings = json.loads(json.dumps(found(candidate).settings, allow_nan=False))
    missing = settings.keys() ^ (candidate.schema.model_fields.keys() - {"kind"})
    demand(not missing, f"the result does not have the settings {', '.join(sorted(missing))}")
    demand(found(candidate).seconds > 0, "it takes no time")


def settings_repeat_the_result(candidate: Candidate) -> None:
    """The settings of a result are those of a config that repeats it."""
    settings = json.loads(json.dumps(found(candidate).settings))
    again = candidate.registry.build_of(candidate.cls, candidate.schema.model_validate(settings))
    demand(again.name == found(candidate).protocol, f"its settings make {again.name}")


def accuracies_are_those_of_the_answers(candidate: Candidate) -> None:
    """What is reported is one set of answers, not the best number of several."""
    result = found(candidate)
    if result.classification is None:
        skip("no answer per image")
    classification = result.classification
    demand((classification.targets == TEST.labels).all(), "its targets are not the test labels")
    top1 = 100 * float((classification.predictions == TEST.labels).mean())
    demand_close(float(result["top1"]), top1, 1e-6, 1e-12, "top1")
    demand(top1 > CHANCE, f"top1 is {top1:.1f}, hardly above chance, on easy images")
    inside = result["top1_low"] <= top1 <= result["top1_high"]
    demand(inside, "top1 lies outside of its interval")


def has_config_keys_alone(candidate: Candidate) -> None:
    """Its citation; every argument of its constructor is a setting, and all are documented."""
    cls = candidate.cls
    demand(issubclass(cls, Protocol), "it is no subclass of Protocol")
    names_its_origin(candidate)
    documented = documented_arguments(cls)
    extra = documented ^ (candidate.schema.model_fields.keys() - {"kind"})
    demand(not extra, f"Args of the docstring and settings differ: {', '.join(sorted(extra))}")
    for parameter in inspect.signature(cls.__init__).parameters.values():
        keyword = parameter.name == "self" or parameter.kind is parameter.KEYWORD_ONLY
        demand(keyword, f"{parameter.name} must be keyword-only: def __init__(self, *, …)")


def documented_arguments(cls: type) -> set[str]:
    """Names below ``Args:`` in the docstring of a class."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Args:")
    named = re.findall(r"^ {4}([a-z0-9_]+(?:, [a-z0-9_]+)*):", section, re.MULTILINE)
    return {name for names in named for name in names.split(", ")}


def presets_set_what_may_be_open(candidate: Candidate) -> None:
    """Presets have values that a config may set, are documented, and unknown ones are refused."""
    cls, fields = candidate.cls, candidate.schema.model_fields
    if not cls.presets:
        demand("preset" not in fields, "it has a setting preset, but no presets")
        return
    for preset, values in cls.presets.items():
        for name, value in values.items():
            demand(fields[name].default is None, f"{name} of a preset must be None by default")
            # A preset's value is one that a config may give.
            chosen = getattr(candidate.schema(**{name: value}), name)
            demand(chosen == value, f"{name}={value} of preset {preset} becomes {chosen}")
        made = cls(preset=preset)
        demand(made.name == f"{candidate.kind}_{preset}", f"preset {preset} is called {made.name}")
        demand(re.fullmatch("[a-z0-9_]+", made.name), f"'{made.name}' is no name of a metric")
        demand(re.search(rf"``{preset}``", cls.__doc__), f"preset {preset} is not documented")
    text = refused(lambda: cls(preset="solox"), "an unknown preset")
    named = f"{candidate.kind}.preset: 'solox' is unknown" in text
    demand(named, f"an unknown preset is refused without its name: {text}")


def missing_labels_are_named(candidate: Candidate, split: str) -> None:
    """Without labels of a split there is one line that says so, or the same result."""
    bare = LabeledImages((TRAIN if split == "training" else TEST).images, None)
    changed = {"train" if split == "training" else "test": bare}
    try:
        result = candidate.build().run(subject(**changed))
    except UserError as error:
        one_line_error(error, f"missing {split} labels")
        said = f"{split} labels are missing" in str(error)
        demand(said, f"without {split} labels it says: {error}")
    else:
        # It never needed them.
        same = result.metrics == found(candidate).metrics
        demand(same, f"without {split} labels it finds other metrics, and says nothing")


def one_class_is_refused_or_evaluated(candidate: Candidate) -> None:
    """Images of one class are refused in one line, or have finite metrics."""
    one = LabeledImages(TRAIN.images, np.zeros(len(TRAIN), int))
    try:
        result = candidate.build().run(subject(train=one, test=make_images(2, 3, classes=1)))
    except UserError as error:
        one_line_error(error, "images of one class")
    else:
        finite = all(map(math.isfinite, result.metrics.values()))
        demand(finite, "metrics of images of one class are not finite")


REPORTS = {
    **DESCRIBED,
    "description": Check(has_config_keys_alone),
    "presets": Check(presets_set_what_may_be_open),
    "encoder_untouched": Check(encoder_is_left_as_it_was),
    "global_generators": Check(global_generators_are_left),
    "repeatable": Check(same_call_finds_the_same),
    "metrics": Check(metrics_are_named_numbers),
    "plain_values": Check(settings_and_details_are_plain),
    "settings_of_the_result": Check(settings_repeat_the_result),
    "accuracy": Check(accuracies_are_those_of_the_answers),
    "no_training_labels": Check(partial(missing_labels_are_named, split="training")),
    "no_test_labels": Check(partial(missing_labels_are_named, split="test")),
    "one_class": Check(one_class_is_refused_or_evaluated),
}
"""What every protocol reports, and how."""
