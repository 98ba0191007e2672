"""GGUF base and LoRA adapters on a CPU, through llama.cpp (xllamacpp): the embedded default."""

from __future__ import annotations

import http.client
import importlib
import json
import math
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from medchat import adapters as adapter_files
from medchat import embedded
from medchat.adapters import Adapter
from medchat.engines import Delta, EngineError, Sampling, Stats
from medchat.errors import Unavailable, UserError
from medchat.gguf_header import GGUFHeader, read_header
from medchat.prompt import Message, Template

SLOTS = 4
CONTEXT = 4096  # tokens of each slot; less where the base was trained on less
# Prompts are read in steps of this many tokens, and only between steps can a reply be stopped.
STEP = 32
KEPT = 256  # MiB of conversations that have left their slot and may come back; llama.cpp would keep 8 GiB
# Where the last COPIED tokens stood before, in a passage or an earlier answer, the next TRIED are computed in one go:
# what is copied comes in groups. The groups of all slots must fit one step, or llama.cpp aborts; the rest of the step
# is for prompts.
COPIED, TRIED = 3, 5
assert SLOTS * (TRIED + 1) <= STEP


def open_llama_cpp(base: str, adapter_sources: Sequence[str], *, grouped: bool = True) -> LlamaCppEngine:
    """Return an engine for a base ("embedded", a GGUF file, or the Hub id of one) with adapters beside it.

    Without `grouped` every token is computed alone, whatever was copied: slower, and bit for bit what plain llama.cpp
    computes.

    Everything is checked before the model loads; raises UserError.
    """
    path = embedded.gguf_path() if base == "embedded" else _gguf_file(base)
    header = read_header(path)
    modules = adapter_files.gguf_modules(header) if adapter_sources else None
    opened = [adapter_files.open_adapter(source, modules) for source in adapter_sources]
    loras = [adapter_files.to_gguf(adapter, header) for adapter in opened]
    name = embedded.NAME if base == "embedded" else base
    return LlamaCppEngine(name, path, header, {a.name: a for a in opened}, loras, grouped)


class LlamaCppEngine:
    """One copy of the base's weights, `SLOTS` conversations at once, each with its own cache and adapter."""

    name = "llama_cpp"
    slots = SLOTS

    def __init__(
        self,
        base: str,
        path: Path,
        header: GGUFHeader,
        adapters: Mapping[str, Adapter],
        loras: Sequence[Path],
        grouped: bool,
    ):
        xllamacpp: Any = importlib.import_module("xllamacpp")  # compiled, without type stubs

        self.base = base
        self.adapters = adapters
        architecture = header.metadata["general.architecture"]
        self.context = min(CONTEXT, header.metadata.get(f"{architecture}.context_length", CONTEXT))
        self._key = secrets.token_hex(16)  # xllamacpp also listens on a local port: nobody else may use it

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = self.context * SLOTS
        params.n_parallel = SLOTS
        params.n_batch = params.n_ubatch = STEP
        params.cache_ram_mib = KEPT
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = usable_cores()
        params.verbosity = -1
        params.api_keys = [self._key]
        params.endpoint_slots = True
        params.lora_init_without_apply = True
        if grouped:
            params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
            params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = COPIED, TRIED
        entries = []
        for lora in loras:
            entry = xllamacpp.CommonAdapterLoraInfo()
            entry.path, entry.scale = str(lora), 1.0
            entries.append(entry)
        params.lora_adapters = entries
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise Unavailable(
                f"llama.cpp could not load {path.name} ({error}).", "Check free memory, or choose another --base."
            ) from error
        properties = self._ask("GET", "/props")
        self._template = Template(properties["chat_template"], properties["bos_token"], properties["eos_token"])
        self._adds_bos = len(self.tokenize("", add_special=True)) > 0

    def stream(
        self, messages: Sequence[Message], *, adapter: str, sampling: Sampling, cancel: Event
    ) -> Iterator[Delta]:
        """Yield the reply, as engines.Engine.stream says."""
        started = time.perf_counter()
        first_token = None
        answers: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()

        def on_answer(answer: dict[str, Any]) -> bool:
            answers.put(answer)
            return cancel.is_set()  # True ends the computation

        def compute() -> None:
            try:
                self._server.handle_completions(self._request(messages, adapter, sampling), on_answer)
            except Exception as error:  # must reach the consumer, who would wait for ever
                answers.put(error)
            answers.put(None)

        thread = threading.Thread(target=compute, daemon=True)
        thread.start()
        try:
            while True:
                try:
                    answer = answers.get(timeout=0.1)
                except queue.Empty:
                    yield Delta("")
                    continue
                if answer is None:
                    if cancel.is_set():
                        yield Delta("", "cancelled")
                    return
                delta = self._delta(answer, started, first_token)
                if delta.text and first_token is None:
                    first_token = time.perf_counter()
                if delta.text or delta.finish_reason:
                    yield delta
        finally:
            cancel.set()
            thread.join()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens `messages` are as a prompt."""
        return len(self.tokenize(self._template.render(messages)))

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return llama.cpp's token ids of `text`; special tokens written out in it are recognised."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return self._ask("POST", "/tokenize", body)["tokens"]

    def prompt_ids(self, messages: Sequence[Message], adapter: str = "") -> list[int]:
        """Return the token ids that the model sees for `messages`, its BOS included."""
        return self.tokenize(self._prompt(messages, adapter), add_special=True)

    def busy(self) -> int:
        """Return how many slots are computing."""
        return sum(slot["is_processing"] for slot in self._ask("GET", "/slots"))

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return llama.cpp's own answer to a `/completion` request: for measuring, the chat streams."""
        return self._ask("POST", "/completion", {"return_tokens": True, **request})

    def _prompt(self, messages: Sequence[Message], adapter: str) -> str:
        own = self.adapters[adapter].template if adapter else None
        template = Template(own, self._template.bos, self._template.eos) if own else self._template
        text = template.render(messages)
        # Exactly one BOS: completions add it where the model wants one.
        return text.removeprefix(template.bos) if self._adds_bos and template.bos else text

    def _request(self, messages: Sequence[Message], adapter: str, sampling: Sampling) -> dict[str, Any]:
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(31)
        return {
            "prompt": self._prompt(messages, adapter),
            "lora": [{"id": i, "scale": float(name == adapter)} for i, name in enumerate(self.adapters)],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": 64,  # little more than the reply: passages in the prompt are there to be repeated
            "seed": seed,
            "stream": True,
            "return_progress": True,  # an answer after each step of the prompt, so that it can be stopped there too
        }

    def _delta(self, answer: dict[str, Any] | Exception, started: float, first_token: float | None) -> Delta:
        if isinstance(answer, Exception):
            raise EngineError(f"The model stopped with an error ({answer}).", "Please send the message again.")
        if "choices" not in answer:
            raise EngineError(
                f"The model refused this request ({_reason(answer)}).", "Please start a new conversation."
            )
        choice = answer["choices"][0]
        reason = choice.get("finish_reason")
        if reason is None:
            return Delta(choice["text"])
        timings = answer["timings"]
        now = time.perf_counter()
        stats = Stats(
            prompt_tokens=timings["prompt_n"] + timings["cache_n"],
            cached_tokens=timings["cache_n"],
            completion_tokens=timings["predicted_n"],
            first_token_seconds=(first_token or now) - started,
            tokens_per_second=timings["predicted_per_second"],
        )
        return Delta(choice["text"], reason, stats)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        host, _, port = self._server.listening_address.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        try:
            connection.request(
                method,
                path,
                json.dumps(body) if body is not None else None,
                {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
            )
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


def usable_cores() -> int:
    """Return how many cores this process may use: those it is pinned to, and a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max"
        return cores


def _reason(answer: dict[str, Any]) -> str:
    error = answer.get("error", answer)
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _gguf_file(base: str) -> Path:
    """Return the file of a path, or of a Hub id `org/name` or `org/name/file.gguf`."""
    path = Path(base).expanduser()
    if (
        path.exists()
        or (base.endswith(".gguf") and base.count("/") != 2)
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+){1,2}", base)
    ):
        if path.is_dir():
            raise UserError(f"{base} is a folder.", "Give --base a GGUF file.")
        return path
    from huggingface_hub import hf_hub_download

    repo, file = "/".join(base.split("/")[:2]), "/".join(base.split("/")[2:])
    commit, files = adapter_files.base_files(base, repo)
    files = [name for name in files if name.endswith(".gguf")]
    if not files or (file and file not in files):
        has = f"only {', '.join(sorted(files)[:8])}" if files else "no GGUF file"
        raise Unavailable(f"The repository {repo} holds {has}.", "Choose one of these, or another --base.")
    chosen = file or next((name for name in files if "q4_k_m" in name.lower()), files[0])
    try:
        return Path(hf_hub_download(repo, chosen, revision=commit))
    except Exception as error:
        raise adapter_files.base_problem(base, error) from error
