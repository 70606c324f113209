"""Arguments of networks that come from a file, or that would read one.

Building a network of timm's runs timm's code with the arguments of a config, or of somebody's
``model.json``. A few of these make timm open a file, a folder or an address. A file may set the
sizes, widths, depths and named choices of the network's own constructor, and nothing else.
"""

import inspect
import math
import re
import sys
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

import timm
import torchvision
from pydantic import AfterValidator
from timm.models._builder import build_model_with_cfg

from ssdistill.errors import shortened

PLAIN = re.compile(r"[A-Za-z0-9_+-]{0,64}")
"""A named choice such as ``deep_tiered``: no path, address, hub id or expression."""
LARGEST, DEEPEST, LONGEST = 2**20, 4, 4096
"""Limits of a number, of the nesting of lists, and of the length of a list."""
NO_CHOICES = {"args", "kwargs", "_", "cfg", "device", "dtype", "hooks", "named_modules"}
"""Constructor parameters that are neither a size nor a named option; ``…_fn`` neither."""
TAKEN_BEFORE = {
    "attn_type", "bias", "bn_eps", "bn_momentum", "bn_tf", "class_token", "depthwise", "dilated",
    "dynamic_img_size", "embed_layer", "eps", "final_norm", "head_conv_bias", "inplace",
    "no_embed_class", "norm_eps", "num_reg_tokens", "pad_type", "padding", "padding_same", "pruned",
    "qkv_fused", "reduced_tail", "ref_feat_shape", "reg_tokens", "rope_grid_indexing",
    "rope_grid_offset", "rope_mixed_mode", "rope_rotate_half", "rope_temperature", "rope_type",
    "rotate_half", "scale_attn_inner", "scale_attn_norm", "scale_mlp", "scale_mlp_norm",
    "strict_img_size", "swiglu_mlp", "use_abs_pos_emb", "use_fc_norm", "use_naflex",
    "use_post_transformer_norm", "use_pre_transformer_norm", "use_rot_pos_emb", "width_mult",
}  # fmt: skip
"""Sizes and options that timm's and torchvision's functions consume before a constructor."""
HARMLESS = {"scriptable", "exportable", "no_jit"}
SOURCES = {"file", "url", "hf_hub_id", "state_dict", "weights", "weights_backbone", "progress"}


@cache
def loading_arguments() -> frozenset[str]:
    """Arguments that select which weights are loaded, and from where."""
    functions = timm.create_model, build_model_with_cfg
    names = {name for function in functions for name in inspect.signature(function).parameters}
    return frozenset(names | SOURCES) - HARMLESS - {"kwargs"}


def loading_argument(args: Mapping[str, Any]) -> str | None:
    """First argument that would make timm load weights; None if there is none."""
    return next((name for name in args if name in loading_arguments()), None)


def loading_refusal(args: Mapping[str, Any]) -> str | None:
    """Explain why a weight-loading argument is rejected; None if there is none."""
    if (name := loading_argument(args)) is None:
        return None
    return (
        f"'{name}' selects which weights to load: use encoder.pretrained=true for timm's, "
        "teacher.weights=FILE with teacher.kind=timm, or teacher.kind=checkpoint"
    )


def _build_only(args: dict[str, Any]) -> dict[str, Any]:
    if reason := loading_refusal(args):
        raise ValueError(reason)
    return args


BuildingArgs = Annotated[dict[str, Any], AfterValidator(_build_only)]
"""Arguments from a config; any that load weights are rejected, for no hash would cover them."""


def refused_argument(name: str, library: str, args: Mapping[str, Any]) -> str | None:
    """Find a disallowed argument in a file, as ``key: reason``; None if all are allowed.

    Args:
        name: of the network; an unknown one is rejected when it is built.
        library: ``timm`` or ``torchvision``.
        args: JSON values.
    """
    allowed = _constructor_arguments(name, library) if args else frozenset()
    for key, value in args.items():
        if key in loading_arguments():
            return f"{key}: a file may not choose which weights are loaded"
        if allowed and key not in allowed | TAKEN_BEFORE | HARMLESS:
            return f"{shortened(key)}: not a size, width, depth or option of '{name}'"
        if reason := _refused_value(value):
            return f"{shortened(key)}: {reason}"
    return None


def _refused_value(value: Any, depth: int = 0) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        fits = math.isfinite(value) and abs(value) <= LARGEST
        return None if fits else f"{value!r:.40} is not a number up to {LARGEST}"
    if isinstance(value, str):
        return None if PLAIN.fullmatch(value) else f"{value[:40]!r} is not a plain name"
    if not isinstance(value, list | tuple | dict) or depth == DEEPEST or len(value) > LONGEST:
        return "only numbers, names and short lists of them are allowed"
    if isinstance(value, dict):
        value = [*value, *value.values()]
    reasons = (_refused_value(part, depth + 1) for part in value)
    return next((reason for reason in reasons if reason), None)


@cache
def _constructor_arguments(name: str, library: str) -> frozenset[str]:
    """Constructor parameters of all classes in the module that builds a network."""
    if library == "torchvision":
        builders = torchvision.models.list_models(module=torchvision.models)
        builder = torchvision.models.get_model_builder(name) if name in builders else None
    else:
        builder = timm.models.model_entrypoint(name) if timm.is_model(name) else None
    if builder is None:
        return frozenset()
    classes = filter(inspect.isclass, vars(sys.modules[builder.__module__]).values())
    names = {name for cls in classes for name in _parameters(cls)} - NO_CHOICES
    return frozenset(name for name in names if not name.endswith("_fn"))


def _parameters(cls: type) -> list[str]:
    try:
        return list(inspect.signature(cls.__init__).parameters)[1:]
    except (ValueError, TypeError):  # one that is not written in Python
        return []
