"""Arrays from users: claims in a file are checked first, and nothing is unpickled."""

import io
import os
import zipfile

import numpy as np
import pytest

from ssdistill.data.sources.npz import Npz
from ssdistill.data.store import open_store
from ssdistill.errors import UserError
from ssdistill.evaluate.opening.images import open_images

IMAGES = np.arange(6 * 5 * 5 * 3, dtype=np.uint8).reshape(6, 5, 5, 3)


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), **options)
    return buffer.getvalue()


def header(shape, descr="|u1", order=False):
    buffer = io.BytesIO()
    facts = {"descr": descr, "fortran_order": order, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


@pytest.fixture
def written(tmp_path):
    """An ``.npz`` of raw members, over images that are right."""

    def write(compression=zipfile.ZIP_STORED, **members):
        members = {"train_images": npy(IMAGES), "test_images": npy(IMAGES[:2]), **members}
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in members.items():
                if content is not None:
                    archive.writestr(f"{name}.npy", content)
        return path

    return write


def refusal(path, tmp_path):
    with pytest.raises(UserError) as caught:
        source = Npz(path=str(path))
        for split in ("train", "test"):
            open_store(source, split, 5, tmp_path / "stores")
        if source.has_labels:
            source.split("train").labels()
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    # The command that judges encoders reads by the same way.
    with pytest.raises(UserError) as again:
        open_images(str(path), root=tmp_path / "probe")
    assert "\n" not in str(again.value) and str(path) in str(again.value)
    return message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(np.array([{}], object), allow_pickle=True), "'train_images' must be"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': broken", "cannot read 'train_images'"),
        (b"not an array", "cannot read 'train_images'"),
        (b"", "cannot read 'train_images'"),
        (header((10**12, 1, 1)) + b"x", "declares 1000000000128 bytes"),
        (header((10**6, 10**6, 10**6)) + b"x", "declares|cannot read"),
        (header((2**62, 2**62, 4)) + b"x", "declares|cannot read"),
        (header((-1, 5, 5)) + b"x", "cannot read|declares"),
        (npy(IMAGES)[:-1], "declares|cannot read"),
        (npy(IMAGES) + b"x", "declares|cannot read"),
        (
            npy(np.zeros((6, 5), np.uint8)),
            "of shape 6 x 5; rows of this length are not square images; reshape it",
        ),
        (npy(np.uint8(3)), "of shape ()"),
        (npy(np.zeros((6, 4, 5, 5), np.uint8)), "keep three channels with [:, :3]"),
        (npy(np.zeros((6, 5, 5, 4), np.uint8)), "6 x 5 x 5 x 4; keep three channels"),
        (npy(np.zeros((6, 27), np.uint8)), "set data.layout=NCHW"),
        (npy(np.zeros((6, 3, 5, 1), np.uint8)), "channels may be first or last; set data.layout"),
        (npy(np.zeros((0, 5, 5, 3), np.uint8)), "add images"),
        (npy(np.zeros((6, 5, 5), complex)), "complex128"),
        (npy(np.full((6, 5, 5), "a")), "save numbers"),
        (npy(np.zeros((6, 5, 5), [("a", "u1")])), "save numbers"),
        (npy(np.full((6, 5, 5), 2.0)), "save both with the same type"),
    ],
)
def test_what_is_no_array_of_pictures_is_named_with_its_member(written, tmp_path, content, words):
    message = refusal(written(train_images=content), tmp_path)
    assert any(word in message for word in words.split("|")) and "train_images" in message


def test_objects_are_never_unpickled(written, tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "touched"),)

    objects = np.empty(6, object)
    objects[:] = [Touch()] * 6
    content = npy(objects, allow_pickle=True)
    labels = {"train_labels": content, "test_labels": npy(np.arange(2))}
    assert "never unpickled" in refusal(written(**labels), tmp_path)
    refusal(written(train_images=content), tmp_path)
    assert not (tmp_path / "touched").exists()


def test_bytes_that_cannot_unpack_to_the_promised_size_are_not_unpacked(written, tmp_path):
    path = written(zipfile.ZIP_DEFLATED, train_images=header((10**7, 10, 10)) + b"x" * 100)
    size, claimed = len(header((10**7, 10, 10))) + 100, len(header((10**7, 10, 10))) + 10**9
    content = path.read_bytes()
    assert content.count(size.to_bytes(4, "little")) >= 2
    path.write_bytes(content.replace(size.to_bytes(4, "little"), claimed.to_bytes(4, "little")))
    assert "cannot expand" in refusal(path, tmp_path)


def test_flipped_pixels_are_found_by_the_checksum(written, tmp_path):
    path = written()
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 200] ^= 4
    path.write_bytes(content)
    assert "cannot read 'train_images' (Bad CRC-32" in refusal(path, tmp_path)


def test_an_encrypted_member_is_named_as_such(written, tmp_path):
    path = written()
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    assert "'train_images' (it is encrypted; save it without a password)" in refusal(path, tmp_path)


def test_an_unknown_compression_is_no_traceback(written, tmp_path):
    path = written()
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(signature) + offset] = 77
    path.write_bytes(content)
    assert "cannot read 'train_images'" in refusal(path, tmp_path)


def test_a_missing_member_is_named_with_those_there_are(written, tmp_path):
    message = refusal(written(train_images=None, other=npy(IMAGES)), tmp_path)
    assert "such as train_images" in message and "found test_images, other" in message


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "<f4", ">f8"])
def test_any_order_of_bytes_and_axes_gives_the_same_pictures(written, tmp_path, order, kind):
    images = IMAGES if "f" not in kind else IMAGES / 255
    images = np.asarray(images, kind, order=order)
    path = written(train_images=npy(images), test_images=npy(images[:2]))
    store = open_store(
        Npz(path=str(path)), "train", 5, tmp_path, window=(0, 255 if "u" in kind else 1)
    )
    assert np.array_equal(store.images, IMAGES)


def test_another_version_of_the_header_is_read(written, tmp_path):
    path = written(
        train_images=npy(IMAGES, version=(2, 0)), test_images=npy(IMAGES, version=(3, 0))
    )
    assert np.array_equal(open_store(Npz(path=str(path)), "train", 5, tmp_path).images, IMAGES)


def test_what_is_no_file_of_arrays_is_refused_with_the_way_to_write_one(tmp_path):
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.npz").touch()
    os.mkfifo(tmp_path / "pipe.npz")
    for name, words in {
        "one.npy": "but a single array; save splits with numpy.savez",
        "folder.npz": "a folder, not a regular file",
        "empty.npz": "not an .npz file; create one with numpy.savez",
        "pipe.npz": "a named pipe, not a regular file",
    }.items():
        with pytest.raises(UserError) as caught:
            Npz(path=str(tmp_path / name)).split("train")
        assert words in str(caught.value) and name in str(caught.value)
    with pytest.raises(UserError, match=r"pipe\.npz"):
        open_images(tmp_path / "pipe.npz", root=tmp_path)
    # A command finds the kind by the suffix.
    assert len(open_images(tmp_path / "one.npy", root=tmp_path).train) == 5


@pytest.mark.parametrize("names", [np.zeros((2, 2)), np.array([1.5]), np.array("a")])
def test_class_names_that_are_none_are_refused(written, tmp_path, names):
    labels = {"train_labels": npy(np.arange(6)), "test_labels": npy(np.arange(2))}
    source = Npz(path=str(written(**labels, class_names=npy(names))))
    with pytest.raises(UserError, match=r"a\.npz: 'class_names' must be one string per class"):
        source.split("train").class_names  # noqa: B018


def test_names_in_a_file_neither_fill_the_screen_nor_write_to_it(written, tmp_path):
    many = {f"k{number}": b"" for number in range(3000)}
    message = refusal(written(train_images=None, **{"a\nb\x1b[31m": b""}, **many), tmp_path)
    assert len(message) < 600 and message.isprintable()
    assert "more; set data.image_key, or save with numpy.savez(FILE" in message


def test_an_array_larger_than_memory_is_refused_before_it_takes_any(written, tmp_path, monkeypatch):
    path = written(zipfile.ZIP_LZMA)
    monkeypatch.setattr("ssdistill.data.array_file.memory_bytes", lambda: 300)
    assert "'train_images' takes 0.0 GB and does not fit into memory" in refusal(path, tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("a file that opens and cannot be read")
    with pytest.raises(UserError, match=r"^data.path=/proc/self/mem: "):
        Npz(path="/proc/self/mem").split("train")
