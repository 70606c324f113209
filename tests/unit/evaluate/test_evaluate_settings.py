"""The section ``evaluate`` of a config: one key for each protocol, from the registry."""

import io
import json

import pytest
from pydantic import ValidationError
from rich.console import Console

from ssdistill.commands.listing import description, listings
from ssdistill.errors import UserError
from ssdistill.evaluate import settings as settings_file
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.experiment.reading import load_experiment
from ssdistill.settings.registry import PROTOCOLS, settings_of

BY_DEFAULT = [kind for kind, cls in PROTOCOLS.classes.items() if cls.by_default]
OTHERS = [kind for kind in PROTOCOLS.classes if kind not in BY_DEFAULT]
LEAST = {"transfer": {"datasets": ["digits"]}}
"""What has to be given, of the protocols that have no default for everything."""
WITH_PRESET = [kind for kind, cls in PROTOCOLS.classes.items() if cls.presets]


@pytest.fixture
def load(tmp_path):
    """``load("evaluate: …", *overrides)``: that section of a small experiment."""

    def load(text="", *overrides):
        file = tmp_path / "x.yaml"
        start = "schema: 1\nname: x\ndata: digits\nstudent: {}\npretrain: {kind: simclr, steps: 1}"
        file.write_text(f"{start}\n{text}\n")
        return load_experiment(file, list(overrides))[0].evaluate

    return load


def names(settings):
    return [protocol.name for protocol in settings.protocols]


def test_the_default_is_the_protocols_that_say_so():
    assert names(EvaluateSettings()) == BY_DEFAULT
    assert {"knn", "linear", "low_shot"} <= set(BY_DEFAULT)


@pytest.mark.parametrize("kind", PROTOCOLS.classes)
def test_null_leaves_a_protocol_out_and_braces_ask_for_it(kind, load):
    assert kind not in names(load(f"evaluate: {{{kind}: null}}"))
    settings = load(f"evaluate: {{{kind}: {LEAST.get(kind, {})}}}")
    assert kind in names(settings)
    assert getattr(settings, kind) == PROTOCOLS.schema(kind)(**LEAST.get(kind, {}))


def test_an_override_changes_one_setting_and_leaves_the_others(load):
    text = "evaluate: {knn: {temperature: 0.1}, pixels: true}"
    settings = load(text, "evaluate.knn.k=5", "evaluate.low_shot=null")
    assert (settings.knn.k, settings.knn.temperature, settings.pixels) == (5, 0.1, True)
    (knn,) = [p for p in settings.protocols if p.kind == "knn"]
    assert (knn.k, knn.temperature) == (5, 0.1)
    assert settings.linear == PROTOCOLS.schema("linear")() and settings.low_shot is None
    # Also where a file had switched it off.
    assert load("evaluate: {knn: null}", "evaluate.knn.k=3").knn.k == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("evaluate.kn.k=3", "evaluate.kn: no such setting (did you mean 'knn'?)"),
        ("evaluate.knn.kk=3", "evaluate.knn.kk: no such setting (did you mean 'k'?)"),
        ("evaluate.knn.k=0", "evaluate.knn.k: expected a number above 0, or null (got 0)"),
        ("evaluate.knn=true", "evaluate.knn: write its settings, {} for"),
        ("evaluate.knn.kind=linear", "evaluate.knn.kind: expected 'knn' (got 'linear')"),
        ("evaluate.linear.strengths=[-1]", "evaluate.linear.strengths.0: expected a number above"),
        (
            "evaluate.label_free_images=3",
            "evaluate.label_free_images: expected a number ",
        ),
        ("evaluate.also.a.kind=knnn", "evaluate.also.a.kind: 'knnn' is unknown (did you mean"),
        ("evaluate.also={a: {k: 3}}", "evaluate.also.a.kind: required"),
        ("evaluate.also={a: {kind: knn, kk: 3}}", "evaluate.also.a.kk: no such setting (did you"),
        ("evaluate.also={a: {kind: knn, k: -3}}", "evaluate.also.a.k: expected a number above 0"),
        ("evaluate.also={a b: {kind: knn}}", "evaluate.also.a b: expected letters, digits and '_'"),
        ("evaluate.also={a: 3}", "evaluate.also.a: "),
    ],
)
def test_mistakes_are_named_by_their_key(load, override, says):
    with pytest.raises(UserError) as caught:
        load("", override)
    (line,) = str(caught.value).splitlines()[1:]
    assert says in line


def test_two_protocols_that_would_write_the_same_metrics_are_both_named(load):
    with pytest.raises(UserError) as caught:
        load("evaluate: {also: {wide: {kind: knn, k: 200}}}")
    assert "evaluate: knn and also.wide would both write probe/knn/…" in str(caught.value)
    with pytest.raises(UserError, match=r"also\.a and also\.b would both write probe/knn/"):
        load("evaluate: {knn: null, also: {a: {kind: knn}, b: {kind: knn, k: 3}}}")
    assert "knn" in names(load("evaluate: {knn: null, also: {wide: {kind: knn, k: 200}}}"))


@pytest.mark.parametrize("kind", WITH_PRESET)
def test_presets_stand_beside_each_other(kind, load):
    presets = list(PROTOCOLS[kind].presets)[:2]
    entries = ", ".join(f"x_{p}: {{kind: {kind}, preset: {p}}}" for p in presets)
    settings = load(f"evaluate: {{{kind}: {{}}, also: {{{entries}}}}}")
    assert {kind, *(f"{kind}_{preset}" for preset in presets)} <= set(names(settings))


def test_what_only_a_constructor_can_judge_is_said_before_anything_runs(load):
    with pytest.raises(UserError, match=r"evaluate.finetune: finetune: epochs=3.* and steps=4"):
        load("evaluate: {finetune: {epochs: 3, steps: 4}}")
    with pytest.raises(UserError, match=r"evaluate.also.a: finetune: epochs=3.* and steps=4"):
        load("evaluate: {also: {a: {kind: finetune, epochs: 3, steps: 4}}}")


def test_an_entry_can_be_taken_back_or_replaced(load):
    text = "evaluate: {knn: null, also: {a: {kind: knn, k: 3}}}"
    assert "knn" not in names(load(text, "evaluate.also.a=null"))
    settings = load(text, "evaluate.also.a={kind: low_shot}", "evaluate.low_shot=null")
    assert "low_shot" in names(settings) and "knn" not in names(settings)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"knn": None, "pixels": True},
        {"linear": {"strengths": [0.1, 0.01]}, "label_free_images": 50},
        {"knn": None, "also": {"a": {"kind": "knn", "k": 3}, "b": None}},
        {kind: LEAST.get(kind, {}) for kind in PROTOCOLS.classes},
        dict.fromkeys(PROTOCOLS.classes),
    ],
)
def test_settings_survive_a_journey_through_json(given):
    settings = EvaluateSettings(**given)
    dumped = json.loads(json.dumps(settings.model_dump(mode="json")))
    again = EvaluateSettings.model_validate(dumped)
    assert again.model_dump(mode="json") == dumped
    assert [(p.name, settings_of(p)) for p in again.protocols] == [
        (p.name, settings_of(p)) for p in settings.protocols
    ]


def test_a_protocol_nobody_asked_for_is_no_part_of_a_stages_identity():
    """A new file in the folder must not make old evaluations look as if they were others."""
    dumped = EvaluateSettings().model_dump(mode="json")
    assert set(dumped) == {"pixels", "gauge_images", *BY_DEFAULT}
    for kind in BY_DEFAULT:
        without = EvaluateSettings(**{kind: None}).model_dump(mode="json")
        assert without == {**dumped, kind: None}
    for kind in OTHERS:
        assert EvaluateSettings(**{kind: None}).model_dump(mode="json") == dumped
        given = EvaluateSettings(**{kind: LEAST.get(kind, {})})
        assert kind in given.model_dump(mode="json")


def test_the_number_of_images_for_label_free_metrics_may_be_written_as_in_0_1(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("extends: quickstart\nevaluate: {gauge_images: 50}\n")
    experiment, notices = load_experiment(file)
    assert experiment.evaluate.label_free_images == 50
    assert notices == [
        "evaluate.gauge_images is now called evaluate.label_free_images; the old name still works"
    ]
    file.write_text("extends: quickstart\nevaluate: {label_free_images: 50}\n")
    assert load_experiment(file)[1] == []
    overridden, notices = load_experiment(file, ["evaluate.gauge_images=60"])
    assert overridden.evaluate.label_free_images == 60 and len(notices) == 1
    # Hashed by the old name, shown by the new one.
    assert experiment.evaluate.model_dump(mode="json")["gauge_images"] == 50
    assert experiment.evaluate.model_dump(mode="json", by_alias=True)["label_free_images"] == 50


def test_a_key_under_both_of_its_names_is_refused(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text("extends: quickstart\nevaluate: {gauge_images: 50, label_free_images: 60}\n")
    with pytest.raises(UserError, match="gauge_images is the old name"):
        load_experiment(file)


def test_settings_are_frozen_and_describe_themselves():
    with pytest.raises(ValidationError):
        EvaluateSettings().pixels = True
    assert EvaluateSettings.__module__ == "ssdistill.evaluate.settings"
    for word in ("pixels:", "label_free_images:", "also:", "ssdistill list protocols"):
        assert word in EvaluateSettings.__doc__


def test_a_protocol_may_not_be_called_like_another_setting():
    for name in ("also", "pixels", "protocols"):
        with pytest.raises(TypeError, match=f"'{name}' has the name of another setting"):
            settings_file._field(name)


def text_of(shown):
    console = Console(file=io.StringIO(), width=200)
    for part in shown:
        console.print(part)
    return console.file.getvalue()


@pytest.mark.parametrize("kind", PROTOCOLS.classes)
def test_the_list_shows_every_protocol_and_all_its_settings(kind):
    assert kind in text_of(listings("protocols"))
    shown = text_of(description("protocols", kind))
    assert PROTOCOLS[kind].paper[:40] in shown
    for name in PROTOCOLS.schema(kind).model_fields.keys() - {"kind"}:
        assert name in shown
