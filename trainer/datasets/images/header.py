"""Read facts about an image without decoding the image: format, size in pixels, completeness, digest."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from typing import NamedTuple

from trainer.core.errors import raise_if_disk_is_broken
from trainer.datasets.image_kinds import SUFFIXES
from trainer.datasets.images.dimensions import (
    HEAD,
    JPEG_FRAMES,
    JPEG_SCAN,
    MAX_PIXELS,
    dimensions,
    jpeg_segment,
    opened_by_pillow,
)

WHOLE = 1 << 20  # bytes; of a larger file, only three parts are hashed (but all bytes of BMP and TIFF)
_ORIENTATION = 0x0112  # the EXIF tag of the orientation
MIN_SIDE = 10  # pixels; Ultralytics ignores smaller images
MOST_METADATA = 16 << 20  # bytes before the pixels of a JPEG; Pillow needs minutes for 100 MB in many segments


class Facts(NamedTuple):
    """Facts about one image. `problem` is empty for a usable image.

    `width` and `height` are the size of the stored pixels, before EXIF rotation. `digest` identifies the content.
    `has_trailing_data`: a JPEG has data after its end mark. `is_surely_readable`: Pillow and OpenCV can certainly read
    the image. `is_rotated`: EXIF rotates the image by 90 or 270 degrees.
    """

    kind: str
    width: int
    height: int
    size: int
    digest: bytes
    problem: str = ""
    has_trailing_data: bool = False
    is_surely_readable: bool = False
    is_rotated: bool = False

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width in training, or None if the size is uncertain."""
        size = (self.width, self.height) if self.is_rotated else (self.height, self.width)
        return size if self.is_surely_readable else None


NOT_READ = Facts("", 0, 0, 0, b"", "not read")


def facts(path: str) -> Facts:
    """Return the facts about one image file. Raises `HostSuspected` for a broken disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise_if_disk_is_broken(error, "An image of the dataset")
        return Facts("", 0, 0, 0, b"", f"cannot be opened: {error.strerror}")
    try:
        size = os.fstat(descriptor).st_size
        head = os.read(descriptor, HEAD)
        if not head:
            return Facts("", 0, 0, 0, b"", "empty")
        kind = _kind(head)
        digest = _digest(descriptor, size, head, kind)
        width, height, problem = dimensions(kind, head, descriptor, size, path)
        has_trailing_data = is_surely_readable = is_rotated = False
        if not problem:
            tail = head[-4096:] if size <= len(head) else os.pread(descriptor, 4096, size - 4096)
            problem, has_trailing_data = _ending(kind, tail, descriptor, size)
        if not problem and not has_trailing_data:
            is_surely_readable, is_rotated = _orientation(kind, head, descriptor, size, path)
    except OSError as error:
        raise_if_disk_is_broken(error, "An image of the dataset")
        return Facts("", 0, 0, 0, b"", f"cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)
    return Facts(
        kind,
        width,
        height,
        size,
        digest,
        problem or _bounds(width, height),
        has_trailing_data,
        is_surely_readable,
        is_rotated,
    )


def read_small(path: str, most: int) -> bytes:
    """Return up to `most` bytes of a file. `open` is not used, because it is slow for small files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, min(most, HEAD))
        while len(data) >= HEAD and len(data) < most and (more := os.read(descriptor, most - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return data


def wrong_suffix(path: str, kind: str) -> bool:
    """Return whether the suffix of the file name does not fit the format `kind`."""
    return path.rpartition(".")[2].lower() not in SUFFIXES.get(kind, ())


def _digest(descriptor: int, size: int, head: bytes, kind: str) -> bytes:
    if size <= len(head):
        return hashlib.sha256(head).digest()
    if size <= WHOLE:
        return hashlib.sha256(os.pread(descriptor, size, 0)).digest()
    if kind in ("bmp", "tiff"):  # hash all bytes: two uncompressed images can differ in a few bytes
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").digest()
    digest = hashlib.sha256(struct.pack("<Q", size) + head)
    for place in (size // 2, size - HEAD):
        digest.update(os.pread(descriptor, HEAD, place))
    return digest.digest()


def _bounds(width: int, height: int) -> str:
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels, more than the limit of {MAX_PIXELS} in total"
    too_small = f"{width} x {height} pixels; each side must have at least {MIN_SIDE} pixels"
    return too_small if min(width, height) < MIN_SIDE else ""


def _kind(head: bytes) -> str:
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM"):
        return "bmp"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "jp2"
    if head[4:8] == b"ftyp":
        return "avif" if b"avif" in head[8:32] or b"avis" in head[8:32] else "heic"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    start = head[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<svg", b"{")):
        return "svg" if b"<svg" in start else "text"
    return ""


def _orientation(kind: str, head: bytes, descriptor: int, size: int, path: str) -> tuple[bool, bool]:
    """Return whether Pillow and OpenCV can certainly read the image, and whether EXIF rotates the image.

    Only rotations by 90 or 270 degrees count. If the first value is False, the training reads the size from the image.
    """
    match kind:
        case "jpeg":
            _, frame = jpeg_segment(head, descriptor, size, JPEG_FRAMES)
            # only baseline, extended and progressive JPEGs with 8 bits and one image are certainly readable
            if frame[1] not in (0xC0, 0xC1, 0xC2) or frame[4] != 8 or b"MPF\0" in head:
                return False, False
            scan, _ = jpeg_segment(head, descriptor, size, JPEG_SCAN)
            if scan <= len(head) and b"\xff\xe1" not in head[:scan]:
                return True, False
            return _pillow_orientation(path) if scan <= MOST_METADATA else (False, False)
        case "png":
            before, has_pixels, _ = head.partition(b"IDAT")
            may_rotate = not has_pixels or b"eXIf" in before or b"exif" in before or b"XML:com.adobe.xmp" in before
            whole = head if size <= len(head) else os.pread(descriptor, size, 0) if size <= WHOLE else b""
            return not may_rotate and _is_sound_png(whole), False
        case _:
            return False, False


def _is_sound_png(data: bytes) -> bool:
    """Return whether all chunks of a PNG have correct checksums."""
    view, place = memoryview(data), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if data[place + 4 : place + 8] == b"IEND":
            return True
        place = end + 4
    return False


def _pillow_orientation(path: str) -> tuple[bool, bool]:
    try:
        with opened_by_pillow(path) as image:
            return image.format == "JPEG", image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except ValueError:
        return False, False


def _ending(kind: str, tail: bytes, descriptor: int, size: int) -> tuple[str, bool]:
    """Return "truncated" or "", and whether a JPEG has data after its end mark."""
    if kind == "jpeg":
        if tail.endswith(b"\xff\xd9"):
            return "", False
        # data after the end mark is common and harmless, for example zeros or the video of a phone; an end mark before
        # the pixels belongs to a thumbnail
        pixels, found = jpeg_segment(b"", descriptor, size, JPEG_SCAN)
        if not found:
            return "truncated", False
        return ("", True) if _has_end_mark(descriptor, pixels, size) else ("truncated", False)
    if kind == "png":
        far = tail if b"IEND" in tail else os.pread(descriptor, 1 << 20, max(0, size - (1 << 20)))
        return ("", False) if b"IEND" in far else ("truncated", False)
    return "", False


def _has_end_mark(descriptor: int, begin: int, size: int) -> bool:
    # the file is not mapped into memory: if the owner truncated a mapped file, this process would be killed
    step = 1 << 20
    return any(b"\xff\xd9" in os.pread(descriptor, step + 1, place) for place in range(begin, size, step))
