"""From the clips of a video to one prediction a clip: sequences, the GRU from a zero state, the fusion, and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from jmt_fast.data.windows import sequences
from jmt_fast.features.store import VideoFeatures
from jmt_fast.models import AudioBackbone

Fusion = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def gather(video: VideoFeatures, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows (S, L) of clip indices, -1 for padding -> audio and visual (S, L, D) float32, present (S, L) bool."""
    index = torch.from_numpy(np.maximum(rows, 0))
    present = torch.from_numpy(rows >= 0)
    audio, visual = (part[index].float().masked_fill(~present[..., None], 0) for part in (video.audio, video.visual))
    return audio, visual, present


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
