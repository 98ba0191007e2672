"""`python -m benchmarks.nats`: whether the embedded adapter generalises: nats per token on answers that it never saw.

Base and adapter read the same question and answer pairs in the same chat format: K-QA's answers by physicians, and a
seeded sample of WikiDoc's patient information. Neither is in the recipe `embedded`. Prints and writes
benchmarks/results/nats.json, the paired difference with a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.knowledge import ROOT
from medchat import adapters
from medchat.prompt import SYSTEM, Template
from train import metrics, recipe, sft
from train.scoring import Answers, Chat
from train.tables import open_table, place

RESULTS = ROOT / "benchmarks" / "results" / "nats.json"
SETS = {
    "Itaykhealth/K-QA": ("test", "question", "answer"),
    "medalpaca/medical_meadow_wikidoc_patient_information": ("train", "input", "output"),
}
LONGEST = 2500  # characters of an answer


def main() -> None:
    """Score, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nats")
    parser.add_argument("--adapter", default="embedded", help="folder or Hub id of another adapter")
    parser.add_argument("--rows", type=int, default=200, help="of each data set (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from peft import PeftModel

    adapter = adapters.open_adapter(arguments.adapter)
    model, tokenizer, template = sft.load_base(recipe.load("embedded"))
    rows = {name: pairs(name, arguments.rows) for name in SETS}
    before = score("base", model, tokenizer, template, rows)
    after = score("adapter", PeftModel.from_pretrained(model, str(adapter.folder)), tokenizer, template, rows)
    found = {}
    for name in SETS:
        measured = metrics.measure(after[name], 0, before[name])
        share = measured["difference"]["difference"] / measured["base"]["value"]
        found[name] = {**measured, "change": round(share, 4)}
        print(name, json.dumps(found[name]))
    found["adapter_sha256"] = adapter.sha256
    arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def pairs(name: str, count: int) -> list[dict[str, Any]]:
    """Return a seeded sample of a data set's questions and answers as conversations."""
    split, asked, answered = SETS[name]
    found = [row for _, row in open_table(place(name, None, split)).rows() if isinstance(row, dict)]
    found = [row for row in found if row[asked] and row[answered] and len(row[answered]) <= LONGEST]
    random.Random(0).shuffle(found)
    return [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": row[asked].strip()},
                {"role": "assistant", "content": row[answered].strip()},
            ]
        }
        for row in found[:count]
    ]


def score(
    part: str, model: Any, tokenizer: Any, template: Template, rows: dict[str, list[dict[str, Any]]]
) -> dict[str, metrics.Scored]:
    """Return the nats per token of one model on each data set."""
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        answers = Answers(Path(folder) / "answers.jsonl", {})
        chat = Chat(part, model, tokenizer, template, SYSTEM, answers)
        found = {name: metrics.nll(*chat.nll(name, these))["nll"] for name, these in rows.items()}
        answers.close()
    return found


if __name__ == "__main__":
    main()
