"""Teachers from torchvision's model collection."""

import re
from collections import OrderedDict
from typing import Any, cast

import timm
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from ssdistill.errors import UserError, nearest
from ssdistill.models.backbones import Encoder, EncoderSpec, encoder_around
from ssdistill.models.downloads import downloading
from ssdistill.models.spec import RGB
from ssdistill.models.torchvision_net import (
    TorchvisionNet,
    create_torchvision_net,
    first_convolution,
    torchvision_names,
)
from ssdistill.settings import Size
from ssdistill.teachers import ImageSpec, Teacher
from ssdistill.teachers.channels import channel_notices
from ssdistill.teachers.formats.reading import sha256_of
from ssdistill.teachers.sizes import fit_size, size_inside, size_notices
from ssdistill.teachers.torchvision_equivalents import timm_equivalent
from ssdistill.teachers.weights import check_keys, finite_notices, read_state, weights_file

AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Auxiliary classifiers, used only in training."""


class TorchvisionModel(Teacher):
    """A classifier of torchvision at published weights, its last linear layer removed.

    Where timm has the same network, which is found out by comparing embeddings of a noise
    image, it is built by timm and gives feature maps too.

    Args:
        name: any of torchvision's classifiers.
        weights: ``DEFAULT`` or null, the best torchvision has; the name of others, e.g.
            ``IMAGENET1K_V1``; or a file with torchvision's keys, which is normalized like the
            default.
        input_size: side, in pixels, or ``[height, width]`` to which images are resized inside.
            Null is the size of the weights where images are smaller or the architecture has a
            fixed size.
    """

    kind = "torchvision"

    def __init__(
        self, *, name: str, weights: str | None = "DEFAULT", input_size: Size | None = None
    ):
        self.name, self.weights, self.input_size = name, weights or "DEFAULT", input_size

    def identity(self) -> dict[str, Any]:
        published = self._published()
        if self.weights in published:
            return {"url": published[self.weights].url}
        return {"sha256": sha256_of(weights_file(self._path(published)))}

    def load(self, image_spec: ImageSpec) -> tuple[Encoder, list[str]]:
        published = self._published()
        chosen = published.get(self.weights)
        channels = len(image_spec.mean)
        net, args, side = self._net(self._state(published), channels)
        look = (chosen or published["DEFAULT"]).transforms()
        native = side or look.crop_size[0]
        size = size_inside(self.input_size, native, image_spec.image_size, fixed=bool(side))
        spec = EncoderSpec(
            name=self.name,
            args=args,
            image_size=image_spec.image_size,
            input_size=size,
            mean=tuple(look.mean) if channels == RGB else image_spec.mean,
            std=tuple(look.std) if channels == RGB else image_spec.std,
            library="torchvision",
        )
        encoder = encoder_around(spec, net).eval()
        fit_size(encoder, native)
        twin = timm_equivalent(self.name, net, encoder.spec.size, channels)
        notices = []
        if twin is None:
            notices.append(
                f"torchvision's {self.name} has no timm equivalent and provides no feature maps"
            )
        else:
            update = {"name": twin[0], "args": twin[1], "library": "timm"}
            encoder = encoder_around(encoder.spec.model_copy(update=update), twin[2]).eval()
        notices += [*finite_notices(encoder), *channel_notices(encoder), *size_notices(encoder)]
        return encoder, notices

    def _published(self) -> dict[str, WeightsEnum]:
        known = torchvision_names()
        if self.name not in known:
            raise UserError(
                f"teacher.name: torchvision has no classifier '{self.name}'"
                f"{nearest(self.name, known)}; correct the name"
            )
        # With aliases, of which DEFAULT is one.
        return dict(torchvision.models.get_model_weights(self.name).__members__)

    def _path(self, published: dict[str, WeightsEnum]) -> str:
        try:
            weights_file(self.weights)
        except UserError as error:
            raise UserError(f"{error}; torchvision's weights: {', '.join(published)}") from None
        return self.weights

    def _state(self, published: dict[str, WeightsEnum]) -> dict[str, Tensor]:
        if self.weights not in published:
            return read_state(weights_file(self._path(published)))
        what = f"teacher.name: weights of torchvision's '{self.name}'"
        with downloading(what, "set teacher.weights=FILE to load them from a file"):
            return published[self.weights].get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )

    def _net(
        self, state: dict[str, Tensor], channels: int = RGB
    ) -> tuple[TorchvisionNet, dict[str, Any], int | None]:
        """The network at weights ``state``, its arguments and the size it is bound to, if any."""
        # Files of DenseNet are older than its modules' names.
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", key): value
            for key, value in state.items()
        }
        args: dict[str, Any] = {}
        if "encoder.pos_embedding" in state and "conv_proj.weight" in state:
            tokens = state["encoder.pos_embedding"].shape[1] - 1
            args["image_size"] = round(tokens**0.5) * state["conv_proj.weight"].shape[-1]
        net = create_torchvision_net(self.name, args, channels)
        removed = (f"{net.classifier}.", *AUXILIARY)
        kept: Any = OrderedDict((k, v) for k, v in state.items() if not k.startswith(removed))
        # MNASNet asks for the version of its layout, which only pickled state dicts carry.
        kept._metadata = cast("Any", net.net.state_dict())._metadata
        first = f"{first_convolution(net.net)}.weight"
        if channels != RGB and first in kept and kept[first].shape[1] == RGB:
            kept[first] = timm.models.adapt_input_conv(channels, kept[first])
        source = f"teacher.weights: {self.weights}"
        try:
            result = net.net.load_state_dict(kept, strict=False)
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise UserError(
                f"{source} does not fit '{self.name}' ({why}); correct teacher.name"
            ) from error
        # Files older than torch 0.4 do not count batches.
        missing = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
        check_keys(self.name, source, missing, result.unexpected_keys)
        return net, args, args.get("image_size")
