"""Weight files written by other programs."""

import textwrap
from collections.abc import Iterable
from pathlib import Path

import timm
from torch import Tensor

from ssdistill.errors import UserError, no_file
from ssdistill.files import user_path
from ssdistill.models.backbones import Encoder
from ssdistill.teachers.formats.reading import check_zip
from ssdistill.teachers.formats.tensors import not_finite, unusable

SHOWN_KEYS = 4


def weights_file(path: str) -> Path:
    """Path of the weights file that a config names.

    Raises:
        UserError: there is none.
    """
    file = user_path(path)
    if not file.is_file():
        if file.is_dir():
            raise UserError(f"teacher.weights={path}: is a folder; name a file in it")
        raise UserError(no_file(f"teacher.weights={path}"))
    return file


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors or PyTorch file; no code of it is ever run.

    Raises:
        UserError: a file that is neither, or that holds other objects than tensors.
    """
    try:
        check_zip(path)
    except UserError as error:
        raise UserError(f"teacher.weights: {error}") from error
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # each of the formats has errors of its own
        raise UserError(
            f"teacher.weights: cannot read {path} ({why(error)}); name a "
            "safetensors file or a state_dict of PyTorch"
        ) from error
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (odd := unusable(tensor)):
            raise UserError(f"teacher.weights: {path}: tensor '{name}' {odd}")
    return state


def finite_notices(encoder: Encoder) -> list[str]:
    """Warn of weights that are NaN or infinite; empty if all are finite."""
    odd = not_finite(encoder.net.state_dict())
    return [f"{encoder.spec.name}: {odd}: embeddings will not be finite"] if odd else []


def why(error: Exception) -> str:
    """Why a library rejected a file, in one line."""
    if "weights_only" in str(error):  # timm and torch go on to advise what is not possible here
        return "not a file of plain tensors; reading it would require unpickling objects"
    if isinstance(error, AttributeError | TypeError):  # of what is no dict with text for keys
        return "it holds no named tensors: save a state_dict"
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300)


def check_keys(name: str, source: str, missing: Iterable[str], unknown: Iterable[str]) -> None:
    """Reject weights whose keys do not match the network.

    Raises:
        UserError: with the first keys on either side.
    """
    faults = [
        f"{verb} {len(keys)} keys ({', '.join(keys[:SHOWN_KEYS])}"
        f"{', …' if len(keys) > SHOWN_KEYS else ''})"
        for verb, keys in (("lacks", list(missing)), ("has unknown", list(unknown)))
        if keys
    ]
    if faults:
        raise UserError(
            f"{source} does not fit '{name}': it {' and '.join(faults)}; correct teacher.name"
        )
