"""Fill a feature store from a collection: what is there is kept, what fails is listed, the rest goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from jmt_fast.data import OpenRecording, Recording
from jmt_fast.errors import MediaError
from jmt_fast.features.extract import Extractor
from jmt_fast.features.store import FeatureStore, fingerprint

Progress = Callable[[int, int, str], None]


def extract_all(
    extractor: Callable[[], Extractor],
    store: FeatureStore,
    recordings: Sequence[Recording],
    progress: Progress | None = None,
) -> dict[str, MediaError]:
    """Extract what the store lacks; returns the recordings that failed, by name, each with its error.

    `extractor` is called only if something is lacking: its networks take seconds to prepare. `progress(done, total,
    name)` counts hundredths of videos, so that a single long video moves too.
    """
    failed: dict[str, MediaError] = {}
    ready: Extractor | None = None
    for number, recording in enumerate(recordings):
        name = recording.name

        def inside(done: int, total: int, number: int = number, name: str = name) -> None:
            if progress:
                progress(100 * number + 100 * done // total, 100 * len(recordings), name)

        try:
            if not store.has(recording):
                ready = ready or extractor()
                _add(ready, store, recording, inside)
        except MediaError as error:
            failed[name] = error
            continue
        inside(1, 1)
    return failed


def _add(extractor: Extractor, store: FeatureStore, recording: Recording, progress: Callable[[int, int], None]) -> None:
    source = fingerprint(recording)  # before it is read: if it changes meanwhile, the next run sees that
    opened = OpenRecording(recording)
    video = extractor.extract(opened, store.key.stride, progress)
    lost = len(opened.timestamps) - int(video.face.sum())
    if lost and recording.crops is None:
        faces = extractor.looks_for_faces(opened)
        what = "show no face or cannot" if faces else "cannot"
        way_out = "; --crop center takes the picture's middle" if faces and not video.face.any() else ""
        count = len(opened.timestamps)
        warnings.warn(f"{recording.video}: {lost} of {count} frames {what} be decoded{way_out}", stacklevel=3)
    store.write(video, source)
