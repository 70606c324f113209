"""Checks of compression steps, done to a tiny encoder without labels."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.compress import Context, Step, StepSettings
from ssdistill.models.model import Model
from ssdistill.settings.registry import STEPS
from ssdistill.testing.candidate import (
    DESCRIBED,
    Candidate,
    Check,
    demand,
    names_its_origin,
)
from ssdistill.testing.tiny_networks import tiny_cnn
from ssdistill.testing.tiny_subjects import TRAIN, fingerprint, make_encoder

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
GATE = {"bytes": 1.0, "otherwise": "keep"}
NOISY, EXAMPLES = 20, 8


def says_what_it_makes(candidate: Candidate) -> None:
    """Its citation, the word of its result, and how ``apply`` is documented."""
    names_its_origin(candidate)
    makes = getattr(candidate.cls, "makes", "")
    demand(makes and isinstance(makes, str), "makes must say what tables call the result")
    # What the chain calls its own models is told by what stands before the underscore.
    demand("_" not in makes, f"makes={makes!r} must have no underscore")
    text = candidate.cls.apply.__doc__ or ""
    documented = candidate.cls.apply is not Step.apply and "Raises:" in text
    demand(documented, "apply must have a docstring with Raises:, which says what it refuses")


def row_is_a_name(candidate: Candidate, settings: StepSettings | None = None) -> None:
    """The row of tables is a name that metrics can have, and begins with ``makes``."""
    row = candidate.cls.row(settings or candidate.chosen())
    demand(re.fullmatch(NAME, row), f"row '{row}' is no name of a metric")
    demand(row.startswith(candidate.cls.makes), f"row '{row}' must begin with makes")


def stages_of(candidate: Candidate, settings: StepSettings | None = None) -> list[StepSettings]:
    """The settings that it is expanded to."""
    return list(candidate.cls.expand(settings or candidate.chosen()))


def class_of(candidate: Candidate, settings: StepSettings) -> Any:
    """The class of a stage: the candidate's, or that of another kind."""
    return candidate.cls if settings.kind == candidate.kind else STEPS[settings.kind]


def is_expanded_once(candidate: Candidate, settings: StepSettings | None = None) -> None:
    """It is done in stages of known steps, each of which is expanded to itself."""
    stages = stages_of(candidate, settings)
    demand(stages, "expand returns no stage")
    for stage in stages:
        demand(isinstance(stage, StepSettings), f"expand returns a {type(stage).__name__}")
        again = class_of(candidate, stage).expand(stage) == [stage]
        demand(again, f"a stage of {stage.kind} is expanded again; expand everything at once")


def takes_a_gate(candidate: Candidate, settings: StepSettings | None = None) -> None:
    """A gate can be set on every stage, and the step is built from it."""
    for stage in stages_of(candidate, settings):
        gated: Any = type(stage).model_validate({**stage.model_dump(), "gate": GATE})
        demand(gated.gate.otherwise == "keep", "the gate is lost")
        built = STEPS.build_of(class_of(candidate, stage), gated)
        demand(isinstance(built, Step), "it is no subclass of Step")


def _images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images_NHWC = torch.from_numpy(TRAIN.images)
    chosen = torch.randperm(len(images_NHWC), generator=generator)[:count]
    return images_NHWC[chosen].movedim(-1, 1) / 255


def _losses(
    student: Model, targets: Mapping[str, Model], count: int, seed: int
) -> Iterator[Tensor]:
    for number in range(count):
        x_BCHW = _images(EXAMPLES, seed + number)
        found_BD = student(x_BCHW).embedding_BD
        with torch.no_grad():
            embeddings = [target(x_BCHW).embedding_BD for target in targets.values()]
        yield torch.stack([(found_BD - z_BD).square().mean() for z_BD in embeddings]).sum()


def _train(student: Any, targets: Mapping[str, Model], settings: Any) -> Any:
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4)
    for loss in _losses(student.train(), targets, 2, 0):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()


@contextmanager
def make_context(model: Model) -> Iterator[Context]:
    """What a chain hands a step, with a teacher and something to train with."""
    with tempfile.TemporaryDirectory() as name:
        folder, scratch = Path(name) / "model", Path(name) / "scratch"
        folder.mkdir()
        scratch.mkdir()
        teachers = {"teacher": tiny_cnn(3).eval()}
        yield Context(
            _images, folder, scratch, model, model, teachers, _train, _losses, lambda i, _: i
        )


def _apply(candidate: Candidate, model: Any, context: Context) -> Any:
    settings = next(s for s in stages_of(candidate) if s.kind == candidate.kind)
    torch.manual_seed(0)
    return STEPS.build_of(candidate.cls, settings).apply(model, context)


def model_is_left_as_it_was(candidate: Candidate) -> None:
    """Weights, modes and hooks of the model that it is applied to stay."""
    model = make_encoder()
    before = fingerprint(model)
    with make_context(model) as context:
        result = _apply(candidate, model, context)
    after = fingerprint(model)
    changed = [part for part in before if before[part] != after[part]]
    demand(result is not model, "apply returns the model itself; return a copy of it")
    demand(not changed, f"the model is not left as it was: {', '.join(changed)} of its parts")


def result_embeds_the_same_images(candidate: Candidate) -> None:
    """The result takes the same images, and its embedding is as wide, and finite."""
    model = make_encoder()
    with make_context(model) as context:
        result = _apply(candidate, model, context)
        with torch.no_grad():
            embedding_BD = result(_images(EXAMPLES, 5)).embedding_BD
    expected = EXAMPLES, model.embed_dim
    demand(result.embed_dim == model.embed_dim, f"embed_dim is {result.embed_dim}")
    demand(embedding_BD.shape == expected, f"the embedding is {tuple(embedding_BD.shape)}")
    demand(torch.isfinite(embedding_BD).all(), "the embedding has NaN or infinity")


def result_is_saved_and_opened(candidate: Candidate) -> None:
    """The result is saved as the chain saves it, and the file embeds as it does."""
    model = make_encoder()
    with make_context(model) as context:
        result = _apply(candidate, model, context)
        save_encoder(result, context.folder)
        found = load(context.folder, check_inputs=False)
        x_BCHW = _images(EXAMPLES, 5)
        with torch.no_grad():
            expected_BD, found_BD = result(x_BCHW).embedding_BD, found(x_BCHW).embedding_BD
    gap = float((expected_BD - found_BD).abs().max())
    near = gap <= 1e-4 * max(1.0, float(expected_BD.abs().max()))
    demand(near, f"the saved result embeds otherwise than the result, by {gap:.2g}")


def records_are_plain(candidate: Candidate) -> None:
    """``context.record`` has plain finite numbers and strings, under names of metrics."""
    model = make_encoder()
    with make_context(model) as context:
        _apply(candidate, model, context)
        record = dict(context.record)
    for name, value in record.items():
        demand(re.fullmatch(r"[a-z0-9_/]+", name), f"'{name}' is no name of a metric")
        demand(isinstance(value, int | float | str), f"{name} is a {type(value).__name__}")
    json.dumps(record, allow_nan=False)


IN_PLANS = {
    **DESCRIBED,
    "description": Check(says_what_it_makes),
    "row": Check(row_is_a_name),
    "stages": Check(is_expanded_once),
    "gate": Check(takes_a_gate),
}
APPLIED = {
    "model_untouched": Check(model_is_left_as_it_was),
    "result": Check(result_embeds_the_same_images),
    "export": Check(result_is_saved_and_opened),
    "record": Check(records_are_plain),
}
STEP_CHECKS = {**IN_PLANS, **APPLIED}
