"""What an evaluation asks of a model: log-probabilities of given tokens, and greedy replies."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM

from medchat.errors import UserError
from medchat.prompt import Message, Template
from train.sft import learned_tokens

REPLY_TOKENS = 256
BATCH = {"cpu": 2048, "cuda": 32768}  # tokens that are read at once, padding included
LOGITS = {"cpu": 4 * 10**8, "cuda": 4 * 10**9}  # bytes of logits at once


class Answers:
    """Everything that models answered so far, in a file of one JSON line each: what is in it is not asked again.

    The first line says of what evaluation they are. An answer is found by the model's part ("base" or "adapter") and
    a digest of the whole question.
    """

    def __init__(self, path: Path, evaluation: dict[str, Any]):
        self.seconds = 0.0  # of all the runs that wrote the file
        self._known: dict[str, Any] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            self.seconds += entry["seconds"]
            self._known[entry["key"]] = entry["answer"]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        # A killed run may have left half a line.
        self._file.write("\n" if lines else json.dumps(evaluation) + "\n")
        self._last, self._took = time.monotonic(), 0.0

    def __len__(self) -> int:
        return len(self._known)

    def key(self, part: str, *question: Any) -> str:
        return f"{part} {hashlib.sha256(json.dumps(question).encode()).hexdigest()[:24]}"

    def get(self, key: str) -> Any:
        return self._known.get(key)

    def add(self, key: str, answer: Any) -> None:
        self._known[key] = answer
        self._count()
        entry = {"key": key, "answer": answer, "seconds": round(self._took, 3)}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._count()
        self._file.close()

    def _count(self) -> None:
        now = time.monotonic()
        self._took, self._last = now - self._last, now
        self.seconds += self._took


@dataclass
class Progress:
    """A line on stderr every few seconds: what is done, of what, and the time left. Weights are tokens."""

    what: str
    rows: int
    weight: int
    done: int = 0
    _weight_done: int = 0
    _started: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)

    def add(self, weight: int) -> None:
        self.done += 1
        self._weight_done += weight
        now = time.monotonic()
        if now - self._shown > 5 or self.done == self.rows:
            left = (now - self._started) * (self.weight / max(self._weight_done, 1) - 1)
            time_left = f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"
            print(f"{self.what}: {self.done} of {self.rows}, {time_left}", file=sys.stderr, flush=True)
            self._shown = now


@dataclass(frozen=True)
class Item:
    """A text and what is asked about it: for each pair, the log-probability of `token` behind ids[: position + 1]."""

    ids: list[int]
    asked: list[tuple[int, int]]  # (position, token)


@torch.inference_mode()
def log_probabilities(model: Any, items: Sequence[Item], done: Callable[[int, list[float]], None]) -> None:
    """Call done(index, log-probabilities in nats) for every item, longest first.

    One forward pass a batch of texts of like length, padded on the right without a mask: no token looks ahead. The
    output head, a quarter of a small model, computes only the positions that are asked about.
    """
    order = sorted(range(len(items)), key=lambda i: -len(items[i].ids))
    for batch in _batches(order, items, model):
        rows = torch.zeros(len(batch), len(items[batch[0]].ids), dtype=torch.long)
        for row, i in zip(rows, batch, strict=True):
            row[: len(items[i].ids)] = torch.tensor(items[i].ids)
        positions = sorted({position for i in batch for position, _ in items[i].asked})
        place = {position: n for n, position in enumerate(positions)}
        keep = torch.tensor(positions, device=model.device)
        logits = model(input_ids=rows.to(model.device), use_cache=False, logits_to_keep=keep).logits
        for row, i in zip(logits, batch, strict=True):
            where = torch.tensor([place[position] for position, _ in items[i].asked], device=row.device)
            tokens = torch.tensor([token for _, token in items[i].asked], device=row.device)
            used, inverse = where.unique(return_inverse=True)
            scores = torch.log_softmax(row[used].float(), dim=-1)
            done(i, scores[inverse, tokens].tolist())


def _batches(order: Sequence[int], items: Sequence[Item], model: Any) -> Iterator[list[int]]:
    """Yield the order cut into batches that keep within BATCH tokens and LOGITS bytes."""
    device, vocabulary = model.device.type, model.config.get_text_config().vocab_size
    batch: list[int] = []
    asked: set[int] = set()
    for i in order:
        rows, together = len(batch) + 1, asked | {position for position, _ in items[i].asked}
        tokens, logits = rows * len(items[(batch or [i])[0]].ids), rows * len(together) * vocabulary * 4
        if batch and (tokens > BATCH[device] or logits > LOGITS[device]):
            yield batch
            batch, together = [], {position for position, _ in items[i].asked}
        batch.append(i)
        asked = together
    if batch:
        yield batch


@dataclass
class Chat:
    """A model in its chat format, base or adapter by `part`."""

    part: str
    model: Any
    tokenizer: Any
    template: Template
    system: str
    answers: Answers

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def score(self, what: str, items: Sequence[Item]) -> list[list[float]]:
        """Return the log-probabilities that each item asks for, from earlier runs where they are known."""
        keys = [self.answers.key(self.part, item.ids, item.asked) for item in items]
        new = [i for i, key in enumerate(keys) if self.answers.get(key) is None]
        progress = Progress(f"{self.part}, {what}", len(new), sum(len(items[i].ids) for i in new))

        def done(n: int, values: list[float]) -> None:
            self.answers.add(keys[new[n]], values)
            progress.add(len(items[new[n]].ids))

        if new:
            self._check_length(max(len(items[i].ids) for i in new))
            log_probabilities(self.model, [items[i] for i in new], done)
        return [self.answers.get(key) for key in keys]

    def nll(self, what: str, rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[int]]:
        """Return (summed nats, tokens) of each row's learned tokens: all answers, or the last where `last_only`."""
        items = [self._learned(row["messages"], row.get("last_only", False)) for row in rows]
        scores = self.score(what, items)
        return [-sum(values) for values in scores], [len(values) for values in scores]

    def _learned(self, messages: list[Message], last_only: bool) -> Item:
        ids, labels = learned_tokens(messages, self.tokenizer, self.template, last_only=last_only)
        return Item(ids[:-1], [(n - 1, label) for n, label in enumerate(labels) if n > 0 and label != -100])

    def replies(self, what: str, prompts: Sequence[list[Message]]) -> list[str]:
        """Return the greedy reply to each conversation, at most REPLY_TOKENS tokens, in batches of like length."""
        texts = [self.template.render(messages) for messages in prompts]
        keys = [self.answers.key(self.part, text, REPLY_TOKENS) for text in texts]
        encoded = [self.ids(text) for text in texts]
        new = sorted((i for i, key in enumerate(keys) if self.answers.get(key) is None), key=lambda i: -len(encoded[i]))
        progress = Progress(f"{self.part}, {what}", len(new), len(new))
        if new:
            self._check_length(len(encoded[new[0]]) + REPLY_TOKENS)
        size = 16 if self.model.device.type == "cpu" else 64
        for batch in (new[n : n + size] for n in range(0, len(new), size)):
            for i, reply in zip(batch, self._generate([encoded[i] for i in batch]), strict=True):
                self.answers.add(keys[i], reply)
                progress.add(1)
        return [self.answers.get(key) for key in keys]

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[list[int]]) -> list[str]:
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        out = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            max_new_tokens=REPLY_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(
                {
                    end
                    for end in [*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id]
                    if end is not None
                }
            ),
            pad_token_id=pad,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]

    def _check_length(self, longest: int) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and longest > limit:
            raise UserError(
                f"The longest question takes {longest} tokens, and this base reads {limit}.", "Choose another base."
            )


class ChatLM(TemplateLM):
    """A Chat as lm-eval sees it. lm-eval's own wrapper computes the vocabulary's scores at every token of a question.

    Options that differ in their last token only, as letters and words do, cost one forward pass a question.
    """

    def __init__(self, chat: Chat):
        super().__init__()
        self.chat = chat

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.chat.template.render(chat_history, add_generation_prompt=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return type(self.chat.tokenizer).__name__

    @property
    def eot_token_id(self) -> int:
        return self.chat.tokenizer.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.chat.ids(string)  # the template writes the special tokens

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood, False) of each option; which tokens the model would write itself is not asked."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for n, (_, context, option) in enumerate(requests):
            groups.setdefault(tuple(context + option[:-1]), []).append(n)
        items = []
        for ids, members in groups.items():
            asked = [
                (len(requests[n][1]) - 1 + place, token) for n in members for place, token in enumerate(requests[n][2])
            ]
            items.append(Item(list(ids), asked))
        found = [(0.0, False)] * len(requests)
        for members, values in zip(groups.values(), self.chat.score("questions", items), strict=True):
            left = iter(values)
            for n in members:
                found[n] = (sum(next(left) for _ in requests[n][2]), False)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("no task of ours asks for it")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("no task of ours asks for it")
