"""From the clips of a video to one prediction a clip: sequences, the GRU from a zero state, the fusion, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from jmt_fast.data.windows import sequences
from jmt_fast.features.store import VideoFeatures
from jmt_fast.models import AudioBackbone

Fusion = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def gather(video: VideoFeatures, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows (S, L) of clip indices, -1 for padding -> audio and visual (S, L, D) float32, present (S, L) bool,
    on the device of the features."""
    device = video.clips.device
    chosen = video.rows[np.maximum(rows, 0)], rows >= 0
    index, present = (torch.from_numpy(part).to(device, non_blocking=True) for part in chosen)
    audio, visual = (part[index].float().masked_fill(~present[..., None], 0) for part in (video.audio, video.visual))
    return audio, visual, present


def buffer_of(video: VideoFeatures) -> memoryview:
    """The bytes of `clips` phase by phase: without a copy where they lie so, as in a store."""
    return video.by_phase().clips.contiguous().view(torch.uint8).flatten().numpy().data


def gather_many(
    videos: Sequence[memoryview], owners: np.ndarray, rows: np.ndarray, width: int, dtype: torch.dtype
) -> torch.Tensor:
    """Rows (S, L) of the videos `owners` (S,), -1 for padding at the end -> features (S, L, width); padding is 0.

    `videos` are as `buffer_of` gives them, and the rows of a sequence are neighbours there. So each sequence is one
    piece, and joining pieces is faster than gathering rows from one array (`benchmarks/test_store.py`).
    """
    size = width * dtype.itemsize
    counts = (rows >= 0).sum(1)
    starts, ends = size * rows[:, 0], size * (rows[:, 0] + counts)
    pieces: list[memoryview | bytes] = [
        videos[owner][start:end]
        for owner, start, end in zip(owners.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]
    for short in np.flatnonzero(counts < rows.shape[1])[::-1].tolist():
        pieces.insert(short + 1, bytes(size * (rows.shape[1] - int(counts[short]))))
    return torch.frombuffer(bytearray().join(pieces), dtype=dtype).view(*rows.shape, width)


@torch.inference_mode()
def run_sequences(
    fusion: Fusion, audio_backbone: AudioBackbone, video: VideoFeatures, length: int, batch: int = 64
) -> np.ndarray:
    """Valence and arousal of every clip: float32 (N, 2), in the order of `video.times`.

    Each clip is in exactly one sequence of `length` clips that lie 32/30 s apart; the last ones are padded.
    """
    device = next(audio_backbone.parameters()).device
    rows = sequences(len(video.times), video.stride, length)
    output = np.zeros((len(video.times), 2), np.float32)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        audio, visual, present = (tensor.to(device) for tensor in gather(video, part))
        prediction = fusion(audio_backbone.sequence(audio), visual, present)
        output[part[part >= 0]] = prediction.float().cpu().numpy()[part >= 0]
    return output
