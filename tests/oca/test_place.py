"""Where a setting stands in a TOML file, and what is said of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.config import ApplianceSettings, load
from oca.errors import ConfigError
from oca.place import Key, key_of, line_of

TEXT = """\
appliance = "n1"
store = [
    "/srv/a",
]

[limits]
idle_s = 75
[miss]
"pulled_bytes" = 1

[[tls.certificates]]
chain = "a"
[[tls.certificates]]
chain = "b"
key = "c"
[tls.certificates.more]
x.y = 1
"""


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("`$.workers`", ("workers",)),
        ("`$.tls.certificates[1].chain`", ("tls", "certificates", 1, "chain")),
        ("`$`", ()),
        ("", ()),
    ],
)
def test_paths_become_keys(path: str, key: Key) -> None:
    assert key_of(path) == key


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("appliance",), 1),
        (("store", 0), 2),
        (("limits",), 6),
        (("limits", "idle_s"), 7),
        (("limits", "header_s"), 6),
        (("miss", "pulled_bytes"), 9),
        (("tls", "certificates", 0, "chain"), 12),
        (("tls", "certificates", 1, "chain"), 14),
        (("tls", "certificates", 1, "key"), 15),
        (("tls", "certificates", 1, "more", "x", "y"), 17),
        (("nothing",), None),
        ((), None),
    ],
)
def test_the_line_is_that_of_the_innermost_thing_there_is(key: Key, line: int | None) -> None:
    assert line_of(TEXT, key) == line


@given(st.text(alphabet="ab.[]=\"' \n#", max_size=200))
def test_any_text_has_lines(text: str) -> None:
    found = line_of(text, ("a", 0, "b"))
    assert found is None or 1 <= found <= text.count("\n") + 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('workers = "many"', "line 4: workers: Expected `int`, got `str`: 'many'"),
        ("[limits]\nidle_s = -3", "line 5: limits.idle_s: Expected `float` > 0.0, which -3 is not"),
        ("[limits]\n\nidel_s = 3", "line 6: limits.idel_s: Object contains unknown field `idel_s`"),
        ('[[tls.certificates]]\nchain = "a"', "line 4: tls.certificates[0]: Object missing required field `key`"),
        ("[[tls.certificates]]\nchain = 'a'\nkey = 7", "line 6: tls.certificates[0].key: Expected `str`, got `int`"),
    ],
)
def test_a_wrong_setting_is_named_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    """File, line, key, what was expected and what is there; but no value of what may be secret."""
    path = tmp_path / "oca.toml"
    path.write_text(f'appliance = "n1"\nstore = ["/s"]\nurl = "http://n1.example"\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        load(path, ApplianceSettings)
    assert str(caught.value) == f"{path} {sentence}"
