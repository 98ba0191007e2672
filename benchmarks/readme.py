"""`python -m benchmarks.readme`: the table of results in README.md, from what the benchmarks wrote.

Rewrites what stands between `<!-- results -->` and `<!-- /results -->`; `--check` writes nothing and exits with 1 when
that is not what benchmarks/results and assets/adapter/results.json say. What has not been measured has no row.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
EVALUATION = ROOT / "assets" / "adapter" / "results.json"
PLACE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)

Rows = Iterator[tuple[str, str]]  # (what was measured, the figure)


def main(argv: list[str] | None = None) -> int:
    """Rewrite the table, or compare it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme")
    parser.add_argument("--check", action="store_true", help="exit with 1 when the table is out of date")
    check = parser.parse_args(argv).check
    before = README.read_text(encoding="utf-8")
    if not PLACE.search(before):
        print(f"{README.name} has no lines <!-- results --> and <!-- /results -->. Put them back.", file=sys.stderr)
        return 1
    after = PLACE.sub(lambda _: table(), before)
    if check and after != before:
        print(f"{README.name} is older than the results. Type: python -m benchmarks.readme", file=sys.stderr)
        return 1
    if after != before:
        README.write_text(after, encoding="utf-8")
    return 0


def table() -> str:
    """Return the lines between the markers: a row for each figure with its command, then the machines."""
    lines, machines = ["| what | figure | command |", "| --- | --- | --- |"], {}
    for name, rows in PARTS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            results = json.loads(path.read_text(encoding="utf-8"))
            try:
                lines += [f"| {what} | {figure} | `python -m benchmarks.{name}` |" for what, figure in rows(results)]
            except KeyError as error:  # the benchmark has changed what it writes
                sys.exit(f"{path.name} has no {error}. Type: python -m benchmarks.{name}, or change its rows here.")
            if "machine" in results:
                machines.setdefault(results["machine"], []).append(name)
    if EVALUATION.exists():
        results = json.loads(EVALUATION.read_text(encoding="utf-8"))
        limit = f" --limit {results['limit']}" if results["limit"] else ""
        command = f"python -m train evaluate --adapter embedded --tasks {','.join(results['tasks'])}{limit}"
        command += f" --seed {results['seed']} --output results.json"
        lines += [f"| {what} | {figure} | `{command}` |" for what, figure in evaluation(results)]
    if machines:
        of = "; ".join(f"{', '.join(names)}: {machine}" for machine, names in machines.items())
        lines += ["", f"Measured on, where the machine matters: {of}."]
    return "\n".join(["", *lines, "", ""])


# --- one function a file: its rows ---


def serve(r: Any) -> Rows:
    app, usual, llama = r["app"], r["usual"], r["llama.cpp"]
    both = [(way["seconds from start to page"], way["seconds from start to first word"]) for way in (app, usual)]
    what = "start to page, start to first word: the app; the usual Space's stack"
    yield what, "; ".join(f"{page:.1f} s, {word:.1f} s" for page, word in both)
    ours, raw = app["tokens/s through /chat"], app["tokens/s of raw llama.cpp"]
    what = "decoding a long reply through `/chat`, beside raw llama.cpp with the same adapter"
    yield what, f"{ours:.0f} and {raw:.0f} tokens/s, ratio {ours / raw:.2f}"
    alone = [way["tokens/s alone"] for way in (app, usual)]
    what = "decoding short replies: the app, the usual stack"
    yield what, "{:.0f} and {:.0f} tokens/s".format(*alone) + f", {alone[0] / alone[1]:.1f} times"
    for turn in (1, 5):
        ours, theirs = (way[f"seconds to the first word, turn {turn}"] for way in (app, usual))
        what = f"first word at turn {turn}: the app, the usual stack"
        yield what, f"{ours:.2f} and {theirs:.2f} s, ratio {ours / theirs:.2f}"
    for n in ("2", "4", "8"):
        speeds = [way["visitors"][n]["tokens/s together"] for way in (app, llama, usual)]
        waits = [way["visitors"][n]["first word, 95th percentile"] for way in (app, usual)]
        what = f"{n} visitors at once, together: the app, raw llama.cpp, the usual stack"
        yield what, "{:.0f}, {:.0f} and {:.0f} tokens/s".format(*speeds)
        what = f"{n} visitors at once, first word, 95th percentile: the app, the usual stack"
        yield what, "{:.1f} and {:.1f} s".format(*waits)
    reading, writing = (r[f"worst seconds from Stop to idle, while {when}"] for when in ("reading", "writing"))
    yield "Stop to idle, worst, while reading a prompt and while writing", f"{reading:.2f} s, {writing:.2f} s"
    memory = [way["resident memory, MB"] for way in (app, usual)]
    yield "resident memory: the app, the usual stack", "{:.0f} and {:.0f} MB".format(*memory)


def copying(r: Any) -> Rows:
    alone, grouped = r["tokens/s, each token alone"], r["tokens/s, copied tokens in groups"]
    what = "answers from passages: copied tokens in groups, against each token alone"
    yield what, f"{grouped:.0f} and {alone:.0f} tokens/s, ratio {r['ratio']:.2f}"


def users(r: Any) -> Rows:
    count = r["users at once"]
    answers = f"{r['answers']} answers, {r['errors']} errors, {r['mixed conversations']} mixed conversations"
    yield f"{count} visitors at once for {r['seconds']} s", answers
    yield (
        f"an answer to one of {count} at once: median, slowest",
        (f"{r['median seconds for an answer']:.1f} s, {r['slowest answer, seconds']:.1f} s"),
    )


def train(r: Any) -> Rows:
    ways = [r[way] for way in ("sft", "loop", "trl")]
    speeds = [way["tokens/s"] for way in ways]
    yield (
        "training, the same rows: `sft`, a loop like the published scripts', TRL as it comes",
        ("{:.0f}, {:.0f} and {:.0f} tokens/s".format(*speeds) + f", {speeds[0] / speeds[2]:.1f} times TRL"),
    )
    losses = "{:.2f}, {:.2f} and {:.2f} nats per token".format(*(way["held out after"] for way in ways))
    yield "the same three: held-out loss at the end", f"{losses}, from {ways[0]['held out before']:.2f}"
    yield "the same three: peak memory", "{:,.0f}, {:,.0f} and {:,.0f} MB".format(*(w["peak memory, MB"] for w in ways))


def limits(r: Any) -> Rows:
    for row in r["figures"]:
        of = f"{row['tokens/s']:.0f} of {row['limit']:,.0f} tokens/s at most"
        yield f"{row['figure']}, against the machine's limit", f"{row['share']:.2f}: {of}"


def knowledge(r: Any) -> Rows:
    unseen = r["builtin"]["test"]
    what = f"passages for {unseen['questions']} unseen lay questions: right topic first, among three"
    yield what, f"{unseen['hit@1']:.2f}, {unseen['hit@3']:.2f}"
    wrong = f"{unseen['off_topic_found'] * unseen['off_topic']:.0f} of {unseen['off_topic']}"
    yield "unseen off-topic questions that find a passage", wrong
    read = r["choice"]
    what = f"of the right topic's passages, for {read['questions']} of these: one that answers is first, among two"
    yield what, f"{read['first']:.2f}, {read['of_two']:.2f}"
    if isinstance(medquad := r["medquad"], dict):  # or why it was left out
        what = f"MedQuAD, {medquad['passages']:,} passages: MRR of {medquad['test']['questions']} unseen paraphrases"
        yield what, f"{medquad['test']['mrr']:.2f}"
    own = r["own_folder"]
    what = f"a folder of {own['files']:,} files: to index, to open again"
    yield what, f"{own['build_seconds']:.0f} s, {own['open_again_seconds']:.1f} s"


def citations(r: Any) -> Rows:
    for engine, found in r.items():
        how = f"`--engine {engine} --n {found['replies']} --max-tokens {found['max_tokens']}`"
        yield (
            f"citations that do not resolve or quote wrongly ({how})",
            f"{len(found['wrong'])} of {found['citations']}",
        )


def sampling(r: Any) -> Rows:
    found = r["default"]
    what = f"of {found['replies']} replies at default settings: end by themselves, repeat themselves"
    yield what, f"{found['ended_by_themselves']:.2f}, {found['repeat_themselves']}"
    yield "the same replies: sentences that no passage supports", f"{found['unsupported_sentences']:.2f}"


PARTS: dict[str, Callable[[Any], Rows]] = {
    "serve": serve,
    "copying": copying,
    "users": users,
    "train": train,
    "limits": limits,
    "knowledge": knowledge,
    "citations": citations,
    "sampling": sampling,
}


def evaluation(r: Any) -> Rows:
    """Yield base, adapter and their paired difference for each metric of `train evaluate`."""
    for task, metrics in r["tasks"].items():
        for metric, own in metrics.items():
            base, change = r["base_tasks"][task][metric], r["paired"][task][metric]
            interval = f"{change['low']:+.3f} to {change['high']:+.3f}"
            yield (
                f"{task}, {metric.replace('_', ' ')}, {own['n']} rows: base, adapter, difference (95 % interval)",
                (f"{base['value']:.3f}, {own['value']:.3f}, {change['difference']:+.3f} ({interval})"),
            )


if __name__ == "__main__":
    sys.exit(main())
