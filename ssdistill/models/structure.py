"""Reshape a freshly built network so that a compressed state dict fits it exactly.

Everything is read from the names and shapes of the tensors, so a compressed model needs no
pickle to come back.
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ssdistill.errors import UserError
from ssdistill.models.factorized import Factorized

WIDTHS = ("num_features", "num_channels", "embedding_dim", "normalized_shape")
"""Attributes that hold the number of channels of a module."""
HEADS = ("num_heads", "num_attention_heads", "n_heads")
HEAD_WIDTH = ("head_dim", "attention_head_size", "key_value_proj_dim")
ALL_HEADS = ("attn_dim", "all_head_size", "inner_dim")
"""Attributes of attention in timm and transformers: heads, width of one head, of all heads."""
QUERIES = {"qkv": 3, "query": 1, "q_proj": 1, "q_lin": 1, "q": 1}
"""Layers that output the queries, and their output width in units of all heads' width."""


def fit_structure(
    net: nn.Module, state: dict[str, Tensor], removed: Iterable[str] = ()
) -> nn.Module:
    """Give ``net`` the blocks, factors, widths, heads and biases of ``state``.

    Known are: narrower convolutions (depthwise and grouped ones too), linear layers, embeddings,
    norms and plain parameters such as a layer scale; attention with fewer heads of the same
    width; layers in two or three factors; biases that a layer did not have. Kernel sizes and
    strides stay. The new tensors are empty; load ``state`` afterwards.

    Args:
        net: the uncompressed network, changed in place and returned; may be on ``meta``.
        state: a plain state dict, with at most the widths of ``net``.
        removed: names of blocks that became ``nn.Identity``.

    Raises:
        UserError: a tensor whose shape none of this explains, or a block that ``net`` does not
            have; it is named.
    """
    modules = dict(net.named_modules())
    for name in removed:
        if name not in modules or not name:
            raise UserError(f"cannot remove block '{name}': the network has no block of that name")
        net.set_submodule(name, nn.Identity())
    for name, module in net.named_modules():
        _fit_heads(f"{name}." if name else "", module, state)
    _factorize(net, state)
    feeding = None
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        stored = {k: state[prefix + k] for k in _tensors(module) if prefix + k in state}
        feeding = _fit(prefix, module, stored, feeding) or feeding
    return net


def _tensors(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def _factorize(net: nn.Module, state: dict[str, Tensor]) -> None:
    for name, layer in list(net.named_modules()):
        if f"{name}.reduce.weight" in state and isinstance(layer, (_ConvNd, nn.Linear)):
            inside = f"{name}."
            shapes = {k[len(inside) :]: v.shape for k, v in state.items() if k.startswith(inside)}
            try:
                factors = Factorized.from_shapes(layer, shapes)
            except UserError as error:
                raise UserError(f"tensor '{name}.reduce.weight': {error}") from None
            net.set_submodule(name, factors)


def _fit_heads(prefix: str, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Set the number of heads of an attention module from the width of its queries."""
    heads = next((key for key in HEADS if isinstance(getattr(module, key, None), int)), None)
    layer = next((key for key in QUERIES if isinstance(getattr(module, key, None), nn.Linear)), "")
    weights = (state.get(f"{prefix}{layer}{part}.weight") for part in ("", ".expand"))
    weight = next((weight for weight in weights if weight is not None), None)
    if heads is None or weight is None:
        return
    before, times = getattr(module, layer).out_features, QUERIES[layer]
    if weight.shape[0] == before:
        return
    width = next((getattr(module, k) for k in HEAD_WIDTH if hasattr(module, k)), None)
    width = width or before // times // getattr(module, heads)
    if weight.shape[0] % (times * width) or not weight.shape[0]:
        raise UserError(
            f"tensor '{prefix}{layer}.weight' has shape {tuple(weight.shape)}: "
            f"its width is not a multiple of the head width {width}"
        )
    setattr(module, heads, weight.shape[0] // times // width)
    for key in ALL_HEADS:
        if hasattr(module, key):
            setattr(module, key, weight.shape[0] // times)


def _fit(
    prefix: str, module: nn.Module, stored: dict[str, Tensor], feeding: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Set one module's widths from the shapes of its tensors.

    Args:
        feeding: old and new output width of the layer before it, in the order of registration.

    Returns:
        its own old and new output width; None for a module without.
    """
    tensors = _tensors(module)
    old = {key: own for key in stored if (own := tensors[key]) is not None}
    widths = _widths(module, old, stored)
    if len(old) == len(stored) and all(old[k].shape == stored[k].shape for k in old):
        return widths
    for key, value in stored.items():
        layer = isinstance(module, (_ConvNd, nn.Linear)) and key == "weight"
        if not (_fits_layer if layer else _fits_plain)(key, value, old, stored, widths):
            expected = tuple(old[key].shape) if key in old else "absent"
            shapes = f"{tuple(value.shape)} in the file but {expected} in the network"
            raise UserError(f"tensor '{prefix}{key}' has shape {shapes}")
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = stored["weight"].shape
    elif isinstance(module, _ConvNd):
        _fit_convolution(prefix, module, stored["weight"].shape, feeding)
    else:
        _set_widths(prefix, module, old, stored)
    for key, value in stored.items():
        _resize(module, key, value.shape, like=old.get(key, next(iter(old.values()))))
    return widths


def _widths(
    module: nn.Module, old: dict[str, Tensor], stored: dict[str, Tensor]
) -> tuple[int, int] | None:
    if "weight" not in old or not old["weight"].ndim:
        return None
    transposed = isinstance(module, _ConvTransposeNd)
    axis = 1 if transposed or isinstance(module, nn.Embedding) else 0
    times = module.groups if transposed else 1
    return old["weight"].shape[axis] * times, stored["weight"].shape[axis] * times


def _fits_layer(key: str, value: Tensor, old: dict, stored: dict, widths: tuple | None) -> bool:
    own_size = old[key].shape
    narrower = all(n <= o for n, o in zip(value.shape[:2], own_size[:2], strict=True))
    return value.ndim == len(own_size) and value.shape[2:] == own_size[2:] and narrower


def _fits_plain(key: str, value: Tensor, old: dict, stored: dict, widths: tuple | None) -> bool:
    """Whether a tensor other than a layer's weight differs only in one width."""
    if key not in old:
        return key == "bias" and widths is not None and tuple(value.shape) == widths[1:]
    own_size = old[key].shape
    if value.ndim != len(own_size):
        return False
    changed = [axis for axis in range(value.ndim) if value.shape[axis] != own_size[axis]]
    # What is as wide as the module's output stays so.
    if value.ndim == 1 and widths is not None and len(own_size) and own_size[0] == widths[0]:
        return value.shape[0] == widths[1] <= widths[0]
    # A width is the last axis, or only axes for broadcasting follow it.
    return not changed or (
        len(changed) == 1
        and value.shape[changed[0]] < own_size[changed[0]]
        and all(size == 1 for size in own_size[changed[0] + 1 :])
    )


def _fit_convolution(
    prefix: str, conv: _ConvNd, shape: tuple[int, ...], feeding: tuple[int, int] | None
) -> None:
    transposed = isinstance(conv, _ConvTransposeNd)
    group_width = (conv.in_channels if transposed else conv.out_channels) // conv.groups
    if conv.groups == conv.in_channels > 1:  # depthwise
        conv.groups = shape[0] // group_width
    elif conv.groups > 1 and shape[1] == conv.weight.shape[1] and shape[0] != conv.weight.shape[0]:
        # Either whole groups are gone or some outputs of each: the layer before it tells.
        fed = feeding[1] if feeding and feeding[0] == conv.in_channels else None
        if not transposed and fed != conv.in_channels:
            conv.groups = shape[0] // group_width
    if shape[0] % conv.groups:
        raise UserError(
            f"tensor '{prefix}weight' has shape {tuple(shape)}: not divisible into {conv.groups} "
            "groups"
        )
    several = shape[1] * conv.groups
    conv.in_channels, conv.out_channels = (shape[0], several) if transposed else (several, shape[0])


def _set_widths(
    prefix: str, module: nn.Module, old: dict[str, Tensor], stored: dict[str, Tensor]
) -> None:
    """Set the attributes that say how wide a norm or the like is."""
    sizes = {(b, a) for k in old for b, a in zip(old[k].shape, stored[k].shape, strict=True)}
    changed = dict(pair for pair in sizes if pair[0] != pair[1])
    for key in WIDTHS:
        value = getattr(module, key, None)
        if isinstance(value, int):
            setattr(module, key, changed.get(value, value))
        elif isinstance(value, tuple):
            setattr(module, key, tuple(changed.get(size, size) for size in value))
    if isinstance(module, nn.GroupNorm) and module.num_channels % module.num_groups:
        raise UserError(
            f"tensor '{prefix}weight' has {module.num_channels} channels: "
            f"not divisible into {module.num_groups} groups"
        )


def _resize(module: nn.Module, key: str, shape: tuple[int, ...], like: Tensor) -> None:
    resized = like.new_empty(shape)
    if key in module._parameters:
        module._parameters[key] = nn.Parameter(resized, requires_grad=like.requires_grad)
    else:
        module._buffers[key] = resized
