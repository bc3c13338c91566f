"""Try what can go wrong: `python -m tests.faults`, in a checkout, with the packages of the tests.

Without arguments every kind is tried in the long form, its figures are written into results/ and the page
docs/what_can_go_wrong.md is drawn. `--only kills world` tries these kinds alone and draws the page with the other
figures as they were, `--fault NAME` these rows of them alone. `--page` draws it of the figures that are there. `--few`
tries as often as CI does and writes nothing; it prints one line of JSON for each fault. `--until 02:10` ends at this
time of the day with what was tried by then: each fault has its share of the time, and what it leaves is the next ones'.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402
import what_goes_wrong as wrong  # noqa: E402


def main(given: list[str] | None = None) -> int:
    """Try them; 1 where anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="KIND", choices=list(wrong.kinds()), help="these kinds alone")
    parser.add_argument("--fault", nargs="+", metavar="NAME", help="these rows alone")
    parser.add_argument("--page", action="store_true", help="draw the page of the figures that are there")
    parser.add_argument("--few", action="store_true", help="as often as CI does; writes nothing")
    parser.add_argument("--until", metavar="HH:MM", help="end then, with what was tried")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    lost, end = 0, _end(asked.until)
    for word, kind in {} if asked.page else wrong.kinds().items():
        if asked.only and word not in asked.only:
            continue
        rows = []
        for number, fault in enumerate(kind.faults):
            if asked.few and not fault.few:
                continue
            if asked.fault and fault.name not in asked.fault:
                rows += [] if asked.few else [row for row in wrong.kept(word)["rows"] if row.name == fault.name]
                continue
            share = time.time() + (end - time.time()) / (len(kind.faults) - number)
            row = wrong.tried(fault, fault.few if asked.few else fault.many, share)
            lost += row.losses
            rows.append(row)
            print(json.dumps({"kind": word, **asdict(row)}, ensure_ascii=False), flush=True)
        if not asked.few:
            wrong.keep(word, rows)
    if not asked.few:
        wrong.PAGE.write_text(wrong.page())
    return int(lost > 0)


def _end(until: str | None) -> float:
    """When to end, the next time that the clock says so; never where nothing was said."""
    if until is None:
        return math.inf
    now = datetime.now().astimezone()
    hour, minute = map(int, until.split(":"))
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (end if end > now else end + timedelta(days=1)).timestamp()


if __name__ == "__main__":
    sys.exit(main())
