"""Results of `ssdistill probe` as JSON, CSV and Markdown."""

import csv
import io
import json
import math
from typing import Any

import numpy as np

from ssdistill.commands.probe.tables import tables
from ssdistill.evaluate.comparing.findings import Findings, Probed
from ssdistill.record.provenance import provenance
from ssdistill.settings.registry import settings_of

FORMAT = 1
"""Of the JSON file."""


def to_json(probed: Probed) -> str:
    """Everything: numbers, settings, details, classes, confusions, comparisons."""
    shown = probed.shown
    content = {
        "format": FORMAT,
        "data": {
            "description": shown.description,
            "settings": shown.settings,
            "labeled": shown.labeled,
            "train_images": len(shown.train.images),
            "test_images": len(shown.test.images),
            "image_size": shown.image_size,
        },
        "protocols": {
            protocol.name: {"kind": protocol.kind, **settings_of(protocol)}
            for protocol in probed.protocols
        },
        "models": [_model(model) for model in probed.models],
        "margin": probed.margin,
        "paired": [
            {"model": c.model, "reference": c.reference, "protocol": c.protocol, **vars(c.paired)}
            for c in probed.comparisons
        ],
        "provenance": provenance(),
    }
    return json.dumps(_as_json(content), indent=2, allow_nan=False) + "\n"


def to_csv(probed: Probed) -> str:
    """One line per number: model, protocol, measure, value.

    Numbers of no protocol have the room of their metric instead: ``compress``, ``collapse``,
    ``agree``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("model", "protocol", "measure", "value"))
    for model in probed.models:
        for metric, value in model.metrics.items():
            protocol, measure = metric.removeprefix("probe/").split("/", 1)
            writer.writerow((model.name, protocol, measure, repr(float(value))))
    return text.getvalue()


def to_markdown(probed: Probed) -> str:
    """The tables that the terminal shows."""
    parts = [f"### {table.title}\n\n{table.to_markdown()}" for table in tables(probed)]
    parts += [f"- {notice}" for notice in probed.notices]
    return "\n\n".join(parts) + "\n"


def _model(model: Findings) -> dict[str, Any]:
    return {
        "name": model.name,
        "source": model.source,
        "image_size": model.image_size,
        "metrics": model.metrics,
        "results": {
            name: {
                "seconds": result.seconds,
                "settings": result.settings,
                "details": result.details,
                "classes": answers.by_class() if answers else None,
                "confusion": (
                    result.classification.confusion_KK if result.classification else None
                ),
            }
            for name, result in model.results.items()
            for answers in (result.classification or result.multi_label,)
        },
        "refused": model.refused,
        "notices": list(model.notices),
    }


def _as_json(value: Any) -> Any:
    """What JSON can hold; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _as_json(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json(item) for item in value]
    if isinstance(value, np.generic):
        return _as_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
