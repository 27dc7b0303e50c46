"""The format of stored pixels. A training process writes them; the dataset cache keeps them for the owner's next run.

    FOLDER/RECIPE/PLACE.npy     RECIPE: imgsz-channels-fit, or imgsz-channels-stretch for RT-DETR
                                PLACE: the path of the image in its view, for example images/train/a.jpg

A file is an array in the format of numpy. At its end is a trailer, which numpy does not read. It binds the file to its
image: signature, height and width of the image, inode, size in bytes and modification time of the image file.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple, Self

FOLDER = "pixels"
RECIPES = ("fit", "stretch")
CHANNELS = 3  # of kept pixels
_SIGNATURE = b"PIX2"
_TRAILER = struct.Struct("<4sIIQQq")
TRAILER_BYTES = _TRAILER.size
_HEADER_BYTES = 4096  # more than the header of numpy


class ImageVersion(NamedTuple):
    """A version of an image file. An edit changes at least one of the values."""

    inode: int
    size: int  # bytes
    modified: int  # nanoseconds

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the version of the file with this status."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


def recipe(imgsz: int, channels: int, way: str) -> str:
    """Return the name of the folder for pixels that were scaled in this way (one of `RECIPES`)."""
    return f"{imgsz}-{channels}-{way}"


def most_bytes(imgsz: int) -> int:
    """Return the maximum size of a file with pixels."""
    return imgsz * imgsz * CHANNELS + _HEADER_BYTES + TRAILER_BYTES


def trailer(size: tuple[int, int], image: ImageVersion) -> bytes:
    """Return the trailer for the pixels of an image with this height and width."""
    return _TRAILER.pack(_SIGNATURE, *size, *image)


def size_in(data: bytes, image: ImageVersion) -> tuple[int, int] | None:
    """Return the height and width in a trailer, or None if it is damaged or of another version of the image."""
    if len(data) != TRAILER_BYTES:
        return None
    signature, height, width, *version = _TRAILER.unpack(data)
    return (height, width) if signature == _SIGNATURE and tuple(version) == image else None
