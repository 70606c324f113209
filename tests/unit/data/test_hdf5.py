"""Images in HDF5: encoded, by offsets, as arrays; what a file could try."""

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.hdf5_file import Hdf5File
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.sources.hdf5 import Hdf5
from ssdistill.data.store import open_store
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

RGB = np.random.default_rng(0).integers(0, 256, (10, 12, 9, 3), dtype=np.uint8)
LABELS = np.arange(10) % 3


def png(array, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


ENCODED = [png(image) for image in RGB]


@pytest.fixture
def write(tmp_path):
    def make(fill, **settings):
        # One that is open cannot be written anew.
        (tmp_path / "a.h5").unlink(missing_ok=True)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            fill(file)
        return Hdf5(path=str(tmp_path / "a.h5"), **settings)

    return make


def vlen(file, key="images", encoded=ENCODED, **options):
    data = file.create_dataset(key, (len(encoded),), h5py.vlen_dtype("uint8"), **options)
    for row, one in enumerate(encoded):
        data[row] = np.frombuffer(one, np.uint8)


def offsets(file, key="images", encoded=ENCODED, last=True):
    file[key] = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.cumsum([0, *map(len, encoded)])
    file["offsets"] = ends if last else ends[:-1]


def read(source, split="train"):
    part = source.split(split)
    return np.stack([part.image(i) for i in range(len(part))])


@pytest.mark.parametrize(
    "fill",
    [
        vlen,
        lambda file: vlen(file, chunks=(2,), compression="gzip"),
        lambda file: vlen(file, "train/images"),
        offsets,
        lambda file: offsets(file, last=False),
        lambda file: (
            file.create_dataset("images", data=np.array([np.void(e) for e in ENCODED]))
            if len({len(e) for e in ENCODED}) == 1
            else vlen(file)
        ),
        lambda file: file.create_dataset("x", data=RGB),
        lambda file: file.create_dataset("x", data=RGB, chunks=(2, 12, 9, 3), compression="lzf"),
        lambda file: file.create_dataset("images", data=RGB.transpose(0, 3, 1, 2)),
    ],
)
def test_images_are_those_that_were_written(write, fill):
    assert np.array_equal(read(write(fill, test_fraction=0)), RGB)


def test_fixed_bytes_are_read_without_their_padding(write):
    bitmaps = [png(image, "PNG") for image in RGB]
    longest = max(map(len, bitmaps))

    def fill(file):
        file["images"] = np.array([b + b"\0" * (longest - len(b)) for b in bitmaps], f"V{longest}")

    source = write(fill, test_fraction=0)
    assert np.array_equal(read(source), RGB)
    assert source.split("train").read(3) == bitmaps[3]


def test_encoded_images_are_originals_and_arrays_are_stored(write, tmp_path):
    def fill(file):
        vlen(file)
        file["labels"] = LABELS

    source = write(fill)
    assert source.split("train").encoded() is not None
    settings = SOURCES.schema("hdf5")(path=source.path, pixels="original")
    stores = open_stores(open_source(settings), settings, 8, tmp_path / "data")
    stored = open_store(source, "train", 8, tmp_path / "data")
    assert np.array_equal(stores["train"].images[:], stored.images)
    assert np.array_equal(stores["train"].labels, stored.labels)
    assert (len(stores["train"]), len(stores["test"])) == (8, 2)
    arrays = write(lambda file: file.create_dataset("x", data=RGB))
    assert arrays.split("train").encoded() is None


def test_rows_of_arrays_are_read_when_they_are_needed(write):
    part = write(lambda file: file.create_dataset("x", data=RGB)).split("train")
    assert part.array() is None and isinstance(part._images, h5py.Dataset)
    row = int(part.name(0))
    assert np.array_equal(part.image(0), RGB[row])


def test_labels_and_own_test_images(write):
    def fill(file):
        vlen(file, "train/images")
        vlen(file, "test/images", ENCODED[:4])
        file["train/labels"], file["test/labels"] = LABELS, LABELS[:4]

    source = write(fill)
    assert source.has_labels and (len(source.split("train")), len(source.split("test"))) == (10, 4)
    assert np.array_equal(source.split("test").labels(), LABELS[:4])
    assert "images 'train/images'" in source.description
    assert source.split("train").name(3) == "train/images[3]"


def test_threads_forks_and_pickles_read_alike(write):
    part = write(vlen, test_fraction=0).split("train")
    expected = [part.read(i) for i in range(10)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(part.read, [i % 10 for i in range(400)])) == expected * 40
    assert pickle.loads(pickle.dumps(part)).read(4) == expected[4]
    end, start = os.pipe()
    child = os.fork()
    if not child:
        os.write(start, b"y" if [part.read(i) for i in range(10)] == expected else b"n")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(end, 1) == b"y"


def test_a_file_of_another_time_is_read_anew(write):
    first = write(vlen, test_fraction=0).split("train").stamps()
    assert len(np.unique(first)) == 10
    os.utime(write(vlen, test_fraction=0).path, ns=(1, 1))
    again = Hdf5(path=write(vlen).path, test_fraction=0)
    os.utime(again.path, ns=(1, 1))
    assert not np.isin(again.split("train").stamps(), first).any()


def external_storage(file):
    folder = os.path.dirname(file.filename)
    with open(os.path.join(folder, "secret"), "wb") as secret:
        secret.write(RGB.tobytes())
    file.create_dataset(
        "images", RGB.shape, RGB.dtype, external=[(os.path.join(folder, "secret"), 0, RGB.nbytes)]
    )


def external_link(file):
    other = os.path.join(os.path.dirname(file.filename), "b.h5")
    with h5py.File(other, "w") as second:
        second["images"] = RGB
    file["images"] = h5py.ExternalLink(other, "images")


def external_group(file):
    other = os.path.join(os.path.dirname(file.filename), "b.h5")
    with h5py.File(other, "w") as second:
        second["g/images"] = RGB
    file["g"] = h5py.ExternalLink(other, "g")


def virtual(file):
    other = os.path.join(os.path.dirname(file.filename), "b.h5")
    with h5py.File(other, "w") as second:
        second["images"] = RGB
    layout = h5py.VirtualLayout(shape=RGB.shape, dtype=RGB.dtype)
    layout[:] = h5py.VirtualSource(other, "images", shape=RGB.shape)
    file.create_virtual_dataset("images", layout)


def huge_rows(file):
    file.create_dataset("images", (4, 2**20, 2**20), "u1", chunks=(1, 64, 64))


def huge_chunks(file):
    file.create_dataset("images", (4, 2**16, 2**16), "u1", chunks=(1, 2**16, 2**15))


def references(file):
    data = file.create_dataset("images", (3,), h5py.ref_dtype)
    data[0] = file.ref


def texts(file):
    file.create_dataset("images", data=["a", "b"], dtype=h5py.string_dtype())


def endless(file):
    file["a/b"] = file["/"]
    file["a/c"] = file["a"]


@pytest.mark.parametrize(
    ("fill", "key", "words"),
    [
        (external_storage, None, "data in other files"),
        (external_link, None, "no array has a usual name"),
        (external_link, "images", "no array 'images'"),
        (external_group, "g/images", "no array 'g/images'"),
        (virtual, None, "data in other files"),
        (huge_rows, None, "GB to read a row"),
        (references, None, "text or references"),
        (texts, None, "text or references"),
        (endless, None, "no array has a usual name"),
        (lambda file: file.create_dataset("x", data=np.zeros(9, "u1")), None, "offset_key"),
        (lambda file: file.create_dataset("x", data=np.zeros((4, 5, 5), "c8")), None, "numbers"),
    ],
)
def test_what_a_file_could_try_is_refused_in_one_line(write, fill, key, words):
    with pytest.raises(UserError, match=words) as caught:
        write(fill, image_key=key).split("train").image(0)
    assert "\n" not in str(caught.value) and "a.h5" in str(caught.value)


def test_large_chunks_are_refused_before_they_are_read(write, monkeypatch):
    monkeypatch.setattr("ssdistill.data.hdf5_file.memory_bytes", lambda: 4 << 20)

    def fill(file):
        file.create_dataset("images", (4, 64, 64), "u1", chunks=(4, 64, 64))
        file.create_dataset("x", (2048, 64, 64), "u1", chunks=(2048, 64, 64), compression="gzip")

    assert len(write(fill, image_key="images", test_fraction=0).split("train")) == 4
    with pytest.raises(UserError, match="smaller chunks"):
        write(fill, image_key="x").split("train")


@pytest.mark.parametrize("fill", [external_link, external_group])
def test_no_way_to_a_dataset_leads_out_of_the_file(write, fill):
    file = Hdf5File(Path(write(fill).path), "data.path=a.h5")
    for key in ("images", "g/images"):
        with pytest.raises(UserError, match="is a link"):
            file.dataset(key)


def test_a_filter_that_is_a_library_is_refused(write):
    def fill(file):
        space = h5py.h5s.create_simple(RGB.shape)
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(RGB.shape)
        # As optional, HDF5 lets it pass without the library.
        plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        data = h5py.h5d.create(file.id, b"images", h5py.h5t.NATIVE_UINT8, space, plist)
        data.write(h5py.h5s.ALL, h5py.h5s.ALL, RGB)

    with pytest.raises(UserError, match="a filter that is not built in"):
        write(fill).split("train")


@pytest.mark.parametrize("values", [[0, 50, 20], [-5, 0, 9], [0, 10, 10**9], [0.5, 1.5]])
def test_offsets_that_do_not_rise_within_the_bytes_are_refused(write, values):
    def fill(file):
        file["images"], file["offsets"] = np.zeros(100, np.uint8), np.array(values)

    with pytest.raises(UserError, match="'offsets' must"):
        write(fill).split("train")


def test_pickles_in_a_dataset_are_no_images(write, tmp_path):
    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "touched"),)

    part = write(lambda file: vlen(file, encoded=[pickle.dumps(Touch())] * 4)).split("train")
    with pytest.raises(Exception, match="never unpickled"):
        part.image(0)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("change", ["cut", "text", "folder", "pipe", "gone"])
def test_what_is_no_hdf5_is_refused_in_one_line(write, tmp_path, change):
    path = tmp_path / "a.h5"
    source = write(vlen)
    if change == "cut":
        os.truncate(path, 3000)
    else:
        path.unlink()
        {"text": lambda: path.write_text("x"), "folder": path.mkdir, "gone": lambda: None}.get(
            change, lambda: os.mkfifo(path)
        )()
    with pytest.raises(UserError, match=r"a.h5: .*; pass an HDF5 file") as caught:
        source.split("train")
    assert "\n" not in str(caught.value)


def test_bytes_flipped_anywhere_end_in_an_error_or_an_image(write, tmp_path):
    """No crash: what HDF5 finds damaged is a bad image or one line."""
    write(vlen)
    whole = (tmp_path / "a.h5").read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path = tmp_path / f"{place}.h5"
        path.write_bytes(damaged)
        try:
            part = Hdf5(path=str(path), test_fraction=0).split("train")
        except UserError as error:
            assert "\n" not in str(error)
            continue
        for row in range(min(len(part), 10)):
            with suppress(BadImage, OSError):
                part.image(row)
