"""How much of a file is in memory, asked without touching a page of it.

`mincore` over a mapping that is never read: some 8 µs for 2 MiB. Unlike cachestat(2) it does not count pages whose
read is still under way, on which a send would wait. Reading the mapping itself could end the process (SIGBUS) if
the file were truncated; nothing here does. The kernel reports a file that its caller does not own and may not
write as resident in full: then a cold read blocks as it would in any server.
"""

from __future__ import annotations

import ctypes
import mmap

_libc = ctypes.CDLL(None, use_errno=True)
_map, _unmap, _mincore = _libc.mmap, _libc.munmap, _libc.mincore
_map.restype = ctypes.c_void_p
_map.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_unmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_PAGE = mmap.PAGESIZE
_FAILED = ctypes.c_void_p(-1).value
# Only the lowest bit of each byte of the answer means anything (mincore(2)).
_LOWEST = bytes(byte & 1 for byte in range(256))


class Residency:
    """The pages of one open file of `size` bytes; to be dropped before its descriptor is closed."""

    __slots__ = ("_at", "_size")

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        at = _map(None, size, 0, mmap.MAP_SHARED, fd, 0) if size else None
        self._at = None if at == _FAILED else at

    def resident(self, offset: int, length: int) -> int:
        """How many bytes from `offset` on, at most `length`, are in memory; all of them where that is unknown."""
        if self._at is None:
            return length
        first = offset - offset % _PAGE
        span = min(offset + length, self._size) - first
        if span <= 0:
            return length
        pages = ctypes.create_string_buffer(-(-span // _PAGE))
        if _mincore(self._at + first, span, pages):
            return length
        missing = pages.raw.translate(_LOWEST).find(b"\0")
        return length if missing < 0 else max(0, min(length, first + missing * _PAGE - offset))

    def __del__(self) -> None:
        at = getattr(self, "_at", None)
        if at is not None:
            _unmap(at, self._size)
