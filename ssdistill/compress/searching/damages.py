"""Damage of every single action to the embeddings, cached across interruptions."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ssdistill.compress import Context
from ssdistill.compress.searching.actions import Actions, Site, embed
from ssdistill.files import disk_errors, drop_half_line
from ssdistill.label_free.agreement import LinearCKA, centered_cosine

DAMAGES = "damages.jsonl"
FIELDS = {"kind", "layer", "level", "damage", "bytes", "of"}
"""Of a line of ``damages.jsonl``."""
Measure = Literal["cosine", "cka"]
WORST = 2.0
"""Damage assigned to non-finite embeddings: that of opposite directions."""


@dataclass
class Damages:
    """Damage by action, and bytes of the weights on a grid.

    Attributes:
        of: by site and level: 0 where the embeddings stay as they are, about 1 where nothing
            of them is left.
        coded: bytes in the file, of ``bits`` alone.
        evaluated, cached: how many were measured now, and how many read.
    """

    of: dict[tuple[Site, float], float] = field(default_factory=dict)
    coded: dict[tuple[Site, float], int] = field(default_factory=dict)
    evaluated: int = 0
    cached: int = 0


def damage(changed_ND: Tensor, reference_ND: Tensor, measure: Measure) -> float:
    """1 - mean centered cosine, or 1 - debiased CKA, of two embeddings of the same inputs."""
    if measure == "cosine":
        value = 1 - centered_cosine(changed_ND, reference_ND).mean().item()
    else:
        cka = LinearCKA()
        cka.update(changed_ND, reference_ND)
        value = 1 - cka.compute()
    return value if math.isfinite(value) else WORST


def measure_damages(
    actions: Actions, inputs: Tensor, measure: Measure, context: Context, settings: str
) -> Damages:
    """The damage of every action alone, on the same unlabeled inputs.

    ``damages.jsonl`` in ``context.scratch`` keeps each as soon as it is known. It is read again
    where the model, the inputs and the settings are the same.

    Args:
        settings: what else the damages depend on, in words.
    """
    path = context.scratch / DAMAGES if context.scratch else None
    digest = _hash(actions, inputs, f"{measure} {settings}")
    single_actions = [(site, level) for site, levels in actions.levels.items() for level in levels]
    damages = Damages()
    for row in _read(path, digest):
        action = Site(row["kind"], row["layer"]), row["level"]
        damages.of[action] = row["damage"]
        if row["bytes"] is not None:
            damages.coded[action] = row["bytes"]
    unmeasured = [action for action in single_actions if action not in damages.of]
    damages.cached = len(single_actions) - len(unmeasured)
    reference_ND = embed(actions.model, inputs) if unmeasured else None
    for site, level in context.progress(unmeasured, "damage by layer and action"):
        compressed, size = actions.alone(site, level)
        assert reference_ND is not None  # there is one where something is unmeasured
        value = damage(embed(compressed, inputs), reference_ND, measure)
        damages.of[site, level] = value
        if size is not None:
            damages.coded[site, level] = size
        damages.evaluated += 1
        row = {"kind": site.kind, "layer": site.layer, "level": level, "damage": value}
        _append(path, row | {"bytes": size, "of": digest})
    return damages


def _hash(actions: Actions, inputs: Tensor, settings: str) -> str:
    sha = hashlib.sha256(settings.encode())
    model = actions.model
    for key, tensor in {**model.net.state_dict(), "inputs": inputs}.items():
        sha.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]


def _read(path: Path | None, digest: str) -> Iterator[dict]:
    if path is None or not path.is_file():
        return
    drop_half_line(path)
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # damaged: it is measured again
        if isinstance(row, dict) and row.get("of") == digest and {*row} == FIELDS:
            yield row


def _append(path: Path | None, row: dict) -> None:
    if path is None:
        return
    with disk_errors(path.parent), path.open("a") as file:
        file.write(json.dumps(row) + "\n")
