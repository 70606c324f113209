"""Defaults do not change: a run whose config omits a key must stay the same run."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter

from ssdistill.commands.listing import REGISTRIES
from ssdistill.experiment.schema import Experiment
from ssdistill.settings.registry import AnyOf

PLAIN = TypeAdapter(object)
RECORDED = Path(__file__).with_name("defaults.json")
"""Defaults by setting. A new setting needs no entry; a default that is changed on purpose does,
together with a new version of the stages that it changes (see ``ssdistill/chain/stages.py``)."""


def models_of(annotation, known):
    """Every settings model that an annotation leads to, by name."""
    if isinstance(annotation, type) and issubclass(annotation, AnyOf):
        annotation = annotation.registry.any_of_now()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation.__name__ not in known:
            known[annotation.__name__] = annotation
            for field in annotation.model_fields.values():
                models_of(field.annotation, known)
        return
    for part in getattr(annotation, "__args__", ()):
        models_of(part, known)


def defaults():
    models = {}
    models_of(Experiment, models)
    for registry in REGISTRIES.values():
        for kind in registry.classes:
            models_of(registry.schema(kind), models)
    return {
        f"{name}.{key}": PLAIN.dump_python(
            field.get_default(call_default_factory=True), mode="json"
        )
        for name, model in sorted(models.items())
        for key, field in model.model_fields.items()
        if not field.is_required()
    }


@pytest.fixture(scope="module")
def present():
    return defaults()


@pytest.mark.parametrize(
    "model", sorted({n.split(".")[0] for n in json.loads(RECORDED.read_text())})
)
def test_defaults_are_those_that_were_released(model, present):
    recorded = json.loads(RECORDED.read_text())
    names = [name for name in recorded if name.split(".")[0] == model]
    assert {n: present.get(n, "gone") for n in names} == {n: recorded[n] for n in names}
