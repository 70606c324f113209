"""Odd image files, made from one small image and a seed: two runs make the same ones."""

import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, features

LOSSLESS = ("PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
FORMS = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "WEBP": "webp"}
FORMS |= {"PPM": "ppm", "JPEG2000": "jp2"} | ({"AVIF": "avif"} if features.check("avif") else {})
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV")
EIGHT_BIT = ("1", "L", "LA", "P", "RGB", "RGBA")
HUGE = 0x7FFFFFF0


@dataclass
class Odd:
    """One odd file.

    Attributes:
        kind: of oddness.
        name: of the file, perhaps not UTF-8.
        content: bytes; None of what :func:`put_irregular` makes.
        expected: (H, W, 3) uint8, its pixels by another reader; None where none are known.
        tolerance: levels by which a mean pixel may differ from them.
    """

    kind: str
    name: str | bytes
    content: bytes | None
    expected: np.ndarray | None = None
    tolerance: float = 0.0


def base(width: int = 24, height: int = 18) -> Image.Image:
    """A smooth image with an edge, so that a turn or an exchange of channels is seen."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1)
    blue = np.where((x < width / 3) & (y < height / 3), 220, 40)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def encoded(image: Image.Image, form: str, **how: object) -> bytes:
    file = io.BytesIO()
    if form == "WEBP":
        how = {"lossless": True, "exact": True} | how
    image.save(file, form, **how)
    return file.getvalue()


def on_white(image: Image.Image) -> np.ndarray:
    """What an image looks like on white paper, by arithmetic of its own."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return np.floor(rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def of_modes() -> Iterator[Odd]:
    for mode in MODES:
        if mode in ("I;16", "I", "F"):
            image = Image.fromarray((np.arange(432).reshape(18, 24) * 150).astype(np.uint16))
            image = image if mode == "I;16" else image.convert("I").convert(mode)
        elif mode in ("RGBA", "LA"):
            image = base().convert(mode)
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        else:
            image = (base().convert("RGB") if mode != "LAB" else base()).convert(
                mode if mode != "LAB" else "RGB"
            )
            if mode == "LAB":
                lab = ImageCms.createProfile("LAB")
                image = ImageCms.profileToProfile(
                    image, ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
                )
        for form, suffix in FORMS.items():
            with suppress(OSError, ValueError, KeyError):
                content = encoded(image, form)
                known = on_white(image) if mode in EIGHT_BIT else None
                exact = form in LOSSLESS and not (form == "GIF" and mode in ("RGB", "RGBA", "LA"))
                slack = (1 if mode in ("LA", "RGBA") else 0) if exact else 15
                if form in ("GIF", "BMP", "PPM") and mode in ("RGBA", "LA"):
                    known = None  # one bit of alpha, or none
                name = f"{mode.replace(';', '')}.{suffix}"
                yield Odd(f"mode and format: {form}", name, content, known, slack)


def of_sizes() -> Iterator[Odd]:
    sizes = ((1, 1), (1, 2), (2, 1), (1, 7), (7, 1), (3, 3), (17, 16), (1, 1000), (20000, 1))
    for width, height in (*sizes, (1, 20000), (65500, 1)):
        for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"):
            image = base(width, height)
            with suppress(OSError, ValueError, KeyError):
                content = encoded(image.convert("L"), form)
                exact = form in LOSSLESS
                known = on_white(image.convert("L"))
                name = f"{width}x{height}.{FORMS[form]}"
                yield Odd("size", name, content, known, 0 if exact else 12)


def of_damage() -> Iterator[Odd]:
    draw = random.Random(5)
    for form, suffix in FORMS.items():
        whole = encoded(base(96, 72), form)
        cuts = [len(whole) * share // 100 for share in (1, 10, 50, 90, 99)]
        for number, length in enumerate([*cuts, len(whole) - 1, len(whole) - 2, 64, 12]):
            yield Odd("cut off", f"cut{number}.{suffix}", whole[:length])
        for number in range(6):
            damaged = bytearray(whole)
            for _ in range(1 + 4 * number):
                damaged[draw.randrange(12, len(whole))] ^= 1 << draw.randrange(8)
            yield Odd("changed bits", f"bits{number}.{suffix}", bytes(damaged))
        zeros = whole[: len(whole) // 2] + bytes(len(whole) // 2)
        yield Odd("changed bits", f"zeros.{suffix}", zeros)
        known = on_white(base(96, 72)) if form in ("PNG", "BMP", "TIFF", "WEBP", "PPM") else None
        yield Odd("bytes appended", f"more.{suffix}", whole + b"\0" * 100, known)
        yield Odd("bytes appended", f"twice.{suffix}", whole * 2, known)


def of_orientations() -> Iterator[Odd]:
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        for value in range(10):
            exif = Image.Exif()
            exif[0x0112] = value
            image = base()
            shown = image.transpose(Image.Transpose(turned[value])) if value in turned else image
            content = encoded(image, form, exif=exif)
            slack = 12 if form == "JPEG" else 0
            name = f"turn{value}.{FORMS[form]}"
            yield Odd("EXIF orientation", name, content, on_white(shown), slack)
        if form != "TIFF":
            content = encoded(base(), form, exif=b"Exif\0\0no exif at all")
            yield Odd("EXIF orientation", f"damaged.{FORMS[form]}", content, None)


def of_profiles() -> Iterator[Odd]:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profiles = {"srgb": srgb, "lab": lab, "cut": srgb[:200], "junk": b"junk" * 50, "empty": b"\0"}
    for form in ("PNG", "JPEG", "TIFF", "WEBP"):
        for name, icc in profiles.items():
            content = encoded(base(), form, icc_profile=icc)
            slack = 12 if form == "JPEG" else 0
            yield Odd("color profile", f"{name}.{FORMS[form]}", content, on_white(base()), slack)


def of_jpegs() -> Iterator[Odd]:
    image = base(96, 72)
    known = on_white(image)
    hows: dict[str, dict] = {"progressive": {"progressive": True}, "optimized": {"optimize": True}}
    hows |= {f"subsampling{n}": {"subsampling": n} for n in (0, 1, 2)}
    hows |= {"quality1": {"quality": 1}, "quality100": {"quality": 100}}
    hows |= {"rgb": {"keep_rgb": True}, "restart": {"restart_marker_blocks": 1}}
    hows |= {"comment": {"comment": b"x" * 60000}, "density": {"dpi": (1, 9999)}}
    for name, how in hows.items():
        slack = 40 if name == "quality1" else 6
        yield Odd("JPEG", f"{name}.jpg", encoded(image, "JPEG", **how), known, slack)
    plain, inks = encoded(image, "JPEG"), encoded(image.convert("CMYK"), "JPEG")
    yield Odd("JPEG", "cmyk-adobe.jpg", inks, known, 8)
    yield Odd("JPEG", "ycck.jpg", inks.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"))
    for marker in (0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xF7):
        content = plain.replace(b"\xff\xc0", bytes([0xFF, marker]), 1)
        yield Odd("JPEG", f"sof{marker:x}.jpg", content)
    at = plain.index(b"\xff\xc0")
    for name, offset, value in (
        *(("12bit", 4, b"\x0c"), ("16bit", 4, b"\x10"), ("no-height", 5, b"\0\0")),
        *(("no-width", 7, b"\0\0"), ("taller", 5, b"\1\0"), ("wider", 7, b"\1\0")),
        *(("huge", 5, b"\xff\xff\xff\xff"), ("2components", 9, b"\2"), ("sampling5", 11, b"\x55")),
    ):
        content = plain[: at + offset] + value + plain[at + offset + len(value) :]
        yield Odd("JPEG", f"{name}.jpg", content)
    file = io.BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[image.rotate(180)])
    yield Odd("JPEG", "two.mpo", file.getvalue(), known, 6)


def png(width: int, height: int, depth: int, color: int, rows: bytes, *more: bytes, interlace=0):
    """A PNG of given scanlines, each after its filter byte."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    parts = [chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(rows, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def of_pngs() -> Iterator[Odd]:
    palette = bytes(range(48))
    for color, channels in ((0, 1), (2, 3), (3, 1), (4, 2), (6, 4)):
        for depth in (1, 2, 4, 8, 16, 3):
            length = -(-8 * channels * depth // 8)
            rows = b"".join(b"\0" + bytes((7 * i + 31 * r) % 256 for i in range(length))
                            for r in range(8))  # fmt: skip
            if color == 3:
                rows = b"".join(b"\0" + bytes(length) for _ in range(8))
            more = [chunk(b"PLTE", palette)] if color == 3 else []
            yield Odd("PNG", f"c{color}d{depth}.png", png(8, 8, depth, color, rows, *more))
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    rows = b"".join(
        b"\0" + line.tobytes()
        for y, x, dy, dx in (*starts, (1, 0, 2, 1))
        for line in gray[y::dy, x::dx]
    )
    known = np.repeat(gray[..., None], 3, axis=2)
    yield Odd("PNG", "interlaced.png", png(8, 8, 8, 0, rows, interlace=1), known)
    plain = b"".join(b"\0" + line.tobytes() for line in gray)
    white = np.where(known == 4 * 9, 255, known).astype(np.uint8)
    keyed = png(8, 8, 8, 0, plain, chunk(b"tRNS", struct.pack(">H", 36)))
    yield Odd("PNG", "transparent-gray.png", keyed, white)
    bad = bytearray(png(8, 8, 8, 0, plain))
    bad[-16] ^= 1
    yield Odd("PNG", "wrong-checksum.png", bytes(bad))
    yield Odd("PNG", "no-end.png", png(8, 8, 8, 0, plain)[:-12], known)
    yield Odd("PNG", "too-few-rows.png", png(8, 8, 8, 0, plain[:40]))
    yield Odd("PNG", "too-many-rows.png", png(8, 8, 8, 0, plain * 3), known)
    yield Odd("PNG", "no-rows.png", png(8, 8, 8, 0, b""))
    yield Odd("PNG", "no-width.png", png(0, 8, 8, 0, plain))
    yield Odd("PNG", "bomb.png", png(30000, 30000, 8, 0, bytes(9_000_000)))
    yield Odd("PNG", "small-bomb.png", png(8, 8, 8, 0, plain + bytes(200_000_000)), known)
    for name in (b"zTXt", b"iCCP"):
        more = chunk(name, b"x\0\0" + zlib.compress(bytes(200_000_000), 9))
        yield Odd("PNG", f"{name.decode()}-bomb.png", png(8, 8, 8, 0, plain, more))
    pieces = b"".join(chunk(b"IDAT", bytes([b])) for b in zlib.compress(plain))
    whole = png(8, 8, 8, 0, plain)
    start = whole.index(b"IDAT") - 4
    yield Odd("PNG", "many-pieces.png", whole[:start] + pieces + chunk(b"IEND", b""), known)


def of_animations() -> Iterator[Odd]:
    for form in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        for name, mode in (("frames", "RGB"), ("frames-alpha", "RGBA"), ("frames-gray", "L")):
            first, *rest = [base(w).convert(mode).resize((24, 18)) for w in (24, 12, 6)]
            if mode == "RGBA":
                first.putalpha(128)
            with suppress(OSError, ValueError, KeyError):
                content = encoded(first, form, save_all=True, append_images=rest)
                yield Odd("several frames", f"{name}.{FORMS[form]}", content)


def of_headers() -> Iterator[Odd]:
    """Headers that promise far more pixels than follow."""
    for number, side in enumerate((30000, 65535, HUGE)):
        two = struct.pack("<HH", min(side, 65535), min(side, 65535))
        bmp = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, side, side, 1, 24,
                          *(0,) * 6)  # fmt: skip
        files = {
            "png": png(side, side, 8, 2, b"\0" * 30),
            "gif": b"GIF89a" + two + b"\0\0\0,\0\0\0\0" + two + b"\0\2\1\0\0;",
            "bmp": bmp,
            "ppm": f"P6 {side} {side} 255\n".encode() + bytes(30),
            "tif": little_tiff({256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 279: 30}),
            "jp2": encoded(base(), "JPEG2000").replace(
                struct.pack(">II", 18, 24), struct.pack(">II", side, side)
            ),
        }
        for suffix, content in files.items():
            yield Odd("giant header", f"giant{number}.{suffix}", content)


def little_tiff(tags: dict[int, int]) -> bytes:
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(64)


def put_irregular(folder: Path, name: str) -> None:
    """Make what is no regular file."""
    path = folder / name
    if name.startswith("pipe"):
        os.mkfifo(path)
    elif name.startswith("socket"):
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(name)
        os.chdir(here)
    elif name.startswith("folder"):
        path.mkdir()
    else:
        (folder / "target.bin").write_bytes(encoded(base(), "PNG"))
        targets = {"link": "target.bin", "lost": "nowhere", "loop": name, "zero": "/dev/zero"}
        path.symlink_to(targets[name.split(".")[0]])
