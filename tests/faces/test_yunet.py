"""YuNet: the file's arithmetic to the last digits, OpenCV's reading of the maps, faces found."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jmt_fast.errors import JMTError
from jmt_fast.faces.onnx import Graph, read, take_over
from jmt_fast.faces.weights import WEIGHTS
from jmt_fast.faces.yunet import STRIDES, YuNet, YuNetNet

Scene = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def content() -> bytes:
    try:
        return WEIGHTS["yunet"].read()
    except JMTError as error:
        pytest.skip(f"no weights: {error}")


@pytest.fixture(scope="module")
def finder(content: bytes) -> YuNet:
    net = YuNetNet()
    take_over(net, read(content))
    return YuNet(net)


@pytest.fixture
def random_net() -> YuNetNet:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return YuNetNet().eval()


def evaluated(graph: Graph, pictures: Tensor) -> dict[str, Tensor]:
    """The file's nodes one after the other, as ONNX defines them, up to its named outputs (B, N, channels)."""
    values = {name: torch.from_numpy(value.copy()).to(pictures) for name, value in graph.tensors.items()}
    values["input"] = pictures.flip(1)  # blue, green, red
    for node in graph.nodes:
        given = [values[name] for name in node.inputs if name in values]
        match node.op:
            case "Conv":
                strides, pads = node.ints["strides"], node.ints["pads"]
                out = F.conv2d(*given, stride=strides, padding=pads[:2], groups=node.ints["group"][0])
            case "Relu":
                out = given[0].clamp(min=0)
            case "MaxPool":
                out = F.max_pool2d(given[0], node.ints["kernel_shape"], node.ints["strides"])
            case "Resize":
                out = given[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
            case "Add":
                out = given[0] + given[1]
            case "Transpose":
                out = given[0].permute(node.ints["perm"])
            case "Reshape":
                out = given[0].flatten(1, 2)
            case "Sigmoid":
                out = given[0].sigmoid()
            case other:
                raise AssertionError(other)
        values[node.outputs[0]] = out
    return values


def published(graph: Graph, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, boxes and points as OpenCV's FaceDetectorYN computes them from the outputs, one place after the other."""
    values = evaluated(graph, pictures)
    scores, boxes, points = [], [], []
    for stride in STRIDES:
        face, best, box, marks = (values[f"{name}_{stride}"] for name in ("cls", "obj", "bbox", "kps"))
        columns = pictures.shape[3] // stride
        for place in range(face.shape[1]):
            row, column = divmod(place, columns)
            scores.append((face[:, place, 0] * best[:, place, 0]).sqrt())
            x, y = (column + box[:, place, 0]) * stride, (row + box[:, place, 1]) * stride
            wide, tall = box[:, place, 2].exp() * stride, box[:, place, 3].exp() * stride
            boxes.append(torch.stack([x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2], -1))
            pairs = [(marks[:, place, 2 * k] + column, marks[:, place, 2 * k + 1] + row) for k in range(5)]
            points.append(torch.stack([torch.stack(pair, -1) * stride for pair in pairs], -2))
    return torch.stack(scores, 1), torch.stack(boxes, 1), torch.stack(points, 1)


def as_graph(net: YuNetNet) -> Graph:
    """The nodes that the published file has, in its order, with a net's weights."""
    from jmt_fast.faces.onnx import Node

    nodes: list[Node] = []
    tensors: dict[str, np.ndarray] = {}

    def add(op: str, *inputs: str, out: str = "", **ints: tuple[int, ...]) -> str:
        out = out or f"value {len(nodes)}"
        nodes.append(Node(op, inputs, (out,), ints, {}))
        return out

    def convolve(layer: torch.nn.Module, x: str) -> str:
        assert isinstance(layer, torch.nn.Conv2d)
        name = f"layer {len(tensors)}"
        tensors[f"{name} w"], tensors[f"{name} b"] = (each.detach().numpy() for each in (layer.weight, layer.bias))
        size, padding = layer.kernel_size[0], layer.padding[0]
        ints = {"strides": tuple(layer.stride), "pads": (padding,) * 4, "group": (layer.groups,)}
        return add("Conv", x, f"{name} w", f"{name} b", kernel_shape=(size, size), **ints)

    def unit(layers: torch.nn.Module, x: str) -> str:
        for layer in layers:  # type: ignore[attr-defined]
            x = add("Relu", x) if isinstance(layer, torch.nn.ReLU) else convolve(layer, x)
        return x

    def halve(x: str) -> str:
        return add("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))

    x = halve(unit(net.stem, "input"))
    maps = []
    for number, stage in enumerate(net.stages):
        x = unit(stage, x)
        maps.append(x)
        x = halve(x) if number in (1, 2, 3) else x
    levels = [unit(net.sides[0], maps[4])]
    for side, fine in zip(list(net.sides)[1:], (maps[3], maps[2]), strict=True):
        levels.insert(0, unit(side, add("Add", fine, add("Resize", levels[0]))))
    for name, heads in zip(("cls", "bbox", "obj", "kps"), net.heads, strict=True):
        for head, level, stride in zip(heads, levels, STRIDES, strict=True):  # type: ignore[call-overload]
            row = add("Reshape", add("Transpose", unit(head, level), perm=(0, 2, 3, 1)))
            if name in ("cls", "obj"):
                add("Sigmoid", row, out=f"{name}_{stride}")
            else:
                nodes[-1] = Node("Reshape", nodes[-1].inputs, (f"{name}_{stride}",), {}, {})
    return Graph(nodes, tensors)


def agree(net: YuNetNet, graph: Graph, batch: int, height: int, width: int) -> None:
    pictures = torch.rand(batch, 3, height, width) * 255
    truth = published(graph, pictures.double())
    for got, plain, true in zip(net(pictures), published(graph, pictures), truth, strict=True):
        assert got.shape == true.shape
        assert (got - true).abs().max() <= 2 * (plain - true).abs().max() + 1e-6 * true.abs().max()


SHAPES = [(1, 32, 32), (3, 64, 96), (2, 96, 32)]


@pytest.mark.parametrize(("batch", "height", "width"), SHAPES)
@torch.inference_mode()
def test_the_network_computes_what_the_file_says(finder: YuNet, content: bytes, batch: int, height: int, width: int):
    agree(finder.net, read(content), batch, height, width)


@pytest.mark.parametrize(("batch", "height", "width"), SHAPES)
@torch.inference_mode()
def test_weights_land_where_such_a_file_has_them(random_net: YuNetNet, batch: int, height: int, width: int) -> None:
    graph = as_graph(random_net)
    other = YuNetNet().eval()
    take_over(other, graph)
    agree(other, graph, batch, height, width)


def test_a_file_of_other_layers_is_refused(random_net: YuNetNet) -> None:
    graph = as_graph(random_net)
    with pytest.raises(ValueError, match="not YuNet"):
        take_over(random_net, Graph(graph.nodes[5:], graph.tensors))


def test_candidates_become_faces(random_net: YuNetNet) -> None:
    """The best of those that overlap, clipped to the picture, in the original's pixels."""
    reader = YuNet(random_net, threshold=0.5)
    boxes = torch.tensor([[10.0, 10, 50, 50], [12, 10, 52, 50], [60, -20, 90, 30], [0, 0, 9, 9]])
    points = torch.arange(40.0).reshape(4, 5, 2)
    found = reader.decode([torch.tensor([0.6, 0.9, 0.7, 0.4]), boxes, points], (64, 80), np.array([2.0, 3.0]))
    np.testing.assert_allclose(found.scores, [0.9, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, [[24, 30, 104, 150], [120, 0, 160, 90]])
    np.testing.assert_allclose(found.points, points[[1, 2]].numpy() * [2, 3])
    assert len(reader.decode([torch.full((4,), 0.5), boxes, points], (64, 80), np.ones(2))) == 0


def test_a_batch_gives_what_single_pictures_give(random_net: YuNetNet) -> None:
    """Of sides that are no multiples of 32 too, whatever has been learnt."""
    reader = YuNet(random_net, threshold=0.0)
    pictures = list(np.random.default_rng(5).integers(0, 256, (3, 77, 101, 3), np.uint8))
    for faces, picture in zip(reader(pictures), pictures, strict=True):
        [alone] = reader([picture])
        assert len(faces) == len(alone) > 3
        np.testing.assert_allclose(faces.boxes, alone.boxes, atol=1e-3)
    assert reader([]) == []


@pytest.mark.parametrize("size", [(640, 360), (333, 201), (1280, 720)])
def test_drawn_faces_are_found_with_their_points(
    finder: YuNet, scene: Scene, marks: np.ndarray, size: tuple[int, int]
) -> None:
    large = size[0] // 640 or 1
    squares = np.array([(20, 30, 60), (200, 90, 72)]) * large
    [found] = finder([scene([tuple(square) for square in squares.tolist()], size)])
    assert len(found) == 2
    order = np.argsort(found.boxes[:, 0])
    drawn = squares[:, None, :2] + squares[:, None, 2:] * marks
    assert (np.linalg.norm(found.points[order] - drawn, axis=2) / squares[:, 2:]).max() < 0.1
    assert math.isclose(found.scores.max(), 1, abs_tol=0.4)
