import pytest

from ssdistill.data import listing
from ssdistill.data.listing import list_images
from ssdistill.data.sources.folder import Folder
from ssdistill.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize("path", ["/", "/proc", "/sys/", "/proc/..", "/dev"])
def test_a_folder_of_the_system_is_refused_at_once(path, monkeypatch):
    monkeypatch.setattr(listing.os, "scandir", lambda _: pytest.fail("listed"))
    with pytest.raises(
        UserError, match=r"is a system folder; set data\.path to the folder that holds"
    ):
        Folder(path=path).split("train")


def test_many_files_without_a_picture_end_the_listing(folder, monkeypatch):
    monkeypatch.setattr(listing, "MOST_OTHERS", 5)
    with pytest.raises(UserError, match=r"^data\.path=.*no image among the first 5 files; set"):
        Folder(path=str(folder)).split("train")


def test_many_files_beside_pictures_do_not(folder, monkeypatch):
    monkeypatch.setattr(listing, "MOST_OTHERS", 9)  # three folders, and five files of each
    for name in ("a", "b", "c"):
        (folder / name / "x.png").write_bytes(b"")
    found = list_images(folder)
    assert (len(found.names), found.skipped) == (3, 12)


def test_a_long_listing_says_how_far_it_is(folder, monkeypatch, caplog):
    monkeypatch.setattr(listing, "SECONDS", -1.0)
    list_images(folder)
    assert f"data.path={folder}: found 0 images and 12 other files so far" in caplog.text


def test_folders_that_link_each_other_have_an_end(tmp_path):
    names = [f"f{number}" for number in range(12)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    for name in names:
        for other in set(names) - {name}:
            (tmp_path / name / other).symlink_to(tmp_path / other)
    with pytest.raises(UserError, match=r"links lead to .* by more than 100 routes"):
        list_images(tmp_path)


def test_a_linked_folder_is_read_at_both_places(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert list_images(tmp_path).names == ["a/x.png", "b/x.png"]
