"""Slips of the pen, and words that are nobody's slip."""

import pytest

from ssdistill.errors import closest, nearest
from ssdistill.experiment.overrides import nearest_option
from ssdistill.experiment.schema import Experiment
from ssdistill.settings.places import names, setting_places
from ssdistill.settings.registry import LOSSES, METHODS, PROTOCOLS, SOURCES, STEPS

KEYS, SECTIONS = list(setting_places(Experiment)), list(names(Experiment))
OPTIONS = {f"--{name}": False for name in ("runs", "dry-run", "publish", "on", "trust", "debug")}


@pytest.mark.parametrize(
    "slip, meant, known",
    [
        ("dta", "data", SECTIONS),
        ("sed", "seeds", SECTIONS),
        ("techer", "teacher", SECTIONS),
        ("distil", "distill", SECTIONS),
        ("studnet", "student", SECTIONS),
        ("pretrian", "pretrain", SECTIONS),
        ("temprature", "temperature", KEYS),
        ("wieght", "weight", KEYS),
        ("wait_decay", "weight_decay", KEYS),
        ("checkpoint_second", "checkpoint_seconds", KEYS),
        ("Batch-Size", "batch_size", KEYS),
        ("rl", "lr", ["lr", "kind", "steps"]),
        ("nzp", "npz", list(SOURCES.classes)),
        ("cifar01", "cifar10", list(SOURCES.classes)),
        ("CIFAR10", "cifar10", list(SOURCES.classes)),
        ("SimCLR", "simclr", list(METHODS.classes)),
        ("mea", "mae", list(METHODS.classes)),
        ("sahre", "share", list(STEPS.classes)),
        ("kn", "knn", list(PROTOCOLS.classes)),
        ("kk", "k", ["k", "distance", "weights"]),
        ("hidden", "hidden_dim", ["kind", "hidden_dim", "output_dim"]),
        ("fp15", "fp16", ["auto", "fp32", "bf16", "fp16"]),
    ],
)
def test_a_slip_is_told_what_was_meant(slip, meant, known):
    assert closest(slip, known) == meant
    assert nearest(slip, known) == f" (did you mean '{meant}'?)"


@pytest.mark.parametrize(
    "word, known",
    [
        ("x", SECTIONS),
        ("foo", SECTIONS),
        ("gpu", SECTIONS),
        ("optimizer", SECTIONS),
        ("epochs", SECTIONS),
        ("time", SECTIONS),
        ("hint", list(LOSSES.classes)),
        ("imagenet", list(SOURCES.classes)),
        ("csv", list(SOURCES.classes)),
        ("bert", list(METHODS.classes)),
        ("fp8", ["auto", "fp32", "bf16", "fp16"]),
        ("cuda", ["auto", "cpu", "gpu"]),
        ("x" * 200_000, KEYS),
    ],
)
def test_a_word_that_is_nothing_like_it_is_no_slip(word, known):
    assert closest(word, known) == nearest(word, known) == ""


@pytest.mark.parametrize("word", ["runz", "--runz=x", "--dry_run", "dryrun", "--publsih"])
def test_options_are_suggested_with_their_hyphens(word):
    meant = {"r": "--runs", "d": "--dry-run", "p": "--publish"}[word.strip("-")[0]]
    assert nearest_option(word, OPTIONS) == f" (did you mean '{meant}'?)"


@pytest.mark.parametrize("word", ["output", "verbose", "workers", "--jobs"])
def test_another_programs_option_is_like_none(word):
    assert nearest_option(word, OPTIONS) == ""


def test_of_several_alike_the_first_is_meant():
    assert closest("A", ["a", "b"]) == "a"
    assert closest("Ab", ["ab", "AB"]) == "ab"
    assert closest("a", []) == ""
