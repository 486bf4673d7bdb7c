"""CenterFace: the file's arithmetic to the last digits, every batch and size, boxes as published, faces found."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jmt_fast.faces import Faces
from jmt_fast.faces.centerface import CenterFace, CenterFaceNet
from jmt_fast.faces.onnx import Graph, take_over
from jmt_fast.faces.track import overlaps

Scene = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def net(onnx: Graph) -> CenterFaceNet:
    net = CenterFaceNet().eval()
    take_over(net, onnx)
    return net


@pytest.fixture(scope="module")
def finder(net: CenterFaceNet) -> CenterFace:
    return CenterFace(net)


def evaluated(graph: Graph, pictures: Tensor) -> list[Tensor]:
    """The file's nodes one after the other, as ONNX defines them, in the pictures' precision."""
    values = {name: torch.from_numpy(value.copy()).to(pictures) for name, value in graph.tensors.items()}
    values["input.1"] = pictures
    for node in graph.nodes:
        given = [values[name] for name in node.inputs]
        match node.op:
            case "Conv":
                top, left, bottom, right = node.ints["pads"]
                padded = F.pad(given[0], (left, right, top, bottom))
                strides, groups = node.ints["strides"], node.ints["group"][0]
                out = F.conv2d(padded, *given[1:], stride=strides, groups=groups)
            case "ConvTranspose":
                out = F.conv_transpose2d(*given, stride=node.ints["strides"])
            case "BatchNormalization":
                x, scale, shift, mean, variance = given
                scale = scale / (variance + node.floats["epsilon"]).sqrt()
                out = (x - mean[:, None, None]) * scale[:, None, None] + shift[:, None, None]
            case "Relu":
                out = given[0].clamp(min=0)
            case "Add":
                out = given[0] + given[1]
            case "Sigmoid":
                out = given[0].sigmoid()
            case other:
                raise AssertionError(other)
        values[node.outputs[0]] = out
    return [values[name] for name in ("537", "538", "539", "540")]


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 64, 96), (2, 96, 32)])
@torch.inference_mode()
def test_the_network_computes_what_the_file_says(
    net: CenterFaceNet, onnx: Graph, batch: int, height: int, width: int
) -> None:
    pictures = torch.rand(batch, 3, height, width) * 255
    truth = evaluated(onnx, pictures.double())
    for got, plain, true in zip(net(pictures), evaluated(onnx, pictures), truth, strict=True):
        assert got.shape == true.shape
        assert got.shape[2:] == (height // 4, width // 4)
        allowed = 2 * (plain - true).abs().max() + 1e-6 * true.abs().max()
        assert (got - true).abs().max() <= allowed


def test_a_file_of_other_layers_is_refused(onnx: Graph) -> None:
    with pytest.raises(ValueError, match="not CenterFace"):
        take_over(CenterFaceNet(), Graph(onnx.nodes[:-1], onnx.tensors))
    first = onnx.nodes[0].inputs[1]
    with pytest.raises(ValueError, match="expected"):
        take_over(CenterFaceNet(), Graph(onnx.nodes, onnx.tensors | {first: onnx.tensors[first][:, :2]}))


def plainly(heat: np.ndarray, size: np.ndarray, offset: np.ndarray, points: np.ndarray, least: float) -> list[tuple]:
    """The boxes of the published code, one place after the other, best first, on a picture of 120 x 80."""
    found = []
    for row, column in np.argwhere(heat[0] > least):
        tall, wide = (4 * math.exp(size[k, row, column]) for k in (0, 1))
        top = (row + offset[0, row, column] + 0.5) * 4 - tall / 2
        left = (column + offset[1, row, column] + 0.5) * 4 - wide / 2
        marks = [
            (points[2 * k + 1, row, column] * wide + left, points[2 * k, row, column] * tall + top) for k in range(5)
        ]
        box = np.clip([left, top, left + wide, top + tall], 0, [120, 80] * 2)
        found.append((heat[0, row, column], box, marks))
    found.sort(key=lambda each: -each[0])
    kept: list[tuple] = []
    for each in found:
        if all(overlaps(each[1][None], other[1][None])[0, 0] <= 0.3 for other in kept):
            kept.append(each)
    return kept


def test_boxes_and_points_are_read_off_the_maps() -> None:
    reader = CenterFace(CenterFaceNet(), threshold=0.9)
    generator = torch.Generator().manual_seed(3)
    maps = [torch.rand(n, 20, 30, generator=generator) for n in (1, 2, 2, 10)]
    maps[1] = maps[1] * 1.5 + 0.5
    expected = plainly(*(part.double().numpy() for part in maps), 0.9)
    found = reader.decode(maps, (80, 120), np.array([2.0, 3.0]))
    assert len(found) == len(expected) > 5
    for place, (score, box, marks) in enumerate(expected):
        assert found.scores[place] == pytest.approx(score)
        np.testing.assert_allclose(found.boxes[place], box * [2, 3, 2, 3], atol=1e-3)
        np.testing.assert_allclose(found.points[place], np.array(marks) * [2, 3], atol=1e-3)


def at(found: Faces, squares: list[tuple[int, int, int]], marks: np.ndarray) -> np.ndarray:
    """Distances (N, 5) in sides of the squares between the points found and those drawn, in the squares' order."""
    order = [int(np.argmin(np.abs(found.boxes[:, :2].sum(1) - (x + y + 0.4 * side)))) for x, y, side in squares]
    drawn = np.array([[x, y] + side * marks for x, y, side in squares])
    sides = np.array([side for _, _, side in squares])
    return np.linalg.norm(found.points[order] - drawn, axis=2) / sides[:, None]


@pytest.mark.parametrize("size", [(640, 360), (333, 201), (1280, 720)])
def test_drawn_faces_are_found_with_their_points(
    finder: CenterFace, scene: Scene, marks: np.ndarray, size: tuple[int, int]
) -> None:
    large = size[0] // 640 or 1
    squares = [(20 * large, 30 * large, 60 * large), (200 * large, 90 * large, 72 * large)]
    [found] = finder([scene(squares, size)])
    assert len(found) == 2
    assert at(found, squares, marks).max() < 0.1


def test_a_batch_gives_what_single_pictures_give(finder: CenterFace, scene: Scene) -> None:
    pictures = [scene([(50 + 30 * number, 60, 60)] * (number > 0)) for number in range(4)]
    together = finder(pictures)
    assert [len(faces) for faces in together] == [0, 1, 1, 1]
    for faces, picture in zip(together, pictures, strict=True):
        [alone] = finder([picture])
        np.testing.assert_allclose(faces.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(faces.points, alone.points, atol=1e-3)


def test_in_bf16_faces_are_where_they_are_in_fp32(net: CenterFaceNet, finder: CenterFace, scene: Scene) -> None:
    low = CenterFace(copy.deepcopy(net), dtype=torch.bfloat16)
    for size in ((640, 360), (1280, 720)):
        large = size[0] // 640
        squares = [(20 * large, 30 * large, 60 * large), (200 * large, 90 * large, 72 * large)]
        [exact], [found] = (find([scene(squares, size)]) for find in (finder, low))
        sides = np.array([side for _, _, side in squares])[:, None]
        assert len(found) == len(exact) == 2
        order = [int(np.argmin(np.abs(found.boxes[:, 0] - left))) for left in exact.boxes[:, 0]]
        assert (np.linalg.norm(found.points[order] - exact.points, axis=2) / sides).max() < 0.03
        assert (np.abs(found.boxes[order] - exact.boxes) / sides).max() < 0.06


@pytest.mark.parametrize("shape", [(1, 1), (7, 200), (200, 7), (2000, 3)])
def test_pictures_of_any_shape_pass(finder: CenterFace, shape: tuple[int, int]) -> None:
    for picture in (np.zeros((*shape, 3), np.uint8), np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)):
        assert [len(faces) for faces in finder([picture])] == [0]
    assert finder([]) == []
