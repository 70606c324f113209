import pytest

from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment
from ssdistill.experiment.schema import Experiment
from ssdistill.settings.places import hint, setting_places


@pytest.mark.parametrize(
    "override, text",
    [
        ("select=rankme", "select: no such setting; 'select' belongs in pretrain.select, distill."),
        ("claims=[]", "claims: no such setting; 'claims' belongs in paper.claims"),
        ("weight=1", "'weight' belongs in distill.losses.NAME.weight"),
        ("lr=0.1", "'lr' belongs in pretrain.optim.lr, control.optim.lr, distill.optim.lr, …"),
        ("budget=time", "'budget' belongs in compare.NAME.budget"),
        ("distill.image_size=32", "distill.image_size: no such setting; 'image_size' belongs in "
                                  "data.image_size"),
        ("pretrain.kind=simclr pretrain.momentum=0.9", "pretrain.momentum: no such setting; "
            "'momentum' belongs to kind byol, dino, moco, …, or in pretrain.optim.momentum, "),
        ("data.path=x", "data.path: no such setting; 'path' belongs to kind arrow, folder, hdf5, …,"
                        " or in teacher.path (kind checkpoint, run)"),
        ("selct=rankme", "selct: no such setting (did you mean 'select'?); 'select' belongs in "),
        ("seed=3", "seed: no such setting (did you mean 'seeds'?); 'seed' belongs in pretrain."),
    ],
)  # fmt: skip
def test_a_key_of_another_section_is_said_to_belong_there(override, text):
    with pytest.raises(UserError) as refusal:
        load_experiment("quickstart", override.split())
    assert text in str(refusal.value)


def test_every_field_of_a_section_has_its_place():
    places = setting_places(Experiment)
    for section in ("evaluate", "tracking", "device", "measure", "paper", "distill", "control"):
        annotation = Experiment.model_fields[section].annotation
        model = next(m for m in (annotation, *annotation.__args__) if hasattr(m, "model_fields")) \
            if hasattr(annotation, "__args__") else annotation  # fmt: skip
        for name in model.model_fields:
            assert f"{section}.{name}" in places[name]


def test_a_key_that_is_like_nothing_gets_the_known_ones():
    assert hint("zzzzz", ["seeds", "data"], Experiment) == "; known: seeds, data"
    many = [f"key{number}" for number in range(13)]
    assert hint("zzzzz", many, Experiment) == f"; known: {', '.join(many[:12])}, …"
    assert hint("zzzzz", [], Experiment) == ""


def test_a_key_that_looks_like_its_sibling_is_only_that():
    assert hint("stepz", ["steps"], Experiment) == " (did you mean 'steps'?)"
