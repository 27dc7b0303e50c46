"""Read the width and height of an image from its header, without decoding the image."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

HEAD = 1 << 16  # number of bytes of the first read
MAX_PIXELS = 178_956_970  # the limit of Pillow; Ultralytics opens every image with Pillow
# markers of the JPEG segments with the image size, and of the segment before the pixels
JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
JPEG_SCAN = frozenset({0xDA})
# exceptions that the plugins of Pillow raise for damaged or hostile headers
PILLOW_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error),
)


def dimensions(kind: str, head: bytes, descriptor: int, size: int, path: str) -> tuple[int, int, str]:
    """Return the width, the height and the problem of an image. The problem is empty if the header is usable."""
    try:
        match kind:
            case "jpeg":
                return _jpeg_size(head, descriptor, size)
            case "png":
                return (*struct.unpack(">II", head[16:24]), "" if head[12:16] == b"IHDR" else "damaged")
            case "bmp":
                return _bmp_size(head, size)
            case "webp":
                return _webp_size(head, size)
            case "tiff" | "jp2" | "avif":
                return _pillow_size(path)
            case "gif" | "heic" | "svg":
                return 0, 0, f"a {kind.upper()} image, which is not supported; convert it to JPEG or PNG"
            case "text":
                return 0, 0, "a text file or web page, not an image"
            case _:
                return 0, 0, "not an image"
    except (struct.error, IndexError):
        return 0, 0, "truncated"


def jpeg_segment(head: bytes, descriptor: int, size: int, wanted: frozenset[int]) -> tuple[int, bytes]:
    """Return the offset and the first bytes of the first segment with a marker in `wanted`.

    If no segment has such a marker, return the offset where the search ended, and b"".
    """
    place, window, begin = 2, head, 0
    for _ in range(2000):  # maximum number of segments; a normal file has a few dozen
        if place - begin + 9 > len(window):
            if place + 9 > size:
                return size, b""
            window, begin = os.pread(descriptor, HEAD, place), place
        offset = place - begin
        if window[offset] != 0xFF:
            return place, b""
        marker = window[offset + 1]
        if marker in wanted:
            return place, window[offset : offset + 9]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
        elif marker in (0xD9, 0xDA):
            return place, b""
        else:
            place += 2 + int(struct.unpack_from(">H", window, offset + 2)[0])
    return place, b""


def _jpeg_size(head: bytes, descriptor: int, size: int) -> tuple[int, int, str]:
    place, segment = jpeg_segment(head, descriptor, size, JPEG_FRAMES)
    if not segment:
        return 0, 0, "truncated" if place >= size else "damaged"
    height, width = struct.unpack_from(">HH", segment, 5)
    return width, height, ""


def _bmp_size(head: bytes, size: int) -> tuple[int, int, str]:
    header = struct.unpack_from("<I", head, 14)[0]
    if header == 12:
        width, height = struct.unpack_from("<HH", head, 18)
        return width, height, ""
    width, height = struct.unpack_from("<ii", head, 18)
    return abs(width), abs(height), "truncated" if struct.unpack_from("<I", head, 10)[0] > size else ""


def _webp_size(head: bytes, size: int) -> tuple[int, int, str]:
    cut = "truncated" if struct.unpack_from("<I", head, 4)[0] + 8 > size else ""
    chunk = head[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little"), cut
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1, cut
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF, cut
    return 0, 0, "damaged"


def _pillow_size(path: str) -> tuple[int, int, str]:
    try:
        with opened_by_pillow(path) as image:
            return image.width, image.height, ""
    except ValueError as error:
        return 0, 0, str(error)


@contextmanager
def opened_by_pillow(path: str) -> Iterator[ImageFile]:
    """Open an image with Pillow, which reads only its header. Raises ValueError with a short reason."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked with MAX_PIXELS
            with Image.open(path) as image:
                yield image
    except Image.DecompressionBombError:
        raise ValueError(f"more pixels than the limit of {MAX_PIXELS}") from None
    except PILLOW_ERRORS:
        raise ValueError("damaged") from None
