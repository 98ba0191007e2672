"""`python -m benchmarks.users`: ten visitors at once on the embedded model, and how soon Stop ends the computation.

Each visitor holds a conversation of their own through the public API and checks that every answer is theirs. Prints
answers, errors, mixed conversations and the app's memory over time; then one more than the line holds; then the time
from Stop to an idle engine in five situations. Written to benchmarks/results/users.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

from gradio_client import Client

from benchmarks.serve import ROOT, resident, start_app
from medchat import chat
from medchat.engines import Sampling
from medchat.engines.llama_cpp import open_llama_cpp
from medchat.line import Busy, Limits, Line

USERS = 10
TOPICS = ("asthma", "gout", "migraine", "anemia", "eczema", "diabetes", "heartburn", "insomnia", "acne", "hay fever")


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.users")
    parser.add_argument("--seconds", type=int, default=300)
    seconds = parser.parse_args().seconds
    results = crowd(seconds) | overload_and_stop()
    for name, value in results.items():
        print(f"{name:60} {value}")
    path = ROOT / "benchmarks" / "results" / "users.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def crowd(seconds: float) -> dict[str, Any]:
    """Let USERS talk at once for `seconds`; return how it went."""
    process, _, client, _ = start_app()
    url = client.src
    waits: list[float] = []
    mixed: list[str] = []
    errors: list[str] = []
    memory: list[float] = []
    end = time.monotonic() + seconds

    def talk(topic: str) -> None:
        own = Client(url, verbose=False)
        history: list[dict[str, str]] = []
        while time.monotonic() < end:
            question = f"What is {topic}?" if not history else f"What can I do about {topic}?"
            started = time.perf_counter()
            try:
                answer = own.predict(question, history[-4:], max_tokens=60, api_name="/chat")
            except Exception as error:  # what a visitor would see
                errors.append(str(error))
                continue
            waits.append(time.perf_counter() - started)
            # The list of sources names what was looked up: another visitor's topic there is a mixed conversation.
            listed = answer.partition("Sources:")[2].lower()
            if any(other in listed for other in TOPICS if other not in (topic, "asthma", "hay fever", "eczema")):
                mixed.append(f"{topic}: {listed[:80]}")
            history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    try:
        with ThreadPoolExecutor(USERS) as pool:
            for topic in TOPICS[:USERS]:
                pool.submit(talk, topic)
            while time.monotonic() < end:
                memory.append(resident(process.pid))
                time.sleep(max(1.0, seconds / 24))
    finally:
        process.terminate()
        process.wait()
    half = len(memory) // 2
    return {
        "users at once": USERS,
        "seconds": seconds,
        "answers": len(waits),
        "errors": len(errors),
        "mixed conversations": len(mixed),
        "median seconds for an answer": round(statistics.median(waits), 2) if waits else None,
        "slowest answer, seconds": round(max(waits), 2) if waits else None,
        "memory at a quarter, half, end, MB": [round(memory[i]) for i in (len(memory) // 4, half, -1)],
        "first errors": errors[:3] + mixed[:3],
    }


def overload_and_stop() -> dict[str, Any]:
    """Return what one visitor too many hears, and the worst seconds from Stop to an idle engine."""
    engine = open_llama_cpp("embedded", ["embedded"])
    line = Line(engine, Limits(waiting=2, per_minute=1000))
    cancels = [Event() for _ in range(engine.slots + 2)]

    def occupy(cancel: Event) -> None:
        for _ in chat.reply(line.for_visitor("x"), long(), sampling=Sampling(max_tokens=2000), cancel=cancel):
            pass

    threads = [threading.Thread(target=occupy, args=(cancel,)) for cancel in cancels]
    for thread in threads[: engine.slots]:
        thread.start()
    while engine.busy() < engine.slots:
        time.sleep(0.02)
    for thread in threads[engine.slots :]:
        thread.start()
    while not all(line.place(cancel)[0] for cancel in cancels[engine.slots :]):
        time.sleep(0.02)
    asked = time.perf_counter()
    try:
        list(chat.reply(line.for_visitor("y"), "How can I sleep better?"))
        heard = "no sentence"
    except Busy as busy:
        heard = f"{busy} (after {time.perf_counter() - asked:.2f} s)"
    for cancel in cancels:
        cancel.set()
    for thread in threads:
        thread.join()
    return {"one too many hears": heard} | stops(line, engine)


def stops(line: Line, engine: Any) -> dict[str, float]:
    """Return the worst seconds, of five, from Stop (the generator is closed, as Gradio does) to an idle engine."""
    worst: dict[str, float] = {}
    for when in ("first token", "mid-reply", "retry", "edit", "closed tab"):
        for round_ in range(5):
            history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
            pieces = chat.reply(
                line.for_visitor("z"),
                long() if when == "first token" else f"{round_} Tell me a very long story about health.",
                history if when in ("retry", "edit") else [],
                sampling=Sampling(max_tokens=1500, seed=round_),
            )
            for piece in pieces:
                if piece.delta.text or (when == "first token" and engine.busy()):
                    break
            stopped = time.perf_counter()
            if when == "closed tab":
                line.gone("z")
                for _ in pieces:
                    pass
            else:
                pieces.close()  # type: ignore[attr-defined]
            while engine.busy():
                time.sleep(0.005)
            key = f"worst seconds from Stop to idle: {when}"
            worst[key] = round(max(worst.get(key, 0.0), time.perf_counter() - stopped), 3)
    return worst


def long() -> str:
    """Return a long question that no cache knows, so that reading it takes a while."""
    return f"{time.time()} Tell me everything about food, sleep, sport, friends, work and rest. " + "And then? " * 300


if __name__ == "__main__":
    main()
