"""`python -m benchmarks.serve`: our app through its public API beside raw llama.cpp, same model and adapter, one run.

Prints start-up and first-word times, the decoding ratio, time from Stop to idle, tokens reused at turn 3 and memory,
and writes them to benchmarks/results/serve.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from threading import Event
from typing import Any

from gradio_client import Client

from medchat import chat
from medchat.engines import Sampling
from medchat.engines.llama_cpp import open_llama_cpp, usable_cores

ROOT = Path(__file__).parent.parent
PORT = 7899
QUESTION = "Tell me everything about a healthy life: food, sleep, sport, friends, work and rest."
TOKENS = 200
ROUNDS = 5


def main() -> None:
    """Run all measurements and print them."""
    process, page, client, first = start_app()
    try:
        results: dict[str, Any] = {
            "machine": f"{platform.processor() or platform.machine()}, {usable_cores()} cores",
            "seconds from start to page": page,
            "seconds from start to first word": first,
        }
        engine = open_llama_cpp("embedded", ["embedded"])
        results |= decoding(client, engine)
        results["resident memory of the app, MB"] = resident(process.pid)
        results |= stopping(engine)
        results["tokens of turn 3 taken from the cache"] = reuse(engine)
    finally:
        process.terminate()
        process.wait()
    for name, value in results.items():
        print(f"{name:45} {value if isinstance(value, str) else round(value, 3)}")
    path = ROOT / "benchmarks" / "results" / "serve.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def start_app() -> tuple[subprocess.Popen, float, Client, float]:
    """Return the running app, seconds to its page, a client, and seconds to the first word of the first reply."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(PORT)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=5)
            break
        except OSError:
            time.sleep(0.02)
    page = time.perf_counter() - started
    client = Client(f"http://127.0.0.1:{PORT}", verbose=False)
    job = client.submit("How can I sleep better?", knowledge=False, api_name="/chat")
    next(iter(job))
    first = time.perf_counter() - started
    job.cancel()
    return process, page, client, first


def decoding(client: Client, engine: Any) -> dict[str, float]:
    """Return tokens/s through `/chat` and of raw llama.cpp, alternating, from first to last word, and their ratio."""
    ours, raw = [], []
    for _ in range(ROUNDS + 1):
        times = []
        for text in client.submit(QUESTION, temperature=0, max_tokens=TOKENS, knowledge=False, api_name="/chat"):
            times.append((time.perf_counter(), text))
        # Counted from the first text that came to the last: the tokens between them.
        count = len(engine.tokenize(times[-1][1])) - len(engine.tokenize(times[0][1]))
        ours.append(count / (times[-1][0] - times[0][0]))
        prompt = engine._prompt(
            [{"role": "system", "content": chat.prompt.SYSTEM}, {"role": "user", "content": QUESTION}], "medchat"
        )
        request = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "lora": [{"id": 0, "scale": 1.0}]}
        raw.append(engine.complete(request)["timings"]["predicted_per_second"])
    app, llama = statistics.median(ours[1:]), statistics.median(raw[1:])  # the first round warms both up
    return {"tokens/s through /chat": app, "tokens/s of raw llama.cpp": llama, "ratio": app / llama}


def stopping(engine: Any) -> dict[str, float]:
    """Return the worst seconds from closing a reply to an idle engine, while reading a prompt and while writing."""
    worst = {"reading": 0.0, "writing": 0.0}
    long = {"reading": QUESTION * 60, "writing": QUESTION}
    for when, text in long.items():
        for _ in range(ROUNDS):
            stream = engine.stream(
                [{"role": "user", "content": f"{time.time()} {text}"}],
                adapter="medchat",
                sampling=Sampling(max_tokens=1000),
                cancel=Event(),
            )
            for delta in stream:
                if delta.text or when == "reading":
                    break
            closed = time.perf_counter()
            stream.close()
            while engine.busy():
                time.sleep(0.005)
            worst[when] = max(worst[when], time.perf_counter() - closed)
    return {f"worst seconds from Stop to idle, while {when}": seconds for when, seconds in worst.items()}


def reuse(engine: Any) -> int:
    """Return how many tokens of a third turn's prompt came from the cache."""
    history: list[dict[str, str]] = []
    cached = 0
    for question in ("How can I sleep better?", "And on a night shift?", "Does coffee matter?"):
        text = ""
        for piece in chat.reply(engine, question, history, sampling=Sampling(max_tokens=60, seed=0)):
            text += piece.delta.text
            if piece.delta.stats:
                cached = piece.delta.stats.cached_tokens
        history += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return cached


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB (Linux), 0 where it cannot be read."""
    status = Path(f"/proc/{pid}/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if status.exists() else 0.0


if __name__ == "__main__":
    main()
