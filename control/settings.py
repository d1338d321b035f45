"""control.toml: the settings of a controller."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from control.fleet.listener import TlsSettings
from control.operators.audit import AuditSettings
from control.operators.rates import RateSettings
from control.titles.liveness import LiveSettings
from control.titles.origins import OriginSettings
from control.triggers.kept import CdniSettings
from fill.ranking import Escalation
from oca.config import Address
from oca.http.gate import TokenSettings
from oca.wire import Url


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[api]: who may use /api/v1."""

    open: Annotated[
        bool, Meta(description="whether anybody who reaches the API may do anything; for trials on one machine")
    ] = False


class ControlSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One controller."""

    database: Annotated[
        str,
        Meta(
            description="SQLAlchemy URL of the state, such as sqlite+aiosqlite:////var/lib/oca-control/state.db, or "
            "postgresql+asyncpg://oca@db.example/oca for several controllers"
        ),
    ]
    public_url: Annotated[Url, Meta(description="where viewers reach this controller, without a path")]
    listen: Annotated[Address, Meta(description="address and port to serve on")] = "127.0.0.1:8800"
    coverage: Annotated[
        str, Meta(description="coverage zone file to put in force at the first start, '' for none")
    ] = ""
    heartbeat_s: Annotated[float, Meta(gt=0, description="seconds between two heartbeats of an appliance")] = 30.0
    dead_s: Annotated[float, Meta(gt=0, description="seconds of silence after which an appliance is dead")] = 90.0
    steer_ttl_s: Annotated[int, Meta(gt=0, description="seconds after which a player asks steering again")] = 300
    tokens: TokenSettings = TokenSettings()
    trusted_proxies: Annotated[
        list[str], Meta(description="addresses whose X-Forwarded-For is believed; from all others it is ignored")
    ] = []
    api: ApiSettings = ApiSettings()
    audit: AuditSettings = AuditSettings()
    rates: RateSettings = RateSettings()
    live: LiveSettings = LiveSettings()
    escalation: Escalation = Escalation()
    cdni: CdniSettings = CdniSettings()
    tls: TlsSettings = TlsSettings()
    origins: list[OriginSettings] = []
