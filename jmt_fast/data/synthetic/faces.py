"""Draws the frames: a face of filled polygons, at twice the size and averaged down, then lit.

All polygons of all frames are computed with NumPy first (`_outlines`); the loop over frames only fills them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from jmt_fast.data.synthetic.identity import Colour, Identity, Pose, background
from jmt_fast.data.synthetic.traces import FACE_GAPS, Script, smooth_noise

SUPERSAMPLE = 2
BLINK_SECONDS = 0.2
DEPTH = {"features": 0.16, "nose": 0.24, "face": 0.05, "back": -0.05, "still": 0.0}  # parallax of the head's turn
DARK: Colour = (52, 20, 26)
TEETH: Colour = (240, 236, 226)
WHITE: Colour = (244, 242, 238)


@dataclass(frozen=True)
class Expression:
    """float64 (frames,) each. `valence` in label units; `wide` in deviations; `mouth` and `lids` in [0, 1]."""

    valence: np.ndarray
    wide: np.ndarray
    mouth: np.ndarray
    lids: np.ndarray  # 1 = open


@dataclass(frozen=True)
class Part:
    """A polygon: float (1 or frames, points, 2), a fill colour, and which depth it has for the head's turn."""

    points: np.ndarray
    fill: Colour
    depth: str = "features"
    outline: int = 0  # width of a line instead of a fill, in half frame sides / 100


def film(script: Script, mouth: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield one uint8 (size, size, 3) RGB frame after the other. `mouth`: float (frames,), opening in [0, 1]."""
    identity, pose = Identity.draw(rng), Pose.draw(script.frames, script.fps, rng)
    pose = _leave(pose, script)
    expression = Expression(
        valence=np.clip(script.face_valence, -1, 1) + identity.curve,
        wide=np.clip(script.face_arousal, -2.5, 2.5),
        mouth=mouth,
        lids=_blinks(script, rng),
    )
    scene = background(size, rng)
    light = _Light.draw(script, size, rng)
    canvas = Image.fromarray(scene).resize((SUPERSAMPLE * size, SUPERSAMPLE * size), Image.Resampling.BILINEAR)
    parts = [(part, _place(part, pose, SUPERSAMPLE * size)) for part in _outlines(identity, expression)]
    black, empty = (1 + FACE_GAPS.index(kind) for kind in ("black", "empty"))

    for index in range(script.frames):
        gap = script.face_gap[index]
        if gap == black:
            yield np.zeros((size, size, 3), dtype=np.uint8)
            continue
        picture = scene if gap == empty else _fill(canvas, parts, index)
        yield light.on(picture, index)


def _fill(canvas: Image.Image, parts: list[tuple[Part, np.ndarray]], index: int) -> np.ndarray:
    image = canvas.copy()
    pen = ImageDraw.Draw(image)
    for part, points in parts:
        corners = points[index].ravel().tolist()
        if part.outline:
            pen.line(corners + corners[:4], fill=part.fill, width=max(1, round(part.outline * image.width / 200)))
        else:
            pen.polygon(corners, fill=part.fill)
    return np.asarray(image.reduce(SUPERSAMPLE))


@dataclass(frozen=True)
class _Light:
    """A gain that changes slowly, and a gradient across the picture."""

    gain: np.ndarray  # (frames,)
    field: np.ndarray  # (size, size, 1)

    @classmethod
    def draw(cls, script: Script, size: int, rng: np.random.Generator) -> _Light:
        angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
        axis = np.linspace(-1, 1, size)
        field = 1 + slope * (np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None])
        gain = rng.uniform(0.75, 1.1) * np.exp(0.06 * smooth_noise(script.frames, script.fps, rng))
        return cls(gain=gain, field=field[..., None])

    def on(self, picture: np.ndarray, index: int) -> np.ndarray:
        # Fixed point with 7 bits takes half the time of float32; 257 is the largest factor that cannot overflow.
        field = np.minimum(128 * self.gain[index] * self.field, 257).astype(np.uint16)
        return np.minimum((picture * field) >> 7, 255).astype(np.uint8)


def _leave(pose: Pose, script: Script) -> Pose:
    """Move the face out of the picture for gaps of the kind `leaves`; it takes a third of a second each way."""
    away = (script.face_gap == 1 + FACE_GAPS.index("leaves")).astype(float)
    reach = max(1, round(script.fps / 3))
    taps = np.hanning(2 * reach + 1) / np.hanning(2 * reach + 1).sum()
    away = np.convolve(np.pad(away, reach, mode="edge"), taps, mode="valid")
    return Pose(pose.x + 2.2 * away, pose.y, pose.roll, pose.turn, pose.scale)


def _blinks(script: Script, rng: np.random.Generator) -> np.ndarray:
    seconds = np.arange(script.frames) / script.fps
    lids = np.ones(script.frames)
    clock = float(rng.uniform(0, 4))
    while clock < seconds[-1]:
        lids = np.minimum(lids, np.clip(2 * np.abs(seconds - clock) / BLINK_SECONDS, 0.1, 1))
        clock += float(rng.uniform(2, 6))
    return lids


def _place(part: Part, pose: Pose, pixels: int) -> np.ndarray:
    """float32 (frames, points, 2): face coordinates to pixels."""
    if part.depth == "still":
        shape = (len(pose.x), *part.points.shape[1:])
        return np.broadcast_to((part.points + 1) * pixels / 2, shape).astype(np.float32)
    turned = part.points[..., 0] * np.cos(pose.turn)[:, None] + DEPTH[part.depth] * 2.5 * np.sin(pose.turn)[:, None]
    cos, sin = (np.cos(pose.roll) * pose.scale)[:, None], (np.sin(pose.roll) * pose.scale)[:, None]
    x = cos * turned - sin * part.points[..., 1] + pose.x[:, None]
    y = sin * turned + cos * part.points[..., 1] + pose.y[:, None]
    return ((np.stack([x, y], axis=-1) + 1) * pixels / 2).astype(np.float32)


def _outlines(who: Identity, shows: Expression) -> list[Part]:
    """All parts, from back to front."""
    parts = [Part(_box(-0.95, 0.86, 0.95, 1.6, bend=0.35), who.shirt, "still")]
    if who.long_hair:
        parts.append(Part(_ellipse(0, 0.10, who.width * 1.22, who.height * 1.12, power=2.6), who.hair, "back"))
    parts += [
        Part(_box(-0.24, 0.45, 0.24, 1.02), who.shade, "back"),
        Part(_ellipse(-who.width, 0.0, 0.08, 0.14), who.shade, "back"),
        Part(_ellipse(who.width, 0.0, 0.08, 0.14), who.shade, "back"),
        Part(_ellipse(0, -0.04, who.width * 1.07, who.height * 1.06, power=2.2), who.hair, "back"),
        Part(_ellipse(0, 0.02, who.width, who.height, power=who.jaw), who.skin, "face"),
        Part(_hairline(who), who.hair, "face"),
    ]
    if who.beard:
        parts.append(Part(_beard(who), who.stubble, "face"))
        parts.append(Part(_ellipse(0, who.mouth_height, who.mouth_width * 1.12, 0.15), who.skin, "features"))
    for side in (-1, 1):
        parts += [_cheek(who, shows, side), *_eye(who, shows, side), _furrow(who, shows, side)]
    parts += [
        Part(_ellipse(0, who.eye_height + who.nose_length + 0.1, who.nose_width, 0.045), who.shade, "nose"),
        Part(_ellipse(0, who.eye_height + who.nose_length + 0.08, 0.8 * who.nose_width, 0.04), who.skin, "nose"),
    ]
    return parts + _mouth(who, shows)


def _eye(who: Identity, shows: Expression, side: int) -> list[Part]:
    """White, iris, pupil and brow. Valence narrows the eyes and lifts the inner ends of the brows; arousal widens."""
    x, y = side * who.eye_gap, who.eye_height
    opening = np.clip(0.68 + 0.07 * shows.wide - 0.16 * shows.valence, 0.3, 1.1) * shows.lids
    height = (who.eye_size * opening)[:, None]
    rim = _ellipse(x, y, who.eye_size * 1.08, height + 0.014, power=1.8)
    white = _ellipse(x, y, who.eye_size, height, power=1.8)
    iris = _ellipse(x, y, 0.062, np.minimum(height * 0.95, 0.062))
    pupil = _ellipse(x, y, 0.03, np.minimum(height * 0.9, 0.03))
    parts = [Part(rim, DARK), Part(white, WHITE), Part(iris, who.iris), Part(pupil, (16, 12, 12))]

    along = np.linspace(-1, 1, 9)  # from the inner end to the outer
    valence = shows.valence[:, None]
    line = y - who.brow_height - 0.03 * valence + 0.075 * valence * along - 0.03 * (1 - along**2)
    line = line - 0.012 * shows.wide[:, None]
    brow_x = x + side * (0.135 * along - 0.012 * (1 - valence))
    half = who.brow_weight * (0.5 + 0.5 * np.sqrt(1 - 0.9 * along**2))
    parts.append(Part(_band(brow_x, line - half, line + half), who.hair if sum(who.hair) < 420 else (112, 92, 62)))
    if who.glasses:
        parts.append(Part(_ellipse(x, y + 0.02, 0.2, 0.16, power=2.6), who.glasses, outline=3))
        parts.append(Part(_band(np.linspace(0, side * 0.06, 3)[None], y - 0.02, y + 0.005), who.glasses))
    return parts


def _cheek(who: Identity, shows: Expression, side: int) -> Part:
    """A smile lifts and reddens the cheeks (action unit 6 of Ekman and Friesen's coding system)."""
    smile = np.maximum(shows.valence, 0)[:, None]
    rise = np.sqrt(np.minimum(smile, 1))
    return Part(_ellipse(side * 0.36, 0.2 - 0.05 * smile, 0.13 * rise, 0.095 * rise), who.blush)


def _furrow(who: Identity, shows: Expression, side: int) -> Part:
    """A frown draws the brows together and leaves a crease between them (action unit 4)."""
    frown = np.maximum(-shows.valence, 0)[:, None]
    y = who.eye_height - who.brow_height + 0.05
    along = np.linspace(-1, 1, 5)
    x = side * (0.055 + 0.012 * along)[None] + np.array([-1, 1])[:, None, None] * 0.016 * np.minimum(2 * frown, 1)
    line = y + 0.085 * frown * along
    return Part(np.concatenate([np.stack([x[0], line], -1), np.stack([x[1], line], -1)[:, ::-1]], axis=1), who.crease)


def _mouth(who: Identity, shows: Expression) -> list[Part]:
    """Lips, the dark between them, and teeth. Valence bends and widens it, a smile bares teeth; speech opens it."""
    along = np.linspace(-1, 1, 17)
    arch = 1 - along**2
    valence = shows.valence[:, None]
    smile = np.maximum(valence, 0)
    x = who.mouth_width * (1 + 0.18 * valence) * along
    line = who.mouth_height + 0.2 * valence * (arch - 0.5)
    opening = (0.11 * shows.mouth[:, None] + 0.1 * smile) * arch
    top, bottom = line - 0.35 * opening - 0.007, line + 0.65 * opening + 0.007
    lip = who.lip * (0.25 + 0.75 * np.sqrt(arch))
    return [
        Part(_band(x, top - lip, bottom + 1.2 * lip), who.lips),
        Part(_band(x, top, bottom), DARK),
        Part(_band(0.8 * x, top + 0.008, top + 0.008 + (0.3 + 0.4 * smile) * opening), TEETH),
    ]


def _hairline(who: Identity) -> np.ndarray:
    """(1, points, 2): the top of the head down to the fringe."""
    angle = np.linspace(np.pi * 1.02, np.pi * 1.98, 20)
    top = np.stack([who.width * 1.05 * np.cos(angle), 0.0 + who.height * 1.05 * np.sin(angle)], axis=1)
    x = np.linspace(who.width * 1.03, -who.width * 1.03, 12)
    fringe = -who.height + 0.08 + who.fringe + 0.25 * (x / who.width) ** 4
    return np.concatenate([top, np.stack([x, fringe], axis=1)])[None]


def _beard(who: Identity) -> np.ndarray:
    """(1, points, 2): the face's outline below the cheeks, and a line across from ear to ear."""
    outline = _ellipse(0, 0.02, who.width, who.height, power=who.jaw, points=48)[0]
    lower = outline[(outline[:, 1] > 0.16)]
    lower = lower[np.argsort(lower[:, 0])]
    x = np.linspace(lower[-1, 0], lower[0, 0], 9)
    across = 0.16 + 0.14 * (1 - (x / who.width) ** 2)
    return np.concatenate([lower, np.stack([x, across], axis=1)])[None]


def _ellipse(
    x: float, y: float, width: float, height: float | np.ndarray, power: float = 2.0, points: int = 28
) -> np.ndarray:
    """(1 or frames, points, 2): a superellipse; `height` may be (frames, 1)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    cos, sin = (np.sign(f) * np.abs(f) ** (2 / power) for f in (np.cos(angle), np.sin(angle)))
    across, down = np.broadcast_arrays(x + width * cos[None], y + np.asarray(height) * sin[None])
    return np.stack([across, down], axis=-1)


def _band(x: np.ndarray, top: np.ndarray | float, bottom: np.ndarray | float) -> np.ndarray:
    """(1 or frames, 2 * points, 2): what lies between two lines over the same x."""
    x, top, bottom = np.broadcast_arrays(np.atleast_2d(x), top, bottom)
    return np.concatenate([np.stack([x, top], -1), np.stack([x, bottom], -1)[:, ::-1]], axis=1)


def _box(left: float, top: float, right: float, bottom: float, bend: float = 0.0) -> np.ndarray:
    """(1, points, 2): a rectangle whose upper corners hang by `bend`."""
    x = np.linspace(left, right, 13)
    return _band(x[None], top + bend * (2 * (x - left) / (right - left) - 1)[None] ** 4, bottom)
