"""Reshape a freshly built dense network so that a pruned state dict fits it exactly."""

from torch import Tensor, nn

from ssdistill.errors import UserError


def resize_like(net: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Give the convolutions, linear layers and batch norms of ``net`` the widths of ``state``.

    Only channel counts change: kernel sizes, strides and everything without a channel count
    stay. The new tensors are empty; load ``state`` afterwards.

    Args:
        net: the dense network, changed in place and returned.
        state: a plain state dict with the same keys and at most the same widths.

    Raises:
        UserError: a tensor whose shape no change of width explains; it is named.
    """
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        own = dict(module.named_parameters(recurse=False))
        own |= dict(module.named_buffers(recurse=False))
        stored = {k: state[prefix + k] for k in own if prefix + k in state}
        if all(own[k].shape == value.shape for k, value in stored.items()):
            continue
        for key, value in stored.items():
            if not _fits(module, own[key], value):
                shapes = f"{tuple(value.shape)} in the file, {tuple(own[key].shape)} in the network"
                raise UserError(f"tensor '{prefix}{key}' has shape {shapes}")
        _set_widths(module, stored["weight"].shape)
        for key, value in stored.items():
            _resize_tensor(module, key, own[key], value)
    return net


def _fits(module: nn.Module, ours: Tensor, theirs: Tensor) -> bool:
    known = isinstance(module, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm))
    if not known or ours.ndim != theirs.ndim or ours.shape[2:] != theirs.shape[2:]:
        return False
    if any(new > old for new, old in zip(theirs.shape, ours.shape, strict=True)):
        return False
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        # Only a depthwise convolution can lose channels without a change of its group layout.
        return module.groups == module.in_channels or ours.shape == theirs.shape
    return True


def _set_widths(module: nn.Module, shape: tuple[int, ...]) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Conv2d):
        if module.groups > 1:
            multiplier = module.out_channels // module.groups
            module.groups = module.in_channels = shape[0] // multiplier
        else:
            module.in_channels = shape[1]
        module.out_channels = shape[0]
    else:
        module.num_features = shape[0]


def _resize_tensor(module: nn.Module, key: str, ours: Tensor, theirs: Tensor) -> None:
    fresh = ours.new_empty(theirs.shape)
    if key in module._parameters:
        module._parameters[key] = nn.Parameter(fresh, requires_grad=ours.requires_grad)
    else:
        module._buffers[key] = fresh
