"""From five points of a face to its upright picture of a fixed size."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jmt_fast.runtime import sent

# Where the five points lie on the 112 x 112 crops of ArcFace, InsightFace and Aff-Wild2's `cropped_aligned`. They are
# given for pixels whose middles are whole numbers; here a picture reaches from 0 to its width, hence the half pixel.
TEMPLATE_SIDE = 112
TEMPLATE = 0.5 + np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def template(resize: int, crop: int) -> np.ndarray:
    """float64 (5, 2): the points on an aligned crop that was resized to `resize` and then cut to its centre of `crop`.

    So a face cut straight out of a video lies where the same face lies in a prepared 112 x 112 picture.
    """
    return TEMPLATE * resize / TEMPLATE_SIDE - (resize - crop) / 2


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift that bring points (..., N, 2) closest to `target` (N, 2), by least squares.

    Returns float64 (..., 2, 3): M with target ~ M[:, :2] @ point + M[:, 2]. Without mirroring, so in the plane it has a
    closed form, the one that Umeyama's method (1991) gives. Points that all coincide are only shifted.
    """
    points = np.asarray(points, np.float64)
    middle, aim = points.mean(-2, keepdims=True), target.mean(0)
    x, y = np.moveaxis(points - middle, -1, 0)
    u, v = (target - aim).T
    size = (x * x + y * y).sum(-1)
    along, across = (x * u + y * v).sum(-1), (x * v - y * u).sum(-1)
    flat = size <= 1e-12
    safe = np.where(flat, 1.0, size)
    cos, sin = np.where(flat, 1.0, along / safe), np.where(flat, 0.0, across / safe)
    matrix = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    shift = aim - (matrix @ middle.swapaxes(-1, -2))[..., 0]
    return np.concatenate([matrix, shift[..., None]], -1)


def letterbox(height: int, width: int, size: int) -> np.ndarray:
    """float64 (2, 3): the map that shrinks or enlarges a whole picture into the middle of a square."""
    scale = size / max(height, width)
    return np.array([[scale, 0, (size - scale * width) / 2], [0, scale, (size - scale * height) / 2]])


def warp(picture: np.ndarray, matrix: np.ndarray, size: int, device: torch.device | str = "cpu") -> Tensor:
    """A picture (H, W, 3) uint8 seen through `matrix` (2, 3), a similarity -> float32 (3, size, size) in [0, 255].

    Bilinear; what lies outside of the picture is black. Where it shrinks, squares of k x k pixels are averaged first
    (k whole, at most the factor), so that no pixel is passed over. Only the part that is seen goes to the device.
    """
    back = _inverse(matrix)
    factor = max(1, math.floor(math.hypot(back[0, 0], back[1, 0]) + 1e-9))
    corners = back[:, :2] @ (np.array([[0, 0, 1, 1], [0, 1, 0, 1]]) * size) + back[:, 2:]
    limit = np.array(picture.shape[1::-1])
    # whole squares, counted from the picture's own corner, so that a face that moves does not shimmer
    low = (np.floor(corners.min(1) / factor).clip(0) * factor - factor).clip(0)
    high = np.minimum(np.ceil(corners.max(1) / factor + 1) * factor, limit)
    if not (low < high).all():
        return torch.zeros(3, size, size, device=device)
    (left, top), (right, bottom) = low.astype(int), high.astype(int)
    seen = torch.from_numpy(np.ascontiguousarray(picture[top:bottom, left:right]))
    part = sent(seen, torch.device(device)).movedim(2, 0).float()
    if factor > 1:
        part = F.avg_pool2d(part[None], factor, ceil_mode=True, count_include_pad=False)[0]
    # grid_sample counts from -1 to 1 across the part
    sides = np.array([part.shape[2], part.shape[1]]) * factor / 2
    theta = np.concatenate([back[:, :2] * (size / 2), back[:, :2].sum(1, keepdims=True) * (size / 2) + back[:, 2:]], 1)
    theta = (theta - np.array([[0, 0, left], [0, 0, top]])) / sides[:, None] - np.array([[0, 0, 1], [0, 0, 1]])
    turned = sent(torch.tensor(theta, dtype=torch.float32)[None], torch.device(device))
    grid = F.affine_grid(turned, [1, 3, size, size], align_corners=False)
    return F.grid_sample(part[None], grid, "bilinear", "zeros", align_corners=False)[0]


def _inverse(matrix: np.ndarray) -> np.ndarray:
    turn = np.linalg.inv(matrix[:, :2])
    return np.concatenate([turn, -turn @ matrix[:, 2:]], 1)
