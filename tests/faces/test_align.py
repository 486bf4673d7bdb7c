"""Five points to an upright crop: the best similarity, the template's places, black outside, nothing passed over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from jmt_fast.faces.align import TEMPLATE, letterbox, similarity, template, warp


def turn(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def test_a_similarity_is_found_again() -> None:
    rng = np.random.default_rng(0)
    true = [turn(rng.uniform(-3, 3), rng.uniform(0.1, 9), tuple(rng.uniform(-500, 500, 2))) for _ in range(50)]
    back = [np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2] for matrix in true]
    points = np.stack([moved(matrix, TEMPLATE) for matrix in back])
    np.testing.assert_allclose(similarity(points, TEMPLATE), true, atol=1e-8, rtol=1e-8)


def test_it_is_the_best_one() -> None:
    """Against a general solver of least squares over the four numbers of a similarity."""
    rng = np.random.default_rng(1)
    for points in rng.normal(size=(20, 5, 2)) * 40 + 300:
        rows = [row for x, y in points for row in ((x, -y, 1, 0), (y, x, 0, 1))]
        a, b, u, v = np.linalg.lstsq(np.array(rows), TEMPLATE.ravel(), rcond=None)[0]
        np.testing.assert_allclose(similarity(points, TEMPLATE), [[a, -b, u], [b, a, v]], atol=1e-6)


def test_points_in_one_place_are_shifted() -> None:
    matrix = similarity(np.full((5, 2), 7.0), TEMPLATE)
    np.testing.assert_allclose(matrix[:, :2], np.eye(2))
    np.testing.assert_allclose(moved(matrix, np.array([[7.0, 7.0]])), TEMPLATE.mean(0)[None])


@pytest.mark.parametrize(("resize", "crop"), [(112, 112), (256, 224), (54, 48)])
@pytest.mark.parametrize("scale", [0.4, 1.0, 2.7, 6.0])
def test_points_land_on_the_template(resize: int, crop: int, scale: float) -> None:
    """A white dot at each of the five points of a turned face is a white dot at the template's places."""
    rng = np.random.default_rng(2)
    aim = template(resize, crop)
    back = turn(0.4, scale, (40.0, 25.0))
    points = moved(back, aim)
    y, x = np.mgrid[: int(points.max(0)[1]) + 60, : int(points.max(0)[0]) + 60] + 0.5
    radius = max(2.0, 2.5 * scale)
    for point, place in zip(points, aim, strict=True):
        dot = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * radius**2))
        picture = np.repeat(np.round(255 * dot)[..., None].astype(np.uint8), 3, axis=2)
        cut = warp(picture, similarity(points, aim), crop).numpy()[rng.integers(3)]
        cut = (cut - cut.max() / 2).clip(0)  # the foot of a dot may lie beyond the crop
        rows, columns = np.mgrid[:crop, :crop] + 0.5
        middle = [(cut * axis).sum() / cut.sum() for axis in (columns, rows)]
        assert np.abs(middle - place).max() < 0.25


def test_a_prepared_crop_and_a_raw_frame_show_the_face_in_one_place() -> None:
    """112 x 112 pictures resized to 256 and cut to 224 are what aligned crops of 224 must look like."""
    noise = np.random.default_rng(3).integers(0, 256, (14, 14, 3)).astype(np.uint8)
    picture = np.asarray(Image.fromarray(noise).resize((112, 112), Image.Resampling.BICUBIC))
    resized = np.asarray(Image.fromarray(picture).resize((256, 256), Image.Resampling.BILINEAR))[16:240, 16:240]
    cut = warp(picture, similarity(TEMPLATE, template(256, 224)), 224).movedim(0, 2).numpy()
    assert np.abs(cut - resized).max() < 2


def test_outside_of_the_picture_is_black() -> None:
    white = np.full((50, 80, 3), 255, np.uint8)
    cut = warp(white, turn(0, 1, (30, 10)), 100)
    inside = torch.zeros(100, 100, dtype=torch.bool)
    inside[10:60, 30:] = True
    assert (cut[:, inside] > 254.9).all()
    assert (cut[:, ~inside] < 0.02).all()
    for shift in ((500.0, 0.0), (-500.0, 0.0), (0.0, 500.0), (0.0, -500.0)):
        assert (warp(white, turn(0, 1, shift), 100) == 0).all()


@pytest.mark.parametrize("factor", [2, 5, 16])
def test_shrinking_averages(factor: int) -> None:
    """A chessboard of single pixels has a mean; taking every n-th pixel would show one colour of it."""
    y, x = np.mgrid[: 40 * factor, : 40 * factor]
    board = np.repeat(((x + y) % 2 * 255)[..., None].astype(np.uint8), 3, axis=2)
    cut = warp(board, turn(0, 1 / factor, (0, 0)), 40)
    assert (cut[:, 1:-1, 1:-1] - 127.5).abs().max() < 127.5 / factor + 0.5


def test_a_part_is_cut_as_from_the_whole() -> None:
    """Only the part that is seen is read; shifting picture and map alike changes nothing."""
    rng = np.random.default_rng(4)
    picture = rng.integers(0, 256, (300, 400, 3)).astype(np.uint8)
    for scale in (1.3, 0.45, 0.2):
        matrix = turn(0.3, scale, (-40 * scale, -90 * scale))
        step = max(1, int(1 / scale))
        framed = np.pad(picture, ((step * 20, 0), (step * 30, 0), (0, 0)))
        shifted = matrix.copy()
        shifted[:, 2] -= matrix[:, :2] @ [step * 30, step * 20]
        one, other = warp(picture, matrix, 64), warp(framed, shifted, 64)
        back = np.linalg.inv(matrix[:, :2])
        places = np.stack(np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5), -1) - matrix[:, 2]
        seen = ((places @ back.T > 3 * step) & (places @ back.T < np.array([400, 300]) - 3 * step)).all(-1)
        assert seen.sum() > 500
        assert (one - other)[:, seen].abs().max() < 0.02


@pytest.mark.parametrize(("height", "width"), [(36, 64), (64, 36), (50, 50)])
def test_a_letterbox_holds_the_whole_picture(height: int, width: int) -> None:
    matrix = letterbox(height, width, 224)
    corners = moved(matrix, np.array([[0, 0], [width, height]]))
    assert np.allclose(corners.sum(0), 224)
    assert np.isclose((corners[1] - corners[0]).max(), 224)
    cut = warp(np.full((height, width, 3), 200, np.uint8), matrix, 224)
    assert np.isclose(float(cut.sum()) / 600, 224 * 224 * min(height, width) / max(height, width), rtol=0.05)
