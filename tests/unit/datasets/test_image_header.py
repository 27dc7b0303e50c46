"""Image facts from the file header agree with Pillow, which decodes the image."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.datasets.images.header import HEAD, WHOLE, facts, wrong_suffix


def image(width=40, height=30, mode="RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(kind: str, picture: Image.Image | None = None, **options) -> bytes:
    out = io.BytesIO()
    (picture or image()).save(out, kind, **options)
    return out.getvalue()


def look(tmp_path: Path, data: bytes, name: str = "a.jpg"):
    path = tmp_path / name
    path.write_bytes(data)
    return facts(str(path))


def problem_and_trailing_data(fact):
    return fact.problem, fact.has_trailing_data


@pytest.mark.parametrize("size", [(40, 30), (10, 10), (1001, 17)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + bytes(60000)}),
        ("JPEG", {"comment": b"\xff\xd9\xff\xc0"}),
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {}),
        ("AVIF", {}),
        ("MPO", {}),
    ],
)
def test_size_and_format_agree_with_pillow(tmp_path, kind, options, size):
    fact = look(tmp_path, encoded(kind, image(*size), **options))
    assert (fact.width, fact.height, fact.problem) == (*size, "")
    assert fact.kind == {"JPEG2000": "jp2", "MPO": "jpeg"}.get(kind, kind.lower())


def test_size_of_webp_with_extended_header_is_read(tmp_path):
    fact = look(tmp_path, encoded("WEBP", image(mode="RGBA"), exif=b"Exif\0\0II*\0"))
    assert (fact.width, fact.height, fact.problem) == (40, 30, "")


def test_size_of_jpeg_with_large_color_profile_is_read(tmp_path):
    profile = bytes(range(256)) * (HEAD // 64)
    fact = look(tmp_path, encoded("JPEG", icc_profile=profile))
    assert (fact.width, fact.height, fact.problem) == (40, 30, "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_file_is_reported(tmp_path, kind, share):
    data = encoded(kind, image(200, 200))
    assert look(tmp_path, data[: int(len(data) * share)]).problem


@pytest.mark.parametrize("tail", [b"\0" * 16, b"\0" * 5000, b"camera maker's notes"])
def test_data_after_end_mark_of_jpeg_is_detected(tmp_path, tail):
    assert [problem_and_trailing_data(look(tmp_path, data)) for data in (encoded("JPEG") + tail, encoded("JPEG"))] == [
        ("", True),
        ("", False),
    ]
    assert problem_and_trailing_data(look(tmp_path, encoded("PNG") + tail)) == ("", False)


def test_truncated_jpeg_with_complete_thumbnail_is_reported(tmp_path):
    data = encoded("JPEG", image(300, 300), exif=b"Exif\0\0" + encoded("JPEG", image(32, 32)))
    assert look(tmp_path, data).problem == ""
    assert look(tmp_path, data[: len(data) * 2 // 3]).problem == "truncated"


def test_video_after_jpeg_is_accepted(tmp_path):
    film = np.random.default_rng(1).integers(0, 255, 3 << 20, dtype=np.uint8).tobytes()
    assert problem_and_trailing_data(look(tmp_path, encoded("JPEG") + film)) == ("", True)


@pytest.mark.parametrize(
    ("data", "sign"),
    [
        (b"", "empty"),
        (b"\0" * 100, "not an image"),
        (b"just text", "not an image"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b'{"error": "not found"}', "web page"),
        (b"<svg xmlns='x'/>", "SVG"),
        (b"GIF89a" + bytes(20), "GIF"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xd9", "truncated"),
        (b"\xff\xd8" + b"\xff\xe0\x00\x00" * 5000, "damaged"),
        (b"\xff\xd8\xff\xe0\x00\x04ab" + b"zz" * 50, "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(5), "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged"),
        (b"BM" + bytes(8), "truncated"),
        (b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(40), "truncated"),
        (b"RIFF\x10\0\0\0WEBPJUNK" + bytes(40), "damaged"),
        (b"II*\0" + b"\xff" * 60, "damaged"),
        (b"MM\0*" + bytes(60), "damaged"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "damaged"),
        (b"\0\0\0\x1cftypavif" + bytes(60), "damaged"),
    ],
)
def test_content_that_is_not_an_intact_image_is_reported(tmp_path, data, sign):
    fact = look(tmp_path, data)
    assert sign in fact.problem
    assert not fact.problem.startswith("cannot")


def test_png_with_too_many_pixels_is_detected_from_its_header(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    assert "60000 x 60000 pixels, more than" in look(tmp_path, b"\x89PNG\r\n\x1a\n" + chunk + b"IEND").problem


def test_too_small_image_is_reported(tmp_path):
    assert (
        "9 x 20 pixels; each side must have at least 10 pixels" in look(tmp_path, encoded("PNG", image(9, 20))).problem
    )


def test_missing_file_and_path_of_folder_are_reported(tmp_path):
    assert "No such file" in facts(str(tmp_path / "gone.jpg")).problem
    assert "cannot be" in facts(str(tmp_path)).problem


def test_digests_are_equal_only_for_equal_content(tmp_path):
    data = encoded("JPEG")
    assert look(tmp_path, data, "a.jpg").digest == look(tmp_path, data, "b.jpg").digest
    for size in (100, HEAD + 100, WHOLE + 100):
        one, other = bytearray(size), bytearray(size)
        other[size // 2] = 1
        assert look(tmp_path, bytes(one)).digest != look(tmp_path, bytes(other)).digest


def test_large_uncompressed_images_are_hashed_completely(tmp_path):
    data = bytearray(encoded("BMP", image(1200, 900)))
    one = look(tmp_path, bytes(data)).digest
    data[len(data) // 3] ^= 1
    assert look(tmp_path, bytes(data)).digest != one


def test_wrong_suffix_is_detected():
    assert wrong_suffix("a.png", "jpeg")
    assert not any(wrong_suffix(name, "jpeg") for name in ("a.jpg", "a.JPEG", "b.jfif"))
