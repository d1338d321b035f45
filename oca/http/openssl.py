"""Session tickets that several processes can open, which Python's ssl module does not offer.

Reached through the library that the ssl module itself is linked to. Where that is not possible, because it was linked
statically, TLS works as well: sessions then do not resume in another worker.
"""

from __future__ import annotations

import ctypes
import ssl

TICKET_KEY_BYTES = 80
"""A name, a key to authenticate with and one to encrypt with (SSL_CTX_set_tlsext_ticket_keys(3))."""
_SET_TICKET_KEYS = 59  # SSL_CTRL_SET_TLSEXT_TICKET_KEYS
# Where CPython's PySSLContext has its SSL_CTX: first thing after the head that every object has.
_PLACE = object.__basicsize__


def _library() -> ctypes.CDLL | None:
    import _ssl

    try:
        library = ctypes.CDLL(_ssl.__file__)
        library.SSL_CTX_ctrl.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p)
        library.SSL_CTX_ctrl.restype = ctypes.c_long
        library.SSL_CTX_get_options.argtypes = (ctypes.c_void_p,)
        library.SSL_CTX_get_options.restype = ctypes.c_uint64
    except (OSError, AttributeError):
        return None
    return library


_libssl = _library()


def _pointer(context: ssl.SSLContext) -> int | None:
    """The SSL_CTX behind a context, None if it cannot be reached."""
    if _libssl is None:
        return None
    pointer = ctypes.c_void_p.from_address(id(context) + _PLACE).value
    # A Python that keeps it elsewhere is not one we know.
    same = pointer is not None and _libssl.SSL_CTX_get_options(pointer) & 0xFFFFFFFF == context.options & 0xFFFFFFFF
    return pointer if same else None


def share_tickets(context: ssl.SSLContext, key: bytes) -> bool:
    """Seal session tickets (RFC 5077, RFC 8446 4.6.1) with a key that others have as well; False: cannot."""
    pointer = _pointer(context)
    return (
        _libssl is not None
        and pointer is not None
        and _libssl.SSL_CTX_ctrl(pointer, _SET_TICKET_KEYS, len(key), key) == 1
    )
