"""Verify that a pruned network matches the masked one and can be saved and loaded."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssdistill.compress.pruning.narrow import ChannelGroup, masked, remove
from ssdistill.compress.pruning.tracing import unsupported
from ssdistill.errors import UserError
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.model import Model
from ssdistill.models.structure import fit_structure

TOLERANCE = 1e-3
"""Largest accepted difference to the masked network, relative to the largest value."""
SHAPES = ("num_heads", "head_dim", "attn_dim", "num_attention_heads", "all_head_size", "groups",
          "num_groups", "in_features", "out_features", "in_channels", "out_channels",
          "num_features", "num_channels", "normalized_shape")  # fmt: skip


@torch.no_grad()
def unsound(model: Model, groups: Sequence[ChannelGroup]) -> list[str]:
    """Return the roots of groups whose removal is not what it should be.

    The network fails without them, or gives something else than with zeros in their place.

    Half of the units of all groups at once, and only if that goes wrong of each alone.
    """
    if not groups:
        return []
    model = _with_visible_scales(model)
    if _removal_is_exact(model, groups):
        return []
    return [group.root for group in groups if not _removal_is_exact(model, [group])]


def _with_visible_scales(model: Model) -> Model:
    """Return a copy in which every scale counts.

    Fresh norms and layer scales may begin at zero, and then nothing that is wrong within a residual
    branch would show.
    """
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for name, parameter in model.net.named_parameters():
        if parameter.ndim == 1 and not name.endswith("bias"):
            value_C = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.copy_(value_C.to(parameter))
    return model


def _removal_is_exact(model: Model, groups: Sequence[ChannelGroup]) -> bool:
    exact = [group for group in groups if group.exact]
    others = [group for group in groups if not group.exact]
    try:
        if exact:
            kept_units = [torch.arange(0, len(group.score_C), 2) for group in exact]
            expected_BD = _embed(masked(model, exact, kept_units))
            pruned_BD = _embed(remove(model, exact, kept_units))
            limit = TOLERANCE * expected_BD.abs().max().clamp(min=1e-6)
            # "not <=" so that NaN fails as well.
            if expected_BD.shape != pruned_BD.shape:
                return False
            if not (expected_BD - pruned_BD).abs().max() <= limit:
                return False
        if others:
            kept_units = [torch.arange(0, len(group.score_C), 2) for group in others]
            _embed(remove(model, others, kept_units))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return False
    return True


def _embed(model: Model) -> Tensor:
    return model.eval()(model.example(2)).embedding_BD


@torch.no_grad()
def verify(model: Model, pruned: Model) -> None:
    """Check that the pruned model runs and can be saved and loaded.

    Raises:
        UserError: another embedding width, values that are not finite, no parameter fewer, or
            a structure that cannot be told from the names and shapes of its tensors.
    """
    was_training = pruned.training
    try:
        embedding_BD = _embed(pruned)
    except Exception as error:  # whatever the network raises
        raise unsupported(model, error) from error
    finally:
        pruned.train(was_training)
    if embedding_BD.shape[1] != model.embed_dim:
        raise unsupported(model, f"the embedding shrank to {embedding_BD.shape[1]}")
    if not embedding_BD.isfinite().all():
        raise UserError(
            f"prune: the pruned '{model.name}' returns non-finite embeddings; lower the ratio"
        )
    if count_parameters(pruned) >= count_parameters(model):
        raise unsupported(model, "no parameter was removed")
    try:
        again = fit_structure(pruned.fresh_net(), pruned.net.state_dict(), pruned.removed)
    except UserError as error:
        raise unsupported(model, f"it cannot be saved and loaded: {error}") from error
    for name, module in again.named_modules():
        if _shape(module) != _shape(pruned.net.get_submodule(name)):
            raise unsupported(model, f"it cannot be saved and loaded: {name} would differ")


def _shape(module: nn.Module) -> list:
    return [type(module).__name__, *(getattr(module, key, None) for key in SHAPES)]
