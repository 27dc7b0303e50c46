"""Which files are images."""

from __future__ import annotations

# format → file name suffixes for it
SUFFIXES = {
    "jpeg": {"jpg", "jpeg", "jpe", "jfif", "mpo"},
    "png": {"png"},
    "bmp": {"bmp"},
    "webp": {"webp"},
    "tiff": {"tif", "tiff", "dng"},
    "jp2": {"jp2", "jpeg2000"},
    "avif": {"avif"},
}
UNREADABLE_SUFFIXES = frozenset({"gif", "heic", "heif"})  # found as images, so that they are reported
IMAGE_SUFFIXES = UNREADABLE_SUFFIXES.union(*SUFFIXES.values())
