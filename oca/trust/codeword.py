"""Codewords that a person types once: Crockford's base32 in groups, the last character checking the others.

Nineteen random characters are 94 bits. Either case, spaces and hyphens anywhere, O for 0, I and L for 1 are taken
(https://www.crockford.com/base32.html). Z is left out, which makes the characters 31, a prime: a weighted sum
finds every single wrong character and every two that changed places, so that a slip of the fingers is told at once.
"""

from __future__ import annotations

import secrets

from oca.errors import FormatError

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXY"
_VALUE = {char: value for value, char in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_RANDOM, _GROUP = 19, 5


def new() -> str:
    """A codeword that nobody has seen, as it is shown: XXXXX-XXXXX-XXXXX-XXXXX."""
    text = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    text += _ALPHABET[_check(text)]
    return "-".join(text[at : at + _GROUP] for at in range(0, len(text), _GROUP))


def canonical(text: str) -> str:
    """The twenty characters of a codeword however it was typed; FormatError if it is none, without repeating it."""
    typed = [char for char in text[:200].upper() if char not in " -\t"]
    if len(typed) != _RANDOM + 1:
        raise FormatError(f"a code has {_RANDOM + 1} characters, this has {len(typed)}: type it as it was shown")
    if any(char not in _VALUE for char in typed):
        raise FormatError("a code has digits and letters other than U and Z: type it as it was shown")
    found = "".join(_ALPHABET[_VALUE[char]] for char in typed)
    if _VALUE[found[-1]] != _check(found[:-1]):
        raise FormatError("this code has a slip in it: compare it with what was shown, character by character")
    return found


def _check(text: str) -> int:
    return sum(weight * _VALUE[char] for weight, char in enumerate(text, 2)) % len(_ALPHABET)
