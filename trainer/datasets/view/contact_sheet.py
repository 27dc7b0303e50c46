"""Draw a picture of labeled samples, so that a person can check the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from trainer.core.dataset import Task
from trainer.core.errors import DatasetError
from trainer.core.text import printable
from trainer.datasets.checks.check import Checked
from trainer.datasets.samples import SPLITS, Sample

CELL = 320  # pixels, width and height
CAPTION = 20  # pixels, height
COLUMNS = 5
FONT = ImageFont.load_default(13)
MAX_CELLS = 30
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # exceptions of Pillow for broken images


def draw_sheet(checked: Checked, path: Path) -> int:
    """Write a PNG with up to 30 samples of all classes and splits to `path`. Return the number of samples.

    Raises `DatasetError` when the file cannot be written.
    """
    chosen = _chosen(checked)
    rows = -(-len(chosen) // COLUMNS) or 1
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + CAPTION)), "white")
    for place, sample in enumerate(chosen):
        left, top = place % COLUMNS * CELL, place // COLUMNS * (CELL + CAPTION)
        sheet.paste(_cell(checked, sample), (left, top))
        caption = f"{sample.split}  {printable(sample.name.rpartition('/')[2], 36)}"
        ImageDraw.Draw(sheet).text((left + 4, top + CELL + 3), caption, fill="black", font=FONT)
    try:
        sheet.save(path, "PNG")
    except (OSError, ValueError) as error:
        raise DatasetError(f"The contact sheet cannot be written to {path}: {error}.") from error
    return len(chosen)


def _chosen(checked: Checked) -> list[Sample]:
    """Return samples of all classes and splits: one sample per class and split, then a second sample, and so on."""
    by_group: dict[tuple[int, int], list[int]] = {}
    first_class = dict(zip(reversed(checked.rows.image.tolist()), reversed(checked.rows.cls.tolist()), strict=True))
    for index, sample in enumerate(checked.samples):
        group = (SPLITS.index(sample.split or "train"), first_class.get(index, -1))
        by_group.setdefault(group, []).append(index)
    queues = [by_group[group] for group in sorted(by_group, key=lambda g: (g[1] < 0, *g))]
    chosen: list[int] = []
    for turn in range(MAX_CELLS):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
        if len(chosen) >= MAX_CELLS:
            break
    samples = [checked.samples[index] for index in sorted(chosen[:MAX_CELLS])]
    return sorted(samples, key=lambda sample: SPLITS.index(sample.split or "train"))


def _cell(checked: Checked, sample: Sample) -> Image.Image:
    cell = Image.new("RGB", (CELL, CELL), "#dddddd")
    if sample.facts.problem:
        ImageDraw.Draw(cell).text((8, 8), printable(sample.facts.problem, 40), fill="red", font=FONT)
        return cell
    try:
        with Image.open(sample.image) as file:
            file.draft("RGB", (CELL * 2, CELL * 2))
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except UNREADABLE:
        ImageDraw.Draw(cell).text((8, 8), "cannot be decoded", fill="red", font=FONT)
        return cell
    picture = ImageOps.contain(picture, (CELL, CELL))
    _draw_labels(picture, checked, sample)
    cell.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return cell


def _draw_labels(picture: Image.Image, checked: Checked, sample: Sample) -> None:
    draw = ImageDraw.Draw(picture)
    names = checked.names
    for line in (sample.text or b"").splitlines()[:200]:
        try:
            number, *values = (float(token) for token in line.split())
        except ValueError:
            continue  # this row cannot be drawn; the checks report it
        cls = int(number)
        if not 0 <= cls < len(names):
            continue
        color = f"hsv({cls * 222.5 % 360}, 90%, 80%)"  # multiples of the golden ratio give distinct hues
        corner = _draw_shape(draw, values, checked.task, picture.size, color)
        text = printable(names[cls], 24)
        draw.rectangle(draw.textbbox(corner, text, font=FONT), fill=color)
        draw.text(corner, text, fill="white", font=FONT)


def _draw_shape(
    draw: ImageDraw.ImageDraw, values: Sequence[float], task: Task, size: tuple[int, int], color: str
) -> tuple[float, float]:
    """Draw the box or outline and the keypoints of a row. Return the position of the class name."""
    width, height = size
    if not values:  # classification
        return 4, 4
    is_box = task is Task.POSE or len(values) == 4
    if is_box:
        x, y, w, h = values[:4]
        left, top = (x - w / 2) * width, (y - h / 2) * height
        draw.rectangle((left, top, left + w * width, top + h * height), outline=color, width=2)
    else:
        points = [(x * width, y * height) for x, y in zip(values[0::2], values[1::2], strict=False)]
        draw.polygon(points, outline=color, width=2)
        left, top = min(points)
    if task is Task.POSE:
        step = 3 if (len(values) - 4) % 3 == 0 else 2
        for place in range(4, len(values) - 1, step):
            if step == 2 or values[place + 2] > 0:
                kx, ky = values[place] * width, values[place + 1] * height
                draw.ellipse((kx - 3, ky - 3, kx + 3, ky + 3), fill=color, outline="white")
    return max(left, 0), max(top, 0)
