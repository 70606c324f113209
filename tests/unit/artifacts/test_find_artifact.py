import pytest

import ssdistill
from ssdistill.artifacts import files
from ssdistill.artifacts.files import find_artifact
from ssdistill.errors import UserError


def test_a_model_is_not_looked_for_on_a_whole_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_ENTRIES", 20)
    for number in range(30):
        (tmp_path / f"{number}.png").touch()
    with pytest.raises(UserError, match="more than 20 files: name the model's folder"):
        find_artifact(tmp_path)
    model = tmp_path / "s0" / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    assert find_artifact(tmp_path / "s0") == model


@pytest.mark.parametrize("name", ["notes.txt", "student.onnx"])
def test_a_file_that_is_of_no_model_does_not_stand_for_one_below(tmp_path, name):
    (tmp_path / name).write_text("junk")
    model = tmp_path / "old" / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_text('{"files": ["model.safetensors"]}')
    (model / "model.safetensors").touch()
    with pytest.raises(UserError, match=rf"{name} is no file of a saved model; name its folder$"):
        find_artifact(tmp_path / name)
    for path in (tmp_path, model, model / "model.json", model / "model.safetensors"):
        assert find_artifact(path) == model


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "no\nsuch"])
def test_a_name_that_no_file_has_is_one_short_line(path):
    with pytest.raises(UserError) as raised:
        ssdistill.load(path)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500
