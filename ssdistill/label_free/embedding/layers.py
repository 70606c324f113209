"""What of an encoder's output is written: the embedding, the projection or the patches."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ssdistill.errors import UserError, nearest
from ssdistill.models.backbones import Encoder

LAYERS = ("embedding", "projection", "patch")
"""``embedding`` (N, D) is pooled, ``projection`` (N, P) is that of the projector of pretraining,
``patch`` (N, T, D) are the tokens of a transformer or the positions of a network's last map."""


def check_layer(layer: str) -> None:
    """Raise UserError for an unknown layer; the nearest one is named."""
    if layer not in LAYERS:
        raise UserError(
            f"layer={layer}: unknown layer{nearest(layer, LAYERS)}; "
            f"choose one of {', '.join(LAYERS)}"
        )


def layer_of(encoder: Any, layer: str, name: str) -> Callable[[Tensor], Any]:
    """Return a function from images (B, C, H, W) to the layer's output for each.

    Args:
        encoder: anything that maps float BCHW images in [0, 1] to a Representation.
        layer: one of :data:`LAYERS`.
        name: of the encoder, for messages.

    Raises:
        UserError: an unknown layer, or one that this encoder does not have.
    """
    check_layer(layer)
    if layer == "embedding":
        return lambda x_BCHW: encoder(x_BCHW).embedding_BD
    if layer == "projection":
        return _projection(encoder, name)
    if not isinstance(encoder, Encoder) or not hasattr(encoder.net, "num_features"):
        raise UserError(
            f"layer=patch: {name} gives embeddings only; pass the PyTorch model it was made from, "
            "or choose layer=embedding"
        )
    return lambda x_BCHW: _patches(encoder, encoder.features(x_BCHW), name)


def _projection(encoder: Any, name: str) -> Callable[[Tensor], Tensor]:
    error = UserError(
        f"layer=projection: {name} has no projector; pass a pretrained model that kept one, or "
        "choose layer=embedding"
    )
    if isinstance(encoder, Encoder):
        projector = encoder.projector
        if projector is None:
            raise error
        return lambda x_BCHW: projector(encoder(x_BCHW).embedding_BD)

    def project(x_BCHW: Tensor) -> Tensor:
        projection_BP = getattr(encoder(x_BCHW), "projection_BP", None)
        if projection_BP is None:
            raise error
        return projection_BP

    return project


def _patches(encoder: Encoder, features: Any, name: str) -> Tensor:
    """Return (B, T, D) without class and register tokens, from top left to bottom right."""
    net: Any = encoder.net
    if isinstance(features, Tensor) and features.ndim == 3:
        has_class_token = getattr(net, "cls_token", None) is not None
        prefix = getattr(net, "num_prefix_tokens", int(has_class_token))
        return features[:, prefix:]
    if isinstance(features, Tensor) and features.ndim == 4:
        # timm's own word; where there is none, channels come first.
        if getattr(net, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)
    raise UserError(
        f"layer=patch: the network of {name} gives neither tokens nor a map of features; choose "
        "layer=embedding"
    )
