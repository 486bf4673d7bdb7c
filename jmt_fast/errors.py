"""Errors that a user can act on: one line that says what went wrong, where, and what to do about it."""

from __future__ import annotations


class JMTError(Exception):
    """A failure with a known cause. The message is one line: what, where (the file or field), and the remedy."""


class MediaError(JMTError):
    """One media file cannot be used. Work on a collection notes it and goes on with the next file."""


class DataError(JMTError):
    """A manifest, an annotation or a feature store is wrong or damaged."""


class CheckpointError(JMTError):
    """A checkpoint is missing, damaged, or of another configuration."""
