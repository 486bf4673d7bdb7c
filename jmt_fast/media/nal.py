"""Damage and changes of format that the packets of H.264 and HEVC give away without being decoded.

Decoders patch over both; one on a GPU says nothing about it.
"""

from __future__ import annotations

LENGTH = {"h264": 4, "hevc": 21}  # byte of the extradata (ISO 14496-15) whose last bits say how long a length is
SEQUENCE = {"h264": 7, "hevc": 33}  # nal_unit_type of a sequence parameter set (ITU-T H.264, table 7-1; H.265, 7-1)
HEAD = 512  # bytes of a packet in which its parameter sets are looked for


class Units:
    """Watches the packets of one stream, where each NAL unit stands behind its length (MP4, Matroska) or a start code.

    `changes`: the sequence parameters change on the way, as they do when the size of the picture changes.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        """`codec`: FFmpeg's name; of others than h264 and hevc nothing is noticed."""
        self._codec = codec
        at, header = LENGTH.get(codec, 0), extradata or b""
        self._length = header[at] % 4 + 1 if at and len(header) > at and header[0] == 1 else 0  # of a length; 0: codes
        self._parameters: bytes | None = None
        self.changes = False

    def damaged(self, packet: memoryview, keyframe: bool) -> bool:
        """Whether a packet cannot be what an encoder wrote."""
        if self._codec not in SEQUENCE:
            return False
        if keyframe:
            self._follow(bytes(packet[:HEAD]))
        return bool(self._length) and self._broken(bytes(packet))

    def _broken(self, data: bytes) -> bool:
        """Lengths that do not add up, an empty unit, or three zeros, which no unit may hold (H.264, 7.4.1)."""
        at = 0
        while at < len(data):
            begin = at + self._length
            size = int.from_bytes(data[at:begin])
            at = begin + size
            if not size or at > len(data) or data.find(b"\0\0\0", begin, at) >= 0:
                return True
        return False

    def _follow(self, head: bytes) -> None:
        for unit in self._split(head):
            kind = unit[0] & 31 if self._codec == "h264" else unit[0] >> 1 & 63
            if kind == SEQUENCE[self._codec]:
                self.changes |= self._parameters not in (None, unit)
                self._parameters = unit

    def _split(self, head: bytes) -> list[bytes]:
        """The NAL units that are whole in `head`."""
        if not self._length:
            return [unit.rstrip(b"\0") for unit in head.split(b"\0\0\1")[1:-1] if unit]
        units, at = [], 0
        while at + self._length < len(head):
            begin = at + self._length
            at = begin + int.from_bytes(head[at:begin])
            if begin < at <= len(head):
                units.append(head[begin:at])
        return units
