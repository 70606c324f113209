"""Shared parts of steps that only reduce the file size."""

from collections.abc import Iterable

from torch import nn

from ssdistill.artifacts.coding.file import pack_state
from ssdistill.compress import Context
from ssdistill.models.model import Model

STORAGE_ONLY = "unchanged: storage only"
"""Value of ``speed`` in the record of steps that only shorten the file."""


def names(net: nn.Module, keys: Iterable[str]) -> dict[str, str]:
    """Every name of the parameters called ``keys``, which layers may share, to that key."""
    of = {id(net.get_parameter(key)): key for key in keys}
    parameters = net.named_parameters(remove_duplicate=False)
    return {name: of[id(parameter)] for name, parameter in parameters if id(parameter) in of}


def report(model: Model, context: Context) -> None:
    """Record how many bytes the file has, and that nothing else has changed (``speed``).

    ``bytes_fixed`` are those without Huffman's code, ``bytes_entropy`` those with it.
    """
    state = model.net.state_dict()
    context.record.update(
        bytes_fixed=len(pack_state(state, model.coded, entropy=False)[0]),
        bytes_entropy=len(pack_state(state, model.coded)[0]),
        speed=STORAGE_ONLY,
    )
