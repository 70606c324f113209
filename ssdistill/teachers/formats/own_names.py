"""Names of tensors in files of no known project, compared with those of the network."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

from ssdistill.teachers.formats.states import without_containers, without_wrappers

INSIDE = "net."
"""Begins all names of a network of a plug-in or a program, which is a module in a wrapper."""
State = dict[str, Tensor]


def of_own_network(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
    """Tensors of a file by the names that they have in the wrapper of a network.

    Parts such as ``module.`` and ``model.`` may be those of a parallel or saved module, or of the
    network itself, and whether a prefix is missing or one too many only the network tells: the
    reading under which most tensors fit is taken, and of equals that which changes least.

    Args:
        tensors: of the file, by the names that they have there.
        own: of the network in its wrapper.
    """
    inner = {name.removeprefix(INSIDE) for name in own}
    renamed = [found for names in _readings(tensors) for found in _prefixed(names, inner)]
    best = max(renamed, key=lambda names: len(inner.intersection(names.values())))
    return {f"{INSIDE}{new}": tensors[name] for name, new in best.items()}


def unprefixed(state: State, own: Mapping[str, Tensor]) -> State:
    """Tensors without the prefix, such as ``backbone.``, under which most of them fit."""
    best = max(
        _without_prefix({name: name for name in state}, own),
        key=lambda names: len(own.keys() & names.values()),
    )
    return {new: state[name] for name, new in best.items()}


def _readings(tensors: Iterable[str]) -> Iterator[dict[str, str]]:
    """New names by those in the file, with more and more of what wraps a network removed."""
    ways: list[Callable[[list[str]], list[str]]] = [
        lambda parts: parts,
        without_containers,
        without_wrappers,
        lambda parts: without_containers(without_wrappers(parts)),
    ]
    for way in ways:
        names = {name: ".".join(way(name.split("."))) for name in tensors}
        if len({*names.values()}) == len(names):
            yield names


def _prefixed(names: dict[str, str], inner: Iterable[str]) -> Iterator[dict[str, str]]:
    yield from _without_prefix(names, inner)
    ends = {f".{new}" for new in names.values()}
    added = {known.removesuffix(end[1:]) for known in inner for end in ends if known.endswith(end)}
    for prefix in sorted(added, key=lambda prefix: (len(prefix), prefix)):
        yield {name: prefix + new for name, new in names.items()}


def _without_prefix(names: dict[str, str], inner: Iterable[str]) -> Iterator[dict[str, str]]:
    """Names without a prefix after which one is known; none comes first, then the shortest."""
    prefixes = {
        new.removesuffix(known)
        for known in inner
        for new in names.values()
        if new.endswith(f".{known}")
    }
    for prefix in ["", *sorted(prefixes, key=lambda prefix: (len(prefix), prefix))]:
        yield {n: new.removeprefix(prefix) for n, new in names.items() if new.startswith(prefix)}
