"""Patch features behind a network's last norm, of transformers and of convolutional networks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from ssdistill.models.examples import black_image
from ssdistill.models.taps import looking
from ssdistill.models.trial import trial_of

FINAL = "final:"
"""Prefix of the names of taps behind the last norm: ``final:blocks.10`` is the map of that block
of a transformer, through the norm of the last one."""
FINAL_PATCHES = "final:patches"
"""Name of the tap of what is pooled."""
MOST_OTHERS = 8
"""Class and register tokens that are looked for in networks that do not say how many they have."""
PATCH_TOKENS, ALL_TOKENS = "x_norm_patchtokens", "last_hidden_state"
"""Keys or attributes under which models of DINOv2 and of transformers return tokens."""


def final_patches(net: nn.Module, features: Any, ratio: float) -> Tensor | None:
    """What a network pools to its embedding, as a map (B, C, H, W); None where there is no grid.

    Of a transformer these are the tokens of patches, behind the last norm if that is before the
    pooling, without class and register tokens; of a convolutional network its last map.

    Args:
        net: of timm, or in the wrapper of a network of one's own.
        features: what its ``forward_features`` returns.
        ratio: height by width of the image.
    """
    prefix = getattr(net, "num_prefix_tokens", 0)
    if not isinstance(features, Tensor):
        for name in (PATCH_TOKENS, ALL_TOKENS):
            found = features.get(name) if isinstance(features, Mapping) else None
            found = getattr(features, name, None) if found is None else found
            if isinstance(found, Tensor):
                features = found
                break
        else:
            return None
    if features.ndim == 4:
        channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if channels_last else features
    if features.ndim != 3:
        return None
    grid = token_grid(features.shape[1], ratio, prefix, max(prefix, MOST_OTHERS))
    if grid is None:
        return None
    height, width = grid
    return features[:, -height * width :].mT.unflatten(2, grid)


def stages_behind(taps: Iterable[str]) -> list[str]:
    """The network stages whose maps some taps are made of, each once."""
    names = (name.removeprefix(FINAL) for name in taps if name != FINAL_PATCHES)
    return list(dict.fromkeys(name for name in names if ":" not in name))


def add_final_maps(
    net: nn.Module,
    features: Any,
    maps: dict[str, Tensor],
    taps: Iterable[str],
    size: Sequence[int],
) -> None:
    """Add the maps of taps behind the last norm to those of the stages.

    Args:
        features: what the network's ``forward_features`` returns.
        maps: (B, C, H, W) by name, changed in place.
        size: height and width of the images.
    """
    for name in taps:
        if name == FINAL_PATCHES:
            maps[name] = cast("Tensor", final_patches(net, features, size[0] / size[1]))
        elif name.startswith(FINAL):
            map_BHWC = maps[name.removeprefix(FINAL)].permute(0, 2, 3, 1)
            maps[name] = cast("Any", net).norm(map_BHWC).permute(0, 3, 1, 2)


def normed_stages(net: nn.Module, stages: Sequence[str]) -> list[str]:
    """Stages of a transformer to whose maps its last norm can be applied: all have its width."""
    norm = getattr(net, "norm", None)
    info = getattr(net, "feature_info", None) or ()
    if norm is None or not hasattr(net, "blocks") or len(info) != len(stages):
        return []
    # Networks that average their tokens have their norm behind that, and the identity here.
    (width,) = getattr(norm, "normalized_shape", (getattr(net, "num_features", 0),))
    plain = {(one["num_chs"], one["reduction"]) for one in info}
    return [*stages] if len(plain) == 1 and next(iter(plain))[0] == width else []


def has_final_patches(encoder: Any) -> bool:
    """Whether an encoder's network has such patches, found by encoding one black image."""
    size, ratio = encoder.spec.image_size, encoder.spec.ratio
    black_1CHW = black_image(encoder, size)
    found: list[Tensor | None] = []
    with looking(encoder):
        with trial_of(encoder, size):
            found = [final_patches(encoder.net, encoder.features(black_1CHW), ratio)]
        if not found:  # only numbers tell
            found = [final_patches(encoder.net, encoder.features(black_1CHW), ratio)]
    return found[0] is not None


def token_grid(
    tokens: int, ratio: float, least_others: int = 0, most_others: int = MOST_OTHERS
) -> tuple[int, int] | None:
    """Height and width of the patches among tokens; the others, such as a class token, are first.

    Args:
        ratio: height by width of the image.
        least_others, most_others: how many others there may be.
    """
    for others in range(least_others, min(most_others, tokens - 1) + 1):
        height = round(((tokens - others) * ratio) ** 0.5)
        width = round(height / ratio)
        if height * width == tokens - others and height and width:
            return height, width
    return None
