from pathlib import Path

import pytest

from ssdistill.artifacts.files import find_artifact
from ssdistill.artifacts.runtimes import compiled_here
from ssdistill.data.sources.folder import Folder
from ssdistill.data.sources.npz import Npz
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.encoders import open_encoder
from ssdistill.experiment.reading import find_config
from ssdistill.files import user_path
from ssdistill.teachers.checkpoint import Checkpoint
from ssdistill.teachers.weights import weights_file

NOBODY = "~nobody-has-this-name/x"


def open_folder(path):
    return Folder(path=path).has_labels


def open_npz(path):
    return Npz(path=path).has_labels


def open_checkpoint(path):
    return Checkpoint(path=path).identity()


READERS = (
    user_path, find_config, find_artifact, open_encoder, weights_file,
    open_folder, open_npz, open_checkpoint,
)  # fmt: skip


@pytest.mark.parametrize("read", READERS)
def test_a_home_that_nobody_has_is_one_line(read):
    with pytest.raises(UserError, match="no home folder is known for ~") as raised:
        read(NOBODY)
    assert NOBODY in str(raised.value) and "\n" not in str(raised.value)


def test_a_tilde_is_the_home_folder_wherever_data_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="no images in this folder"):
        open_folder("~/photos")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"not an .npz file"):
        open_npz("~/a.npz")


@pytest.mark.parametrize("what", [None, 3, ["a"], {}, b"a"])
@pytest.mark.parametrize("read", [user_path, find_config, find_artifact])
def test_what_is_no_text_is_no_path(read, what):
    with pytest.raises(UserError, match="expected a path as text"):
        read(what)


def test_without_any_home_nothing_is_known_to_be_compiled_here(tmp_path, monkeypatch):
    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    for name in (compiled_here.STATE, "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "model.aoti.pt2"
    file.write_bytes(b"made nowhere")
    assert not compiled_here.is_known(file)
    compiled_here.remember(file)
    assert compiled_here.is_known(file)  # in this process


def test_a_checkpoint_that_is_missing_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match=r"^teacher\.path: .*x\.pt: no such file or folder; check"):
        open_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"^teacher\.path: .*: is a folder; name a file in it"):
        open_checkpoint(tmp_path)
