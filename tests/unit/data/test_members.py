"""Headers of tar archives: as Python's tarfile reads them, and what is none."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tar_files import tar_bytes

from ssdistill.data.shards.members import BLOCK, DamagedTar, members

LONG = "folder/" * 30 + "name.jpg"


def walked(content: bytes) -> list[tuple]:
    return [tuple(m) for m in members(lambda at, n: content[at : at + n], len(content))]


def known(content: bytes) -> list[tuple]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [
            (m.name.encode("utf-8", "surrogateescape"), m.offset, m.offset_data, m.size)
            for m in archive
            if m.isreg()
        ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(format):
    long = LONG if format != tarfile.USTAR_FORMAT else "p/" * 60 + "n" * 80 + ".jpg"
    links = []
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname, link.size = kind, "/etc/passwd", 700 * (kind == tarfile.LNKTYPE)
        links.append(link)
    parts = [("a.jpg", b"x" * 511), *links, (long, b""), ("ü.jpg", b"y" * 1025)]
    content = tar_bytes(parts, format)
    assert walked(content) == known(content)
    assert [len(m[0]) for m in walked(content)] == [5, len(long), 6]


@given(st.lists(st.tuples(st.text("abcü/ .", min_size=1, max_size=150), st.integers(0, 2000))))
def test_names_and_sizes_of_any_kind(parts):
    content = tar_bytes([(f"{name}x", bytes(size)) for name, size in parts], tarfile.PAX_FORMAT)
    # A name with a slash in front or behind is read as it is; tarfile strips one behind.
    assert [m[1:] for m in walked(content)] == [m[1:] for m in known(content)]


def test_what_follows_the_end_is_not_read():
    content = tar_bytes({"a.jpg": b"1"})
    assert walked(content + b"anything") == walked(content)


def damaged(content: bytes) -> tuple[list[bytes], str]:
    found = []
    with pytest.raises(DamagedTar) as error:
        for member in members(lambda at, n: content[at : at + n], len(content)):
            found.append(member.name)
    return found, str(error.value)


def test_an_archive_that_is_cut_off_says_where():
    content = tar_bytes({"a.jpg": b"1" * 600, "b.jpg": b"2" * 600})
    both, one = [b"a.jpg", b"b.jpg"], [b"a.jpg"]
    for length, found, why in (
        (BLOCK * 4 + 300, both, ": 300 bytes are missing"),
        (BLOCK * 4 + 700, both, ": the end-of-archive blocks are missing"),
        (BLOCK * 3 + 100, one, ""),
        (BLOCK * 3, one, ": the end-of-archive blocks are missing"),
    ):
        assert damaged(content[:length]) == (found, f"truncated at byte {length}{why}")


def test_a_header_whose_checksum_is_another_ends_it():
    content = bytearray(tar_bytes({"a.jpg": b"1", "b.jpg": b"2"}))
    content[2 * BLOCK] ^= 1
    found, why = damaged(bytes(content))
    assert (found, why) == ([b"a.jpg"], "invalid header at byte 1024")


def header(**fields) -> bytes:
    info = tarfile.TarInfo("a.jpg")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (header(size=-1), "invalid header at byte 0"),
        (header(size=1 << 62), "are missing"),
        (header(type=b"L", size=1 << 40), f"a name of {1 << 40} bytes"),
        (header(type=b"x", size=4) + b"0 a\n".ljust(512, b"\0"), "invalid extended"),
        (header(type=b"x", size=9) + b"-5 path=".ljust(512, b"\0"), "invalid extended"),
        (
            header(type=b"x", size=12) + b"12 size=-51\n".ljust(512, b"\0"),
            "invalid extended header",
        ),
        (b"junk" * 128, "invalid header at byte 0"),
    ],
)
def test_absurd_headers_are_refused(content, why):
    assert why in damaged(content + header() + bytes(1024))[1]
