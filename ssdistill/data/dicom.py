"""Read DICOM images in the units that the file declares."""

from typing import Any, BinaryIO

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.band_limits import check_sizes
from ssdistill.data.handles import require
from ssdistill.errors import one_line

DEFLATED = "1.2.840.10008.1.2.1.99"
"""A transfer syntax that decompresses the whole file on opening."""
BEGINNING, META_GROUP = 132, 2
"""Offset of the first element, and the group that specifies the encoding of the others."""
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
GRAY = ("MONOCHROME1", "MONOCHROME2")


def read_dicom(file: BinaryIO) -> np.ndarray:
    """Read the frames of a DICOM file.

    Slope and intercept are applied, and so is the first window, if the file declares any, which
    maps values to [0, 1]. MONOCHROME1 is inverted, so larger values are always brighter.

    Source: DICOM PS3.3, C.7.6.3 (image pixel), C.11.1 (modality) and C.11.2.1.2 (window).

    Returns:
        (H, W, C), with frames as bands, in the stored type; float32 if rescaled or windowed.

    Raises:
        BadImage: no pixels, an encoding that no installed library decodes, a palette, too many
            pixels, or an invalid window or value.
        UserError: pydicom is not installed.
    """
    data, frames = _checked(file, pixels=True)
    kind = str(data.get("PhotometricInterpretation", ""))
    pixels = _decoded(data)
    if frames == 1:
        pixels = pixels[None]
    if kind in COLORS:
        pixels = pixels.transpose(1, 2, 0, 3)
        return pixels.reshape(*pixels.shape[:2], -1)
    return _display_values(pixels.transpose(1, 2, 0), data, inverted=kind == "MONOCHROME1")


def dicom_sizes(file: BinaryIO) -> tuple[int, int]:
    """Return height and width of a DICOM file, without reading its pixels.

    Raises:
        BadImage, UserError: as :func:`read_dicom`.
    """
    data, _ = _checked(file, pixels=False)
    return int(data.Rows), int(data.Columns)


def _checked(file: BinaryIO, *, pixels: bool) -> tuple[Any, int]:
    """Return a data set, optionally with its pixels, and its number of frames."""
    require("pydicom", "dicom", "reading DICOM images")
    import pydicom
    from pydicom.filereader import read_dataset

    file.seek(BEGINNING)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != META_GROUP)
    if meta.get("TransferSyntaxUID") == DEFLATED:
        raise BadImage("deflated DICOM is not supported; save it uncompressed")
    file.seek(0)
    data = pydicom.dcmread(file, force=False, stop_before_pixels=not pixels)
    if pixels and "PixelData" not in data and "FloatPixelData" not in data:
        raise BadImage("a DICOM file without pixels")
    kind = str(data.get("PhotometricInterpretation", ""))
    if kind not in (*GRAY, *COLORS):
        raise BadImage(f"unsupported PhotometricInterpretation {kind or 'none'}; save gray or RGB")
    frames = int(data.get("NumberOfFrames") or 1)
    samples, bits = int(data.get("SamplesPerPixel") or 1), int(data.get("BitsAllocated") or 0)
    if bits not in (1, 8, 16, 32, 64):
        raise BadImage(f"BitsAllocated={bits} is not supported; save 1, 8, 16, 32 or 64 bits")
    check_sizes(int(data.Rows), int(data.Columns), frames * samples, max(1, bits // 8))
    return data, frames


def _decoded(data: Any) -> np.ndarray:
    """Decode the stored values; color images as RGB."""
    try:
        return data.pixel_array
    except Exception as error:  # pydicom calls decoders of several libraries
        reason = one_line(error)
        if "plugin" in reason or "decode" in reason or "handler" in reason:
            syntax = data.file_meta.TransferSyntaxUID.name
            reason = f"no installed library decodes {syntax}; save it uncompressed"
        raise BadImage(reason) from error


def _display_values(pixels: np.ndarray, data: Any, inverted: bool) -> np.ndarray:
    """Apply rescaling, window and inversion to gray values."""
    slope, intercept = _number(data, "RescaleSlope", 1.0), _number(data, "RescaleIntercept", 0.0)
    low, high = _stored_range(data, pixels.dtype)
    if (slope, intercept) != (1.0, 0.0):
        pixels = pixels * np.float32(slope) + np.float32(intercept)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    center, width = _number(data, "WindowCenter", None), _number(data, "WindowWidth", None)
    if center is not None and width is not None:
        values = _windowed(pixels, center, width, str(data.get("VOILUTFunction") or "LINEAR"))
        return np.float32(1) - values if inverted else values
    if not inverted:
        return pixels
    if pixels.dtype.kind == "f":
        return np.float32(low + high) - pixels
    return (int(low) + int(high) - pixels.astype(np.int64)).astype(pixels.dtype)


def _windowed(pixels: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Map values to [0, 1] float32 by a window; DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    values = pixels.astype(np.float32)
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise BadImage(f"WindowWidth={width:g} is too small; correct it")
    if function == "SIGMOID":
        return (1 / (1 + np.exp(-4 * (values - center) / width))).astype(np.float32)
    if function == "LINEAR":
        # A window of width 1 is a threshold.
        values -= center - 0.5
        width = max(width - 1, 1e-6)
    elif function == "LINEAR_EXACT":
        values -= center
    else:
        raise BadImage(f"unknown VOILUTFunction {function[:30]!r}; save LINEAR or SIGMOID")
    return (values / np.float32(width) + np.float32(0.5)).clip(0, 1)


def _stored_range(data: Any, dtype: np.dtype) -> tuple[float, float]:
    if dtype.kind == "f":
        return 0.0, 1.0
    bits = int(data.get("BitsStored") or 8 * dtype.itemsize)
    if not 1 <= bits <= 8 * dtype.itemsize:
        raise BadImage(f"BitsStored={bits} does not fit into {8 * dtype.itemsize} bits; correct it")
    if int(data.get("PixelRepresentation") or 0):
        return float(-(1 << (bits - 1))), float((1 << (bits - 1)) - 1)
    return 0.0, float((1 << bits) - 1)


def _number(data: Any, name: str, default: Any) -> Any:
    """Return a number of the file, the first if there are several, or ``default``."""
    value = data.get(name)
    if value is None or value == "":
        return default
    try:
        value = float(value if isinstance(value, (int, float, str)) else value[0])
    except TypeError:
        value = float(value)
    if not np.isfinite(value):
        raise BadImage(f"{name} is {value}; correct it")
    return value
