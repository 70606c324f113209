"""Odd files that Pillow does not write: TIFFs, deep pixels, other formats, names, no files."""

import gzip
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import tifffile
from odd_images import FORMS, Odd, base, encoded, little_tiff, on_white, png
from PIL import Image

IRREGULAR = ("link.png", "lost.png", "loop.png", "zero.png", "pipe.png", "socket.png", "folder.png")


def tiff(array: np.ndarray, **how: object) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(
        file, bigtiff=bool(how.pop("bigtiff", False)), byteorder=str(how.pop("byteorder", "<"))
    ) as writer:
        writer.write(array, **{"metadata": None} | how)
    return file.getvalue()


def of_tiffs() -> Iterator[Odd]:
    rgb = np.asarray(base(64, 48))
    known, gray = on_white(base(64, 48)), rgb[..., 0].copy()
    plain = base(64, 48)
    for name in ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg"):
        content = encoded(plain, "TIFF", compression=name)
        yield Odd("TIFF", f"{name}.tif", content, known, 8 if name == "jpeg" else 0)
    for name in ("zstd", "lzma", "webp", "tiff_sgilog", "tiff_thunderscan"):
        with suppress(OSError, ValueError, KeyError):
            slack = 12 if name == "webp" else 0
            yield Odd("TIFF", f"{name}.tif", encoded(plain, "TIFF", compression=name), known, slack)
    for name in ("group3", "group4", "tiff_ccitt"):
        with suppress(OSError, ValueError, KeyError):
            bits = plain.convert("1")
            yield Odd(
                "TIFF", f"{name}.tif", encoded(bits, "TIFF", compression=name), on_white(bits)
            )
    hows: dict[str, dict] = {
        "tiled": {"tile": (16, 16)},
        "big-endian": {"byteorder": ">"},
        "bigtiff": {"bigtiff": True},
        "planar": {"planarconfig": "separate"},
        "deflate": {"compression": "deflate"},
        "predictor": {"compression": "deflate", "predictor": True},
        "one-row-strips": {"rowsperstrip": 1},
    }
    for name, how in hows.items():
        array = rgb.transpose(2, 0, 1) if name == "planar" else rgb
        yield Odd("TIFF", f"{name}.tif", tiff(array, photometric="rgb", **how), known)
    for count in (1, 2, 5):
        array = np.dstack([rgb, *[gray] * count])
        content = tiff(array, photometric="rgb", planarconfig="contig", extrasamples=[0] * count)
        yield Odd("TIFF", f"extra{count}.tif", content)
    alpha = np.dstack([rgb, np.full_like(gray, 255)])
    content = tiff(alpha, photometric="rgb", extrasamples=["unassalpha"])
    yield Odd("TIFF", "alpha.tif", content, known)
    yield Odd("TIFF", "white-is-zero.tif", tiff(gray, photometric="miniswhite"),
              np.repeat(255 - gray[..., None], 3, 2))  # fmt: skip
    pages = np.stack([gray, 255 - gray, gray // 2])
    yield Odd("TIFF", "stack.tif", tiff(pages, photometric="minisblack"))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(rgb, photometric="rgb", subifds=1, metadata=None)
        writer.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    yield Odd("TIFF", "pyramid.tif", file.getvalue(), known)
    file = io.BytesIO()
    plain.save(file, "TIFF", save_all=True, append_images=[base(90, 70), base(3, 3)])
    yield Odd("TIFF", "pages-of-sizes.tif", file.getvalue())
    loop = bytearray(little_tiff({256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 279: 16}))
    loop[10 + 84 : 10 + 88] = struct.pack("<I", 8)
    yield Odd("TIFF", "pages-in-a-circle.tif", bytes(loop))
    yield Odd("TIFF", "no-tags.tif", b"II*\0" + struct.pack("<IH", 8, 0) + bytes(64))
    yield Odd("TIFF", "tags-beyond.tif", b"II*\0" + struct.pack("<I", 1 << 30))


def of_deep() -> Iterator[Odd]:
    ramp = np.arange(48 * 64).reshape(48, 64)
    for name in ("uint8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"):
        array = (ramp / 5).astype(name)
        yield Odd("more than 8 bits", f"{name}.tif", tiff(array, photometric="minisblack"))
    for name in ("int8", "uint64", "complex64", "bool"):
        with suppress(Exception):
            content = tiff(ramp.astype(name), photometric="minisblack")
            yield Odd("more than 8 bits", f"{name}.tif", content)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("minus-inf", -np.inf)):
        array = ramp.astype(np.float32)
        array[3, 3] = value
        yield Odd("more than 8 bits", f"{name}.tif", tiff(array, photometric="minisblack"))
    color = np.dstack([ramp, ramp[::-1], ramp]).astype(np.uint16)
    yield Odd("more than 8 bits", "rgb16.tif", tiff(color, photometric="rgb"))
    yield Odd(
        "more than 8 bits", "rgb-float.tif", tiff(color.astype(np.float32), photometric="rgb")
    )
    for most in (1, 15, 255, 1023, 4095, 65535):
        pixels = (ramp * most // ramp.max()).astype(np.uint16 if most > 255 else np.uint8)
        body = pixels.astype(">u2" if most > 255 else "u1").tobytes()
        known = None
        if most <= 255:
            level = np.floor(pixels * 255.0 / most + 0.5).astype(np.uint8)
            known = np.repeat(level[..., None], 3, axis=2)
        kind = "more than 8 bits" if most > 255 else "PPM"
        yield Odd(kind, f"max{most}.pgm", f"P5 64 48 {most}\n".encode() + body, known, 1)
        text = " ".join(map(str, pixels.ravel().tolist()))
        yield Odd(kind, f"text{most}.pgm", f"P2 64 48 {most}\n{text}\n".encode(), known, 1)
    bits = np.packbits(ramp % 2, axis=1).tobytes()
    yield Odd("PPM", "bits.pbm", b"P4 64 48\n" + bits,
              np.repeat((255 * (1 - ramp % 2))[..., None], 3, 2).astype(np.uint8))  # fmt: skip
    floats = ramp[::-1].astype("<f4").tobytes()
    yield Odd("PPM", "floats.pfm", b"Pf\n64 48\n-1.0\n" + floats)
    yield Odd("PPM", "comment.pgm", b"P5 # a comment\n64 48 255\n" + bytes(64 * 48),
              np.zeros((48, 64, 3), np.uint8))  # fmt: skip
    yield Odd("PPM", "max0.pgm", b"P5 64 48 0\n" + bytes(64 * 48))
    yield Odd("PPM", "max70000.pgm", b"P5 64 48 70000\n" + bytes(64 * 96))
    with suppress(OSError, ValueError):
        deep = Image.fromarray(ramp.astype(np.uint16))
        yield Odd("more than 8 bits", "gray16.jp2", encoded(deep, "JPEG2000"))
    yield Odd("more than 8 bits", "gray16.png", encoded(Image.fromarray(color[..., 0]), "PNG"))
    rows = b"".join(b"\0" + line.astype(">u2").tobytes() for line in color)
    yield Odd("more than 8 bits", "rgb16.png", png(64, 48, 16, 2, rows))


def of_others() -> Iterator[Odd]:
    draw = random.Random(7)
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>'
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", encoded(base(), "PNG"))
    array = io.BytesIO()
    np.save(array, np.asarray(base()))
    contents = {
        "empty": b"",
        "one-byte": b"\0",
        "blank": b" ",
        "text": b"not an image\n",
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "svg": svg,
        "svgz": gzip.compress(svg, mtime=0),
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(300),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "ico": encoded(base(16, 16), "ICO"),
        "tga": encoded(base(), "TGA"),
        "pcx": encoded(base(), "PCX"),
        "dds": b"DDS " + bytes(124),
        "xbm": encoded(base().convert("1"), "XBM"),
        "qoi": encoded(base(), "QOI"),
        "sgi": encoded(base(), "SGI"),
        "icns": b"icns" + struct.pack(">I", 16) + bytes(8),
        "zip": archive.getvalue(),
        "gzip": gzip.compress(encoded(base(), "PNG"), mtime=0),
        "exe": b"MZ" + bytes(200),
        "elf": b"\x7fELF" + bytes(200),
        "mp4": b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100),
        "heic-head": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "avif-head": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100),
        "jxl-head": b"\xff\x0a" + bytes(100),
        "jxl-box": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
        "pickle": pickle.dumps([1, 2]),
        "npy": array.getvalue(),
        "json": json.dumps({"image": "a.png"}).encode(),
        "base64": b"data:image/png;base64,iVBORw0KGgo=",
        "zeros": bytes(1 << 20),
        "noise": draw.randbytes(5000),
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "dicom": bytes(128) + b"DICM" + bytes(64),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "fits": b"SIMPLE  =                    T".ljust(2880),
        "riff": b"RIFF" + bytes(4) + b"WAVEfmt " + bytes(64),
        "nothing-but-jpeg": b"\xff\xd8\xff\xd9",
        "nothing-but-png": b"\x89PNG\r\n\x1a\n",
        "nothing-but-gif": b"GIF89a",
        "nothing-but-bmp": b"BM",
        "nothing-but-tiff": b"II*\0",
        "nothing-but-webp": b"RIFF\0\0\0\0WEBP",
    }
    for name, content in contents.items():
        yield Odd("no image", f"{name}.jpg", content)


def of_names() -> Iterator[Odd]:
    image, known = encoded(base(), "PNG"), on_white(base())
    names: list[str | bytes] = ["new\nline.png", "tab\t.png", " blanks .png", "-rf.png", "#1.png"]
    names += ["100%s.png", "back\\slash.png", "quo'te\".png", "\U0001f600.png", "\u202egnp.png"]
    names += [
        "*.png",
        "?.png",
        "[a].png",
        "{a}.png",
        "$(id).png",
        "x" * 251 + ".png",
        ".hidden.png",
    ]
    names += [
        "\x1b[31mred.png",
        "no-suffix",
        "UPPER.PNG",
        "two.tar.png",
        "e\u0301.png",
        "\u00e9.png",
    ]
    names += [b"latin\xe9.png", b"\xff\xfe.png", b"half\xf0\x9f.png"]
    for name in names:
        yield Odd("name", name, image, known)
    forms = list(FORMS)
    for form, other in zip(forms, [*forms[1:], forms[0]], strict=True):
        slack = 12 if form in ("JPEG", "AVIF") else 0
        known = on_white(base().convert("L"))
        content = encoded(base().convert("L"), form)
        yield Odd("wrong suffix", f"{form}.{FORMS[other]}", content, known, slack)
    for name in IRREGULAR:
        yield Odd("no regular file", name, None)


def of_plugins() -> Iterator[Odd]:
    """HEIC and JPEG XL, where their libraries are installed."""
    with suppress(ImportError, OSError, ValueError, KeyError):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
        for mode in ("L", "RGB", "RGBA"):
            content = encoded(base(96, 72).convert(mode), "HEIF", quality=95)
            known = on_white(base(96, 72).convert(mode))
            yield Odd("HEIC", f"{mode}.heic", content, known, 12)
            yield Odd("HEIC", f"{mode}-cut.heic", content[: len(content) // 2])
    with suppress(ImportError, OSError, ValueError, KeyError):
        import pillow_jxl  # noqa: F401  # pyright: ignore[reportMissingImports]

        for mode in ("L", "RGB", "RGBA"):
            content = encoded(base(96, 72).convert(mode), "JXL", lossless=True)
            known = on_white(base(96, 72).convert(mode))
            yield Odd("JPEG XL", f"{mode}.jxl", content, known)
            yield Odd("JPEG XL", f"{mode}-cut.jxl", content[: len(content) // 2])
