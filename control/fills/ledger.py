"""What is written of fills: orders, pauses, and how far every appliance is. Each function is one transaction."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control import schema
from control.writer import Writer, key
from oca import wire

DAY_S = 86_400


class FillRun(msgspec.Struct):
    """What an appliance reported of its newest fill: when, of which plan, and where it is with each track."""

    at: float
    plan: int
    finished: bool
    outside_window: bool
    tracks: list[wire.FillProgress]


class Traffic(msgspec.Struct):
    """Bytes of an appliance: sent, filled on it, of those from outside its site, and of those sent to other boxes."""

    appliance: str
    sent: int
    filled: int
    uplink: int
    given: int


class Ledger(Writer):
    """The orders, pauses and reports of fills."""

    async def order_fill(self, boxes: Sequence[str]) -> dict[str, int]:
        """Order appliances to fill now; the number of each one's order."""
        numbers = {}
        async with self._writing.begin() as connection:
            for box in boxes:
                done = await connection.execute(
                    insert(schema.orders).values(appliance=box, at=time.time(), done=False)
                )
                numbers[box] = key(done)
                await self.changed(connection, "order", box, f"fill now, order {numbers[box]}")
        await self._state.catch_up()
        return numbers

    async def cancel_fill(self, boxes: Sequence[str]) -> list[str]:
        """Take back orders to fill now; the appliances that had one."""
        orders = schema.orders
        async with self._writing.begin() as connection:
            had = [box for box in boxes if box in self._state.orders]
            await connection.execute(update(orders).where(orders.c.appliance.in_(had)).values(done=True))
            for box in had:
                await self.changed(connection, "order", box, "order to fill taken back")
        await self._state.catch_up()
        return had

    async def pause_fill(self, boxes: Sequence[str], *, paused: bool) -> list[str]:
        """Let appliances fetch nothing, or again; those for which that is something new."""
        rows = schema.paused
        async with self._writing.begin() as connection:
            before = set((await connection.execute(select(rows.c.appliance))).scalars())
            new = [box for box in boxes if (box in before) != paused]
            for box in new:
                if paused:
                    await connection.execute(insert(rows).values(appliance=box, at=time.time()))
                else:
                    await connection.execute(delete(rows).where(rows.c.appliance == box))
                await self.changed(connection, "order", box, "fills paused" if paused else "fills resumed")
        await self._state.catch_up()
        return new

    async def put_fill_report(self, report: wire.FillReport) -> None:
        """Take an appliance's report: the tracks that it tells of are updated, the others stay as they were.

        A batch that was here already changes nothing. A finished run has obeyed every order up to its number.
        """
        runs, tracks, orders = schema.fills, schema.fill_tracks, schema.orders
        box = report.appliance
        async with self._writing.begin() as connection:
            last = (await connection.execute(select(runs).where(runs.c.appliance == box))).first()
            if last is not None and last.batch == report.batch:
                return
            run = {"batch": report.batch, "at": report.at, "plan": report.plan, "finished": report.finished}
            await connection.execute(delete(runs).where(runs.c.appliance == box))
            await connection.execute(insert(runs).values(appliance=box, outside_window=report.outside_window, **run))
            if last is not None and last.plan != report.plan:
                await connection.execute(delete(tracks).where(tracks.c.appliance == box))
            again = last is not None and last.batch.rpartition("-")[0] == report.batch.rpartition("-")[0]
            came: Counter[str] = Counter()
            for each in report.progress:
                key = {"appliance": box, "title": each.title, "version": each.version, "track": each.track}
                same = [tracks.c[name] == value for name, value in key.items()]
                fetched = each.fetched
                before = (await connection.execute(select(tracks.c.progress).where(*same))).scalar()
                told_before = msgspec.json.decode(before, type=wire.FillProgress).fetched if before else {}
                for source, count in fetched.items():
                    came[source] += max(0, count - (told_before.get(source, 0) if again else 0))
                if each.state == "done" and not fetched:
                    # Found in place, by a later run: that says nothing of where it came from.
                    fetched = told_before
                told = msgspec.json.encode(msgspec.structs.replace(each, fetched=fetched))
                await connection.execute(delete(tracks).where(*same))
                await connection.execute(insert(tracks).values(progress=told, **key))
            if came.total():
                upstream = sum(count for source, count in came.items() if not self._is_peer(box, source))
                await self._add(connection, box, filled=came.total(), uplink=upstream)
            for source, count in came.items():
                if count and source in self._state.appliances:
                    await self._add(connection, source, given=count)
            obeyed = report.finished and report.force >= self._state.orders.get(box, report.force + 1)
            if obeyed:
                done = update(orders).where(orders.c.appliance == box, orders.c.id <= report.force)
                await connection.execute(done.values(done=True))
                await self.changed(connection, "order", box, f"order {report.force} obeyed")
        if obeyed:
            await self._state.catch_up()

    def _is_peer(self, box: str, source: str) -> bool:
        """Whether `source` is in the site of `box`, so that what it gives crosses no line of the site."""
        mine, other = self._state.appliances.get(box), self._state.appliances.get(source)
        return mine is not None and other is not None and mine.site == other.site and other.role != "origin"

    async def fill_runs(self) -> dict[str, FillRun]:
        """The newest run of every appliance that has reported one."""
        async with self._engine.connect() as connection:
            runs = (await connection.execute(select(schema.fills))).all()
            tracks = (await connection.execute(select(schema.fill_tracks))).all()
        found = {r.appliance: FillRun(r.at, r.plan, r.finished, r.outside_window, []) for r in runs}
        for row in tracks:
            if row.appliance in found:
                found[row.appliance].tracks.append(msgspec.json.decode(row.progress, type=wire.FillProgress))
        return found

    async def set_line(self, site: str, fill_bps: int) -> None:
        """Let the boxes of a site fetch so much together from outside of it, bit/s; 0: as much as each may."""
        table = schema.sites
        async with self._writing.begin() as connection:
            await connection.execute(delete(table).where(table.c.id == site))
            if fill_bps:
                await connection.execute(insert(table).values(id=site, fill_bps=fill_bps))
            words = f"fills share {fill_bps} bit/s" if fill_bps else "fills share no limit"
            await self.changed(connection, "site", site, words)
        await self._state.catch_up()

    async def note_sent(self, beats: Sequence[wire.Heartbeat]) -> None:
        """Put what boxes have sent since they were noted last into the day of now. A repeat changes nothing."""
        marks = schema.sent_marks.c
        async with self._writing.begin() as connection:
            for beat in beats:
                mark = (
                    await connection.execute(select(schema.sent_marks).where(marks.appliance == beat.appliance))
                ).first()
                same = mark is not None and mark.started == beat.started and mark.sent <= beat.sent_bytes
                more = beat.sent_bytes - (mark.sent if mark is not None and same else 0)
                if more == 0 and same:
                    continue
                await connection.execute(delete(schema.sent_marks).where(marks.appliance == beat.appliance))
                values = {"appliance": beat.appliance, "started": beat.started, "sent": beat.sent_bytes}
                await connection.execute(insert(schema.sent_marks).values(**values))
                if more:
                    await self._add(connection, beat.appliance, sent=more)

    async def traffic(self, since: float) -> list[Traffic]:
        """What each appliance sent and fetched from the day of `since` (UTC seconds) on."""
        of = schema.traffic.c
        query = (
            select(of.appliance, *(func.sum(of[name]) for name in ("sent", "filled", "uplink", "given")))
            .where(of.day >= int(since // DAY_S))
            .group_by(of.appliance)
            .order_by(of.appliance)
        )
        async with self._engine.connect() as connection:
            return [Traffic(row[0], *map(int, row[1:])) for row in await connection.execute(query)]

    async def _add(self, connection: AsyncConnection, box: str, **more: int) -> None:
        """Add `more` bytes to the columns of a box's today."""
        of, day = schema.traffic.c, int(time.time() // DAY_S)
        same = (of.day == day, of.appliance == box)
        sums = {name: of[name] + count for name, count in more.items()}
        done = await connection.execute(update(schema.traffic).where(*same).values(**sums))
        if not done.rowcount:
            values = dict.fromkeys(("sent", "filled", "uplink", "given"), 0) | more
            await connection.execute(insert(schema.traffic).values(day=day, appliance=box, **values))
