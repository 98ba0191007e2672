"""A transformers base in 4 bits (NF4) and PEFT adapters beside it: for CUDA, ZeroGPU and, more slowly, a CPU."""

from __future__ import annotations

import contextvars
import gc
import json
import math
import os
import queue
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # before torch: it emulates CUDA until a visitor is lent a GPU

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from medchat import adapters as adapter_files
from medchat import embedded
from medchat.adapters import Adapter
from medchat.engines import Delta, EngineError, Sampling, Stats
from medchat.engines.llama_cpp import usable_cores
from medchat.errors import Unavailable, UserError
from medchat.prompt import Message, Template, named_template

ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))
QUANTS = ("auto", "4bit", "none")
SLOTS = 4
CONTEXT = 4096  # tokens that prompt and reply share; less where the base was trained on less
STEP = {"cuda": 1024, "cpu": 128}  # tokens of a prompt that are read at once; between steps a reply can be stopped
KEPT_BYTES = 1 << 30  # of keys and values kept from finished replies: 9,000 tokens of Llama-3.2-3B in bf16
ADDED_ADAPTERS = 8  # loaded at run time; beyond that the one unused for longest goes
PENALTY_WINDOW = 64  # tokens that the repetition penalty looks back on, as in llama_cpp.py


def open_transformers(base: str, adapter_sources: Sequence[str], *, quant: str = "auto") -> TransformersEngine:
    """Return an engine for a base ("embedded", a folder, or a Hub id `org/name[@revision]`) with adapters beside it.

    `quant` is "4bit" (NF4, double quantization), "none", or "auto": 4 bits where bitsandbytes works. A repository that
    is quantized already stays as it is. Raises UserError.
    """
    if quant not in QUANTS:
        raise UserError(f"There is no quantization {quant!r}.", f"Choose one of: {', '.join(QUANTS)}.")
    where, options = base_location(base)
    modules = planned_modules(base, where, options) if adapter_sources else {}
    opened = [adapter_files.open_adapter(source, modules) for source in adapter_sources]
    for adapter in opened:
        _check_leaves_base_alone(adapter)
    model, tokenizer = _load_base(base, where, options, quant)
    engine = TransformersEngine(embedded.NAME if base == "embedded" else base, model, tokenizer)
    for adapter in opened:
        engine.load_adapter(adapter)
    return engine


@dataclass
class _Kept:
    """The keys and values of a finished reply: `ids` are the tokens that they stand for, in order."""

    adapter: str
    ids: list[int]
    cache: Any

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.cache.layers for t in (layer.keys, layer.values))


@dataclass(eq=False)
class _Job:
    """Work for the one thread that touches the model: `steps` runs one item at a time, in turn with other jobs."""

    steps: Iterator[Delta]
    cancel: Event
    answers: queue.SimpleQueue[Delta | UserError] = field(default_factory=queue.SimpleQueue)
    done: Event = field(default_factory=Event)


class TransformersEngine:
    """One copy of the base's weights and many adapters; replies take turns, one decoding step each.

    PEFT's active adapter is a state of the whole model. All steps run in one thread, which switches the adapter before
    a step where needed, so replies cannot mix. The thread lives while there is work.
    """

    name = "transformers"
    slots = SLOTS

    def __init__(self, base: str, model: Any, tokenizer: Any):
        self.base = base
        self.tokenizer = tokenizer
        self.adapters: Mapping[str, Adapter] = {}
        trained_on = getattr(model.config.get_text_config(), "max_position_embeddings", None) or CONTEXT
        self.context = min(CONTEXT, trained_on)
        self._model = model
        self._peft: Any = None  # PEFT's wrapper of the same modules, once there is an adapter
        self._active: str | None = ""  # the adapter of the next step; None when not known
        self._modules = _linear_modules(model)
        self._step = STEP[model.device.type]
        self._ends = _end_tokens(model, tokenizer)
        self._template = _base_template(tokenizer)
        self._bos = tokenizer.bos_token_id if tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] else None
        layers = DynamicCache(config=model.config).layers
        self._can_crop = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        self._kept: list[_Kept] = []  # least recently used first
        self._pinned: set[str] = set()  # adapters given at the start
        self._in_use: Counter[str] = Counter()
        self._last_use: dict[str, float] = {}
        self._lock = threading.Lock()  # guards what follows, and the adapters' bookkeeping; never held in a step
        self._jobs: list[_Job] = []
        self._thread: threading.Thread | None = None
        self._on_gpu = _zero_gpu_reply(self) if ZERO_GPU else None

    def stream(
        self, messages: Sequence[Message], *, adapter: str, sampling: Sampling, cancel: Event
    ) -> Iterator[Delta]:
        """Yield the reply, as engines.Engine.stream says."""
        started = time.perf_counter()
        with self._lock:
            chosen = self.adapters.get(adapter)
            if adapter and chosen is None:
                raise EngineError(f"The adapter {adapter!r} is no longer loaded.", "Please choose it again.")
            self._in_use[adapter] += 1
            self._last_use[adapter] = started
        try:
            ids = self._prompt_ids(messages, chosen)
            if len(ids) >= self.context:
                raise EngineError(
                    f"The conversation is {len(ids):,} tokens long, and fewer than {self.context:,} fit.",
                    "Please start a new one.",
                )
            if self._on_gpu:
                job = self._submit_to_zero_gpu(self._on_gpu(ids, chosen, sampling, started), cancel)
            else:
                job = self._submit(self._reply(ids, chosen, sampling, started, cancel.is_set), cancel)
            try:
                yield from _answers(job)
            finally:
                cancel.set()
                job.done.wait()
        finally:
            with self._lock:
                self._in_use[adapter] -= 1

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return how many tokens `messages` are as a prompt."""
        return len(self._prompt_ids(messages, None))

    def prompt_ids(self, messages: Sequence[Message], adapter: str = "") -> list[int]:
        """Return the token ids that the model sees for `messages`, its BOS included."""
        return self._prompt_ids(messages, self.adapters[adapter] if adapter else None)

    def add_adapter(self, source: str) -> Adapter:
        """Load the adapter at a folder or Hub id while the engine runs; return it at once when it is there already.

        Beyond ADDED_ADAPTERS, the added one that was not used for longest is unloaded. Raises UserError.
        """
        for adapter in self.adapters.values():
            if adapter.source == source:
                return adapter
        adapter = adapter_files.open_adapter(source, self._modules)
        if self._on_gpu:  # each worker loads it for itself (_select); this process only keeps the list
            self._check(adapter)
            self._list(adapter)
            return adapter

        def load() -> Iterator[Delta]:
            self._load(adapter)
            self._list(adapter)
            yield Delta("", "stop")

        job = self._submit(load(), Event(), first=True)
        for _ in _answers(job):
            pass
        job.done.wait()
        return adapter

    def load_adapter(self, adapter: Adapter) -> None:
        """Load an adapter that stays for good: at the start, in the thread that made the engine. Raises UserError."""
        if not self._is_loaded(adapter):
            self._load(adapter)
            self._pinned.add(adapter.name)
            self._list(adapter)

    # ---- one reply

    def _reply(
        self,
        ids: list[int],
        adapter: Adapter | None,
        sampling: Sampling,
        started: float,
        cancelled: Callable[[], bool],
    ) -> Iterator[Delta]:
        """Yield a delta after each step: part of the prompt, then token by token.

        `ids` grows with the reply.
        """
        prompt_tokens = len(ids)
        room = min(sampling.max_tokens, self.context - prompt_tokens)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        generator = torch.Generator(self._model.device.type).manual_seed(seed)
        text = _Detokenizer(self.tokenizer)
        cache, cached = self._prefix(ids, adapter)
        first_token = None
        produced = 0
        done = cached  # ids[:done] are in the cache
        reason = "cancelled"
        try:
            while not cancelled():
                logits = self._forward(ids[done : done + self._step], cache, adapter)
                done = min(done + self._step, len(ids))
                if done < len(ids):
                    yield Delta("")
                    continue
                token = _draw(logits, ids, sampling, generator)
                produced += 1
                first_token = first_token or time.perf_counter()
                if token in self._ends:
                    reason = "stop"
                    break
                ids.append(token)
                yield Delta(text.add(token))
                if produced == room:
                    reason = "length"
                    break
            now = time.perf_counter()
            speed = (produced - 1) / (now - first_token) if first_token and produced > 1 else 0.0
            stats = Stats(prompt_tokens, cached, produced, (first_token or now) - started, speed)
            yield Delta(text.rest(), reason, stats)
        finally:
            if not self._on_gpu and cache.get_seq_length() == done:  # unequal after a step that failed
                self._keep(_Kept(adapter.name if adapter else "", ids[:done], cache))

    @torch.inference_mode()
    def _forward(self, ids: list[int], cache: DynamicCache, adapter: Adapter | None) -> torch.Tensor:
        """Return the logits (vocabulary,) after `ids`, which join the cache."""
        self._select(adapter)
        inputs = torch.tensor([ids], device=self._model.device)
        output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1].float()

    # ---- keys and values kept between the turns of a conversation, never shared between adapters

    @torch.inference_mode()
    def _prefix(self, ids: list[int], adapter: Adapter | None) -> tuple[DynamicCache, int]:
        """Return a cache with the longest beginning of `ids` that was kept, and its length, less than all of `ids`."""
        name = adapter.name if adapter else ""
        cache = self._new_cache()
        lengths = [_common(kept.ids, ids) if kept.adapter == name else 0 for kept in self._kept]
        length = min(max(lengths, default=0), len(ids) - 1)
        if length <= 0:
            return cache, 0
        best = self._kept.pop(lengths.index(max(lengths)))  # kept again, longer, after this reply
        for i, layer in enumerate(best.cache.layers):  # update() copies
            cache.update(layer.keys[..., :length, :], layer.values[..., :length, :], i)
        if length < len(best.ids) / 2:  # another conversation with the same system prompt: it may go on too
            self._kept.append(best)
        return cache, length

    def _keep(self, kept: _Kept) -> None:
        if kept.ids and self._can_crop:
            self._kept.append(kept)
            while sum(k.nbytes() for k in self._kept) > KEPT_BYTES:
                del self._kept[0]

    def _new_cache(self) -> DynamicCache:
        # Without a config every layer keeps all its keys, also one with a sliding window, so it can be cut anywhere.
        return DynamicCache() if self._can_crop else DynamicCache(config=self._model.config)

    # ---- adapters

    def _select(self, adapter: Adapter | None) -> None:
        """Make `adapter` the one that the next step uses, loading it where this process has not (ZeroGPU)."""
        name = _peft_name(adapter) if adapter else ""
        if name == self._active:
            return
        if adapter and not self._is_loaded(adapter):
            self._load(adapter)
            self._list(adapter)
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        self._active = None
        for module in self._model.modules():
            # PEFT's own set_adapter walks over all parameters, several milliseconds a step; these two are its effect.
            if isinstance(module, BaseTunerLayer):
                module._disable_adapters, module._active_adapter = not name, [name]
            elif isinstance(module, AuxiliaryTrainingWrapper):  # a whole trained module, of some adapters only
                module._disable_adapters, module._active_adapter = name not in module._adapters, [name]
        self._active = name

    def _is_loaded(self, adapter: Adapter) -> bool:
        return self._peft is not None and _peft_name(adapter) in self._peft.peft_config

    def _load(self, adapter: Adapter) -> None:
        """Put the adapter's weights beside the base's; raises UserError, and then leaves everything as it was."""
        if self._is_loaded(adapter):  # two visitors asked for it at once
            return
        from peft import PeftModel

        self._check(adapter)
        name, device, self._active = _peft_name(adapter), str(self._model.device), None
        options = {"adapter_name": name, "torch_device": device, "autocast_adapter_dtype": False}
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._model, str(adapter.folder), **options)
            else:
                self._peft.load_adapter(str(adapter.folder), **options)
        except Exception as error:
            if self._peft is not None and self._is_loaded(adapter):
                self._peft.delete_adapter(name)
            raise adapter_files.unfit(
                adapter,
                f"The adapter {adapter.source!r} could not be added to this base ({_first_line(error)}).",
                "Choose another adapter, or the base that it was trained on.",
            ) from error
        for parameter_name, parameter in self._peft.named_parameters():
            if f".{name}." in parameter_name:
                parameter.data = parameter.data.to(self._model.dtype)

    def _check(self, adapter: Adapter) -> None:
        if (other := self.adapters.get(adapter.name)) and other.source != adapter.source:
            raise UserError(f"There is an adapter {adapter.name!r} already ({other.source}).", "Rename the folder.")
        _check_leaves_base_alone(adapter)

    def _list(self, adapter: Adapter) -> None:
        """Offer the adapter, and drop what is too much. Readers see the old dictionary or the new one, whole."""
        with self._lock:
            self._last_use[adapter.name] = time.perf_counter()
            self.adapters = {**self.adapters, adapter.name: adapter}
            added = [n for n in self.adapters if n not in self._pinned]
            idle = [n for n in added if n != adapter.name and not self._in_use[n]]
            surplus = sorted(idle, key=self._last_use.__getitem__)[: max(0, len(added) - ADDED_ADAPTERS)]
            dropped = [self.adapters[name] for name in surplus]
            self.adapters = {n: a for n, a in self.adapters.items() if n not in surplus}
        for old in dropped:
            if self._is_loaded(old):
                self._peft.delete_adapter(_peft_name(old))
                self._active = None
            self._kept = [kept for kept in self._kept if kept.adapter != old.name]

    # ---- prompts

    def _prompt_ids(self, messages: Sequence[Message], adapter: Adapter | None) -> list[int]:
        own = adapter.template if adapter else None
        template = Template(own, self._template.bos, self._template.eos) if own else self._template
        try:
            text = template.render(messages)
        except ValueError as error:
            raise EngineError(str(error), "Please start a new conversation.") from error
        # Templates write the BOS themselves; one that does not gets what the tokenizer would add. Never two.
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids if self._bos is None or ids[:1] == [self._bos] else [self._bos, *ids]

    # ---- the thread that touches the model

    def _submit(self, steps: Iterator[Delta], cancel: Event, *, first: bool = False) -> _Job:
        job = _Job(steps, cancel)
        with self._lock:
            self._jobs.insert(0 if first else len(self._jobs), job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        return job

    def _work(self) -> None:
        while True:
            with self._lock:
                jobs = [job for i, job in enumerate(self._jobs) if i < SLOTS or job.cancel.is_set()]
                if not jobs:
                    self._thread = None
                    return
            for job in jobs:
                try:
                    job.answers.put(next(job.steps))
                    continue
                except StopIteration:
                    pass
                except Exception as error:  # must reach the consumer, who would wait for ever
                    job.answers.put(self._sentence(error))
                with self._lock:
                    self._jobs.remove(job)
                job.done.set()

    def _submit_to_zero_gpu(self, steps: Iterator[Delta | tuple[str, str]], cancel: Event) -> _Job:
        """Read a worker's answers in a thread, in the visitor's context, which ZeroGPU asks for the quota."""
        job = _Job(iter(()), cancel)

        def read() -> None:
            try:
                for item in steps:
                    job.answers.put(EngineError(*item) if isinstance(item, tuple) else item)
                    if cancel.is_set():
                        job.answers.put(Delta("", "cancelled"))
                        break
            except Exception as error:  # ZeroGPU's own: no quota left, no GPU free, worker lost
                reason = str(getattr(error, "message", error))
                job.answers.put(EngineError(f"ZeroGPU could not answer: {reason}", "Please try again later."))
            finally:
                steps.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator; the worker stops at its next step
                job.done.set()

        threading.Thread(target=contextvars.copy_context().run, args=(read,), daemon=True).start()
        return job

    def _sentence(self, error: Exception) -> UserError:
        """Return what the visitor is told. Out of memory, everything that was kept is freed for the next request."""
        if isinstance(error, UserError):
            return error
        if _is_out_of_memory(error):
            error.__traceback__ = None  # its frames hold the cache of the reply that failed
            self._kept.clear()
            gc.collect()
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            return EngineError(
                "The machine ran out of memory during this reply.", "Please shorten the conversation, or try again."
            )
        return EngineError(f"The model stopped with an error ({_first_line(error)}).", "Please send the message again.")


def _zero_gpu_reply(engine: TransformersEngine) -> Callable[..., Iterator[Delta | tuple[str, str]]]:
    """Return the generator that runs on ZeroGPU: in a forked worker, so everything that goes in and out is pickled.

    The worker may be gone after the reply: it keeps no keys and values, and loads a visitor's adapter when it must.
    """

    def duration(ids: list[int], adapter: Adapter | None, sampling: Sampling, started: float) -> int:
        return 5 + math.ceil(sampling.max_tokens / 30)

    @spaces.GPU(duration=duration)  # pyright: ignore[reportPossiblyUnboundVariable]  # called on ZeroGPU only
    def reply(
        ids: list[int], adapter: Adapter | None, sampling: Sampling, started: float
    ) -> Iterator[Delta | tuple[str, str]]:
        try:
            yield from engine._reply(ids, adapter, sampling, started, lambda: False)
        except Exception as error:  # ZeroGPU would only pass on the name of its class
            sentence = engine._sentence(error)
            yield sentence.what, sentence.fix

    return reply


def _answers(job: _Job) -> Iterator[Delta]:
    """Yield what a job answers up to its last delta, and an empty one every 0.1 s while it does not."""
    while True:
        try:
            answer = job.answers.get(timeout=0.1)
        except queue.Empty:
            yield Delta("")
            continue
        if isinstance(answer, UserError):
            raise answer
        yield answer
        if answer.finish_reason:
            return


class _Detokenizer:
    """Text of a growing list of tokens, in whole characters.

    Each token is decoded behind the ones before it, since many tokenizers write a space or part of a character
    according to what came before.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # those of the last piece, then those not written yet
        self._written = 0  # how many of them belong to the last piece

    def add(self, token: int) -> str:
        """Return the text that `token` completes, "" if none."""
        self._ids.append(token)
        text = self._text()
        if not text or text.endswith("\ufffd"):  # in the middle of a character
            return ""
        self._ids, self._written = self._ids[self._written :], len(self._ids) - self._written
        return text

    def rest(self) -> str:
        """Return what was held back, without a character that was never completed."""
        return self._text().rstrip("\ufffd")

    def _text(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._written])) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@torch.inference_mode()
def _draw(logits: torch.Tensor, ids: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    """Return the next token after `ids` from logits (vocabulary,).

    In llama.cpp's order: penalty (arXiv:1909.05858, over the last 64 tokens), min_p (arXiv:2407.01082, before the
    temperature), temperature.
    """
    if sampling.repetition_penalty != 1:
        recent = torch.tensor(list(set(ids[-PENALTY_WINDOW:])), device=logits.device)
        scores, penalty = logits[recent], sampling.repetition_penalty
        logits = logits.index_copy(0, recent, torch.where(scores > 0, scores / penalty, scores * penalty))
    if sampling.temperature == 0:
        return int(logits.argmax())
    if sampling.min_p > 0:  # p < min_p * max(p), in logarithms
        logits = logits.masked_fill(logits < logits.max() + math.log(sampling.min_p), -math.inf)
    shares = torch.softmax(logits / sampling.temperature, dim=-1)
    return int(torch.multinomial(shares, 1, generator=generator))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens at the beginning are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    return {end for end in ends if end is not None}


def _base_template(tokenizer: Any) -> Template:
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    if isinstance(tokenizer.chat_template, str):
        return Template(tokenizer.chat_template, bos, eos)
    return named_template("llama-3" if "<|eot_id|>" in tokenizer.get_vocab() else "alpaca", bos=bos, eos=eos)


# ---- loading


def planned_modules(base: str, where: str, options: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of the linear modules that a base will have, by name, from its config alone.

    Adapters are checked against them before any weights are fetched. Raises UserError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(where, **options)
        with torch.device("meta"):
            return _linear_modules(AutoModelForCausalLM.from_config(config))
    except Exception as error:
        raise base_not_loaded(base, error) from error


def _linear_modules(model: Any) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of a model's linear modules, 4-bit ones too, by name."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if hasattr(module, "out_features") and hasattr(module, "in_features")
    }


def _load_base(base: str, where: str, options: dict[str, Any], quant: str) -> tuple[Any, Any]:
    """Return model and tokenizer, from safetensors only and without code of the repository."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    dtype = compute_dtype(device)
    try:
        quantized = getattr(AutoConfig.from_pretrained(where, **options), "quantization_config", None)
        how = {} if quantized or quant == "none" else nf4_options(quant, device, dtype)
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, device_map={"": device}, use_safetensors=True, **how, **options
        )
    except UserError:
        raise
    except Exception as error:
        raise base_not_loaded(base, error) from error
    keep_cpu_weights_plain(model)
    return model.eval(), tokenizer


def base_not_loaded(base: str, error: Exception) -> UserError:
    """Return why a base could not be loaded, and what to do."""
    if _is_out_of_memory(error):
        return Unavailable(f"There is not enough memory for {base}.", "Choose a smaller --base.")
    if base == "embedded" or Path(base).expanduser().is_dir():
        return UserError(f"The base {base!r} could not be loaded: {_first_line(error)}", "Choose another --base.")
    return adapter_files.base_problem(base, error)


def base_location(base: str) -> tuple[str, dict[str, Any]]:
    """Return what from_pretrained takes for a base: a folder, or a Hub id with its revision. Raises UserError."""
    if base == "embedded":
        return str(embedded.transformers_path()), {}
    folder = Path(base).expanduser()
    if base.endswith(".gguf"):
        raise UserError(f"{base} is a GGUF file.", "Type --engine llama_cpp for it.")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            is_adapter = (folder / adapter_files.CONFIG).is_file()
            what = "an adapter, not a base" if is_adapter else "not a model: it has no config.json"
            raise UserError(f"The folder {base} is {what}.", f"Pass it as --adapter {base}." if is_adapter else "")
        return str(folder), {"local_files_only": True}
    repo, _, revision = base.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or base.startswith((".", "/", "~")):
        raise UserError(f"There is no base {base!r}.", "Check the path, or give a Hub id like org/name.")
    commit, files = adapter_files.base_files(base, repo, revision or None)
    if "config.json" not in files:
        is_adapter = adapter_files.CONFIG in files
        what = "an adapter, not a base" if is_adapter else "no model: it has no config.json"
        raise Unavailable(
            f"The repository {repo} holds {what}.", f"Pass it as --adapter {base}" if is_adapter else "Check the id."
        )
    return repo, {"revision": commit}  # a commit is not looked up again


def compute_dtype(device: str) -> torch.dtype:
    """Return bf16 where the device computes in it, fp16 on older cards (a T4), fp32 on other CPUs."""
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    fast = torch.cpu.get_capabilities()
    return torch.bfloat16 if fast.get("avx512_bf16") or fast.get("amx_bf16") else torch.float32


def nf4_options(quant: str, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return from_pretrained's options for 4 bits; none where quant is "auto" and bitsandbytes does not work."""
    from transformers import BitsAndBytesConfig

    try:
        if not ZERO_GPU:  # where CUDA is only emulated by now
            from bitsandbytes.functional import quantize_4bit

            quantize_4bit(torch.ones(64, 64, dtype=dtype, device=device), quant_type="nf4")
    except Exception as error:  # not installed, or built for another machine: it raises many types
        if quant == "auto":
            return {}
        raise UserError(
            f"bitsandbytes does not work here ({_first_line(error)}).",
            "Type: pip install -U bitsandbytes, or do without 4 bits (--quant none; in a recipe method: lora).",
        ) from error
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def keep_cpu_weights_plain(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for AVX512-BF16 at the first evaluation step on a CPU.

    Repacked, they give wrong gradients and a wrong merge without a word (bitsandbytes 0.50.2).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_leaves_base_alone(adapter: Adapter) -> None:
    """Raise UserError for an adapter that would change the base itself, which the other adapters share."""
    from safetensors import safe_open

    config = json.loads((adapter.folder / adapter_files.CONFIG).read_text(encoding="utf-8"))
    changed = _changes_base(config)
    own = set(config.get("modules_to_save") or ())
    with safe_open(adapter.folder / adapter_files.WEIGHTS, framework="pt") as file:
        for tensor in file.keys():  # noqa: SIM118  # it is no dictionary
            path = tensor.removeprefix("base_model.model.")
            if ".lora_" not in path and own.isdisjoint(path.split(".")):
                changed = changed or path
    if changed:
        raise adapter_files.unfit(
            adapter,
            f"The adapter {adapter.source!r} changes {changed} of the base, which other adapters share.",
            "Choose a plain LoRA adapter.",
        )


def _changes_base(config: Mapping[str, Any]) -> str | None:
    """Return what in the base this adapter overwrites even while another one is chosen, None if nothing."""
    start = config.get("init_lora_weights")
    if config.get("bias", "none") != "none":
        return "biases"
    if config.get("layer_replication"):
        return "the layers"
    if config.get("trainable_token_indices"):
        return "single tokens"
    if isinstance(start, str) and start.startswith(("pissa", "olora", "corda", "lora_ga", "loftq")):
        return f"the weights (initialised with {start})"
    return None


def _peft_name(adapter: Adapter) -> str:
    """Return the adapter's name inside PEFT: the same in each process, and without dots, which modules refuse."""
    return f"{re.sub(r'[^A-Za-z0-9]', '_', adapter.name)}_{adapter.sha256[:12]}"


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError ("DefaultCPUAllocator: can't allocate memory").
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
