"""What every target holds parsers to."""

from __future__ import annotations

# In characters: room for what was cut and then escaped.
_LONGEST_SENTENCE = 45_000


def refused(error: Exception) -> None:
    """A refusal must be one sentence for a person, whatever the input held."""
    sentence = str(error)
    assert sentence, f"{type(error).__name__} without a sentence"
    assert len(sentence) <= _LONGEST_SENTENCE, f"a sentence of {len(sentence)} characters"
    wild = [char for char in sentence if not char.isprintable()]
    assert not wild, f"a terminal would act on this, or UTF-8 does not have it: {sentence!a}"
