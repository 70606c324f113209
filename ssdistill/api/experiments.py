"""Train, distill and compress from a program, each as one experiment."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ssdistill.api.data import use_data
from ssdistill.api.networks import (
    check_has_all_layers,
    check_is_known,
    encoder,
    is_made_anew,
    stored_encoder,
)
from ssdistill.api.results import Result
from ssdistill.artifacts.artifact import load_encoder
from ssdistill.artifacts.files import find_artifact
from ssdistill.errors import UserError, shortened
from ssdistill.experiment.schema import Experiment
from ssdistill.files import user_path
from ssdistill.models.backbones import Encoder
from ssdistill.models.wrapped import Wrapped
from ssdistill.settings.problems import validated

Network = nn.Module | str | Path | Mapping[str, Any] | Result
"""A module, an :class:`Encoder`, a name, a path, a section of a config, or what a run returned."""
TIMM = "timm:"
ALONE: dict[str, dict[str, Any]] = {"prune": {"macs": 0.5}}
"""Settings of steps that are named alone and have no goal of their own."""
QUIET: dict[str, Any] = {"control": None, "evaluate": None, "measure": {"latency": False}}
"""Sections by default: no baseline, no labels, no measurement of latency."""


def pretrain(
    network: Network,
    data: Any,
    method: str | Mapping[str, Any] = "simclr",
    *,
    root: str | Path = "runs",
    name: str = "pretrain",
    test: Any = None,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Result:
    """Pretrain a network without labels, as an experiment with a ``pretrain`` section does.

    Args:
        network: a module or :func:`ssdistill.encoder`, a timm name, or a mapping of ``encoder``.
        data: see :func:`ssdistill.api.data.use_data`; labels are not read.
        method: kind of a method (``ssdistill list methods``), or its settings.
        root: runs folder; finished stages in it are reused, interrupted ones resumed.
        name: of the experiment.
        test: images for the label-free metrics; by default some are held out.
        config: further sections, such as ``{"device": {"precision": "bf16"}}``.
        settings: of the method and the training: ``steps`` or ``epochs``, ``batch_size``, …

    Raises:
        UserError: anything the user can mend.
    """
    chosen = {"kind": method} if isinstance(method, str) else dict(method)
    tree = {
        **_start(name, data, test),
        "teacher": {"encoder": encoder_section(network, root)},
        "pretrain": {**chosen, **settings},
    }
    return _run(tree, config, root, chosen.get("kind", "teacher"))


def distill(
    student: Network,
    teacher: Network | Mapping[str, Network],
    data: Any,
    losses: str | Iterable[str] | Mapping[str, Any] = "simreg",
    *,
    root: str | Path = "runs",
    name: str = "distill",
    test: Any = None,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Result:
    """Distill one or several frozen teachers into a student, without labels.

    Args:
        student: a module or :func:`ssdistill.encoder`, a timm name, or a mapping of ``encoder``.
        teacher: a module or encoder; the folder of a run or saved model; ``timm:NAME``; a mapping
            of ``teacher`` settings with their ``kind``; or several of these by name.
        data: see :func:`ssdistill.api.data.use_data`; labels are not read.
        losses: one kind (``ssdistill list losses``), several, or settings by name, such as
            ``{"feature": "simreg", "queue": {"kind": "infonce", "weight": 0.2}}``.
        root: runs folder; finished stages in it are reused, interrupted ones resumed.
        name: of the experiment.
        test: images for the label-free metrics; by default some are held out.
        config: further sections of the config, such as ``{"compress": ["prune", "quantize"]}``.
        settings: of ``distill``: ``steps`` or ``epochs``, ``batch_size``, ``optim``, ``views``, …

    Returns:
        the student is ``result.student``, its folder ``result.folder``.

    Raises:
        UserError: anything the user can mend.
    """
    tree = {**_start(name, data, test), "student": {"encoder": encoder_section(student, root)}}
    if isinstance(teacher, Mapping) and "kind" not in teacher:
        tree["teachers"] = {key: teacher_section(one, root) for key, one in teacher.items()}
    else:
        tree["teacher"] = teacher_section(teacher, root)
    tree["distill"] = {"losses": _losses(losses), **settings}
    return _run(tree, config, root, "distilled")


def compress(
    model: Network,
    data: Any,
    steps: Sequence[str | Mapping[str, Any]] = ("prune", "refit", "quantize"),
    *,
    root: str | Path = "runs",
    name: str = "compress",
    test: Any = None,
    config: Mapping[str, Any] | None = None,
) -> Result:
    """Compress an encoder by steps, measured on unlabeled images.

    Args:
        model: as ``teacher`` of :func:`distill`.
        data: see :func:`ssdistill.api.data.use_data`; labels are not read.
        steps: kinds of steps (``ssdistill list steps``), or their settings, in order. ``prune``
            alone halves the multiplications.
        root: runs folder; finished stages in it are reused.
        name: of the experiment.
        test: images for the label-free metrics; by default some are held out.
        config: further sections of the config.

    Returns:
        the last model is ``result.model``; all are in ``result.models``.

    Raises:
        UserError: anything the user can mend.
    """
    if isinstance(steps, str | Mapping):
        steps = [steps]
    if not steps:
        raise UserError("steps: at least one is required; `ssdistill list steps` shows them")
    if wrong := [step for step in steps if not isinstance(step, str | Mapping)]:
        raise UserError(f"steps: {shortened(repr(wrong[0]))} is no kind of step and no settings")
    chosen = [
        {"kind": step, **ALONE.get(step, {})} if isinstance(step, str) else dict(step)
        for step in steps
    ]
    tree = {
        **_start(name, data, test),
        "teacher": teacher_section(model, root),
        "compress": chosen,
    }
    return _run(tree, config, root, None)


def encoder_section(network: Network, root: str | Path) -> dict[str, Any]:
    """What a config says of a network that is trained."""
    if isinstance(network, Mapping):
        return dict(network)
    network = _model_of(network)
    if not isinstance(network, nn.Module):
        text = _text(network)
        if not os.path.isdir(user_path(text)):
            return {"name": text}
        network = load_encoder(find_artifact(text))
    made = _as_encoder(network)
    check_has_all_layers(made)
    if is_made_anew(made):
        section: dict[str, Any] = {"name": made.spec.name}
    else:
        section = {
            "name": made.spec.name,
            "args": made.spec.args,
            "stem": made.spec.stem,
            "stem_stride": made.spec.stem_stride,
            "stem_padding": made.spec.stem_padding,
            "weights": str(stored_encoder(made, root)),
        }
    return section | ({"input_size": made.spec.input_size} if made.spec.input_size else {})


def teacher_section(network: Network, root: str | Path) -> dict[str, Any]:
    """What a config says of a network that exists.

    Raises:
        UserError: a file, which does not say its network.
    """
    if isinstance(network, Mapping):
        return dict(network)
    network = _model_of(network)
    if isinstance(network, nn.Module):
        return {"kind": "run", "path": str(stored_encoder(_as_encoder(network), root))}
    text = _text(network)
    if text.startswith(TIMM):
        return {"kind": "timm", "name": text.removeprefix(TIMM)}
    if user_path(text).is_file() and user_path(text).suffix != ".json":
        raise UserError(
            f"{shortened(text, 200)}: a checkpoint does not say its network; pass "
            f"{{'kind': 'checkpoint', 'path': …, 'encoder': {{'name': …}}}}"
        )
    return {"kind": "run", "path": text}


def _model_of(network: Any) -> Any:
    """The model of what a run has returned; anything else as it is."""
    return network.model if isinstance(network, Result) else network


def _text(network: Any) -> str:
    if isinstance(network, str | Path):
        return str(network)
    raise UserError(
        f"expected a module, a name, a path or settings, got {shortened(repr(network))}; wrap a "
        "function that returns a module with ssdistill.encoder"
    )


def _as_encoder(network: nn.Module) -> Encoder:
    if isinstance(network, Wrapped):
        raise UserError(
            f"{network.name} takes no images, which experiments are of; compress it by steps: "
            "Prune(macs=0.5).apply(model, context), see README.md, Compression"
        )
    if not isinstance(network, Encoder):
        return encoder(network)
    check_is_known(network)
    return network


def _losses(losses: str | Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(losses, str):
        losses = [losses]
    if not isinstance(losses, Mapping):
        if not isinstance(losses, Iterable) or isinstance(losses, ModuleType):
            raise UserError(
                f"losses: expected a kind such as 'simreg', several, or settings by name, got "
                f"{shortened(repr(losses))}"
            )
        kinds = list(losses)
        if wrong := [kind for kind in kinds if not isinstance(kind, str)]:
            raise UserError(f"losses: {shortened(repr(wrong[0]))} is no kind; name it: {{'a': …}}")
        losses = {kind: kind for kind in kinds}
        if len(losses) < len(kinds):
            raise UserError("losses: one kind is listed twice; pass settings by different names")
    return {
        name: {"kind": loss} if isinstance(loss, str) else loss for name, loss in losses.items()
    }


def _start(name: str, data: Any, test: Any) -> dict[str, Any]:
    return {"schema": 1, "name": name, "data": use_data(data, test), **QUIET}


def _run(
    tree: dict[str, Any], config: Mapping[str, Any] | None, root: str | Path, main: str | None
) -> Result:
    """Run the experiment that a tree describes; ``main`` is its model, the last if None."""
    from ssdistill.chain.run import run
    from ssdistill.experiment.merging import merge

    if not isinstance(config, Mapping | None):
        raise UserError(f"config: expected sections by name, got {shortened(repr(config))}")
    if not isinstance(tree["name"], str):
        raise UserError(f"name={shortened(repr(tree['name']))}: expected text")
    tree = merge(tree, dict(config or {}), [])
    report = run(validated(Experiment, tree, ""), root)
    # The models begin with what they are made of; report.models ends with the one to prefer.
    made = [record["model"] for record in report.records if record["model"] in report.models]
    return Result(report, tree, main or made[-1])
