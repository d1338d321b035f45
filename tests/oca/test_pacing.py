"""Pacing: what players wish, what the configuration allows, and what the kernel is told."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.errors import ConfigError
from oca.http.pacing import LEAST_KBPS, Pacing, PacingSettings, available, use_congestion

NONE = (1 << 64) - 1
MAX_PACING_RATE = 47


def head(target: str, *fields: str) -> bytes:
    return "\r\n".join((f"GET {target} HTTP/1.1", "Host: a", *fields, "", "")).encode()


@pytest.mark.parametrize(
    ("request_head", "kbps"),
    [
        (head("/t/a"), 0),
        (head("/t/a?CMCD=bl%3D21300%2Crtp%3D15000%2Csid%3D%22x%22"), 15000),
        (head("/t/a?CMCD=rtp%3D15000"), 15000),
        (head("/t/a?CMCD=bl=3,rtp=15000"), 15000),
        (head("/t/a?x=1&CMCD=rtp%3d15000&y=2"), 15000),
        (head("/t/a", "CMCD-Status: bs,rtp=15000"), 15000),
        (head("/t/a", "cmcd-status: rtp=15000"), 15000),
        (head("/t/a", "CMCD-Request: rtp=15000"), 0),
        (head("/t/a?xrtp%3D15000"), 0),
        (head("/t/a?CMCD=xrtp%3D15000"), 0),
        (head("/t/a?OTHER=rtp%3D15000"), 0),
        (head("/t/a?CMCD=rtp%3D-3"), 0),
        (head("/t/a?CMCD=rtp%3D1.5"), 0),
        (head("/t/a?CMCD=rtp%3D99999999999999999999"), 0),
        (head("/t/a?CMCD=rtp%3D0"), 0),
        (head("/t/a?CMCD=rtp%3D1"), LEAST_KBPS),
    ],
)
def test_a_players_rtp_is_a_ceiling_in_kilobits(request_head: bytes, kbps: int) -> None:
    """CTA-5004: an integer, in the query or in CMCD-Status; whatever is not that is no wish."""
    assert Pacing(PacingSettings(cmcd=True)).rate(request_head) == (kbps * 125 or NONE)


def test_the_configured_ceiling_is_never_exceeded_and_cmcd_is_off_by_default() -> None:
    asks = head("/t/a?CMCD=rtp%3D50000")
    assert Pacing(PacingSettings(rate_mbps=20, cmcd=True)).rate(asks) == 2_500_000
    assert Pacing(PacingSettings(rate_mbps=80, cmcd=True)).rate(asks) == 6_250_000
    assert Pacing(PacingSettings(rate_mbps=80)).rate(asks) == 10_000_000
    assert not Pacing(PacingSettings()).wanted


@given(st.binary(max_size=300))
def test_no_bytes_break_it(data: bytes) -> None:
    assert LEAST_KBPS * 125 <= Pacing(PacingSettings(cmcd=True)).rate(b"GET /?CMCD=rtp%3D" + data) <= NONE


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nCMCD-Status:", b"GET /", b"GET /?CMCD="])
@pytest.mark.parametrize("more", [b" ", b"?CMCD=", b"&CMCD=", b",", b"rtp=", b", rtp=x", b"?CMCD=rtp="])
def test_no_head_takes_long_to_search(start: bytes, more: bytes) -> None:
    """A hundred times the longest head, which would take an hour if time grew with the square of the length."""
    hostile = start + more * ((2 << 20) // len(more))
    assert Pacing(PacingSettings(cmcd=True)).rate(hostile) == NONE


@pytest.mark.long
async def test_a_paced_connection_is_sent_no_faster(start, make_title) -> None:
    """Two megabytes at 16 Mbit/s take a second; the next answer without a wish is as fast as ever."""
    running = await start(pacing=Pacing(PacingSettings(cmcd=True)))
    made = make_title(running.root, v1=[2_000_000, 2_000_000])
    client = await running.connect()
    began = time.monotonic()
    answer = await client.ask(f"{made.url}/v1/1.m4s?CMCD=rtp%3D16000")
    assert answer.body == made.segment("v1", 1)
    assert time.monotonic() - began > 0.5
    served = next(iter(running.server._connections))._socket
    assert struct.unpack("=Q", served.getsockopt(socket.SOL_SOCKET, MAX_PACING_RATE, 8)) == (2_000_000,)
    for _ in range(2):  # the second is answered the short way
        assert (await client.ask(f"{made.url}/v1/2.m4s")).body == made.segment("v1", 2)
        assert struct.unpack("=Q", served.getsockopt(socket.SOL_SOCKET, MAX_PACING_RATE, 8)) == (NONE,)


def test_congestion_control_is_chosen_restored_or_refused_with_what_there_is() -> None:
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    other = next((name for name in available() if name != default), default)  # a kernel may have but one
    with socket.socket() as sock:
        for name, expected in ((other, other), ("", default)):
            use_congestion([sock], name)
            chosen = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            assert chosen.rstrip(b"\0").decode() == expected
        with pytest.raises(ConfigError, match=r"'nosuch' cannot be used .* this kernel has .*modprobe tcp_nosuch"):
            use_congestion([sock], "nosuch")
