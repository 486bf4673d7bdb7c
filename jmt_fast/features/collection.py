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

        if not store.has(recording):
            ready = ready or extractor()
            try:
                opened = OpenRecording(recording)
                video = ready.extract(opened, store.key.stride, inside)
            except MediaError as error:
                failed[name] = error
                continue
            lost = len(opened.timestamps) - int(video.face.sum())
            if lost and recording.crops is None:
                what = "show no face or cannot" if ready.looks_for_faces(opened) else "cannot"
                warnings.warn(
                    f"{recording.video}: {lost} of {len(opened.timestamps)} frames {what} be decoded", stacklevel=2
                )
            store.write(video, fingerprint(recording))
        inside(1, 1)
    return failed
