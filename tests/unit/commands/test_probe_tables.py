"""Results of a probe as tables, files and a page."""

import csv
import html
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import ssdistill
from ssdistill.commands.probe.files import to_csv, to_json, to_markdown
from ssdistill.commands.probe.page import _headlines, render
from ssdistill.commands.probe.tables import interval_of, quoted, tables
from ssdistill.errors import UserError
from ssdistill.evaluate.paired import paired_test
from ssdistill.label_free.agreement import agreement

ASKED = {"knn": {"k": 5}, "low_shot": {"draws": 3}}


def colors(x_BCHW):
    return x_BCHW.mean((2, 3))


def pixels(x_BCHW):
    return x_BCHW.flatten(1)


def corner(x_BCHW):
    return x_BCHW[:, :, 0, 0]


def pairs(classes=4, train=120, test=80, labels=True):
    """Every class has its own color, blurred by noise."""
    rng = np.random.default_rng(0)
    color_K3 = rng.integers(40, 160, (classes, 3))

    def split(count):
        y = np.arange(count) % classes
        x = color_K3[y].reshape(-1, 1, 1, 3) + rng.integers(-40, 90, (count, 5, 5, 3))
        return (x.clip(0, 255).astype(np.uint8), y) if labels else (x.astype(np.uint8),)

    return split(train), split(test)


@pytest.fixture(scope="module")
def one():
    return ssdistill.probe({"colors": colors}, pairs(), ["knn", "low_shot"], settings=ASKED)


@pytest.fixture(scope="module")
def several():
    models = {"colors": colors, "pixels": pixels, "corner": corner}
    return ssdistill.probe(models, pairs(), ["knn", "low_shot"], settings=ASKED, margin=2.0)


def column(table, name):
    return [row[table.header.index(name)] for row in table.rows]


def test_one_model_is_shown_measure_by_measure_and_class_by_class(one):
    measures, classes, label_free = tables(one)
    (model,) = one.models
    knn = model.results["knn"]
    first = measures.rows[0]
    assert first[:3] == ("k-NN", "top1", f"{knn['top1']:.2f}")
    assert first[3] == f"{knn['top1_low']:.1f} to {knn['top1_high']:.1f}"
    names = column(measures, "measure")
    assert not any(name.endswith(("_low", "_high", "_stderr")) for name in names)
    assert column(measures, "protocol").count("k-NN") == 1
    by_class = knn.classification.by_class()
    assert column(classes, "recall") == [f"{row['recall']:.1f}" for row in by_class]
    assert label_free.header == ("model", "std", "effective rank", "uniformity")


def test_of_many_classes_the_worst_are_shown():
    data = pairs(classes=24, train=240, test=240)
    found = ssdistill.probe({"corner": corner}, data, ["knn"])
    classes = tables(found)[1]
    shown = [float(f1) for f1 in column(classes, "F1")]
    every = [row["f1"] for row in found.models[0].results["knn"].classification.by_class()]
    assert shown == [round(f1, 1) for f1 in sorted(every)[:10]]
    assert "The 10 of 24 classes" in classes.caption


def test_several_models_are_one_row_each_and_held_against_the_first(several):
    models, paired, label_free = tables(several)
    assert column(models, "model") == ["colors", "pixels", "corner"]
    assert column(models, "size") == ["–"] * 3
    first, _, corner_found = several.models
    low, high = corner_found.results["knn"]["top1_low"], corner_found.results["knn"]["top1_high"]
    expected = f"{corner_found.results['knn']['top1']:.2f} ({low:.1f} to {high:.1f})"
    assert column(models, "k-NN top-1 (%)")[2] == expected

    answers = [m.results["knn"].classification for m in (corner_found, first)]
    test = paired_test(answers[0].targets, *(a.predictions for a in answers), margin=2.0)
    row = dict(zip(paired.header, paired.rows[-1], strict=True))
    assert row["difference"] == f"{test.difference:+.2f}" and test.difference < -5
    assert row["95 % interval"] == f"{test.low:+.2f} to {test.high:+.2f}"
    assert row["verdict"] == "worse" and "± 2 points" in paired.caption
    assert len(paired.rows) == 2  # low_shot has no answer per image

    z_ND = [model.looked_at_ND for model in several.models]
    cka = agreement(z_ND[1], z_ND[0])["agree/cka"]
    assert column(label_free, "CKA") == ["–", f"{cka:.3f}", column(label_free, "CKA")[2]]


@pytest.mark.parametrize(("images", "k"), [(80, 10), (9, 4)])
def test_ten_neighbors_agree_or_half_of_a_handful(images, k):
    found = ssdistill.probe({"colors": colors, "corner": corner}, pairs(test=images), ["knn"])
    first, other = found.models
    expected = agreement(other.looked_at_ND, first.looked_at_ND, k=k)
    assert {name: other.metrics[name] for name in expected} == expected
    assert 0 < expected["agree/knn_overlap"] < 1
    assert not any(name.startswith("agree/") for name in first.metrics)


def test_a_model_against_itself_is_equivalent():
    models = {"a": colors, "b": lambda x: colors(x)}
    found = ssdistill.probe(models, pairs(test=400), ["knn"], margin=1.5)
    row = dict(zip(tables(found)[1].header, tables(found)[1].rows[0], strict=True))
    assert (row["difference"], row["McNemar p"]) == ("+0.00", "1.000")
    assert row["verdict"] == "equivalent within 1.5"


def test_without_labels_only_the_label_free_metrics_are_shown_and_why():
    data = pairs(labels=False)
    found = ssdistill.probe({"colors": colors, "pixels": pixels}, data)
    assert [table.title for table in tables(found)] == ["Models", "Label-free metrics"]
    assert "no labels" in found.notices[0] and not found.comparisons
    assert "no labels" in render(found)
    with pytest.raises(UserError, match="required by knn"):
        ssdistill.probe({"colors": colors}, data, ["knn"])


def test_a_protocol_that_cannot_judge_is_left_out_aloud():
    asked = {"low_shot": {"labels_per_class": 1000}}
    found = ssdistill.probe({"c": colors}, pairs(), ["knn", "low_shot"], settings=asked)
    assert set(found.models[0].results) == {"knn"}
    assert any("c: low_shot skipped: class 0 has 30" in notice for notice in found.notices)
    with pytest.raises(UserError, match="class 0 has 30"):
        ssdistill.probe({"c": colors}, pairs(), ["low_shot"], settings=asked)
    (x, y), (u, v) = pairs()
    with pytest.raises(UserError, match="classes without training images: 9"):
        ssdistill.probe({"c": colors}, ((x, y), (u, np.where(v == 3, 9, v))), ["knn"])


def test_an_interval_is_the_one_found_or_made_of_the_standard_error():
    found = {"a/x": 50.0, "a/x_low": 40.0, "a/x_high": 61.0, "b/x": 50.0, "b/x_stderr": 2.0}
    assert interval_of(found, "a/x") == (40.0, 61.0)
    assert np.allclose(interval_of(found, "b/x"), (50 - 3.92, 50 + 3.92))
    assert interval_of(found, "c/x") is None


def test_every_protocol_has_a_number_to_quote(several):
    metrics = [column.metric for column in quoted(several)]
    assert metrics == ["probe/knn/top1", "probe/low_shot/top1"]


def test_json_holds_everything_and_csv_every_number(several):
    found = json.loads(to_json(several))
    assert [model["name"] for model in found["models"]] == ["colors", "pixels", "corner"]
    model = several.models[2]
    knn = found["models"][2]["results"]["knn"]
    assert knn["settings"]["k"] == 5 and found["protocols"]["knn"]["k"] == 5
    assert knn["confusion"] == model.results["knn"].classification.confusion_KK.tolist()
    assert [row["class"] for row in knn["classes"]] == [0, 1, 2, 3]
    assert found["paired"][0]["verdict"] == several.comparisons[0].paired.verdict
    lines = list(csv.DictReader(io.StringIO(to_csv(several))))
    values = {(r["model"], r["protocol"], r["measure"]): float(r["value"]) for r in lines}
    assert values["corner", "knn", "top1"] == model.metrics["probe/knn/top1"]
    assert values["pixels", "agree", "cka"] == several.models[1].metrics["agree/cka"]
    assert len(values) == sum(len(m.metrics) for m in several.models)


def test_what_json_cannot_hold_is_null():
    (x, y), (u, v) = pairs()
    keep = v != 3
    found = ssdistill.probe({"c": colors}, ((x, y), (u[keep], v[keep])), ["knn"])
    classes = json.loads(to_json(found))["models"][0]["results"]["knn"]["classes"]
    assert classes[3]["recall"] is None and classes[3]["images"] == 0


def test_markdown_has_the_tables_of_the_terminal(several):
    text = to_markdown(several)
    for table in tables(several):
        assert f"### {table.title}" in text and table.to_markdown() in text


def test_the_page_has_every_picture_and_no_script(one, several):
    page = render(several)
    for name in ("colors", "pixels", "corner"):
        assert page.count(f"<title>{name}, k-NN</title>") == 2  # for wide and for narrow pages
        assert page.count(f"<title>{name}</title>") == 2
    assert "Paired comparison" in page and "Paired" not in render(one)
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org/", "")
    alone = render(one)
    assert "Probe of colors" in alone and "Accuracy against size" not in alone


def test_the_page_of_one_model_has_every_measure_of_a_class_that_of_several_only_one(one, several):
    assert "<th>recall</th>" in re.sub(r"<th[^>]*>", "<th>", render(one))
    assert "<th>recall</th>" not in re.sub(r"<th[^>]*>", "<th>", render(several))


def test_the_page_begins_with_the_numbers_that_are_quoted(one, several):
    (model,) = one.models
    metrics = [column.metric for column in quoted(one)]
    assert [head.value for head in _headlines(one)] == [f"{model.metrics[m]:.1f}" for m in metrics]
    assert [head.name for head in _headlines(several)] == ["colors", "pixels", "corner"]


def test_the_page_says_what_every_protocol_chose(several):
    text = html.unescape(render(several))
    for model in several.models:
        details = json.loads(to_json(several))["models"][0]["results"]["knn"]["details"]
        assert details and f'"{model.name}"' in text
        assert all(f'"{name}"' in text for name in details)


def test_models_whose_size_is_known_are_drawn_against_it():
    found = ssdistill.probe({"a": colors, "b": corner}, pairs(), ["knn"])
    assert "Accuracy against size" not in render(found)
    for model, size in zip(found.models, (1000, 2000), strict=True):
        model.metrics["compress/bytes"] = size
    assert "Accuracy against size" in render(found)


def test_a_protocol_without_numbers_has_none_to_quote():
    model = SimpleNamespace(results={"knn": SimpleNamespace(metrics={})})
    assert quoted(SimpleNamespace(models=[model])) == []


def test_a_page_draws_the_maps_of_the_first_six_models():
    models = {f"model{number}": colors for number in range(7)}
    found = ssdistill.probe(models, pairs(labels=False))
    page = render(found)
    assert [f"<title>model{number}</title>" in page for number in range(7)] == [True] * 6 + [False]


def test_nothing_is_changed_in_the_order_of_models_or_images(several):
    again = ssdistill.probe({"pixels": pixels}, pairs(), ["knn"], settings={"knn": {"k": 5}})
    assert again.models[0].results["knn"].metrics == several.models[1].results["knn"].metrics


@pytest.mark.parametrize("margin", [0, -1.0])
def test_a_margin_is_positive(margin):
    with pytest.raises(UserError, match="margin="):
        ssdistill.probe({"c": colors}, pairs(), ["knn"], margin=margin)


def test_pictures_are_resized_aloud_and_models_may_be_a_list():
    found = ssdistill.probe([colors, pixels], pairs(), ["knn"], image_size=4)
    assert [model.name for model in found.models] == ["encoder 1", "encoder 2"]
    assert found.models[1].image_size == 4
    assert found.notices == ["encoder 1, encoder 2: images of 5 pixels are resized to 4"]
    with pytest.raises(UserError, match="at least one is required"):
        ssdistill.probe([], pairs())
