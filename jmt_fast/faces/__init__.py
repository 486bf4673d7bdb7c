"""Faces in video: detection, tracking, alignment. Frames in, upright crops of one person out."""

from jmt_fast.faces.crops import Cropper, find_people, looked_at
from jmt_fast.faces.detector import DETECTORS, Detector, Faces, detector
from jmt_fast.faces.track import Person, choose, meant, people
from jmt_fast.faces.weights import WEIGHTS

__all__ = [
    "DETECTORS",
    "WEIGHTS",
    "Cropper",
    "Detector",
    "Faces",
    "Person",
    "choose",
    "detector",
    "find_people",
    "looked_at",
    "meant",
    "people",
]
