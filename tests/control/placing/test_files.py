"""Problem and placement files: what is wrong with one is said in a sentence, and the judge finds what is broken."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from control.placement import files, placement
from control.placement.problem import ProblemError, check
from control.placement.verdict import judge

SMALL = Path(__file__).parents[2] / "data" / "placement-small.json"
OCACTL = str(Path(sys.executable).with_name("ocactl"))


def ocactl(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [OCACTL, "plan", *map(str, words)], capture_output=True, text=True, timeout=100, check=False
    )


def _set(value: Any, *path: str | int) -> Callable[[dict[str, Any]], None]:
    """A change of a document at a path."""

    def change(document: dict[str, Any]) -> None:
        at: Any = document
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return change


WRONG: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (_set(-1, "demand", 2, "requests"), "the demand for file 'dune-hd' in region 'north' is -1 requests"),
    (_set(math.nan, "demand", 2, "requests"), "the demand for file 'dune-hd' in region 'north' is nan requests"),
    (_set("many", "demand", 2, "requests"), "Expected `float`, got `str` - at `$.demand[2].requests`"),
    (_set("north", "demand", 1, "region"), "demand for file 'dune-4k' in region 'north' is given twice"),
    (_set("hbo", "demand", 2, "file"), "demand[2] names file 'hbo', which is not listed"),
    (_set("news", "files", 0, "id"), "file 'news' is listed twice"),
    (_set("north-disk", "appliances", 0, "id"), "appliance 'north-disk' is listed twice"),
    (_set([], "files"), "the catalog is empty"),
    (_set([], "regions", 1, "reach"), "demand for region 'south'"),
    (_set(2, "format"), "has format 2, and this version reads 1"),
    (_set("1", "format"), "has no format number"),
    (_set(1, "replica"), "Object contains unknown field `replica`"),
    (_set([[1, 2]], "cost"), "cost has 1 rows for 2 regions"),
    (_set([1], "cost", 1), "cost[1] has 1 numbers for 3 appliances"),
    (_set(math.nan, "cost", 0, 1), "the cost of region 'north' from appliance 'north-disk' is nan"),
    (_set(0, "files", 0, "bytes"), "bytes of file 'dune-4k' is 0"),
    (_set(2**70, "files", 0, "bytes"), "bytes of file 'dune-4k'"),
    (_set(-2.5, "titles", 0, "boost"), "boost of the title of file 'dune-4k' is -2.5"),
    (_set(80, "appliances", 2, "storage"), "take 90 bytes, and it stores 80: that is 10 too much"),
    (_set(50, "appliances", 2, "fill"), "take 90 bytes, and it may fill 50: that is 40 too much"),
    (_set([{"file": "news", "appliance": "south-disk"}], "exclusions"), "'news' is pinned to appliance 'south-disk'"),
    (_set(4, "files", 2, "replicas"), "must be stored 4 times, but only 3 appliances may hold it"),
    (_set(5000, "files", 1, "bytes"), "of 5000 bytes must be stored 1 times, but the largest appliance stores 700"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_said(change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path) -> None:
    """One sentence, which names what is wrong."""
    document = json.loads(SMALL.read_text())
    change(document)
    if words.startswith("demand for region"):
        document["regions"][1]["origin_cost"] = None
        words = "nothing reaches region 'south'"
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ProblemError) as refused:
        check(files.read(path))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 1,\n "files": [}', "no JSON: Expecting value in line 2, column 12"),
        ('{"format": 1, "format": 1}', "'format' is there twice"),
        ("[" * 100_000, "no JSON that can be read"),
        ("PK\x03\x04 no zip", "no npz file"),
        ("[1]", "no format number"),
        ("", "no JSON"),
    ],
)
def test_what_is_no_problem_file(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "problem").write_text(text)
    with pytest.raises(ProblemError, match=words):
        files.read(tmp_path / "problem")


def test_the_arrays_hold_the_same_problem(tmp_path: Path) -> None:
    """A problem written as npz is read as it was; arrays that do not fit each other are refused."""
    problem = files.read(SMALL)
    files.write(problem, tmp_path / "p.npz")
    again = files.read(tmp_path / "p.npz")
    for name, value in vars(problem).items():
        assert np.array_equal(value, getattr(again, name)), name
    arrays = dict(np.load(tmp_path / "p.npz"))
    for name, wrong, words in (
        ("demand_file", np.full(7, 4), "demand_file holds a number that is not from 0 to 3"),
        ("storage", np.ones(2), "storage has the shape"),
        ("storage", np.array(["a", "b", "c"]), "storage is of type"),
        ("pins", np.array([[0, 3]]), "pins holds a number that is not from 0 to 2"),
        ("unknown", np.ones(1), "unknown array 'unknown'"),
    ):
        np.savez(tmp_path / "q.npz", **{**arrays, name: wrong})
        with pytest.raises(ProblemError, match=words):
            files.read(tmp_path / "q.npz")


@pytest.mark.long
def test_solve_and_check(tmp_path: Path) -> None:
    """The commands, without a controller: what one writes the other accepts, and refuses once it is tampered with."""
    out = tmp_path / "placed.json"
    done = ocactl("solve", SMALL, "--json", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    assert found["gap"] <= 1e-6
    done = ocactl("check", SMALL, out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["objective"] == pytest.approx(found["objective"])
    found["placement"]["south-disk"].remove("news")
    out.write_text(json.dumps(found))
    done = ocactl("check", SMALL, out)
    assert done.returncode == 1
    assert "'news' is pinned to appliance 'south-disk' and not stored there" in done.stderr
    done = ocactl("solve", SMALL, "--solver", "cbc", "--method", "exact")
    assert done.returncode == 0, done.stderr
    assert "north-flash" in done.stdout
    assert ocactl("solve", tmp_path / "none.json").returncode == 1


def test_the_judge_finds_what_is_broken() -> None:
    """Storage, fill, exclusions, classes, shares and replicas, each on its own."""
    problem = files.read(SMALL)
    everywhere = np.array([(f, a) for f in range(4) for a in range(3)])
    broken = " ".join(judge(problem, placement.Placement(everywhere)).broken)
    for words in ("stores 1040", "is filled with", "excluded from appliance 'south-disk'", "media class"):
        assert words in broken
    kept = np.array([[2, 2]])
    broken = " ".join(judge(problem, placement.Placement(kept)).broken)
    assert "'dune-hd' is stored 0 times, not 1" in broken
    rows, shares = np.array([[2, 1, 2], [2, 1, 0], [3, 0, -1]]), np.array([0.5, 0.25, 1.0])
    broken = " ".join(judge(problem, placement.Placement(kept, rows, shares)).broken)
    for words in ("sum to 0.5, not 1", "which does not store it", "is shared out, and there is none"):
        assert words in broken


def test_a_file_too_large_for_all_is_told(tmp_path: Path) -> None:
    document = json.loads(SMALL.read_text())
    document["files"][3]["bytes"] = 10_000
    document["stored"] = []
    (tmp_path / "p.json").write_text(json.dumps(document))
    (sentence,) = check(files.read(tmp_path / "p.json"))
    assert sentence == "1 files are larger than every appliance and are left to the origin: tail"
