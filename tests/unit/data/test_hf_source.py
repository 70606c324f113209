import io
import json
import os
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from ssdistill.data import hf_shard
from ssdistill.data.bad_image import BadImage
from ssdistill.data.sources.hf import HuggingFace
from ssdistill.errors import UserError


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (level, level, level)).save(file, "PNG")
    return file.getvalue()


FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])}
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path / "cache"


def rows(levels, features=FEATURES):
    images = [{"bytes": png(level), "path": None} for level in levels]
    labels = [level % 3 for level in levels]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture
def saved(tmp_path):
    splits = {"train": rows(range(8)), "validation": rows([20, 21]), "extra": rows([30])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def levels(split):
    return [int(split.image(i)[0, 0, 0]) for i in range(len(split))]


def refusal(path, **settings):
    with pytest.raises(UserError) as caught:
        HuggingFace(path=str(path), **settings).split("train")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_data_set_has_its_splits_images_and_classes(saved):
    found = HuggingFace(path=str(saved))
    train, test = found.split("train"), found.split("test")
    assert (levels(train), levels(test)) == (list(range(8)), [20, 21])
    assert train.labels().tolist() == [k % 3 for k in range(8)]
    assert test.labels().tolist() == [2, 0]
    assert train.class_names == ("cat", "dog", "emu")
    assert train.name(3) == "train:3"
    assert found.has_labels
    assert "ignoring split extra" in found.warnings(True)[0]
    assert found.description.endswith("labeled, 8 train and 2 test images")


def test_an_image_is_the_bytes_that_were_saved(saved):
    train = HuggingFace(path=str(saved)).split("train").encoded()
    assert train.read(5) == png(5)
    assert len(set(train.stamps().tolist())) == 8


def test_splits_are_chosen_by_name(saved):
    found = HuggingFace(path=str(saved), train_split="extra", test_split="train")
    assert levels(found.split("train")) == [30]
    assert levels(found.split("test")) == list(range(8))
    assert "data.train_split=gone: no such split; set one of train, validation, extra" in refusal(
        saved, train_split="gone"
    )
    shutil.rmtree(saved / "train")
    (saved / "dataset_dict.json").write_text('{"splits": ["extra", "validation"]}')
    message = "data.train_split: required; set it to one of the splits extra, validation"
    assert message in refusal(saved)


def test_rows_are_held_out_of_a_single_split(tmp_path):
    rows(range(40)).save_to_disk(tmp_path / "one")
    found = HuggingFace(path=str(tmp_path / "one"), test_fraction=0.25)
    train, test = found.split("train"), found.split("test")
    assert (len(train), len(test)) == (30, 10)
    assert sorted(levels(train) + levels(test)) == list(range(40))
    assert test.labels().tolist() == [level % 3 for level in levels(test)]
    with pytest.raises(UserError, match=r"has no test images; raise data\.test_fraction"):
        HuggingFace(path=str(tmp_path / "one"), test_fraction=0).split("test")


def test_rows_that_were_selected_are_those(tmp_path):
    rows(range(10)).select([7, 2, 5]).save_to_disk(tmp_path / "some")
    found = HuggingFace(path=str(tmp_path / "some"), test_fraction=0)
    assert levels(found.split("train")) == [7, 2, 5]
    assert found.split("train").labels().tolist() == [1, 2, 2]


def test_parquet_is_read_as_a_file_and_as_a_folder_of_splits(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows(range(6)).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    rows([9]).to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    found = HuggingFace(path=str(tmp_path / "set"))
    assert levels(found.split("train")) == list(range(6))
    assert levels(found.split("test")) == [9]
    file = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    one = HuggingFace(path=str(file), test_fraction=0).split("train")
    assert levels(one) == list(range(6))
    assert one.class_names == ("cat", "dog", "emu")


def test_a_name_is_looked_for_on_the_hub(monkeypatch):
    wanted = []

    def load(path, name=None, **more):
        wanted.append((path, name, more))
        return datasets.DatasetDict({"train": rows([1, 2]), "test": rows([3])})

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = HuggingFace(path="owner/set", name="plain", revision="v1")
    assert levels(found.split("test")) == [3]
    assert wanted == [("owner/set", "plain", {"revision": "v1"})]


def test_what_the_library_says_becomes_one_line(monkeypatch):
    def load(*arguments, **more):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = refusal("owner/set")
    assert "datasets cannot load it (no route to host); not a local folder, so it was" in message


def test_identity_follows_the_files(saved):
    before = HuggingFace(path=str(saved)).split("train")
    again = HuggingFace(path=str(saved)).split("train")
    assert before.identity() == again.identity()
    os.utime(saved / "train" / "data-00000-of-00001.arrow", ns=(1, 1))
    after = HuggingFace(path=str(saved)).split("train")
    assert before.identity() != after.identity()
    assert not np.isin(before.stamps(), after.stamps()).any()


def test_plain_bytes_are_images(tmp_path):
    data = datasets.Dataset.from_dict({"jpg": [png(4), png(5)], "cls": ["b", "a"]})
    data.save_to_disk(tmp_path / "bytes")
    train = HuggingFace(path=str(tmp_path / "bytes"), test_fraction=0).split("train")
    assert levels(train) == [4, 5]
    assert train.labels().tolist() == [1, 0]
    assert train.class_names == ("a", "b")


def test_a_path_in_place_of_an_image_is_not_followed(monkeypatch, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(1))
    images = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": png(2), "path": ""}]
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=FEATURES)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: data)
    train = HuggingFace(path="owner/set", test_fraction=0).split("train")
    with pytest.raises(BadImage, match="a path without bytes"):
        train.read(0)
    assert train.read(1) == png(2)


def test_files_outside_of_the_folder_are_not_opened(saved, tmp_path, monkeypatch):
    state = json.loads((saved / "train" / "state.json").read_text())
    shutil.move(saved / "train" / "data-00000-of-00001.arrow", tmp_path / "far.arrow")
    state["_data_files"] = [{"filename": "../../far.arrow"}]
    (saved / "train" / "state.json").write_text(json.dumps(state))
    monkeypatch.setattr(hf_shard, "ArrowShard", lambda *a: pytest.fail("opened"))
    assert "../../far.arrow is outside the folder; save the data set again" in refusal(saved)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"_data_files": 1}', "[" * 100_000])
def test_a_damaged_description_is_one_line(saved, content):
    (saved / "train" / "state.json").write_text(content)
    assert "datasets cannot load it" in refusal(saved)


def test_damaged_tables_are_named(saved):
    path = saved / "train" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:40])
    assert "cannot read this file" in refusal(saved)


def test_a_missing_library_is_named(saved, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "data.kind=hf requires datasets: pip install 'ssdistill[hf]'" in refusal(saved)
