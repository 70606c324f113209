"""torchvision classifiers behind the methods that an encoder calls."""

from typing import Any, cast

import timm
import torchvision
from torch import Tensor, nn

from ssdistill.errors import UserError, nearest
from ssdistill.models.spec import RGB
from ssdistill.models.trial import check_arguments, refusing

IMPLIED = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": False}
    for name in ("googlenet", "inception_v3")
}
"""Arguments torchvision itself changes when it loads weights, by model."""


class TorchvisionNet(nn.Module):
    """A torchvision classifier without its last linear layer.

    Its forward pass is one piece: it gives no feature maps.

    Attributes:
        num_features: width of what the last linear layer was given.
        classifier: name of that layer in torchvision's network.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        linear = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise UserError(
                f"torchvision's {type(net).__name__} has no linear classifier; "
                "choose another network"
            )
        self.classifier = linear[-1]
        self.num_features = cast("nn.Linear", net.get_submodule(self.classifier)).in_features
        net.set_submodule(self.classifier, nn.Identity())
        self.net = net

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """The embedding (B, num_features) of normalized images."""
        return self.net(x_BCHW)

    def forward_head(self, features_BD: Tensor, pre_logits: bool = True) -> Tensor:
        """Return the embedding unchanged."""
        return features_BD

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.forward_features(x_BCHW)


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def create_torchvision_net(name: str, args: dict[str, Any], channels: int = RGB) -> TorchvisionNet:
    """Build the network called ``name`` with random weights, without downloading.

    For other than three ``channels`` its first convolution is adapted as timm adapts one: summed
    for one channel, else repeated and scaled.

    Raises:
        UserError: a name or an argument torchvision does not know.
    """
    known = torchvision_names()
    if name not in known:
        raise UserError(
            f"torchvision has no classifier '{name}'{nearest(name, known)}; correct the name"
        )
    check_arguments(args, "args")
    implied = IMPLIED.get(name, {})
    if implied and channels != RGB:
        implied = implied | {"transform_input": False}  # it takes red, green and blue apart
    with refusing(f"arguments of torchvision's '{name}'"):
        net = torchvision.models.get_model(name, weights=None, **implied | args)
    if channels != RGB:
        first = cast("nn.Conv2d", net.get_submodule(first_convolution(net)))
        weight = timm.models.adapt_input_conv(channels, first.weight.detach())
        first.weight, first.in_channels = nn.Parameter(weight), channels
    return TorchvisionNet(net)


def first_convolution(net: nn.Module) -> str:
    """Name of the convolution that is given the images in a network of torchvision's."""
    return next(name for name, m in net.named_modules() if isinstance(m, nn.Conv2d))
