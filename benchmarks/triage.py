"""`python -m benchmarks.triage`: how many emergencies and crises medchat.triage recognises, and its false alarms.

Reads tests/data/triage_bank.jsonl (or --bank FILE): {"text" or "turns", "level", "flag", "kind", "lang", "split"}.
`--ordinary FILE` adds ordinary questions, one a line, none of which should raise anything. Prints a table as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from medchat import triage

BANK = Path(__file__).parent.parent / "tests" / "data" / "triage_bank.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("tune", "test"), help="only this half of the bank (default: all of it)")
    parser.add_argument("--bank", type=Path, default=BANK)
    parser.add_argument("--ordinary", type=Path, help="ordinary questions, one a line")
    parser.add_argument("--misses", action="store_true", help="print every item that is judged wrongly")
    args = parser.parse_args()
    items = [json.loads(line) for line in args.bank.read_text(encoding="utf-8").splitlines()]
    items = [item for item in items if args.split in (None, item["split"])]
    result = measure(items, misses=args.misses)
    if args.ordinary:
        questions = args.ordinary.read_text(encoding="utf-8").splitlines()
        alarms = [question for question in questions if triage.check(question).level != "none"]
        result["false_alarms_ordinary"] = share(len(alarms), len(questions))
        if args.misses:
            print(*(f"ordinary: {question}" for question in alarms), sep="\n")
    print(json.dumps(result, indent=2))


def conversation(item: dict) -> list[dict[str, str]]:
    """Return a bank item as a chat's messages."""
    return [{"role": "user", "content": turn} for turn in item.get("turns") or [item["text"]]]


def measure(items: Sequence[dict], *, misses: bool = False) -> dict:
    """Return recall by level, flag and language, false alarms, and milliseconds per item.

    An emergency counts as recognised at level emergency or crisis, a crisis only at level crisis.
    """
    triage.check("ready")  # reads the tables
    right, wrong, times = Counter(), Counter(), []
    for item in items:
        start = time.perf_counter()
        found = triage.check(conversation(item))
        times.append(1000 * (time.perf_counter() - start))
        enough = {"none": ("none",), "emergency": ("emergency", "crisis"), "crisis": ("crisis",)}[item["level"]]
        keys = [item["level"], f"language {item['lang']} {item['level'] != 'none'}"]
        if item["level"] != "none":
            keys.append(f"flag {item['flag']}")
        (right if found.level in enough else wrong).update(keys)
        if misses and found.level not in enough:
            flags = " ".join(flag.id for flag in found.flags)
            said = " || ".join(message["content"] for message in conversation(item))
            print(f"{item['level']} {item.get('flag')} -> {found.level} {flags}: {said}")
    total = right + wrong
    return {
        "emergency_recall": share(right["emergency"], total["emergency"]),
        "crisis_recall": share(right["crisis"], total["crisis"]),
        "false_alarms": share(wrong["none"], total["none"]),
        "missed_by_flag": {key[5:]: f"{wrong[key]}/{total[key]}" for key in sorted(wrong) if key.startswith("flag ")},
        "wrong_by_language": {
            key[9:]: f"{wrong[key]}/{total[key]}" for key in sorted(wrong) if key.startswith("language")
        },
        "milliseconds": {"median": round(median(times), 3), "worst": round(max(times), 2)},
    }


def share(part: int, whole: int) -> dict[str, float | int]:
    """Return a share with its counts."""
    return {"value": round(part / whole, 4) if whole else 0.0, "n": part, "of": whole}


if __name__ == "__main__":
    main()
