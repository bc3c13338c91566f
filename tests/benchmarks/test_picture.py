"""The picture of the results: it draws what the files say, all of it, and is the one that lies in docs."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import picture
from benchmarks.report import RESULTS

FILES = {path.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
SVG = "{http://www.w3.org/2000/svg}"


def rows(svg: str) -> dict[str, ElementTree.Element]:
    """The rows of a picture, by workload and recipe."""
    return {group.get("id"): group for group in ElementTree.fromstring(svg).iter(f"{SVG}g")}


def wanted(results) -> dict[str, dict]:
    """Cell by cell the newest that a picture has to show, found anew and in another way."""
    found = {}
    for result in results:
        for cell in result["cells"]:
            if result["threads"] == 1 and result["native"] and result["rounds"] >= 15:
                key = f"{cell['workload']}-{cell['recipe']}"
                if key not in found or found[key][0] < result["date"]:
                    found[key] = (result["date"], cell)
    return {key: cell for key, (_, cell) in found.items()}


def read_ratio(svg: str, x: float) -> float:
    """The ratio at a place, by the two outermost lines of the grid and what is written over them."""
    root = ElementTree.fromstring(svg)
    ticks = [t for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    (left, low), (right, high) = ((float(t.get("x")), float(t.text)) for t in (ticks[0], ticks[-1]))
    return low * math.exp((x - left) / (right - left) * math.log(high / low))


def check(svg: str, results) -> None:
    """Every cell has its row, and marks and words in it are what its file has."""
    shown, cells = rows(svg), wanted(results)
    assert shown.keys() == cells.keys()
    for key, cell in cells.items():
        best = cell["candidates"][cell["best_peer"]]
        low, ratio, high = best["ours_over_it"]
        dot = shown[key].find(f"{SVG}circle")
        assert read_ratio(svg, float(dot.get("cx"))) == pytest.approx(ratio, rel=0.01), key
        spread, whole = (shown[key].find(f"{SVG}path[@class='{kind}']").get("d") for kind in ("spread", "whole"))
        ends = [read_ratio(svg, float(number)) for number in re.match(r"M([\d.]+) \S+?H([\d.]+)$", spread).groups()]
        assert ends == pytest.approx([low, high], rel=0.01), key
        step = cell["candidates"][cell["best_peer_whole"]]["ours_over_it_whole"][1]
        assert read_ratio(svg, float(re.match(r"M([\d.]+)", whole)[1])) == pytest.approx(step, rel=0.01), key
        hollow = "disturbed" in dot.get("class")
        assert hollow == (4 * len(cell["disturbed_rounds"]) > cell["rounds"]), key
        words = [text.text for text in shown[key].iter(f"{SVG}text")]
        assert words[0].startswith(f"{cell['recipe']} ") and words[-1] == f"{ratio:.2f}  {cell['best_peer']}"


def test_the_picture_in_docs_is_what_the_results_say():
    """Every number in it; and it is what the command draws today."""
    drawn = picture.PICTURE.read_text()
    check(drawn, FILES.values())
    assert len(rows(drawn)) >= 18
    assert drawn == picture.draw(picture.newest(FILES.values()))


def test_a_picture_of_other_numbers_is_seen():
    """The check above reads places, not only words."""
    drawn = picture.PICTURE.read_text()
    for number in range(3):
        results = copy.deepcopy([*FILES.values()])
        cell = next(iter(wanted(results).values()))
        cell["candidates"][cell["best_peer"]]["ours_over_it"][number] *= 1.1
        with pytest.raises(AssertionError):
            check(drawn, results)
    with pytest.raises(AssertionError):
        check(drawn, [*FILES.values()][:2])


@pytest.mark.parametrize("low, middle, high", [(0.021, 0.06, 0.3), (0.9, 1.3, 4.2), (0.97, 1.0, 1.02), (0.3, 0.5, 7.5)])
def test_any_results_are_drawn_inside_the_picture(low, middle, high):
    """Also slower ones: the axis follows."""
    results = copy.deepcopy([FILES["2026-11-21-b.json"]])
    for cell in results[0]["cells"]:
        cell["candidates"][cell["best_peer"]]["ours_over_it"] = [low, middle, high]
        cell["candidates"][cell["best_peer_whole"]]["ours_over_it_whole"] = [middle] * 3
    svg = picture.draw(picture.newest(results))
    for group in rows(svg).values():
        ends = re.findall(r"[MH]([\d.]+)", group.find(f"{SVG}path[@class='spread']").get("d"))
        assert all(picture.LEFT <= float(x) <= picture.WIDTH - picture.RIGHT for x in ends)
    assert float(ends[0]) < float(ends[1])


def test_the_newest_of_a_cell_is_drawn_and_a_short_run_is_not():
    """Two threads, life without a compiler and runs of few rounds are other things."""
    old, new, short, slow, two = (copy.deepcopy(FILES["2026-11-21-b.json"]) for _ in range(5))
    for result, ratio, changes in (
        (old, 0.9, {"date": "2026-01-01T00:00:00+00:00"}),
        (new, 0.8, {"date": "2026-06-01T00:00:00+00:00"}),
        (short, 0.1, {"date": "2026-07-01T00:00:00+00:00", "rounds": 5}),
        (slow, 0.2, {"date": "2026-08-01T00:00:00+00:00", "native": False}),
        (two, 0.3, {"date": "2026-09-01T00:00:00+00:00", "threads": 2}),
    ):
        result.update(changes)
        for cell in result["cells"]:
            cell["candidates"][cell["best_peer"]]["ours_over_it"] = [ratio] * 3
    for order in ([old, new, short, slow, two], [two, slow, short, new, old]):
        svg = picture.draw(picture.newest(order))
        assert {[*group.iter(f"{SVG}text")][-1].text[:4] for group in rows(svg).values()} == {"0.80"}
    assert picture.newest([short, slow, two]) == []


def test_it_is_read_on_any_page_and_fetches_nothing():
    """Its own background, in both schemes of colours, text that is escaped, and no address but that of its format."""
    svg = picture.PICTURE.read_text()
    assert '<rect class="paper" width="920"' in svg and "prefers-color-scheme: dark" in svg
    assert re.findall(r"https?://\S+?(?=[\"'])", svg) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<script|url\(|@import|href", svg)
    results = copy.deepcopy([FILES["2026-11-21-b.json"]])
    for cell in results[0]["cells"]:
        cell["candidates"]["<b>&"] = cell["candidates"][cell["best_peer"]]
        cell["best_peer"] = "<b>&"
    check(picture.draw(picture.newest(results)), results)


def test_the_command_writes_where_it_is_told(tmp_path):
    words = [sys.executable, "-m", "benchmarks.picture", "--output", str(tmp_path / "drawn.svg")]
    root = Path(picture.__file__).parents[1]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(wanted(FILES.values()))} cells drawn" in done.stdout, done.stderr
    assert (tmp_path / "drawn.svg").read_text() == picture.PICTURE.read_text()
    none = subprocess.run([*words, "--results", str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert none.returncode == 2 and "has no cell" in none.stderr
