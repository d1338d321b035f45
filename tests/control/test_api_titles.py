"""Titles over the API: registered whole or not at all, versions side by side, numbers never used twice."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import Desk, upload


async def test_adding_a_title_twice_changes_nothing(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """The second time, and many times at once, lead to the one version with the same track numbers."""
    made = make_title(tmp_path / "s")
    first = await desk.ask("POST", "titles", upload(made), 201)
    before = await desk.ask("GET", "titles/clip")
    assert first == {"title": "clip", "version": made.version}
    assert await desk.ask("POST", "titles", upload(made), 201) == first
    assert await desk.ask("GET", "titles/clip") == before
    assert before["published"] == 1_700_000_000
    assert [(track["name"], track["id"], track["bytes"]) for track in before["tracks"]] == [
        (name, number, len(made.bytes_of(f"{name}.mp4")) + len(made.bytes_of(f"{name}.idx")))
        for number, name in enumerate(made.indexes, 1)
    ]


async def test_the_same_title_added_many_times_at_once(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Every caller is told that it is there."""
    made = make_title(tmp_path / "s")
    await asyncio.gather(*(desk.ask("POST", "titles", upload(made), 201) for _ in range(8)))
    assert [title["versions"] for title in await desk.ask("GET", "titles")] == [[made.version]]


async def test_versions(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """A new version becomes active, the old one stays and may be activated again; track numbers are all different."""
    old, new = make_title(tmp_path / "s", seed=1), make_title(tmp_path / "s", seed=2)
    other = make_title(tmp_path / "s", name="other", v1=[10])
    await desk.register(old)
    numbers = [track["id"] for track in (await desk.ask("GET", "titles/clip"))["tracks"]]
    await desk.register(new, other)
    shown = await desk.ask("GET", "titles/clip")
    assert shown["active"] == new.version
    assert shown["versions"] == sorted([old.version, new.version])
    numbers += [track["id"] for track in shown["tracks"]]
    numbers += [track["id"] for track in (await desk.ask("GET", "titles/other"))["tracks"]]
    assert numbers == [1, 2, 3, 4, 5]
    assert await desk.ask("PUT", "titles/clip/active", {"version": old.version}) == {
        "title": "clip",
        "active": old.version,
    }
    assert (await desk.ask("GET", "titles/clip"))["active"] == old.version
    assert [(c["kind"], c["subject"]) for c in await desk.ask("GET", "changes?limit=1")] == [("title", "clip")]


@pytest.mark.parametrize(
    ("title", "version", "status"),
    [
        ("clip", "0" * 32, 404),
        ("nothing", "0" * 32, 404),
        ("clip", "../../etc", 400),
        ("clip", 7, 400),
        ("..%2f..%2fetc", "0" * 32, 404),
    ],
)
async def test_activating_what_is_not_there(
    desk: Desk, make_title: MakeTitle, tmp_path: Path, title: str, version: object, status: int
) -> None:
    """The active version stays."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    await desk.ask("PUT", f"titles/{title}/active", {"version": version}, status)
    assert (await desk.ask("GET", "titles/clip"))["active"] == made.version


def rewritten(made: MadeTitle, change: Callable[[dict[str, Any]], None]) -> str:
    """title.json with a change, as the upload carries it."""
    title = json.loads(made.bytes_of("title.json"))
    change(title)
    return base64.b64encode(json.dumps(title).encode()).decode()


def _bad(name: str, made: MadeTitle) -> object:
    good = upload(made)
    wrong_idx = base64.b64encode(made.bytes_of("a1.idx")).decode()
    bodies: dict[str, object] = {
        "no JSON": b"{",
        "not UTF-8": b'{"title_json": "\xff"}',
        "deep nesting": b"[" * 200_000,
        "a list": [good],
        "no title": {k: v for k, v in good.items() if k != "title_json"},
        "not base64": good | {"title_json": "!"},
        "title.json cut": good | {"title_json": base64.b64encode(made.bytes_of("title.json")[:-9]).decode()},
        "newer format": good | {"title_json": rewritten(made, lambda t: t.update(format=99))},
        "id with ../": good | {"title_json": rewritten(made, lambda t: t.update(id="../clip"))},
        "owner with ../": good | {"owner": ".."},
        "track with ../": good
        | {"title_json": rewritten(made, lambda t: t["periods"][0]["tracks"][0].update(name="../v1"))},
        "file with /": good
        | {"title_json": rewritten(made, lambda t: t["files"].update({"a/b": t["files"]["v1.mp4"]}))},
        "idx of another": good | {"indexes": good["indexes"] | {"v1": wrong_idx}},
        "idx missing": good | {"indexes": {"v1": good["indexes"]["v1"]}},
        "idx name with ../": good | {"indexes": good["indexes"] | {"../v1": wrong_idx}},
        "idx beyond the file": good | {"title_json": rewritten(made, lambda t: t["files"]["v1.mp4"].update(bytes=1))},
        "published before 1970": good | {"published": -1},
        "published beyond counting": good | {"published": 10**30},
    }
    return bodies[name]


@pytest.mark.parametrize(
    "name",
    [
        "no JSON",
        "not UTF-8",
        "deep nesting",
        "a list",
        "no title",
        "not base64",
        "title.json cut",
        "newer format",
        "id with ../",
        "owner with ../",
        "track with ../",
        "file with /",
        "idx of another",
        "idx missing",
        "idx name with ../",
        "idx beyond the file",
        "published before 1970",
        "published beyond counting",
    ],
)
async def test_bad_uploads(desk: Desk, make_title: MakeTitle, tmp_path: Path, name: str) -> None:
    """Each is refused with a sentence, and nothing is stored."""
    assert await desk.ask("POST", "titles", _bad(name, make_title(tmp_path / "s")), 400)
    assert await desk.ask("GET", "titles") == []
    assert await desk.ask("GET", "changes") == []


async def test_a_title_belongs_to_its_owner(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Nobody else can add a version to it."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    stolen = upload(made) | {"owner": "mallory"}
    assert "belongs to owner default" in await desk.ask("POST", "titles", stolen, 409)
    assert (await desk.ask("GET", "titles/clip"))["versions"] == [made.version]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/titles/nothing", 404),
        ("GET", "/api/v1/titles/..%2f..%2fetc", 404),
        ("GET", "/api/v1/titles/%00", 404),
        ("GET", "/api/v1/titles/" + "x" * 5000, 404),
        ("GET", "/api/v2/titles", 404),
        ("DELETE", "/api/v1/titles", 405),
        ("GET", "/api/v1/changes?limit=" + "9" * 5000, 200),
        ("GET", "/api/v1/changes?limit=-1", 200),
        ("GET", "/api/v1/changes?limit=" + "%F0%9D%9F%99", 200),
    ],
)
async def test_hostile_targets(desk: Desk, method: str, path: str, status: int) -> None:
    """A sentence with the right status, never a trace."""
    got, answer, fields = await desk.answer(method, path)
    assert got == status, answer
    assert status == 200 or json.loads(answer)["error"]
    assert (status == 405) == ("Allow" in fields)


async def test_a_body_beyond_the_limit(desk: Desk) -> None:
    """It is refused without being read to its end."""
    status, answer, _ = await desk.answer("POST", "/api/v1/titles", b" " * ((64 << 20) + 1))
    assert status == 413
    assert "longer than" in json.loads(answer)["error"]
