"""Check that machine, networks and data meet the needs of an experiment."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from ssdistill.compress import StepSettings
from ssdistill.errors import UserError, shortened
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sections import NetworkSettings
from ssdistill.models.trial import check_encodes, reason_of
from ssdistill.settings import Settings, short_size
from ssdistill.settings.registry import RUNTIMES, STEPS
from ssdistill.teachers.channels import channel_notices
from ssdistill.teachers.starting_weights import start_from
from ssdistill.train.activations import require_blocks
from ssdistill.train.fabric import device_of
from ssdistill.train.settings import DeviceSettings

if TYPE_CHECKING:
    from ssdistill.chain.workspace import Workspace


def chosen_stems(workspace: "Workspace") -> list[str]:
    """What ``stem: auto`` stands for in each network that is built here, as a sentence."""
    experiment, size = workspace.experiment, workspace.image_size
    networks = dict(experiment.all_teachers) | {"student": experiment.student}
    notices = []
    for role, network in networks.items():
        settings = network.encoder if isinstance(network, NetworkSettings) else None
        if settings is None or settings.stem != "auto":
            continue
        pixels = short_size(settings.input_size or size)
        spec = workspace.build(settings).spec
        if spec.stem == "small":
            chosen = f"a 3x3 stem of stride {spec.stem_stride} without max-pooling (small)"
        else:
            chosen = "its own stem (native)"
        notices.append(f"{role}: stem=auto gives {spec.name} {chosen} at {pixels} pixels")
    return notices


def adapted_layers(workspace: "Workspace") -> list[str]:
    """Say what becomes of timm's pretrained weights on images of other than three channels."""
    experiment, notices = workspace.experiment, []
    networks = dict(experiment.all_teachers) | {"student": experiment.student}
    for role, network in networks.items():
        settings = network.encoder if isinstance(network, NetworkSettings) else None
        if settings is not None and settings.pretrained:
            found = channel_notices(workspace.build(settings))
            notices += [f"{role}: {notice}" for notice in found]
    return notices


def notices_of_networks(workspace: "Workspace") -> list[str]:
    """What is chosen, adapted or loaded in the networks that are trained here.

    Raises:
        UserError: as :func:`starting_points`.
    """
    return [*chosen_stems(workspace), *adapted_layers(workspace), *starting_points(workspace)]


def starting_points(workspace: "Workspace") -> list[str]:
    """What each network that is trained here takes over from ``encoder.weights``.

    Raises:
        UserError: nothing of it fits; the key is named.
    """
    experiment, notices = workspace.experiment, []
    for key, network in {**_teachers(experiment), "student": experiment.student}.items():
        if isinstance(network, NetworkSettings) and (weights := network.encoder.weights):
            try:
                start = start_from(workspace.build(network.encoder), weights)
            except UserError as error:
                raise UserError(f"{key}.{error}") from None
            notices.append(f"{key}: {start.text(weights)}")
    return notices


def _teachers(experiment: Experiment) -> Mapping[str, Settings]:
    """Every teacher by its key in the config."""
    several = {f"teachers.{name}": teacher for name, teacher in experiment.teachers.items()}
    return several or {"teacher": experiment.teacher}


def check_networks(workspace: "Workspace") -> None:
    experiment = workspace.experiment
    networks = {**_teachers(experiment), "student": experiment.student}
    for key, network in networks.items():
        if isinstance(network, NetworkSettings):
            try:
                encoder = workspace.build(network.encoder)
                _, width = check_encodes(encoder, workspace.image_size)
                if workspace.experiment.device.checkpoint_activations:
                    require_blocks(encoder)
                if width != encoder.embed_dim:
                    raise UserError(
                        f"'{encoder.name}' returns embeddings of width {width}, but timm declares "
                        f"{encoder.embed_dim}: check encoder.args (such as the last of channels)"
                    )
            except UserError as error:
                text = str(error).replace("encoder.", f"{key}.encoder.")
                started = text.startswith(key)
                raise UserError(text if started else f"{key}.encoder: {text}") from None


def check_device(device: DeviceSettings) -> None:
    """Make sure that training can run on the device.

    Raises:
        UserError: this machine has none of the kind, or none that computes so.
    """
    try:
        torch_device = device_of(device.accelerator)
        # Some devices are there and cannot be used.
        torch.zeros(1, device=torch_device)
    except Exception as error:
        named = f"device.accelerator={shortened(device.accelerator)}"
        # With which Fabric says no more than that, and names classes of its own.
        absent = "can not run on your system" in str(error)
        reason = "on this machine" if absent else f"({reason_of(error)})"
        raise UserError(
            f"{named} is not available {reason}; set device.accelerator=auto"
        ) from error
    on_cuda = torch_device.type == "cuda"
    if device.precision == "bf16" and on_cuda and not torch.cuda.is_bf16_supported():
        raise UserError(
            f"device.precision=bf16 is not supported by {torch.cuda.get_device_name()}; "
            "set device.precision=fp16 or fp32"
        )


def check_steps(experiment: Experiment) -> None:
    """Refuse what a compression step's own settings rule out, before they name a row.

    Raises:
        UserError: settings that no step can be made of; the key is named.
    """
    for key, settings in _steps(experiment):
        try:
            for stage in STEPS[settings.kind].expand(settings):
                STEPS.build(stage)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None


def check_runtimes(experiment: Experiment) -> None:
    """Refuse a runtime that is not installed; a run with nothing left to do needs none.

    Raises:
        UserError: the key is named.
    """
    for key, settings in _steps(experiment):
        try:
            runtime = getattr(settings, "runtime", None)
            if runtime in RUNTIMES.classes:
                RUNTIMES[runtime].require()
        except UserError as error:
            raise UserError(f"{key}: {error}") from None


def _steps(experiment: Experiment) -> Iterator[tuple[str, StepSettings]]:
    """Yield every compression step with its key."""
    for variant, steps in experiment.compression_variants.items():
        for number, settings in enumerate(steps):
            yield f"plans.{variant}.{number}" if variant else f"compress.{number}", settings


def check_batches(experiment: Experiment, num_images: int, processes: int = 1) -> None:
    trainings = {"pretrain": experiment.pretrain, "distill": experiment.distill}
    for key, teacher in _teachers(experiment).items():
        trainings[f"{key}.pretrain"] = getattr(teacher, "pretrain", None)
    for variant, steps in experiment.compression_variants.items():
        key = f"plans.{variant}" if variant else "compress"
        trainings |= {f"{key}.{i}": step for i, step in enumerate(steps)}
    for row, settings in experiment.compare.items():
        method = getattr(settings, "pretrain", None)
        trainings[f"compare.{row}{'.pretrain' if method else ''}"] = method or settings
    uneven = [
        f"{key}.batch_size={settings.batch_size}"
        for key, settings in trainings.items()
        if getattr(settings, "batch_size", 0) % processes
    ]
    if uneven:
        verb = "is" if len(uneven) == 1 else "are"
        raise UserError(
            f"{', '.join(uneven)} {verb} not divisible among {processes} processes; set a multiple "
            f"of {processes}"
        )
    large = [
        f"{key}.batch_size={settings.batch_size}"
        for key, settings in trainings.items()
        if getattr(settings, "batch_size", 0) > num_images
    ]
    if large:
        verb = "exceeds" if len(large) == 1 else "exceed"
        raise UserError(
            f"{', '.join(large)} {verb} the {num_images} training images; set at most {num_images}"
        )
