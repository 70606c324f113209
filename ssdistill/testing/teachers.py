"""Checks of teachers: what they load, and that it is the same every time."""

import json
import tempfile

import torch

from ssdistill.artifacts.artifact import load_encoder, save_encoder
from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.settings import Size, height_width
from ssdistill.teachers import ImageSpec, Teacher
from ssdistill.testing.candidate import DESCRIBED, Candidate, Check, demand, one_line_error

COLOR = ImageSpec(image_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
OTHER = {
    "five_channels": ImageSpec(32, (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5),
    "other_sides": ImageSpec((32, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
}
BATCH = 3


def loaded(candidate: Candidate) -> tuple[Encoder, list[str]]:
    """The encoder for color images, loaded once."""
    return candidate.once("loaded", lambda: _load(candidate, 0))


def _load(candidate: Candidate, seed: int, spec: ImageSpec = COLOR) -> tuple[Encoder, list[str]]:
    torch.manual_seed(seed)
    return candidate.build().load(spec)


def _embedded(encoder: Encoder, spec: ImageSpec, size: Size | None = None) -> torch.Tensor:
    height, width = height_width(size or spec.image_size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        shape = BATCH, len(spec.mean), height, width
        return encoder(torch.rand(shape, generator=generator)).embedding_BD


def is_made_without_its_files(candidate: Candidate) -> None:
    """It is a Teacher, and settings alone make it."""
    demand(issubclass(candidate.cls, Teacher), "it is no subclass of Teacher")
    candidate.build()


def identity_is_plain_and_stable(candidate: Candidate) -> None:
    """The identity can be written as JSON, and loading does not change it."""
    teacher = candidate.build()
    before = teacher.identity()
    json.dumps(before, allow_nan=False)
    teacher.load(COLOR)
    demand(teacher.identity() == before, "identity() is another one after load()")
    demand(candidate.build().identity() == before, "identity() differs from object to object")


def training_facts_are_plain(candidate: Candidate) -> None:
    """What it says of the images it was trained on can be written as JSON."""
    facts = candidate.build().trained_on()
    demand(facts is None or isinstance(facts, dict), "trained_on() must return a dict or None")
    json.dumps(facts, allow_nan=False)


def encoder_is_ready(candidate: Candidate) -> None:
    """The encoder is in eval mode, and its embeddings are finite and as wide as it says."""
    encoder, notices = loaded(candidate)
    demand(isinstance(encoder, Encoder), f"load() returns a {type(encoder).__name__}, no Encoder")
    demand(not any(m.training for m in encoder.modules()), "the encoder is not in eval mode")
    embedding_BD = _embedded(encoder, COLOR)
    expected = BATCH, encoder.embed_dim
    demand(embedding_BD.shape == expected, f"the embedding is {tuple(embedding_BD.shape)}")
    demand(torch.isfinite(embedding_BD).all(), "the embedding has NaN or infinity")
    differ = (embedding_BD - embedding_BD[:1]).abs().max() > 0
    demand(differ, "all images have one embedding")
    lines = all(isinstance(notice, str) and "\n" not in notice for notice in notices)
    demand(lines, "notices must be strings of one line each")


def images_are_pixels_in_0_to_1(candidate: Candidate) -> None:
    """Its size and statistics are those of images in [0, 1], of the channels that there are."""
    encoder, _ = loaded(candidate)
    spec = encoder.spec
    demand(len(spec.mean) == len(spec.std) == len(COLOR.mean), "mean and std of other channels")
    usable = all(-1 <= m <= 2 for m in spec.mean) and all(0 < s <= 2 for s in spec.std)
    demand(usable, f"mean {spec.mean} and std {spec.std} are not of values in [0, 1]")


def loading_again_gives_the_same(candidate: Candidate) -> None:
    """Loading again gives the same weights, whatever random numbers are drawn."""
    encoder, _ = loaded(candidate)
    again, _ = _load(candidate, 1)
    states = encoder.state_dict(), again.state_dict()
    demand(states[0].keys() == states[1].keys(), "load() returns other weights every time")
    for name, value in states[0].items():
        same = torch.equal(value, states[1][name])
        demand(same, f"{name} is another one when it is loaded again; load it from a file or seed")


def encoder_is_saved_and_opened(candidate: Candidate) -> None:
    """The encoder is saved as the chain saves it, and the file embeds as it does."""
    encoder, _ = loaded(candidate)
    with tempfile.TemporaryDirectory() as folder:
        save_encoder(encoder, folder)
        found = load_encoder(folder)
    same = torch.equal(_embedded(found, COLOR), _embedded(encoder, COLOR))
    demand(same, "the saved encoder embeds otherwise than the loaded one")
    kept = (found.projector is None) == (encoder.projector is None)
    demand(kept, "the projector is not saved; make it of linear layers, batch norms and ReLUs")


def other_images_are_taken_or_refused(candidate: Candidate) -> None:
    """Images of other channels or sides are embedded, or refused in one line."""
    for name, spec in OTHER.items():
        try:
            encoder, _ = _load(candidate, 0, spec)
        except UserError as error:
            one_line_error(error, f"images of {name.replace('_', ' ')}")
            continue
        embedding_BD = _embedded(encoder, spec)
        usable = embedding_BD.shape == (BATCH, encoder.embed_dim)
        demand(usable and torch.isfinite(embedding_BD).all(), f"cannot embed {name}")


TEACHER_CHECKS = {
    **DESCRIBED,
    "made": Check(is_made_without_its_files),
    "identity": Check(identity_is_plain_and_stable),
    "trained_on": Check(training_facts_are_plain),
    "encoder": Check(encoder_is_ready),
    "normalization": Check(images_are_pixels_in_0_to_1),
    "repeatable": Check(loading_again_gives_the_same),
    "export": Check(encoder_is_saved_and_opened),
    "other_images": Check(other_images_are_taken_or_refused),
}
