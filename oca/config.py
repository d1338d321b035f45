"""Settings from a TOML file: one msgspec struct yields defaults, validation and documentation.

Unknown keys are refused, because a misspelt one would silently do nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from oca import place
from oca.errors import ConfigError
from oca.http.certificates import TlsSettings
from oca.http.gate import TokenSettings
from oca.http.limits import LimitSettings
from oca.http.pacing import PacingSettings
from oca.wire import Id, Stretch, Url

Address = Annotated[str, Meta(pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):[0-9]{1,5}\Z")]
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")
_SECRET = re.compile(r"secret|password|token|key")
S = TypeVar("S")


class FillSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[fill]: when and how fast content may be fetched."""

    window_start: Annotated[
        str,
        Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z", description="local time at which filling may start"),
    ] = "02:00"
    window_hours: Annotated[float, Meta(gt=0, le=24, description="length of the window in hours")] = 12.0
    windows: Annotated[
        list[Stretch],
        Meta(description="several windows a day, such as 02:00-08:00, in place of window_start and window_hours"),
    ] = []
    timezone: Annotated[str, Meta(description="IANA name of the site's time zone")] = "UTC"
    rate_mbps: Annotated[float, Meta(gt=0, description="most that this box fetches, in Mbit/s")] = 1200.0
    poll_s: Annotated[float, Meta(gt=0, description="seconds between two looks at the fill manifest")] = 60.0
    parallel: Annotated[int, Meta(ge=1, le=64, description="chunks in flight at once")] = 4
    scrub_days: Annotated[
        float, Meta(ge=0, description="days after which what is held is read and checked again; 0: never")
    ] = 30.0
    scrub_mb_per_s: Annotated[float, Meta(gt=0, description="most that checking reads, in MB/s")] = 20.0

    @property
    def stretches(self) -> list[str]:
        """The windows as local times from and to, such as 22:00-06:00; to the minute."""
        if self.windows:
            return self.windows
        begin = int(self.window_start[:2]) * 60 + int(self.window_start[3:])
        end = (begin + max(1, round(self.window_hours * 60))) % (24 * 60)
        return [f"{self.window_start}-{end // 60:02}:{end % 60:02}"]


class MissSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[miss]: how content that is not held here is passed on with `on_miss = "proxy"`. `danger` as in [limits]."""

    near_ms: Annotated[
        float,
        Meta(
            ge=0,
            description="milliseconds in which a peer must take a connection to be asked at all; 0 asks no peer",
            extra={
                "danger": "too low: a busy peer next door is passed over and the uplink pays. "
                "Too high: viewers wait for a peer that is farther away than the tier"
            },
        ),
    ] = 20.0
    pulled_bytes: Annotated[
        int,
        Meta(
            ge=32 << 20,
            description="bytes of passed-on content kept on the first store disk, on top of storage_bytes",
            extra={
                "danger": "too low: the same content is pulled again and again. "
                "Too high: with storage_bytes set as well, the disk is full before either bound is reached"
            },
        ),
    ] = 10 << 30
    first_byte_s: Annotated[
        float,
        Meta(
            gt=0,
            le=15,
            description="seconds in which another box must begin to answer",
            extra={
                "danger": "too low: boxes with cold disks count as failed and circuits open. "
                "Too high: viewers wait so long for every dead box in the chain"
            },
        ),
    ] = 1.0
    stall_s: Annotated[
        float,
        Meta(
            gt=0,
            le=30,
            description="seconds without a byte after which another box is given up and the next one goes on",
            extra={
                "danger": "too low: a short loss of packets changes the source. "
                "Too high, above a player's buffer: viewers see the picture stop"
            },
        ),
    ] = 5.0
    request_s: Annotated[
        float,
        Meta(
            gt=0,
            le=300,
            description="seconds in which another box must have sent all of one request, which is a chunk at most; "
            "of chunks above 8 MiB as much longer",
            extra={
                "danger": "too low for the line (8 MiB take 30 s at 2.2 Mbit/s): nothing can be passed on. "
                "Too high: a box that drips holds up viewers for as long"
            },
        ),
    ] = 30.0
    breaker_requests: Annotated[
        int,
        Meta(
            ge=1,
            description="requests to a box within the window below which its circuit never opens",
            extra={
                "danger": "too low: two unlucky requests cut a good box off. Too high: a dead one is asked forever"
            },
        ),
    ] = 20
    breaker_window_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="seconds over which requests and failures are counted",
            extra={"danger": "too long: a box that has recovered pays for old failures. Too short: few are counted"},
        ),
    ] = 10.0
    breaker_percent: Annotated[
        float,
        Meta(
            gt=0,
            le=100,
            description="percentage of failed requests at which the circuit opens: the box is then not asked",
            extra={"danger": "too low: a little loss cuts good boxes off. Too high: viewers wait for a failing box"},
        ),
    ] = 50.0
    breaker_rest_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="seconds after which an open circuit lets one request try the box again",
            extra={"danger": "too long: a recovered box stays unused. Too short: a dying one gets no rest"},
        ),
    ] = 5.0
    fallbacks: Annotated[
        int,
        Meta(
            ge=1,
            description="requests at once to boxes that are not the first of the chain",
            extra={
                "danger": "too high: when a peer dies, all of its viewers are let loose on the origin. "
                "Too low: they get 504 though the origin could serve them"
            },
        ),
    ] = 10


class ApplianceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """oca.toml: one appliance (or origin, which is an appliance that holds everything)."""

    appliance: Annotated[Id, Meta(description="this box's id, as registered with the controller")]
    store: Annotated[list[str], Meta(min_length=1, description="directories of the content store, one per disk")]
    url: Annotated[Url, Meta(description="where viewers and other boxes reach this box, without a path")]
    listen: Annotated[Address, Meta(description="address and port that serve content")] = "0.0.0.0:8080"
    admin: Annotated[Address, Meta(description="address and port of health and metrics, on loopback")] = (
        "127.0.0.1:8081"
    )
    metrics: Annotated[
        str,
        Meta(
            pattern=r"^((\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):[0-9]{1,5})?\Z",
            description="address and port where the metrics alone are shown too, for a monitoring system elsewhere",
        ),
    ] = ""
    controllers: Annotated[list[Url], Meta(description="controllers to report to, tried in order")] = []
    identity: Annotated[
        str, Meta(min_length=1, description="directory of the key and the certificates that `oca enrol` writes")
    ] = "/var/lib/oca/identity"
    sources: Annotated[
        Literal["any", "enrolled"],
        Meta(
            description='whom this box fetches content from: "any" box that a controller names, or only those that '
            "prove to be enrolled in the same fleet, over TLS",
            extra={"danger": "enrolled, before all boxes have certificates and TLS: from the others nothing comes"},
        ),
    ] = "any"
    object_stores: Annotated[
        bool,
        Meta(
            description='with sources = "enrolled", whether buckets of S3 services may be fetched from '
            "all the same, by URLs that the controller signs",
            extra={"danger": "true: content comes from outside of the fleet, and is verified all the same"},
        ),
    ] = False
    workers: Annotated[int, Meta(ge=0, le=256, description="processes that serve; 0 means one per processor")] = 0
    storage_bytes: Annotated[
        int, Meta(ge=0, description="bytes of content this box may hold; 0 means what its disks have")
    ] = 0
    access_log: Annotated[str, Meta(description="file for one JSON line per request, '' for none")] = ""
    disk_threads: Annotated[
        int, Meta(ge=1, le=64, description="threads per disk, in every worker, that read ahead what is not in memory")
    ] = 8
    tls: TlsSettings = TlsSettings()
    tokens: TokenSettings = TokenSettings()
    pacing: PacingSettings = PacingSettings()
    limits: LimitSettings = LimitSettings()
    on_miss: Annotated[
        Literal["redirect", "proxy", "404"],
        Meta(
            description='what viewers get who ask for content that is not held here: "404", "redirect" to a box that '
            'has it, or "proxy", which fetches it for them',
            extra={
                "danger": "proxy spends this box's uplink and disk on whatever viewers ask for; redirect sends them "
                "to boxes whose lines must bear it"
            },
        ),
    ] = "404"
    fill: FillSettings = FillSettings()
    miss: MissSettings = MissSettings()


def load(path: Path, kind: type[S]) -> S:
    """Read the TOML file at `path` as `kind`; a ConfigError says file, line, key, expected and got."""
    try:
        text = path.read_text("utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read settings from {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # tomllib lets through what int() and its own depth raise
        raise ConfigError(f"{path} is not TOML: {error}") from None
    try:
        return msgspec.convert(table, type=kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}{_explained(text, table, str(error))}") from None


def _explained(text: str, table: dict[str, Any], error: str) -> str:
    """What msgspec says of a wrong setting, with its line and key in front, and its value unless that is secret."""
    words, _, path = error.partition(" - at ")
    key = place.key_of(path)
    if unknown := _UNKNOWN.search(words):
        key = (*key, unknown[1])
    line = place.line_of(text, key)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
    found: Any = table
    with contextlib.suppress(LookupError, TypeError):
        for part in key:
            found = found[part]
    got = ""
    if not unknown and not isinstance(found, (dict, list)) and not _SECRET.search(name):
        shown = repr(found)[:60]
        got = f": {shown}" if ", got" in words else f", which {shown} is not"
    return f"{f' line {line}' if line else ''}: {f'{name}: ' if name else ''}{words}{got}"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port"."""
    host, _, port = address.rpartition(":")
    if int(port) > 65535:
        raise ConfigError(f"address {address} has a port above 65535")
    return host.strip("[]"), int(port)


def storage_limit(settings: ApplianceSettings, failed: Container[Path] = ()) -> int:
    """Bytes of content this box may hold: as configured, else 95 % of what its disks have that have not failed.

    What passed-on content may take on top is taken off these 95 %.
    """
    if settings.storage_bytes:
        return settings.storage_bytes
    pulled = settings.miss.pulled_bytes if settings.on_miss == "proxy" else 0
    return max(
        0, int(0.95 * sum(_disk_bytes(Path(root)) for root in settings.store if Path(root) not in failed)) - pulled
    )


def _disk_bytes(root: Path) -> int:
    """Size of the disk that a directory is on, 0 of one that does not answer."""
    try:
        stat = os.statvfs(root)
    except OSError:
        return 0
    return stat.f_blocks * stat.f_frsize
