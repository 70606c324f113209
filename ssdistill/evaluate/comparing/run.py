"""Evaluate several encoders on the same images and compare each with the first."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssdistill.errors import UserError
from ssdistill.evaluate.comparing.findings import Findings, Probed, spread
from ssdistill.evaluate.comparing.requested import ask
from ssdistill.evaluate.comparing.short_names import short_names
from ssdistill.evaluate.functions import as_device
from ssdistill.evaluate.opening.arguments import (
    check_image_size,
    check_margin,
    check_statistics,
)
from ssdistill.evaluate.opening.encoders import Opened, open_encoder, own_size, takes_statistics
from ssdistill.evaluate.opening.images import Shown, open_images
from ssdistill.evaluate.paired import MARGIN
from ssdistill.evaluate.protocols import Protocol
from ssdistill.evaluate.subject import Subject
from ssdistill.label_free.agreement import agreement
from ssdistill.label_free.collapse import collapse_metrics
from ssdistill.label_free.features import Precision
from ssdistill.settings import Size, as_size, short_size
from ssdistill.train.progress import console


def probe(
    models: Any,
    data: Any,
    protocols: Sequence[str] | None = None,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    data_settings: Mapping[str, Any] | None = None,
    image_size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    margin: float = MARGIN,
    device: str | None = "auto",
    precision: Precision = "fp32",
    root: str | Path = "runs",
    progress: bool = True,
    trust: bool = False,
) -> Probed:
    """Evaluate encoders, as ``ssdistill probe`` does.

    Args:
        models: one or several of what
            :func:`ssdistill.evaluate.opening.encoders.open_encoder` takes; a mapping names them.
        data: what :func:`ssdistill.evaluate.opening.images.open_images` takes.
        protocols: names such as ``linear`` or ``knn_dinov2``; by default those of a config.
        settings: of protocols, by name; data_settings: over those that ``data`` says.
        image_size: side in pixels of the images encoders are given, or height and width; each
            one's own by default.
        mean, std: statistics that bare ``.onnx`` files and checkpoints expect images to be
            normalized by; other models know their own.
        margin: points of accuracy within which two models count as equally good.
        device, precision, root: as for :func:`ssdistill.evaluate.functions.open_subject`.
        progress: bars and a line for every model, on the terminal's error stream.
        trust: open models that are native code and were not compiled here.

    Raises:
        UserError: anything that cannot be opened, or protocols of which none can be run.
    """
    sources = _sources(models)
    requested = ask(protocols, settings)
    image_size = check_image_size(image_size)
    _check(sources.values(), margin, mean, std)
    torch_device = as_device(device)
    sizes = [image_size or own_size(what) for what in sources.values()]
    shown = open_images(data, data_settings, sizes=[s for s in sizes if s], root=root)
    if not shown.labeled:
        requested = _without_labels(shown, protocols)
    requested, left_out = _suitable_protocols(shown, requested, protocols)
    findings: list[Findings] = []
    for number, (name, what) in enumerate(sources.items(), start=1):
        if progress and len(sources) > 1:
            console.print(f"[{number}/{len(sources)}] {name}", style="dim")
        own = {"mean": mean, "std": std} if takes_statistics(what) else {}
        opened = open_encoder(what, shown.facts, image_size=image_size, trust=trust, **own)
        subject = Subject(
            opened.encoder,
            shown.train,
            shown.test,
            name=name,
            image_size=opened.image_size or shown.image_size,
            device=torch_device,
            precision=precision,
            progress=progress,
        )
        findings.append(_evaluated(subject, opened, requested, findings[0] if findings else None))
    if requested and not any(model.results for model in findings):
        raise UserError(next(why for model in findings for why in model.refused.values()))
    return Probed(tuple(findings), shown, tuple(requested), margin, left_out)


def _check(
    models: Iterable[Any],
    margin: float,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    check_margin(margin)
    check_statistics(mean, std)
    if mean is not None and not any(map(takes_statistics, models)):
        raise UserError(
            "omit mean and std, which apply to bare .onnx files: other models store their own"
        )


def _without_labels(shown: Shown, protocols: Sequence[str] | None) -> list[Protocol]:
    """Return no protocols for unlabeled data; an error if any were requested."""
    if protocols is not None:
        raise UserError(
            f"{shown.description}: no labels, required by {', '.join(protocols)}; "
            "omit --protocols to get label-free metrics"
        )
    return []


def _suitable_protocols(
    shown: Shown, requested: list[Protocol], names: Sequence[str] | None
) -> tuple[list[Protocol], tuple[str, ...]]:
    """Return the protocols that accept several labels per image, and the names of the others.

    Raises:
        UserError: one that does not was requested.
    """
    others = [protocol for protocol in requested if shown.several and not protocol.takes_several()]
    if others and names is not None:
        raise UserError(others[0].refusal())
    kept = [protocol for protocol in requested if protocol not in others]
    return kept, tuple(protocol.name for protocol in others)


def _sources(models: Any) -> dict[str, Any]:
    if isinstance(models, Mapping):
        sources = dict(models)
    else:
        several = list(models) if isinstance(models, list | tuple) else [models]
        paths = all(isinstance(what, str | Path) for what in several)
        names = [str(what) if paths else f"encoder {i}" for i, what in enumerate(several, 1)]
        sources = dict(zip(short_names(names) if paths else names, several, strict=True))
    if not sources:
        raise UserError("no model: at least one is required")
    return sources


def _evaluated(
    subject: Subject, opened: Opened, asked: Sequence[Protocol], first: Findings | None
) -> Findings:
    """Evaluate one model: cost, label-free metrics and every protocol."""
    results, refused, notices = {}, {}, list(opened.notices_for(subject.train))
    height, width = subject.test.images.shape[1:3]
    size = as_size(height, width)
    if subject.image_size != size:
        given, taken = short_size(size), short_size(subject.image_size)
        notices.append(f"images of {given} pixels are resized to {taken}")
    test_ND = subject.features("test")
    looked_at_ND = test_ND[spread(len(test_ND))].clone()
    costs = {"compress/bytes": opened.bytes, "compress/params": opened.parameters}
    metrics = {name: float(value) for name, value in costs.items() if value is not None}
    metrics |= collapse_metrics(looked_at_ND)
    if first is not None:
        try:
            # Of a handful of images, ten neighbors would be all of them.
            k = min(10, len(looked_at_ND) // 2)
            metrics |= agreement(looked_at_ND, first.looked_at_ND, k=k)
        except UserError as error:
            refused["agreement"] = str(error)
    for protocol in asked:
        try:
            results[protocol.name] = protocol.run(subject)
        except UserError as error:
            refused[protocol.name] = str(error)
        else:
            metrics |= results[protocol.name].metrics
    return Findings(
        subject.name,
        opened.source,
        subject.image_size,
        metrics,
        results,
        refused,
        tuple(notices),
        looked_at_ND,
    )
