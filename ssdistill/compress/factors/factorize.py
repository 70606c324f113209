"""Replace layers by factors, and verify the result."""

import copy
from collections.abc import Mapping

import torch

from ssdistill.compress import Context
from ssdistill.compress.bisection import HALVINGS, bisect
from ssdistill.compress.comparing import relative_cost
from ssdistill.compress.factors.decompose import Method, decompose
from ssdistill.compress.factors.moments import Moments
from ssdistill.compress.factors.ranks import Choices, Option, most_saved, options_saving
from ssdistill.errors import UserError
from ssdistill.models.factorized import Factorized, Rank
from ssdistill.models.model import Model
from ssdistill.models.structure import fit_structure


def factorized(
    model: Model, ranks: Mapping[str, Rank], method: Method, stats: Mapping[str, Moments]
) -> Model:
    """A copy of ``model`` with factors of these ranks, by layer, in place of the layers."""
    result = copy.deepcopy(model)
    for name, rank in ranks.items():
        layer = result.net.get_submodule(name)
        replace(result, name, decompose(layer, method, rank, stats.get(name)))
    return result


def options_within_latency(
    model: Model,
    layers: Mapping[str, Choices],
    method: Method,
    stats: Mapping[str, Moments],
    latency: float,
    context: Context,
) -> dict[str, Option]:
    """Bisect to the mildest ranks that meet a latency budget.

    Args:
        latency: fraction of the time for one input to keep at most, in ONNX Runtime on one thread,
            measured in turns with ``model``.

    Raises:
        UserError: out of reach; the fraction that the smallest ranks reach is given.
    """
    with relative_cost("latency", model) as relative_latency:

        def measure(saved: float) -> tuple[float, dict[str, Option]]:
            options = options_saving(layers, "macs", saved)
            ranks = {name: o.rank for name, o in options.items() if o.rank is not None}
            return relative_latency(factorized(model, ranks, method, stats)), options

        most = most_saved(layers, "macs")
        severest = measure(most)
        if severest[0] > latency:
            raise out_of_reach(model, "latency", latency, severest[0])
        title = f"factorize to {latency:.0%} of the latency"
        halvings = context.progress(range(HALVINGS["latency"]), title)
        _, (_, options) = bisect(
            most, 0.0, severest, measure, lambda measured: measured[0] <= latency, halvings
        )
    return options


def out_of_reach(model: Model, key: str, budget: float, least: float) -> UserError:
    """Error for a budget below ``least``, which the smallest ranks reach."""
    return UserError(
        f"lowrank: {key}={budget:g} cannot be reached for '{model.name}': the smallest ranks "
        f"still leave {least:.3f}; lower round_to or select more layers"
    )


def replace(model: Model, name: str, factors: Factorized) -> None:
    """Put ``factors`` in the place of a layer, wherever the network refers to it.

    What is known of the layer's output channels is known of those of ``expand`` from then on,
    and how its weight is to be stored no longer says anything.
    """
    layer = model.net.get_submodule(name)
    aliases = [n for n, m in model.net.named_modules(remove_duplicate=False) if m is layer]
    for alias in aliases:
        model.net.set_submodule(alias, factors)
        model.coded = {k: v for k, v in model.coded.items() if k.rpartition(".")[0] != alias}
        if alias in model.channels:
            model.channels[f"{alias}.expand"] = model.channels.pop(alias)


@torch.no_grad()
def verify(model: Model, result: Model) -> None:
    """Check that the result runs in eval mode and can be saved and loaded.

    Raises:
        UserError: code of the network that cannot do without the layer as it was, embeddings
            of another width or that are not finite, or tensors that cannot be loaded again.
    """
    try:
        embedding_BD = result(model.example(2)).embedding_BD
    except Exception as error:  # whatever a network's own code stumbles upon
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UserError(
            f"lowrank: '{model.name}' fails to run once factorized: {reason}; exclude its layers"
        ) from error
    if embedding_BD.shape[1] != model.embed_dim or not embedding_BD.isfinite().all():
        raise UserError(
            f"lowrank: '{model.name}' returns invalid embeddings once factorized; use larger ranks"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # a fresh network draws its weights
            fit_structure(model.fresh_net(), result.net.state_dict(), model.removed)
    except UserError as error:
        raise UserError(
            f"lowrank: the factorized '{model.name}' cannot be saved and loaded: {error}"
        ) from error
