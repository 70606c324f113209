"""Evaluation stages: label-free metrics, then protocols with labels."""

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from ssdistill.chain.data_checks import MEASURED_AT_LEAST, holds_everywhere
from ssdistill.chain.stage_files import read_array, read_arrays, read_json
from ssdistill.chain.stages import Stage
from ssdistill.chain.workspace import MODEL, Workspace
from ssdistill.data.recipes import RECIPES
from ssdistill.data.recipes_of_images import suited
from ssdistill.errors import DamagedFile
from ssdistill.evaluate.labels import labels_digest
from ssdistill.evaluate.protocols import Protocol
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.evaluate.subject import Subject
from ssdistill.files import write_atomically
from ssdistill.label_free.agreement import CKA_AT_LEAST, agreement, side_by_side
from ssdistill.label_free.collapse import alpha, collapse_metrics
from ssdistill.label_free.lidar import view_metrics
from ssdistill.measure.model_costs import costs_of
from ssdistill.models.representation import Representation
from ssdistill.models.spec import RGB
from ssdistill.record.tracker import Tracker

SAMPLE_FEATURES = "gauged_features.npy"
"""Embeddings of the label-free sample, for agreement and for the neighbors in the report."""
LABELS = "labels.json"
"""What the labels were that an evaluation has read."""
ANSWERS = "answers.npz"
"""Labels of the test images, true (``targets``) and answered, by protocol."""
PIXELS = 16
"""Larger images are shrunk to this side for the row of raw pixels."""


def label_free_sample(num_images: int, sample_size: int) -> slice:
    """Evenly spread positions of at most ``sample_size`` test images for label-free metrics."""
    step = -(-num_images // sample_size)
    return slice(0, num_images, step)


def evaluate(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """Measure cost, similarity to the teacher and, with labels, every protocol."""
    model = stage.parents.get("model")
    encoder = workspace.encoder(model) if model else raw_pixels(workspace)
    settings = EvaluateSettings.model_validate(stage.config["evaluate"])
    subject = Subject(
        encoder,
        workspace.train,
        workspace.test,
        name=stage.role,
        image_size=workspace.image_size,
        device=workspace.device if isinstance(encoder, nn.Module) else None,
        team=workspace.processes,
    )
    test_ND = subject.features("test")
    sample = label_free_sample(len(test_ND), settings.label_free_images)
    sample_ND = test_ND[sample]
    np.save(tracker.run.folder / SAMPLE_FEATURES, sample_ND.numpy())
    metrics: dict[str, Any] = {}
    if len(sample_ND) >= MEASURED_AT_LEAST:
        metrics |= collapse_metrics(sample_ND) | {"collapse/alpha": alpha(sample_ND)}
        metrics |= of_views(subject, workspace, sample)
    metrics |= costs(model, workspace) if model else {}
    references = [parent for role, parent in stage.parents.items() if role != "model"]
    if len(sample_ND) >= CKA_AT_LEAST:
        teacher_ND = side_by_side(
            [sample_features(reference, workspace) for reference in references]
            or [sample_ND.numpy()]
        )
        # Of a handful of images, ten neighbors would be all of them.
        metrics |= agreement(sample_ND, teacher_ND, k=min(10, len(sample_ND) // 2))
    if stage.config["labels"]:
        metrics |= evaluate_on(subject, settings.protocols, tracker.run.folder)
        noted = {"sha256": labels_digest(workspace.train, workspace.test)}
        write_atomically(tracker.run.folder / LABELS, json.dumps(noted))
    return metrics


def check_labels(stage: Stage, workspace: Workspace) -> None:
    """Check that a finished evaluation has read the present labels.

    They are no part of a stage's hash, which is that of the images. Version 0.1 noted nothing.

    Raises:
        DamagedFile: it has read others.
    """
    path = stage.folder(workspace.root) / LABELS
    if not stage.config["labels"] or not path.exists():
        return
    noted = read_json(path, lambda content: isinstance(content["sha256"], str))
    if noted["sha256"] != labels_digest(workspace.train, workspace.test):
        raise DamagedFile(path, "the labels of the images have changed since")


def of_views(subject: Subject, workspace: Workspace, shown: slice) -> dict[str, float]:
    """Alignment and LiDAR of augmented views of the test images.

    The views are drawn by the recipe that suits the data, whatever a model was trained with,
    and are the same for every model.

    Args:
        shown: which test images; LiDAR looks at some of them.
    """
    recipe = suited(RECIPES[workspace.source.default_recipe or "strong"], workspace.test)
    images_NHWC, index_N = workspace.test.images[shown], torch.arange(len(workspace.test))[shown]
    drawn = images_NHWC, index_N, recipe, subject.image_size
    return view_metrics(subject.encoder, *drawn, device=subject.device, team=subject.team)


def raw_pixels(workspace: Workspace) -> Callable[[Tensor], Representation]:
    """Baseline without an encoder: raw pixels, at most ``PIXELS`` a side, as the embedding.

    Of more than three channels there are fewer pixels: a probe of all could not be solved.
    """
    # Of a gray image, three equal channels would be two too many for the probe to solve.
    gray = holds_everywhere(
        workspace.train, lambda images_NHWC: images_NHWC == images_NHWC[..., :1]
    )
    channels = 1 if gray else workspace.train.images.shape[3]
    most = max(1, min(PIXELS, math.isqrt(RGB * PIXELS**2 // channels)))

    def encode(x_BCHW: Tensor) -> Representation:
        size = min(most, x_BCHW.shape[2]), min(most, x_BCHW.shape[3])
        return Representation(adaptive_avg_pool2d(x_BCHW[:, :channels], size).flatten(1))

    return encode


def evaluate_on(subject: Subject, protocols: Sequence[Protocol], folder: Path) -> dict[str, float]:
    """Run every protocol; predictions on the test images are saved in ``folder``."""
    metrics: dict[str, float] = {}
    answers: dict[str, Any] = {}
    for protocol in protocols:
        if protocol.trains and not isinstance(subject.encoder, nn.Module):
            continue
        # Refused before anything was trained if it was requested.
        if subject.multi_label and not protocol.takes_several():
            continue
        result = protocol.run(subject)
        metrics |= result.metrics | {f"time/probe/{result.protocol}": result.seconds}
        if result.classification is not None:
            answers["targets"] = result.classification.targets
            answers[result.protocol] = result.classification.predictions
    if answers:
        content = io.BytesIO()
        np.savez_compressed(content, **answers)
        write_atomically(folder / ANSWERS, content.getvalue())
    return metrics


def sample_features(evaluation: Stage, workspace: Workspace) -> np.ndarray:
    """Embeddings (N, D) of the label-free sample, as a finished stage left them."""
    return read_array(evaluation.folder(workspace.root) / SAMPLE_FEATURES, 2, "f")


def answers_of(evaluation: Stage, workspace: Workspace) -> dict[str, np.ndarray]:
    """What :func:`evaluate_on` kept of a finished stage; empty without answers by image."""
    path = evaluation.folder(workspace.root) / ANSWERS
    if not path.exists():
        return {}
    answers = read_arrays(path, 1, "iu")
    count = len(workspace.test)
    if "targets" not in answers or any(len(array) != count for array in answers.values()):
        raise DamagedFile(path, f"not the answers on {count} test images")
    return answers


def costs(model: Stage, workspace: Workspace) -> dict[str, float]:
    """Parameters, MACs and bytes of a stage's model."""
    encoder, float_parent = workspace.encoder(model), counted_network(model, workspace)
    return costs_of(encoder, model.folder(workspace.root) / MODEL, float_parent)


def counted_network(model: Stage, workspace: Workspace) -> nn.Module:
    """The network whose MACs are those of a stage's model: the last before a runtime's file.

    Quantization changes no MACs.
    """
    encoder = workspace.encoder(model)
    while not isinstance(encoder, nn.Module):
        model = model.parents["model"]
        encoder = workspace.encoder(model)
    return encoder
