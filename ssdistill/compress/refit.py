"""Least-squares reconstruction after pruning, for layers that lost inputs."""

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ssdistill.compress import Context, Step, bar
from ssdistill.compress.fitting.consumers import (
    comparable,
    consumers,
    dense_of,
    kept_outputs,
    likeness,
)
from ssdistill.compress.fitting.gram import Gram, best_map
from ssdistill.compress.fitting.observing import ObservedModel
from ssdistill.compress.fitting.targets import BATCH, PLACES, Batches, Targets, split_batches
from ssdistill.compress.preconditions import refuse_non_finite
from ssdistill.errors import UserError
from ssdistill.models.factorized import Plain
from ssdistill.models.model import Model
from ssdistill.settings import OpenFraction, Positive, PositiveInt

RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CHECKS = 256
"""Further inputs on which the result is evaluated."""


class Refit(Step):
    """New weights, in closed form and without labels, for the layers that lost their inputs.

    It follows ``prune`` and ``lowrank`` and restores the network as it was before those; see
    :func:`refit_layers`. The result is kept only if its embeddings agree better than before with
    the uncompressed network's, on inputs that the fit has not seen.

    Args:
        images: unlabeled inputs to fit to; at least a quarter of what there is remains to
            evaluate the result.
        held_out: fraction of them that chooses the ridge of every layer.
        ridges: penalties on the change of the weights to choose from, in units of the mean
            variance of a layer's inputs.
        depthwise: refit depthwise convolutions as well, each channel by itself.
        streams: correct the residual stream at the end of branches.
        seed: of the choice of images and places.
    """

    kind = "refit"
    paper = "He et al., ICCV 2017, arXiv:1707.06168"
    makes = "refitted"

    def __init__(
        self,
        *,
        images: PositiveInt = 384,
        held_out: OpenFraction = 0.25,
        ridges: Annotated[list[Positive], Field(min_length=1)] = list(RIDGES),  # noqa: B006
        depthwise: bool = True,
        streams: bool = True,
        seed: int = 0,
    ):
        self.images, self.seed = images, seed
        self.settings = {
            "held_out": held_out,
            "ridges": ridges,
            "depthwise": depthwise,
            "streams": streams,
            "seed": seed,
        }

    def apply(self, model: Model, context: Context) -> Model:
        """A refitted copy of ``model``.

        ``context.record`` receives how many ``layers`` were ``refitted`` and how many ``kept``,
        the mean fraction of their squared error that was ``left``, ``seconds``, ``cka_before``,
        ``cka_after`` and ``accepted`` (0 or 1).

        Raises:
            UserError: nothing to compare with, no layer that lost inputs, and what
                :func:`refit_layers` refuses.
        """
        dense = dense_of(model, context, self.kind)
        inputs = context.images(self.images + CHECKS, self.seed)
        count = min(self.images, len(inputs) * 3 // 4)
        started = time.perf_counter()
        fitted, fits = refit_layers(
            model, dense, inputs[:count], progress=context.progress, **self.settings
        )
        seconds = time.perf_counter() - started
        before, after = (likeness(m, dense, inputs[count:]) for m in (model, fitted))
        refitted = [fit.left for fit in fits if fit.left < 1]
        context.record.update(
            refitted=len(refitted),
            kept=len(fits) - len(refitted),
            left=sum(fit.left for fit in fits) / len(fits),
            seconds=seconds,
            cka_before=before,
            cka_after=after,
            accepted=int(after > before),
        )
        return fitted if after > before else copy.deepcopy(model)


@dataclass(frozen=True)
class Fit:
    """Outcome of one layer's reconstruction.

    Attributes:
        layer: its name in ``net``.
        left: fraction of its squared error on held-out inputs that is left; 1 where it was kept.
    """

    layer: str
    left: float


def refit(pruned: Model, dense: Model, inputs: Tensor, **settings: Any) -> Model:
    """What :func:`refit_layers` returns, without its report."""
    return refit_layers(pruned, dense, inputs, **settings)[0]


@torch.no_grad()
def refit_layers(
    pruned: Model,
    dense: Model,
    inputs: Tensor,
    *,
    ridges: Sequence[float] = RIDGES,
    held_out: float = 0.25,
    depthwise: bool = True,
    streams: bool = True,
    seed: int = 0,
    progress: Callable[[Sequence[Any], str], Iterable[Any]] = bar,
) -> tuple[Model, list[Fit]]:
    """Fit the layers that lost inputs by least squares, to reconstruct the uncompressed network.

    In the order of execution every such layer gets, in closed form,

        argmin over W, b of |W x' + b - y|^2 + ridge |W - W0|^2

    where x' is its input in the pruned network, refitted so far, and y is what makes the pruned
    network equal to ``dense`` behind the layer: the output there or, at the end of a residual
    branch, the stream of ``dense`` after the addition less the pruned stream before it
    (after He et al., ICCV 2017, arXiv:1707.06168, eq. 5 and section 3.3). Batch norms and layer
    scales in between are accounted for. The ridge, in units of the mean variance of x', is
    chosen by layer on held-out inputs. A layer that none improves is kept, and so is one whose
    weight is standardized or parametrized on its way to the convolution.

    Inputs are read in batches, at most 64 places of a feature map each; only sums as large as
    one layer and up to half a gigabyte of outputs stay in memory.

    Args:
        pruned: left as it is; ``pruned.channels`` says which outputs its layers still have.
        dense: the uncompressed network, left as it is; may itself have been pruned earlier.
        inputs: unlabeled inputs, stacked along the first axis.
        ridges: penalties to choose from.
        held_out: fraction of the inputs that choose, evenly spread; the final fit has them too.
        depthwise: refit depthwise convolutions as well, each channel by itself.
        streams: correct the residual stream at the end of branches.
        seed: of the choice of places.
        progress: wraps the iteration over layers.

    Returns:
        the refitted copy of ``pruned``, and what became of each layer.

    Raises:
        UserError: fewer than eight inputs, no layer that lost inputs, weights or inputs that
            are not finite, or networks that do not belong together.
    """
    refuse_non_finite("refit", pruned)
    refuse_non_finite("refit", dense)
    batches = split_batches(inputs, held_out)
    narrow, wide = (
        ObservedModel(m, inputs[:2], streams, BATCH * PLACES, seed) for m in (pruned, dense)
    )
    pairs = consumers(pruned, dense, wide.traced, depthwise)
    if not pairs:
        raise UserError(f"refit must follow prune: no layer of '{pruned.name}' has lost inputs")
    remaining_outputs = {
        name: kept_outputs(pruned, dense, name, dense_name) for name, dense_name in pairs.items()
    }
    order = [
        name
        for name, calls in narrow.traced.items()
        if name in pairs
        and comparable(calls, wide.traced.get(pairs[name], []), remaining_outputs[name])
    ]
    targets = Targets(wide, batches, {name: pairs[name] for name in order})
    fits = {name: Fit(name, 1.0) for name in pairs}
    for name in progress(order, "refit"):
        sums = _sums(narrow, batches, name, remaining_outputs[name], targets)
        weight_GO = narrow.traced[name][0].scale_O.square().view_as(sums[0].y_GO)
        map_GKO, bias_GO, left = best_map(*sums, ridges, weight_GO)
        if left < 1:
            _add_map(narrow, name, map_GKO, bias_GO)
            fits[name] = Fit(name, left)
    for module, original_module in zip(narrow.model.modules(), pruned.modules(), strict=True):
        module.training = original_module.training
    return narrow.model, list(fits.values())


def _sums(
    narrow: ObservedModel,
    batches: Batches,
    name: str,
    kept_O: Tensor,
    targets: Targets,
) -> tuple[Gram, Gram]:
    """What determines the change of one layer: from the inputs to fit, and those held out."""
    sums = Gram(), Gram()
    target_outputs = targets.of(name)
    for index, (batch, is_held_out) in enumerate(batches):
        calls = narrow.observe(batch, index, [name], True)[name]
        for call, target_NO in zip(calls, target_outputs[index], strict=True):
            correction_NO = target_NO[:, kept_O.to(target_NO.device)] - call.end_NO
            scale_O = call.scale_O
            # An output that is multiplied by nothing needs no change.
            is_silent_O = scale_O.abs() <= 1e-6 * scale_O.abs().max()
            correction_NO = torch.where(is_silent_O, 0.0, correction_NO / scale_O)
            x_NGK = cast("Tensor", call.x_NGK)  # observed with inputs
            correction_NGO = correction_NO.unflatten(1, (x_NGK.shape[1], -1))
            sums[is_held_out].add(x_NGK, correction_NGO)
    return sums


def _add_map(narrow: ObservedModel, name: str, map_GKO: Tensor, bias_GO: Tensor) -> None:
    """Add a map to a layer; a bias it cannot hold goes into the batch norm behind it."""
    net, calls = narrow.model.net, narrow.traced[name]
    layer, bias_O = cast("Plain", net.get_submodule(name)), bias_GO.flatten()
    weight = layer.weight
    weight += map_GKO.transpose(1, 2).reshape(weight.shape).to(weight)
    if layer.bias is not None:
        layer.bias.add_(bias_O.to(weight))
    elif len(calls) == 1 and calls[0].uses == 1 and calls[0].norm is not None:
        mean_O = cast("Tensor", net.get_submodule(calls[0].norm).running_mean)
        mean_O -= bias_O.to(weight)
    else:
        layer.bias = nn.Parameter(bias_O.to(weight), requires_grad=weight.requires_grad)
