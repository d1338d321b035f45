"""The page of `oca-pack play`: what a title says of itself stays text."""

from __future__ import annotations

import json
import re

from msgspec import UNSET, structs

from oca.title import model as title
from oca.title.protection import Protection
from packager import play


def test_nothing_of_a_title_becomes_script_or_mark_up(packaged) -> None:
    """Its name is the title's maker's, and so is the URL of ClearKey's server; that reaches hls.js unchanged."""
    read, _ = title.read(packaged.path)
    url = "https://keys.example/</script><script>alert(1)</script>?{{name}}&a"
    protection = Protection(scheme="cbcs", kids={track.name: "1" * 32 for track in read.tracks}, clearkey_url=url)
    page = play.page_of(
        structs.replace(read, name="<b>&</b>{{told}}", protection=protection), "http://127.0.0.1:1/t/"
    )
    assert page.count("<title>&lt;b&gt;&amp;&lt;/b&gt;{{told}}</title>") == 1
    assert "<b>" not in page
    assert page.count("</script>") == play._PAGE.read_text().count("</script>")
    (told,) = re.findall(r"const told = (.*?);  //", page)
    assert json.loads(told) == {"base": "http://127.0.0.1:1/t/", "licences": url}
    bare = play.page_of(structs.replace(read, protection=UNSET), "http://127.0.0.1:1/t/")
    assert '"licences": ""' in bare
