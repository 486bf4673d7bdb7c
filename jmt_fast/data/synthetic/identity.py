"""Who a synthetic face is, and what else in its picture has nothing to do with emotion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jmt_fast.data.synthetic.traces import smooth_noise

Colour = tuple[int, int, int]

SKINS: tuple[Colour, ...] = (
    (246, 214, 190), (232, 190, 160), (219, 172, 136), (196, 146, 108), (164, 117, 84), (138, 97, 70)
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (34, 28, 28), (66, 44, 30), (104, 68, 40), (150, 104, 56), (204, 168, 104), (150, 148, 146)
)  # fmt: skip
IRISES: tuple[Colour, ...] = ((74, 48, 28), (60, 90, 60), (70, 110, 150), (90, 70, 40))


@dataclass(frozen=True)
class Identity:
    """Lengths in half frame sides, from the middle of the face; x to the right, y down."""

    skin: Colour
    hair: Colour
    iris: Colour
    shirt: Colour
    glasses: Colour | None
    beard: bool
    long_hair: bool
    fringe: float  # how far the hair comes down the forehead
    width: float
    height: float
    jaw: float  # 2 = round; more = square
    eye_gap: float
    eye_height: float
    eye_size: float
    brow_height: float
    brow_weight: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    lip: float
    curve: float  # neutral mouth: in label units of valence

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Identity:
        between = rng.uniform
        skin = _mix(SKINS[rng.integers(len(SKINS))], SKINS[rng.integers(len(SKINS))], between(0, 0.4))
        return cls(
            skin=skin,
            hair=HAIRS[rng.integers(len(HAIRS))],
            iris=IRISES[rng.integers(len(IRISES))],
            shirt=_colour(rng),
            glasses=None if between() < 0.7 else ((30, 30, 34), (120, 40, 40), (70, 80, 120))[rng.integers(3)],
            beard=bool(between() < 0.25),
            long_hair=bool(between() < 0.45),
            fringe=between(0.10, 0.26),
            width=between(0.56, 0.66),
            height=between(0.72, 0.82),
            jaw=between(2.0, 2.7),
            eye_gap=between(0.23, 0.28),
            eye_height=between(-0.16, -0.08),
            eye_size=between(0.105, 0.135),
            brow_height=between(0.165, 0.205),
            brow_weight=between(0.03, 0.045),
            nose_length=between(0.20, 0.27),
            nose_width=between(0.07, 0.11),
            mouth_height=between(0.37, 0.43),
            mouth_width=between(0.28, 0.34),
            lip=between(0.026, 0.04),
            curve=rng.normal(0, 0.06),
        )

    @property
    def shade(self) -> Colour:
        return _mix(self.skin, (70, 40, 30), 0.28)

    @property
    def lips(self) -> Colour:
        return _mix(self.skin, (170, 50, 60), 0.62)

    @property
    def blush(self) -> Colour:
        return _mix(self.skin, (226, 84, 84), 0.45)

    @property
    def crease(self) -> Colour:
        return _mix(self.skin, (50, 24, 20), 0.7)

    @property
    def stubble(self) -> Colour:
        return _mix(self.skin, self.hair, 0.55)


@dataclass(frozen=True)
class Pose:
    """Where the head is, float64 (frames,) each: shift in half frame sides, roll and turn in radians, scale."""

    x: np.ndarray
    y: np.ndarray
    roll: np.ndarray
    turn: np.ndarray
    scale: np.ndarray

    @classmethod
    def draw(cls, frames: int, fps: int, rng: np.random.Generator) -> Pose:
        def moving(deviation: float, constant: float = 0.0) -> np.ndarray:
            return rng.normal(0, constant) + deviation * smooth_noise(frames, fps, rng)

        return cls(
            x=moving(0.035, 0.03),
            y=moving(0.03, 0.03),
            roll=moving(0.05, 0.03),
            turn=moving(0.09, 0.05),
            scale=np.exp(moving(0.03, 0.03)),
        )


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (size, size, 3): a wall with a colour gradient, and a few blurred rectangles in front of it."""
    ramp = np.linspace(0, 1, size)[:, None, None]
    picture = (1 - ramp) * np.array(_colour(rng), float) + ramp * np.array(_colour(rng), float)
    picture = np.repeat(picture, size, axis=1)
    for _ in range(rng.integers(2, 6)):
        x, y = rng.integers(0, size, 2)
        width, height = rng.integers(size // 8, size // 2, 2)
        picture[y : y + height, x : x + width] = _colour(rng)
    taps = np.ones(max(1, size // 40)) / max(1, size // 40)
    pad = len(taps) // 2, len(taps) - 1 - len(taps) // 2
    for axis in (0, 1):
        edges = [(0, 0)] * 3
        edges[axis] = pad
        rows = np.pad(picture, edges, mode="edge")
        picture = np.apply_along_axis(np.convolve, axis, rows, taps, mode="valid")
    return np.clip(picture, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(value) for value in rng.integers(40, 200, 3))
    return red, green, blue


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round((1 - share) * a + share * b) for a, b in zip(one, other, strict=True))
    return red, green, blue
