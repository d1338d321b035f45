"""The options of `oca-pack build` that say what becomes of the sound."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

Codec = StrEnum("Codec", ["aac", "opus"])
Layout = StrEnum("Layout", ["source", "stereo"])
_SOUND = "Sound"
Audio = Annotated[
    str,
    typer.Option(
        "--audio",
        metavar="all|first|none|LANG,...",
        rich_help_panel=_SOUND,
        help="Which audio streams of the video: all, the first, none, or those in these languages, as in en,de.",
    ),
]
Codecs = Annotated[
    list[Codec],
    typer.Option("--audio-codec", rich_help_panel=_SOUND, help="Codec of the sound; repeat it for more than one."),
]
Channels = Annotated[
    Layout,
    typer.Option(
        "--channels",
        rich_help_panel=_SOUND,
        help="source: mono and stereo stay, of more there is 5.1 and stereo; stereo: everything becomes stereo.",
    ),
]
Loudness = Annotated[
    float | None,
    typer.Option(
        "--loudness",
        min=-40,
        max=-9,
        metavar="LUFS",
        rich_help_panel=_SOUND,
        help="Bring all sound to this loudness (EBU R 128), such as -23.  [default: as it is]",
    ),
]
