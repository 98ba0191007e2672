"""`python -m benchmarks.serve`: our app through its public API beside raw llama.cpp and the stack of the usual Space.

Same base, same adapter, same questions, greedy, one run. Prints start-up, first-word and decoding times, the first word
of turns 1 and 5, 1 to 8 visitors at once, time from Stop to idle, tokens reused at turn 3 and memory, and writes them
to benchmarks/results/serve.json.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from gradio_client import Client

from medchat import chat
from medchat.engines import Sampling
from medchat.engines.llama_cpp import open_llama_cpp, usable_cores

ROOT = Path(__file__).parent.parent
PORT = 7899
COMMANDS = {"app": ["app.py", "--port", str(PORT)], "usual": ["-m", "benchmarks.usual", str(PORT)]}
QUESTION = "Tell me everything about a healthy life: food, sleep, sport, friends, work and rest."
CONVERSATION = (
    "How can I sleep better?",
    "And when I work at night?",
    "Does coffee matter?",
    "What about a nap after lunch?",
    "When should I see a doctor about it?",
)
VISITORS = (2, 4, 8)
GREEDY = {"temperature": 0, "knowledge": False}  # without passages, as the usual stack
TOKENS, SHORT = 200, 40  # of a reply
ROUNDS = 5


def main() -> None:
    """Run all measurements and print them."""
    results: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {usable_cores()} cores"}
    engine = open_llama_cpp("embedded", ["embedded"], grouped=False)
    for way, command in COMMANDS.items():
        process, page, client, first = start_app(command)
        try:
            found: dict[str, Any] = {"seconds from start to page": page, "seconds from start to first word": first}
            if way == "app":
                found |= decoding(client, engine)
            found |= turns(client, engine) | {"visitors": {n: crowd(client, engine, n) for n in VISITORS}}
            found["resident memory, MB"] = resident(process.pid)
        finally:
            process.terminate()
            process.wait()
        results[way] = found
    results["llama.cpp"] = {"visitors": {n: {"tokens/s together": together(engine, n)} for n in VISITORS}}
    del engine
    ours = open_llama_cpp("embedded", ["embedded"])
    results |= stopping(ours)
    results["tokens of turn 3 taken from the cache"] = reuse(ours)
    print(json.dumps(results, indent=1))
    path = ROOT / "benchmarks" / "results" / "serve.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def start_app(command: Sequence[str] = COMMANDS["app"]) -> tuple[subprocess.Popen, float, Client, float]:
    """Return the running app, seconds to its page, a client, and seconds to the first word of the first reply."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=5)
            break
        except OSError:
            time.sleep(0.02)
    page = time.perf_counter() - started
    client = Client(f"http://127.0.0.1:{PORT}", verbose=False)
    job = client.submit("How can I sleep better?", max_tokens=20, **GREEDY, api_name="/chat")
    next(iter(job))
    first = time.perf_counter() - started
    job.result()
    return process, page, client, first


def turns(client: Client, engine: Any) -> dict[str, float]:
    """Return tokens/s alone, and the median seconds to the first word of turns 1 and 5 over three conversations."""
    first: dict[int, list[float]] = {1: [], 5: []}
    speeds = []
    for n in range(3):
        history: list[dict[str, str]] = []
        for turn, question in enumerate(CONVERSATION, 1):
            question = f"({n}) {question}"  # no conversation begins like the one before
            wait, seconds, text = timed(client, question, history, SHORT)
            if turn in first:
                first[turn].append(wait)
            if (count := len(engine.tokenize(text))) >= SHORT // 2:
                speeds.append(count / seconds)
            history += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return {
        "tokens/s alone": statistics.median(speeds),
        **{f"seconds to the first word, turn {turn}": statistics.median(waits) for turn, waits in first.items()},
    }


def crowd(client: Client, engine: Any, visitors: int) -> dict[str, float]:
    """Return tokens/s together and the 95th percentile of the first word, each visitor asking once."""
    clients = [client, *(Client(client.src, verbose=False) for _ in range(visitors - 1))]

    def talk(number: int) -> tuple[float, int]:
        wait, _, text = timed(clients[number], asked(number, visitors), [], SHORT)
        return wait, len(engine.tokenize(text))

    started = time.perf_counter()
    with ThreadPoolExecutor(visitors) as pool:
        found = list(pool.map(talk, range(visitors)))
    seconds = time.perf_counter() - started
    waits = sorted(wait for wait, _ in found)
    return {
        "tokens/s together": sum(tokens for _, tokens in found) / seconds,
        "first word, 95th percentile": waits[min(len(waits) - 1, int(0.95 * len(waits)))],
    }


def together(engine: Any, visitors: int) -> float:
    """Return the tokens/s of raw llama.cpp for the same questions by as many at once, reading them included."""

    def talk(number: int) -> int:
        return raw(engine, f"{asked(number, visitors)} ", SHORT)["timings"]["predicted_n"]

    started = time.perf_counter()
    with ThreadPoolExecutor(visitors) as pool:
        return sum(pool.map(talk, range(visitors))) / (time.perf_counter() - started)


def asked(number: int, visitors: int) -> str:
    """Return the question of one of several visitors; no two are alike, so that nothing of it is cached."""
    return f"({visitors}, {number}) {CONVERSATION[number % len(CONVERSATION)]}"


def timed(client: Client, question: str, history: list[dict[str, str]], tokens: int) -> tuple[float, float, str]:
    """Return seconds to the first word, seconds from there to the last, and the text."""
    started = time.perf_counter()
    job = client.submit(question, history, max_tokens=tokens, **GREEDY, api_name="/chat")
    heard = [(time.perf_counter(), str(text)) for text in job]
    return heard[0][0] - started, heard[-1][0] - heard[0][0], heard[-1][1]


def raw(engine: Any, question: str, tokens: int) -> dict[str, Any]:
    """Return llama.cpp's own answer to a question in the chat's format."""
    prompt = engine._prompt(
        [{"role": "system", "content": chat.prompt.SYSTEM}, {"role": "user", "content": question}], "medchat"
    )
    return engine.complete({"prompt": prompt, "n_predict": tokens, "temperature": 0, "lora": [{"id": 0, "scale": 1.0}]})


def decoding(client: Client, engine: Any) -> dict[str, float]:
    """Return tokens/s through `/chat` and of raw llama.cpp, alternating, from first to last word, and their ratio."""
    ours, plain = [], []
    for _ in range(ROUNDS + 1):
        times = []
        for text in client.submit(QUESTION, max_tokens=TOKENS, **GREEDY, api_name="/chat"):
            times.append((time.perf_counter(), text))
        # Counted from the first text that came to the last: the tokens between them.
        count = len(engine.tokenize(times[-1][1])) - len(engine.tokenize(times[0][1]))
        ours.append(count / (times[-1][0] - times[0][0]))
        plain.append(raw(engine, QUESTION, TOKENS)["timings"]["predicted_per_second"])
    app, llama = statistics.median(ours[1:]), statistics.median(plain[1:])  # the first round warms both up
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
