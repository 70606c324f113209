"""What ``model.json`` tells those who open a model without this package."""

from typing import Any

from ssdistill.models.backbones import Encoder
from ssdistill.models.spec import EncoderSpec
from ssdistill.models.timm_net import building_args
from ssdistill.settings import size_text


def input_text(spec: EncoderSpec) -> str:
    """Describe the images an encoder takes."""
    sides = spec.image_size
    size = "image_size, image_size" if isinstance(sides, int) else f"{sides[0]}, {sides[1]}"
    return f"float32 images (B, {spec.in_chans}, {size}) in [0, 1]; normalization is built in"


def timm_facts(encoder: Encoder, facts: dict[str, Any], weights: str) -> dict[str, Any]:
    """Describe how timm opens the file directly, or why it cannot."""
    own = {
        f"{encoder.spec.library}'s {encoder.spec.name}": encoder.spec.library != "timm",
        f"the {encoder.spec.stem} stem": encoder.spec.stem != "native",
        "the pruned widths": bool(facts["widths"]),
        "the missing blocks": "removed" in facts,
        "the coded weights": "coded" in facts,
    }
    names = " and ".join(name for name, has in own.items() if has)
    note = f"timm does not know {names}; open it with ssdistill.load" if names else None
    arguments = {"model_name": encoder.spec.name, "num_classes": 0, **building_args(encoder.spec)}
    inside = encoder.spec.input_size
    size = f"{inside} pixels a side" if isinstance(inside, int) else inside and size_text(inside)
    return {
        "timm": None if note else arguments,
        "timm_note": note
        or f"timm.create_model(**timm, checkpoint_path='{weights}') expects images "
        "normalized with the spec's mean and std"
        + (f", {size}" if size else ""),
    }
