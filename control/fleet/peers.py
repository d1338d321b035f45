"""Boxes that prove who they are: what their certificate says of the request that came over its connection."""

from __future__ import annotations

import time

from aiohttp import web

from control.http import parts
from oca.trust import identity, peers
from oca.trust.peers import Peer


def proved(request: web.Request) -> Peer | None:
    """The appliance whose certificate this request's connection has shown, None if it has shown none.

    HTTPForbidden if it is of somebody else, or no longer good: it is held against every request, since a connection
    may outlive the trust in it. Behind a proxy that ends TLS nothing is proved.
    """
    if request.transport is None:
        return None
    connection = request.transport.get_extra_info("ssl_object")
    if connection is None or not connection.getpeercert(binary_form=True):
        return None
    found = identity.presented(connection)
    why = peers.refusal(found, ("appliance",), time.time(), parts(request).state.revoked)
    if why:
        raise web.HTTPForbidden(reason=why)
    return found


def caller_of(request: web.Request) -> str | None:
    """Id of the appliance that asks, None if it has not proved who it is; HTTPForbidden as `proved`."""
    found = proved(request)
    return None if found is None else found.id
