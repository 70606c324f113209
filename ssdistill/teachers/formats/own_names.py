"""Names of tensors in files of no known project, compared with those of the network."""

from collections.abc import Mapping

from torch import Tensor

INSIDE = "net."
"""Begins all names of a network of a plug-in or a program, which is a module in a wrapper."""


def of_own_network(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file by the names that they have in the wrapper of a network.

    Args:
        state: of the file, with or without the wrapper's prefix, or any other one.
        own: of the network in its wrapper.
    """
    inside = {f"{INSIDE}{name.removeprefix(INSIDE)}": t for name, t in state.items()}
    return unprefixed(inside, own, INSIDE)


def unprefixed(
    state: dict[str, Tensor], own: Mapping[str, Tensor], inside: str = ""
) -> dict[str, Tensor]:
    """Tensors without the prefix, such as ``backbone.``, under which most of them fit."""
    prefixes = {inside}
    for name in state:
        for known in own:
            if name.endswith(f".{known.removeprefix(inside)}"):
                prefixes.add(name.removesuffix(known.removeprefix(inside)))

    def fitting(prefix: str) -> int:
        return sum(
            f"{inside}{name.removeprefix(prefix)}" in own
            for name in state
            if name.startswith(prefix)
        )

    best = max(sorted(prefixes, key=len), key=fitting)
    return {f"{inside}{n.removeprefix(best)}": t for n, t in state.items() if n.startswith(best)}
