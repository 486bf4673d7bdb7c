"""Pictures with faces that are drawn here, and the detector where its weights can be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from jmt_fast.errors import JMTError
from jmt_fast.faces.onnx import Graph, read
from jmt_fast.faces.weights import WEIGHTS

# where `drawn` puts eyes, nose and corners of the mouth, in 200ths of its side
MARKS = np.array([[76, 92], [124, 92], [100, 126], [78, 152], [122, 152]]) / 200


def drawn(side: int) -> Image.Image:
    """A face on grey: smooth enough that a network trained on photographs takes it for one, up to 100 pixels."""
    k = side / 200
    image = Image.new("RGB", (side, side), (90, 95, 100))
    pen = ImageDraw.Draw(image)

    def oval(x: float, y: float, width: float, height: float, colour: tuple[int, int, int]) -> None:
        pen.ellipse([(x - width) * k, (y - height) * k, (x + width) * k, (y + height) * k], fill=colour)

    oval(100, 92, 66, 84, (50, 36, 30))
    oval(100, 108, 56, 74, (205, 160, 130))
    for x in (76, 124):
        oval(x, 92, 15, 9, (143, 112, 91))
        oval(x, 93, 11, 5, (225, 220, 215))
        oval(x, 93, 5, 5, (40, 28, 22))
        pen.rectangle([(x - 15) * k, 76 * k, (x + 15) * k, 80 * k], fill=(60, 42, 34))
    oval(100, 126, 13, 8, (164, 128, 104))
    for x in (94, 106):
        oval(x, 129, 3, 2, (112, 88, 71))
    oval(100, 152, 23, 8, (150, 70, 70))
    pen.line([78 * k, 152 * k, 122 * k, 152 * k], fill=(80, 30, 30), width=max(1, int(2 * k)))
    return image.filter(ImageFilter.GaussianBlur(1.6 * k))


@pytest.fixture(scope="session")
def scene() -> Callable[..., np.ndarray]:
    """scene([(x, y, side), ...], size=(640, 360)) -> (H, W, 3) uint8 with a face in each of those squares."""

    def make(faces: Sequence[tuple[int, int, int]], size: tuple[int, int] = (640, 360)) -> np.ndarray:
        picture = Image.new("RGB", size, (90, 95, 100))
        for x, y, side in faces:
            picture.paste(drawn(side), (x, y))
        return np.asarray(picture)

    return make


@pytest.fixture(scope="session")
def marks() -> np.ndarray:
    """(5, 2): the points of a face of `scene`, in its square of side 1."""
    return MARKS


@pytest.fixture(scope="session")
def onnx() -> Graph:
    try:
        return read(WEIGHTS["centerface"].read())
    except JMTError as error:
        pytest.skip(f"no weights: {error}")
