"""What happens in a synthetic video: valence and arousal over time, what face and voice show of them, and the gaps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jmt_fast.config import UNANNOTATED

TIME_SCALE = 1.3  # seconds: deviation of the smoothing kernel; the autocorrelation is 0.5 at a lag of 2.2 s
SQUASH = 0.62  # tanh(SQUASH * g) of a unit Gaussian g: deviation 0.47, within (-1, 1)
SPREAD = 0.47
EXPRESSION_NOISE = 0.12  # what the face shows is valence plus smooth noise of this deviation; the voice likewise
LEAK = 0.15  # correlation of the minor control with the other dimension: arousal in the eyes, valence in the formants
GAP_SHARE = {"face": 0.10, "voice": 0.10, "label": 0.05}
GAP_SECONDS = (1.0, 2.6)
FACE_GAPS = ("black", "empty", "leaves")  # black frames; the background alone; the face slides out and back


@dataclass(frozen=True)
class Script:
    """One video's controls, one entry a frame, all float64 (frames,) unless noted.

    `face_valence` and `voice_arousal` are the shown main dimension (label units, slightly noisy); `face_arousal` and
    `voice_valence` are minor controls of unit deviation that correlate with the other dimension by LEAK.
    """

    fps: int
    valence: np.ndarray
    arousal: np.ndarray
    face_valence: np.ndarray
    face_arousal: np.ndarray
    voice_arousal: np.ndarray
    voice_valence: np.ndarray
    face_gap: np.ndarray  # int: 0 = the face is there, else 1 + index in FACE_GAPS
    silent: np.ndarray  # bool
    unlabelled: np.ndarray  # bool

    @property
    def frames(self) -> int:
        return len(self.valence)

    @property
    def labels(self) -> np.ndarray:
        """float64 (frames, 2): valence, arousal; -5 in both where not annotated."""
        labels = np.stack([self.valence, self.arousal], axis=1)
        labels[self.unlabelled] = UNANNOTATED
        return labels


def write_script(frames: int, fps: int, rng: np.random.Generator) -> Script:
    """Draw the traces and gaps of one video. The traces are independent of each other."""
    valence, arousal = (np.tanh(SQUASH * smooth_noise(frames, fps, rng)) for _ in range(2))

    def shown(trace: np.ndarray) -> np.ndarray:
        return trace + EXPRESSION_NOISE * smooth_noise(frames, fps, rng)

    def leaked(trace: np.ndarray) -> np.ndarray:
        return LEAK * trace / SPREAD + np.sqrt(1 - LEAK**2) * smooth_noise(frames, fps, rng)

    return Script(
        fps=fps,
        valence=valence,
        arousal=arousal,
        face_valence=shown(valence),
        face_arousal=leaked(arousal),
        voice_arousal=shown(arousal),
        voice_valence=leaked(valence),
        face_gap=_gaps(frames, fps, GAP_SHARE["face"], rng, kinds=len(FACE_GAPS)),
        silent=_gaps(frames, fps, GAP_SHARE["voice"], rng) > 0,
        unlabelled=_gaps(frames, fps, GAP_SHARE["label"], rng) > 0,
    )


def smooth_noise(frames: int, fps: int, rng: np.random.Generator, scale: float = TIME_SCALE) -> np.ndarray:
    """Stationary Gaussian noise of zero mean and unit variance, float64 (frames,), smooth over `scale` seconds."""
    reach = int(np.ceil(4 * scale * fps))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (scale * fps)) ** 2)
    kernel /= np.sqrt(np.sum(kernel**2))
    return np.convolve(rng.standard_normal(frames + 2 * reach), kernel, mode="valid")


def _gaps(frames: int, fps: int, share: float, rng: np.random.Generator, kinds: int = 1) -> np.ndarray:
    """int64 (frames,): 0 outside gaps, 1..kinds inside. Gaps come at random and cover `share` of the time."""
    marks = np.zeros(frames, dtype=np.int64)
    between = np.mean(GAP_SECONDS) * (1 - share) / share
    clock = -float(rng.uniform(0, between))  # a burn-in, so that the start of a video is like its middle
    while clock * fps < frames:
        clock += float(rng.exponential(between))
        length = float(rng.uniform(*GAP_SECONDS))
        start, stop = (max(0, round(edge * fps)) for edge in (clock, clock + length))
        marks[start:stop] = 1 + int(rng.integers(kinds))
        clock += length
    return marks
