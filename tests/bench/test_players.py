"""The rules that simulated players follow: rung choice, quality of experience, reading a manifest."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.abr import Chooser, estimate, percentile
from bench.presentation import parse
from bench.qoe import Session, score
from oca.errors import FormatError

RATES = st.lists(st.floats(1e4, 1e9), min_size=1, max_size=20)


def test_estimate_is_the_formula() -> None:
    """0.5 p10 + 0.3 p25 + 0.2 median, less in proportion to a buffer below 30 s."""
    samples = [float(n) for n in range(1, 12)]
    assert estimate(samples, 30) == pytest.approx(0.5 * 2 + 0.3 * 3.5 + 0.2 * 6)
    assert estimate(samples, 15) == pytest.approx(estimate(samples, 30) / 2)
    assert estimate(samples, 90) == estimate(samples, 30)
    assert estimate([], 30) == 0


@given(RATES, st.floats(0, 60))
def test_estimate_is_never_above_the_median(samples: list[float], buffer_s: float) -> None:
    assert estimate(samples, buffer_s) <= percentile(sorted(samples), 0.5) * (1 + 1e-9)


def test_the_highest_rung_with_headroom_is_chosen() -> None:
    chooser = Chooser([3_000_000, 1_000_000, 235_000])
    assert chooser.choose(30) == 0, "nothing measured yet"
    chooser.measured(1_300_000, 1.0)
    assert (chooser.choose(30), chooser.choose(20)) == (1, 0)
    for _ in range(20):
        chooser.measured(3_700_000, 1.0)
    assert chooser.choose(30) == 2


def test_only_the_last_twenty_samples_count() -> None:
    chooser = Chooser([1_000_000])
    chooser.measured(1, 1.0)
    for _ in range(20):
        chooser.measured(9e6, 1.0)
    assert min(chooser._samples) == 9e6


def test_quality_of_experience_is_the_formula() -> None:
    session = Session(played_s=120, kbps=2350, switches=2, startup_s=3, stalls=1, stalled_s=0.5)
    expected = 0.4 * math.log(10) + 0.3 * math.exp(-1) + 0.2 * math.exp(-1) + 0.1 * math.exp(-30)
    assert score(session) == pytest.approx(expected)
    assert score(Session(0, 0, 0, 9, 0, 0)) == 0


@given(st.floats(60, 7200), st.floats(235, 6000), st.integers(0, 20), st.floats(0, 20), st.integers(0, 20))
def test_more_annoyance_is_never_a_better_experience(
    played: float, kbps: float, switches: int, startup: float, stalls: int
) -> None:
    good = score(Session(played, kbps, switches, startup, stalls, 0))
    for worse in (
        Session(played, kbps, switches + 1, startup, stalls, 0),
        Session(played, kbps, switches, startup + 1, stalls, 0),
        Session(played, kbps, switches, startup, stalls + 1, 0),
        Session(played, kbps / 2, switches, startup, stalls, 0),
    ):
        assert score(worse) <= good


TIMELINE = '<SegmentTimeline><S t="0" d="40" r="1"/><S d="5"/></SegmentTimeline>'
MPD = f"""<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">
<BaseURL serviceLocation="a">http://a/t/x/1/</BaseURL><BaseURL serviceLocation="b">http://b/t/x/1/</BaseURL>
<Period><AdaptationSet contentType="video"><Representation id="hi" bandwidth="900">
<SegmentTemplate timescale="10" initialization="hi/init.mp4" media="hi/$Number$.m4s">{TIMELINE}</SegmentTemplate>
</Representation><Representation id="lo" bandwidth="100">
<SegmentTemplate timescale="10" initialization="$RepresentationID$/init.mp4"
 media="$RepresentationID$/$Number$.m4s">{TIMELINE}</SegmentTemplate>
</Representation></AdaptationSet></Period></MPD>""".encode()


def test_a_manifest_is_read() -> None:
    shown = parse(MPD, "http://c/play/x/manifest.mpd")
    assert shown.bases == ("http://a/t/x/1/", "http://b/t/x/1/")
    assert [rung.id for rung in shown.video] == ["lo", "hi"]
    assert shown.video[0].segment(3) == "lo/3.m4s"
    assert (shown.video[1].durations, shown.segments, shown.audio) == ((4.0, 4.0, 0.5), 3, ())


def test_captions_and_thumbnails_are_no_rungs() -> None:
    others = b"""<AdaptationSet contentType="text" mimeType="text/vtt"><Representation id="c-en"/></AdaptationSet>
    <AdaptationSet contentType="image" mimeType="image/jpeg"><SegmentTemplate media="i-90-$Number$.jpg"/>
    <Representation id="i-90" bandwidth="9"/></AdaptationSet></Period>"""
    assert parse(MPD.replace(b"</Period>", others), "http://c/m") == parse(MPD, "http://c/m")


def test_without_a_base_the_manifest_s_own_place_counts() -> None:
    bare = MPD.replace(b"BaseURL", b"Base")
    assert parse(bare, "http://c/t/x/1/manifest.mpd").bases == ("http://c/t/x/1/manifest.mpd",)


@pytest.mark.parametrize("data", [b"", b"<", b"<MPD/>", MPD.replace(b"SegmentTimeline", b"Other")])
def test_what_cannot_be_played_is_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(FormatError, match="http://c/m"):
        parse(data, "http://c/m")
