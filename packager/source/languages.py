"""Languages as containers name them (ISO 639-2), as manifests do (BCP 47), and as menus do (in English)."""

from __future__ import annotations

# BCP 47 wants the shortest code there is (RFC 5646 2.2.1). By the registry of ISO 639-2: the short code, the long one
# (or two, where books are catalogued by another), the name. What is not here is left as it is.
_TABLE = """
ar ara Arabic|bg bul Bulgarian|bn ben Bengali|ca cat Catalan|cs ces/cze Czech|cy cym/wel Welsh|da dan Danish
de deu/ger German|el ell/gre Greek|en eng English|es spa Spanish|et est Estonian|eu eus/baq Basque
fa fas/per Persian|fi fin Finnish|fr fra/fre French|ga gle Irish|gl glg Galician|he heb Hebrew|hi hin Hindi
hr hrv Croatian|hu hun Hungarian|hy hye/arm Armenian|id ind Indonesian|is isl/ice Icelandic|it ita Italian
ja jpn Japanese|ka kat/geo Georgian|kk kaz Kazakh|ko kor Korean|lt lit Lithuanian|lv lav Latvian
mk mkd/mac Macedonian|ml mal Malayalam|mr mar Marathi|ms msa/may Malay|nb nob Norwegian Bokmål
nl nld/dut Dutch|nn nno Norwegian Nynorsk|no nor Norwegian|pl pol Polish|pt por Portuguese|ro ron/rum Romanian
ru rus Russian|sk slk/slo Slovak|sl slv Slovenian|sq sqi/alb Albanian|sr srp Serbian|sv swe Swedish|sw swa Swahili
ta tam Tamil|te tel Telugu|th tha Thai|tl tgl Tagalog|tr tur Turkish|uk ukr Ukrainian|ur urd Urdu|vi vie Vietnamese
zh zho/chi Chinese
"""
_ROWS = [row.split(" ", 2) for row in _TABLE.strip().replace("\n", "|").split("|")]
_SHORT = {long: short for short, longs, _ in _ROWS for long in longs.split("/")}
_NAMES = {short: name for short, _, name in _ROWS}


def bcp47(tag: str) -> str:
    """The tag with the short code of its language, if there is one: `en` of `eng`, `pt-BR` of `por-BR`."""
    language, dash, rest = tag.partition("-")
    return _SHORT.get(language.lower(), language) + dash + rest


def name(tag: str) -> str:
    """What a menu calls the language: `Portuguese (BR)` of `pt-BR`; the tag itself of one that is not known."""
    language, _, rest = bcp47(tag).partition("-")
    found = _NAMES.get(language.lower())
    if found is None:
        return tag
    return f"{found} ({rest})" if rest else found
