"""What players must know of a track's codec beforehand: the codecs parameter, out of the encoder's boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from oca.errors import FormatError

# By channelConfiguration (14496-3 table 1.19); at 0 a table of elements follows, which no encoder of ours writes.
_AAC_CHANNELS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 8}


def codec_of(entry: str, config: Mapping[str, bytes]) -> str:
    """The codecs parameter of a sample entry (its four characters) with these boxes; FormatError if it has none."""
    if entry not in _KINDS:
        raise FormatError(f"the encoder wrote {entry!r}, which is no codec that can be packaged")
    name, box, told = _KINDS[entry]
    try:
        return told(config.get(box, b""))
    except (IndexError, ValueError):
        raise FormatError(f"the encoder wrote no usable {box} box: this is not {name} in MP4") from None


def channels_of(entry: str, config: Mapping[str, bytes]) -> int:
    """How many channels a decoder of a sample entry with these boxes gives; FormatError if they do not tell.

    The entry has a number of its own, which decoders pass over (14496-3 1.6.2.1; Opus in ISOBMFF 4.3.1).
    """
    try:
        if entry == "Opus":
            return config["dOps"][1]
        told = _specific(config["esds"])
        bits = int.from_bytes(told[:8].ljust(8, b"\0"), "big")
        place = 64 - 5 - (6 if told[0] >> 3 == 31 else 0) - 4
        place -= 24 if bits >> place & 0xF == 15 else 0  # a rate that has no number
        return _AAC_CHANNELS[bits >> place - 4 & 0xF]
    except (IndexError, KeyError, ValueError):
        raise FormatError(f"the encoder wrote {entry!r} without a number of channels") from None


def _h264(avcc: bytes) -> str:
    """From an avcC box (RFC 6381 3.3), such as avc1.64001f."""
    if len(avcc) < 7 or avcc[0] != 1:
        raise ValueError
    return f"avc1.{avcc[1:4].hex()}"


def _hevc(hvcc: bytes) -> str:
    """From an hvcC box (ISO/IEC 14496-15 E.3), such as hvc1.1.6.L93.90."""
    if len(hvcc) < 23 or hvcc[0] != 1:
        raise ValueError
    space = ("", "A", "B", "C")[hvcc[1] >> 6]
    compatible = int(f"{int.from_bytes(hvcc[2:6], 'big'):032b}"[::-1], 2)
    tier = "H" if hvcc[1] & 0x20 else "L"
    constraints = hvcc[6:12].rstrip(b"\0")
    return ".".join(
        ["hvc1", f"{space}{hvcc[1] & 0x1F}", f"{compatible:X}", f"{tier}{hvcc[12]}", *(f"{b:X}" for b in constraints)]
    )


def _av1(av1c: bytes) -> str:
    """From an av1C box (AV1 in ISOBMFF 5), such as av01.0.04M.08: profile, level and tier, bits per sample."""
    if len(av1c) < 4 or av1c[0] != 0x81:
        raise ValueError
    bits = 12 if av1c[2] & 0x20 else 10 if av1c[2] & 0x40 else 8
    tier = "H" if av1c[2] & 0x80 else "M"
    return f"av01.{av1c[1] >> 5}.{av1c[1] & 0x1F:02}{tier}.{bits:02}"


def _aac(esds: bytes) -> str:
    """From an esds box (RFC 6381 3.3), such as mp4a.40.2 for AAC-LC."""
    config = _specific(esds)
    kind = config[0] >> 3
    if kind == 31:  # 14496-3 1.6.2.1: escape to six more bits
        kind = 32 + (int.from_bytes(config[:2], "big") >> 5 & 0x3F)
    return f"mp4a.40.{kind}"


def _specific(esds: bytes) -> bytes:
    """The AudioSpecificConfig (14496-3 1.6.2.1) in an esds box."""
    return _descriptor(esds[4:], (0x03, 3), (0x04, 13), (0x05, 0))


def _opus(dops: bytes) -> str:
    """From a dOps box (Opus in ISOBMFF 4.3.2)."""
    if len(dops) < 11 or dops[0] != 0:
        raise ValueError
    return "opus"


def _descriptor(data: bytes, *path: tuple[int, int]) -> bytes:
    """The body of the innermost descriptor on a path of (tag, bytes before its children) (14496-1 7.2.6)."""
    for tag, skip in path:
        if data[0] != tag:
            raise ValueError(f"descriptor {data[0]} where {tag} was expected")
        size, position = 0, 1
        while True:  # 14496-1 8.3.3: seven bits per byte, the highest says that more follow
            size = size << 7 | data[position] & 0x7F
            position += 1
            if not data[position - 1] & 0x80:
                break
        data = data[position + skip : position + size]
    return data


_KINDS: dict[str, tuple[str, str, Callable[[bytes], str]]] = {
    "avc1": ("H.264", "avcC", _h264),
    "hvc1": ("HEVC", "hvcC", _hevc),
    "av01": ("AV1", "av1C", _av1),
    "mp4a": ("AAC", "esds", _aac),
    "Opus": ("Opus", "dOps", _opus),
}
