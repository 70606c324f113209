"""Arguments that choose which weights are loaded, by every name that timm or torchvision gives."""

import pytest

from ssdistill.models.allowed_args import HARMLESS, loading_refusal, refused_argument

NAMES = ("file", "url", "hf_hub_id", "state_dict", "weights", "weights_backbone", "progress",
         "pretrained", "checkpoint_path", "cache_dir")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_chooses_weights_is_refused_in_a_config_and_in_a_file(name):
    assert loading_refusal({"depth": 1, name: 1}).startswith(f"'{name}' selects which weights")
    for library in ("timm", "torchvision"):
        reason = refused_argument("resnet18", library, {name: 1})
        assert reason == f"{name}: a file may not choose which weights are loaded"


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_loads_nothing_is_taken(name):
    assert loading_refusal({name: True}) is None
    assert refused_argument("resnet18", "timm", {name: True}) is None
