"""What can be known about an image without decoding it: kind, size in pixels, whether it ends, its content's digest."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from typing import NamedTuple

from trainer.core.errors import raise_if_disk_is_broken

HEAD = 1 << 16  # bytes read first
WHOLE = 1 << 20  # files up to this are digested completely, larger ones in three samples
MOST_PIXELS = 178_956_970  # where Pillow, which Ultralytics opens every image with, refuses
_ORIENTATION = 0x0112  # the EXIF tag
SMALLEST = 10  # pixels; Ultralytics leaves out what is smaller

# the kind by content → suffixes that say so
SUFFIXES = {
    "jpeg": {"jpg", "jpeg", "jpe", "jfif", "mpo"},
    "png": {"png"},
    "bmp": {"bmp", "dib"},
    "webp": {"webp"},
    "tiff": {"tif", "tiff", "dng"},
    "jp2": {"jp2", "jpeg2000"},
    "avif": {"avif"},
}
UNREADABLE_KINDS = {"gif": "GIF", "heic": "HEIC", "svg": "SVG"}


class Facts(NamedTuple):
    """`problem` is empty for an image that can be trained on. `is_loose`: data follows a JPEG's end mark.

    Width and height are those of the stored pixels, before any EXIF rotation. `digest` identifies the content.
    `is_plain`: Pillow and OpenCV are sure to read it, at `shape`. `is_turned`: EXIF turns it by a quarter.
    """

    kind: str
    width: int
    height: int
    size: int
    digest: bytes
    problem: str = ""
    is_loose: bool = False
    is_plain: bool = False
    is_turned: bool = False

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width as it is trained on, where that is certain."""
        size = (self.width, self.height) if self.is_turned else (self.height, self.width)
        return size if self.is_plain else None


NOT_READ = Facts("", 0, 0, 0, b"", "not read")


def facts(path: str) -> Facts:
    """Look at one image file. Raises `HostFailed` for a broken disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
        width, height, problem = _size(kind, head, descriptor, size, path)
        is_loose = is_plain = is_turned = False
        if not problem:
            tail = head[-4096:] if size <= len(head) else os.pread(descriptor, 4096, size - 4096)
            problem, is_loose = _ending(kind, tail, descriptor, size)
        if not problem and not is_loose:
            is_plain, is_turned = _orientation(kind, head, descriptor, size, path)
    except OSError as error:
        raise_if_disk_is_broken(error, "An image of the dataset")
        return Facts("", 0, 0, 0, b"", f"cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)
    return Facts(kind, width, height, size, digest, problem or _bounds(width, height), is_loose, is_plain, is_turned)


def read_small(path: str, most: int) -> bytes:
    """The first `most` bytes of a file, without the machinery of `open`, which would take longer than the reading."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, min(most, HEAD))
        while len(data) >= HEAD and len(data) < most and (more := os.read(descriptor, most - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return data


def wrong_suffix(path: str, kind: str) -> bool:
    """Whether the name claims another kind of image than the content is."""
    return path.rpartition(".")[2].lower() not in SUFFIXES.get(kind, ())


def _digest(descriptor: int, size: int, head: bytes, kind: str) -> bytes:
    if size <= len(head):
        return hashlib.sha256(head).digest()
    if size <= WHOLE:
        return hashlib.sha256(os.pread(descriptor, size, 0)).digest()
    if kind in ("bmp", "tiff"):  # not compressed: two pictures of one size may differ in a few bytes anywhere
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").digest()
    digest = hashlib.sha256(struct.pack("<Q", size) + head)
    for place in (size // 2, size - HEAD):
        digest.update(os.pread(descriptor, HEAD, place))
    return digest.digest()


def _bounds(width: int, height: int) -> str:
    if width * height > MOST_PIXELS:
        return f"{width} x {height} pixels, more than {MOST_PIXELS} in all"
    return f"{width} x {height} pixels, smaller than {SMALLEST}" if min(width, height) < SMALLEST else ""


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


def _size(kind: str, head: bytes, descriptor: int, size: int, path: str) -> tuple[int, int, str]:
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
                return 0, 0, f"a {UNREADABLE_KINDS[kind]} image, which cannot be trained on; convert it to JPEG or PNG"
            case "text":
                return 0, 0, "a text or web page, not an image"
            case _:
                return 0, 0, "not an image"
    except (struct.error, IndexError):
        return 0, 0, "cut off"


_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_SCAN = frozenset({0xDA})


def _jpeg_size(head: bytes, descriptor: int, size: int) -> tuple[int, int, str]:
    place, segment = _jpeg_segment(head, descriptor, size, _FRAMES)
    if not segment:
        return 0, 0, "cut off" if place >= size else "damaged"
    height, width = struct.unpack_from(">HH", segment, 5)
    return width, height, ""


def _jpeg_segment(head: bytes, descriptor: int, size: int, wanted: frozenset[int]) -> tuple[int, bytes]:
    """Where the first segment of a wanted kind is, and how it begins; nothing but the place where the search ended."""
    place, window, begin = 2, head, 0
    for _ in range(2000):  # segments; thumbnails and profiles take a few dozen
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


def _orientation(kind: str, head: bytes, descriptor: int, size: int, path: str) -> tuple[bool, bool]:
    """Whether the image is surely read by everybody, and whether EXIF turns it by a quarter.

    Of the others Ultralytics has to say what it sees in them.
    """
    match kind:
        case "jpeg":
            _, frame = _jpeg_segment(head, descriptor, size, _FRAMES)
            # baseline or progressive, 8 bits; not the many pictures of one file, which end elsewhere
            if frame[1] not in (0xC0, 0xC1, 0xC2) or frame[4] != 8 or b"MPF\0" in head:
                return False, False
            scan, _ = _jpeg_segment(head, descriptor, size, _SCAN)
            if scan <= len(head) and b"\xff\xe1" not in head[:scan]:
                return True, False
            return _pillow_orientation(path)
        case "png":
            before, has_pixels, _ = head.partition(b"IDAT")
            is_told = not has_pixels or b"eXIf" in before or b"exif" in before or b"XML:com.adobe.xmp" in before
            whole = head if size <= len(head) else os.pread(descriptor, size, 0) if size <= WHOLE else b""
            return not is_told and _is_sound_png(whole), False
        case _:
            return False, False


def _is_sound_png(data: bytes) -> bool:
    """Whether every chunk is what its checksum says."""
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
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.format == "JPEG", image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except (Image.DecompressionBombError, *_PILLOW_SAYS):
        return False, False


def _bmp_size(head: bytes, size: int) -> tuple[int, int, str]:
    header = struct.unpack_from("<I", head, 14)[0]
    if header == 12:
        width, height = struct.unpack_from("<HH", head, 18)
        return width, height, ""
    width, height = struct.unpack_from("<ii", head, 18)
    return abs(width), abs(height), "cut off" if struct.unpack_from("<I", head, 10)[0] > size else ""


def _webp_size(head: bytes, size: int) -> tuple[int, int, str]:
    cut = "cut off" if struct.unpack_from("<I", head, 4)[0] + 8 > size else ""
    chunk = head[12:16]
    if chunk == b"VP8X":
        return (
            1 + int.from_bytes(head[24:27], "little"),
            1 + int.from_bytes(head[27:30], "little"),
            cut,
        )
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1, cut
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF, cut
    return 0, 0, "damaged"


# what Pillow's plugins raise on hostile headers
_PILLOW_SAYS = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    OverflowError,
    KeyError,
    TypeError,
    IndexError,
    RuntimeError,
    AttributeError,
    EOFError,
    AssertionError,
    ZeroDivisionError,
)


def _pillow_size(path: str) -> tuple[int, int, str]:
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large image is judged by MOST_PIXELS
            with Image.open(path) as image:
                return image.width, image.height, ""
    except Image.DecompressionBombError:
        return 0, 0, f"more than {MOST_PIXELS} pixels"
    except _PILLOW_SAYS:
        return 0, 0, "damaged"


def _ending(kind: str, tail: bytes, descriptor: int, size: int) -> tuple[str, bool]:
    """Whether the file is cut off, and whether something follows a JPEG's end."""
    if kind == "jpeg":
        if tail.endswith(b"\xff\xd9"):
            return "", False
        # trailing zeros or a phone's film after the end mark are common and harmless; an end mark before the pixels
        # is that of a thumbnail
        pixels, found = _jpeg_segment(b"", descriptor, size, _SCAN)
        if not found:
            return "cut off", False
        return ("", True) if _has_end_mark(descriptor, pixels, size) else ("cut off", False)
    if kind == "png":
        far = tail if b"IEND" in tail else os.pread(descriptor, 1 << 20, max(0, size - (1 << 20)))
        return ("", False) if b"IEND" in far else ("cut off", False)
    return "", False


def _has_end_mark(descriptor: int, begin: int, size: int) -> bool:
    # read, not mapped: a file that its owner cuts meanwhile would end the process through a map
    step = 1 << 20
    return any(b"\xff\xd9" in os.pread(descriptor, step + 1, place) for place in range(begin, size, step))
