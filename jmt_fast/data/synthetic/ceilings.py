"""What a perfect reader of the face, of the voice, or of both could reach on the synthetic data.

`python -m jmt_fast.data.synthetic.ceilings` prints the table of docs/synthetic.md.
"""

from __future__ import annotations

import numpy as np

from jmt_fast.config import CLIP_FRAMES, CLIP_STEP, FRAME_STEP
from jmt_fast.data.synthetic.traces import Script, write_script

FPS = 30
LENGTH = 8  # clips of a sequence
SECONDS = 60
MODALITIES = {"face": (0,), "voice": (1,), "both": (0, 1)}


def ceilings(videos: int = 1200, seed: int = 0) -> dict[str, np.ndarray]:
    """CCC (2,) of valence and arousal by modality, on half of `videos` simulated scripts of a minute each.

    The reader knows exactly what is shown in each of the 8 clips of a sequence (the generator's own controls, noise
    and leak included, nothing in a gap), and no more. From these 8 x 2 numbers a modality, and whether they are there,
    least squares on the other half of the scripts predicts the 8 labels; the predictions are then stretched to the
    labels' deviation, as a model does that trains on CCC, whose best value is the correlation. It is a ceiling for
    linear readers; the controls are jointly close to Gaussian, where no reader is better.
    """
    scripts = (write_script(FPS * SECONDS, FPS, np.random.default_rng((seed, number))) for number in range(videos))
    shown, labels = zip(*map(_sequences, scripts), strict=True)
    half = videos // 2
    result = {}
    for name, columns in MODALITIES.items():
        train, test = (np.concatenate(part)[:, columns] for part in (shown[:half], shown[half:]))
        train, test = (np.c_[part.reshape(len(part), -1), np.ones(len(part))] for part in (train, test))
        target, truth = (np.concatenate(part) for part in (labels[:half], labels[half:]))
        weights, *_ = np.linalg.lstsq(train, target.reshape(len(train), -1), rcond=None)
        fitted, predicted = ((part @ weights).reshape(-1, 2) for part in (train, test))
        target, truth = target.reshape(-1, 2), truth.reshape(-1, 2)
        stretched = target.mean(0) + (predicted - fitted.mean(0)) * target.std(0) / fitted.std(0)
        result[name] = _ccc(stretched, truth)
    return result


def _sequences(script: Script) -> tuple[np.ndarray, np.ndarray]:
    """What face and voice show in each clip, (S, 2, L, 3): main control, minor control, is there; labels (S, L, 2)."""
    ends = np.arange(CLIP_STEP - 1, script.frames, CLIP_STEP)
    ends = ends[: len(ends) // LENGTH * LENGTH]
    sampled = np.maximum(ends[:, None] - FRAME_STEP * np.arange(CLIP_FRAMES), 0)  # the last frame first
    whole = np.maximum(ends[:, None] - np.arange(CLIP_STEP), 0)
    face = _seen(sampled, script.face_gap == 0, script.face_valence, script.face_arousal)
    voice = _heard(whole, ~script.silent, script.voice_arousal, script.voice_valence)
    shown = np.stack([face, voice]).reshape(2, -1, LENGTH, 3).swapaxes(0, 1)
    return shown, np.stack([script.valence, script.arousal], 1)[ends].reshape(-1, LENGTH, 2)


def _seen(frames: np.ndarray, there: np.ndarray, *controls: np.ndarray) -> np.ndarray:
    """(clips, 3): the controls at the last frame of each clip on which the face is."""
    visible = there[frames]
    last = frames[np.arange(len(frames)), visible.argmax(1)]
    any_there = visible.any(1)
    return np.stack([*(control[last] * any_there for control in controls), any_there], 1)


def _heard(frames: np.ndarray, there: np.ndarray, *controls: np.ndarray) -> np.ndarray:
    """(clips, 3): the controls averaged over the spoken part of each clip."""
    share = there[frames].mean(1)
    means = ((control[frames] * there[frames]).mean(1) / np.maximum(share, 1e-9) for control in controls)
    return np.stack([*(mean * (share > 0) for mean in means), share > 0], 1)


def _ccc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    covariance = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
    return 2 * covariance / (x.var(0) + y.var(0) + (x.mean(0) - y.mean(0)) ** 2)


if __name__ == "__main__":
    for name, (valence, arousal) in ceilings().items():
        print(f"{name:6} valence {valence:.2f}  arousal {arousal:.2f}  mean {(valence + arousal) / 2:.2f}")
