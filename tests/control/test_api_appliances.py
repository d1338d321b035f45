"""Appliances over the API: registration, heartbeats, inventories, draining and death."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import lz4.frame
import pytest

from control.fleet.registry import Registry
from oca import wire
from oca.wire import Inventory
from tests.conftest import MakeTitle
from tests.control.conftest import Desk

SPEC = {"id": "north-1", "site": "north", "url": "http://north-1.example"}
BEAT = {
    "format": 1,
    "appliance": "north-1",
    "at": 0.0,
    "started": 0.0,
    "url": "http://north-1.example",
    "inventory": "1",
    "storage_bytes": 1000,
    "used_bytes": 10,
}


async def test_registration(desk: Desk) -> None:
    """An appliance may be registered again with other values; it stays drained; its heartbeat fills the rest in."""
    shown = await desk.ask("POST", "appliances", SPEC, 201)
    assert (shown["id"], shown["role"], shown["alive"], shown["silent_s"]) == ("north-1", "edge", False, None)
    await desk.ask("PUT", "appliances/north-1/drain", {"draining": True})
    shown = await desk.ask("POST", "appliances", SPEC | {"site": "south", "capacity_bps": 10**9})
    assert (shown["site"], shown["draining"], shown["storage_bytes"]) == ("south", True, 0)
    await desk.beat("north-1", url="http://moved.example", storage_bytes=500, used_bytes=20, sending_bps=7, damaged=2)
    shown = await desk.ask("GET", "appliances/north-1")
    assert (shown["url"], shown["storage_bytes"], shown["used_bytes"]) == ("http://moved.example", 500, 20)
    assert (shown["alive"], shown["damaged"]) == (True, 2)
    assert [box["id"] for box in await desk.ask("GET", "appliances")] == ["north-1"]
    details = [change["detail"].partition(":")[0] for change in await desk.ask("GET", "changes")]
    assert details == ["drained", "drained", "registered"]


async def test_registered_many_times_at_once(desk: Desk) -> None:
    """The first registers it, the others change nothing, none fails."""
    answers = await asyncio.gather(
        *(desk.answer("POST", "/api/v1/appliances", json.dumps(SPEC).encode()) for _ in range(8))
    )
    assert {status for status, _, _ in answers} <= {200, 201}


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "../etc"},
        {"id": "NORTH"},
        {"id": "north\n"},
        {"url": "http://north-1.example\n"},
        {"url": "http://user@north-1.example"},
        {"site": ""},
        {"url": "north-1.example"},
        {"url": "http://x.example/path"},
        {"url": "javascript:alert(1)"},
        {"url": 'http://x"><script>'},
        {"url": "http://x{}|^`.example"},
        {"role": "boss"},
        {"capacity_bps": -1},
        {"storage_bytes": 10**30},
        {"storage_bytes": 1.5},
    ],
)
async def test_bad_registrations(desk: Desk, wrong: dict[str, Any]) -> None:
    """Refused with a sentence, nothing stored."""
    await desk.ask("POST", "appliances", SPEC | wrong, 400)
    assert await desk.ask("GET", "appliances") == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "appliances/x/heartbeat", BEAT | {"appliance": "x"}),
        ("PUT", "appliances/x/inventory", {}),
        ("GET", "appliances/x/fill", None),
        ("POST", "appliances/x/sources", {"tracks": []}),
        ("POST", "appliances/x/fill-report", {}),
        ("GET", "appliances/x", None),
        ("PUT", "appliances/x/drain", {"draining": True}),
        ("GET", "appliances/..%2fnorth-1", None),
    ],
)
async def test_strangers(desk: Desk, method: str, path: str, body: object) -> None:
    """404 for an appliance that nobody registered, with what to do."""
    assert "ocactl appliance add" in await desk.ask(method, path, body, 404)


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": 2},
        {"format": 0},
        {"format": "1"},
        {"appliance": "north-2"},
        {"appliance": "../x"},
        {"used_bytes": -1},
        {"used_bytes": 10**30},
        {"url": "nowhere"},
        {"url": 'http://"><MPD>'},
        {"at": "now"},
        {"inventory": None},
    ],
)
async def test_bad_heartbeats(desk: Desk, wrong: dict[str, Any]) -> None:
    """Refused with a sentence that names the appliance; it is not taken for alive."""
    await desk.ask("POST", "appliances", SPEC, 201)
    assert "north-1" in await desk.ask("POST", "appliances/north-1/heartbeat", BEAT | wrong, 400)
    assert (await desk.ask("GET", "appliances/north-1"))["silent_s"] is None


@pytest.mark.parametrize("body", [b"", b"\0", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b"null"])
async def test_garbage(desk: Desk, body: bytes) -> None:
    """Any message of an appliance may be garbage."""
    await desk.ask("POST", "appliances", SPEC, 201)
    for method, message in (
        ("POST", "heartbeat"),
        ("PUT", "inventory"),
        ("POST", "sources"),
        ("POST", "fill-report"),
    ):
        assert "north-1" in await desk.ask(method, f"appliances/north-1/{message}", body, 400)


async def test_unknown_fields_are_ignored(desk: Desk) -> None:
    """A newer appliance may say more."""
    await desk.ask("POST", "appliances", SPEC, 201)
    await desk.ask("POST", "appliances/north-1/heartbeat", BEAT | {"weather": "fine"})


async def test_the_inventory_is_asked_for_when_it_differs(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """That is when the generation is another than that told last, higher or lower."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    await desk.box("north-1")
    assert (await desk.beat("north-1", inventory="5"))["send_inventory"]
    await desk.tell("north-1", (made, "v1"), generation="5")
    for generation, wanted in (("5", False), ("6", True), ("4", True), ("5", False)):
        reply = await desk.beat("north-1", inventory=generation)
        assert (reply["send_inventory"], reply["interval_s"]) == (wanted, desk.settings.heartbeat_s)


async def test_inventories(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Each replaces the one before; the same again changes nothing; tracks that no title has are ignored."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    await desk.box("north-1")
    await desk.tell("north-1", (made, "v1 a1 x9"))
    assert (await desk.ask("GET", "appliances/north-1"))["titles"] == ["clip"]
    assert (await desk.ask("GET", "titles/clip"))["holders"] == [
        {"appliance": "north-1", "tracks": 2, "complete": True}
    ]
    changes = len(await desk.ask("GET", "changes"))
    await desk.tell("north-1", (made, "v1 a1 x9"))
    assert len(await desk.ask("GET", "changes")) == changes
    await desk.tell("north-1", (made, "a1"), generation="2")
    shown = await desk.ask("GET", "titles/clip")
    assert shown["holders"] == [{"appliance": "north-1", "tracks": 1, "complete": False}]
    assert [track["holders"] for track in shown["tracks"]] == [[], ["north-1"]]
    await desk.tell("north-1", generation="3")
    assert (await desk.ask("GET", "titles/clip"))["holders"] == []


async def test_held_before_it_was_registered(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """What an appliance told of a version that nobody knew counts as soon as it is known, also after a restart."""
    old, new = make_title(tmp_path / "s", seed=1), make_title(tmp_path / "s", seed=2)
    await desk.box("origin", role="origin")
    await desk.box("north-1")
    await desk.tell("origin", (old, "v1 a1"), (new, "v1 a1"))
    await desk.tell("north-1", (new, "a1"))
    await desk.parts.state.load()
    await desk.register(old)
    assert desk.parts.state.holds("origin") == 0b110
    await desk.register(new)
    assert desk.parts.state.holds("origin") == 0b11110
    assert desk.parts.state.holds("north-1") == 0b10000
    assert not any(held.unknown for held in desk.parts.state.inventories.values())


async def test_told_while_it_is_registered(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Whichever comes first, what is held is known in the end."""
    made = [make_title(tmp_path / "s", name=f"clip{number}") for number in range(10)]
    for number in range(10):
        await desk.box(f"north-{number}")
    telling = (desk.tell(f"north-{number}", (one, "v1 a1")) for number, one in enumerate(made))
    await asyncio.gather(*telling, *map(desk.register, made))
    for title in await desk.ask("GET", "titles"):
        assert [holder["complete"] for holder in title["holders"]] == [True], title


async def test_bad_inventories(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """A bomb, a cut frame, and one of another appliance are refused; what was told before stays."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    await desk.box("north-1")
    await desk.tell("north-1", (made, "v1"))
    good = wire.pack(Inventory(appliance="north-1", generation="2", held=[]))
    bodies = {
        b"bomb": lz4.frame.compress(b" " * (wire.MAX_BODY + 1)),
        b"cut": good[:-5],
        b"other": wire.pack(Inventory(appliance="north-2", generation="2", held=[])),
        b"plain": wire.encode(Inventory(appliance="north-1", generation="2", held=[])),
        b"ids": lz4.frame.compress(
            b'{"format":1,"appliance":"north-1","generation":"2","held":[["../x","' + b"0" * 32 + b'",["v1"]]]}'
        ),
    }
    for body in bodies.values():
        assert "north-1" in await desk.ask("PUT", "appliances/north-1/inventory", body, 400)
    assert desk.parts.state.held("north-1").generation == "1"


async def ranked(desk: Desk) -> dict[str, int | None]:
    """Rank of every appliance for a viewer in the north."""
    found = await desk.ask("GET", "steer/explain?client=192.0.2.9&title=clip")
    return {row["appliance"]: row["rank"] for row in found["candidates"]}


async def test_draining(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """A drained appliance gets no viewers, and gets them again when undrained; only yes or no is taken."""
    made = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(made)
    await desk.box("north-1")
    await desk.box("south-1", "south")
    await desk.tell("north-1", (made, "v1 a1"))
    await desk.tell("south-1", (made, "v1 a1"))
    for draining, ranks in (
        (True, {"south-1": 0, "north-1": None}),
        (False, {"north-1": 0, "south-1": 1}),
    ):
        assert (await desk.ask("PUT", "appliances/north-1/drain", {"draining": draining}))["draining"] is draining
        assert await ranked(desk) == ranks
    await desk.ask("PUT", "appliances/north-1/drain", {"draining": "yes"}, 400)
    await desk.ask("PUT", "appliances/north-1/drain", b"", 400)
    assert await ranked(desk) == ranks


async def test_death_and_return(make_title: MakeTitle, desk: Desk, tmp_path: Path) -> None:
    """An appliance silent for longer than dead_s leaves steering until its next heartbeat."""
    made = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(made)
    for site in ("north", "south"):
        await desk.box(f"{site}-1", site)
        await desk.tell(f"{site}-1", (made, "v1 a1"))
    now = 0.0
    fleet = desk.parts.fleet
    fleet.registry = Registry(desk.settings.dead_s, clock=lambda: now)
    for at, beating, ranks in (
        (0.0, "north-1 south-1", {"north-1": 0, "south-1": 1}),
        (80.0, "south-1", {"north-1": 0, "south-1": 1}),
        (91.0, "", {"south-1": 0, "north-1": None}),
        (92.0, "north-1", {"north-1": 0, "south-1": 1}),
    ):
        now = at
        for box in beating.split():
            await desk.beat(box)
        assert await ranked(desk) == ranks, at
    assert [(box["id"], box["alive"], box["silent_s"]) for box in await desk.ask("GET", "appliances")] == [
        ("north-1", True, 0.0),
        ("south-1", True, 12.0),
    ]


async def test_load(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """What it says that it sends, of the capacity registered, puts a busy box behind its site mate."""
    made = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(made)
    for name in ("north-1", "north-2"):
        await desk.box(name, capacity_bps=1000)
        await desk.tell(name, (made, "v1 a1"))
        await desk.beat(name)
    for busy, free in (("north-1", "north-2"), ("north-2", "north-1")):
        await desk.beat(busy, sending_bps=900)
        await desk.beat(free, sending_bps=10)
        assert await ranked(desk) == {free: 0, busy: 1}
