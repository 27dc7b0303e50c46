"""Which files are images."""

from __future__ import annotations

IMAGE_SUFFIXES = frozenset(
    [
        "avif",
        "bmp",
        "dng",
        "gif",
        "heic",
        "heif",
        "jfif",
        "jp2",
        "jpe",
        "jpeg",
        "jpeg2000",
        "jpg",
        "mpo",
        "png",
        "tif",
        "tiff",
        "webp",
    ]
)
"""What Ultralytics reads, other spellings of JPEG, and GIF, which is reported as unreadable."""
