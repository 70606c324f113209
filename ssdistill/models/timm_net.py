"""Create networks of timm from the spec of an encoder."""

from typing import Any

import timm
from torch import nn

from ssdistill.errors import UserError, nearest
from ssdistill.models.downloads import downloading
from ssdistill.models.spec import RGB, EncoderSpec
from ssdistill.models.trial import check_arguments, check_fits, refuse_no_width, refusing

_FITTING: set[tuple[str, str]] = set()
"""Names and arguments of networks that are known to fit into memory."""


def create_timm_net(spec: EncoderSpec, pretrained: bool = False) -> nn.Module:
    """Build the network of a spec without classifier, with random or pretrained weights.

    Raises:
        UserError: a name or argument is unknown, or pretrained weights are unavailable.
    """
    check_timm_name(spec.name)
    check_arguments(spec.args, "encoder.args", spec.in_chans)
    args = building_args(spec)
    _check_fits(spec.name, args)
    config = timm.get_pretrained_cfg(spec.name)
    if pretrained and not (config and config.has_weights):
        raise UserError(f"timm has no weights for '{spec.name}': set encoder.pretrained=false")
    remedy = "set encoder.pretrained=false to start from random weights"
    with (
        refusing(f"encoder.args of '{spec.name}'"),
        downloading(f"weights of '{spec.name}'", remedy, hub=pretrained),
    ):
        net = timm.create_model(spec.name, pretrained=pretrained, num_classes=0, **args)
    refuse_no_width(spec.name, net)
    return net


def building_args(spec: EncoderSpec) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model``, including ``in_chans`` unless it is three.

    timm adapts pretrained weights of the first layer (``adapt_input_conv``): summed for one
    channel, otherwise repeated and scaled.
    """
    return spec.args | ({"in_chans": spec.in_chans} if spec.in_chans != RGB else {})


def _check_fits(name: str, args: dict[str, Any]) -> None:
    known = name, repr(sorted(args.items()))
    if known not in _FITTING:
        check_fits(
            lambda: timm.models.create_model(name, num_classes=0, **args), f"network '{name}'"
        )
        _FITTING.add(known)


def check_timm_name(name: str) -> None:
    """Check that timm knows a model name and its weights tag.

    Raises:
        UserError: it does not; the message names the nearest.
    """
    if not timm.is_model(name) or name.endswith("."):
        raise UserError(
            f"timm has no model '{name}'{nearest(name, timm.list_models())}; correct the name"
        )
    architecture, tag = timm.models.split_model_name_tag(name)
    known = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in known:
        raise UserError(
            f"timm has no pretrained weights '{name}'{nearest(name, known)}; correct the tag"
        )
