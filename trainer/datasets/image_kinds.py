"""The file name suffixes of images."""

from __future__ import annotations

# format → its file name suffixes
SUFFIXES = {
    "jpeg": {"jpg", "jpeg", "jpe", "jfif", "mpo"},
    "png": {"png"},
    "bmp": {"bmp"},
    "webp": {"webp"},
    "tiff": {"tif", "tiff", "dng"},
    "jp2": {"jp2", "jpeg2000"},
    "avif": {"avif"},
}
UNREADABLE_SUFFIXES = frozenset({"gif", "heic", "heif"})  # these files count as images, so that the checks report them
IMAGE_SUFFIXES = UNREADABLE_SUFFIXES.union(*SUFFIXES.values())
