"""medchat.encoder: the same numbers as torch, the usual pieces of words, and learning from texts."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import finetune
from medchat.encoder import Encoder, WordPiece, quantized

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
]
WORDS = ["chest", "pain", "##s", "##ful", "un", "##bear", "##able", "my", "hello", "friend", "is", "."]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random BERT with a WordPiece tokenizer, like the real base's."""
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    tokens = PIECES + WORDS
    pieces = models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]")
    Tokenizer(pieces).save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=48, num_hidden_layers=2, num_attention_heads=12, intermediate_size=96
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("word", ["chest", "pains", "painful", "unbearable", "zebra", ".", "x", "naïve", "胸"])
def test_words_are_cut_as_the_library_does(base: Path, word: str):
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(base / "tokenizer.json")).encode(word).ids
    assert WordPiece(PIECES + WORDS).encode([word], 100)[1:-1] == theirs


def test_a_long_text_keeps_its_end_and_a_long_word_its_beginning():
    tokenizer = WordPiece(PIECES + WORDS)
    assert tokenizer.encode(["hello"] * 50 + ["friend"], 10)[-2] == tokenizer.ids["friend"]
    assert len(tokenizer.encode(["hello"] * 50, 10)) == 10
    assert len(tokenizer.encode(["q" * 100_000], 10**6)) < 50


def test_it_gives_the_numbers_of_torch(base: Path):
    model = finetune.Classifier(base, 2).eval()
    arrays = {name.removeprefix("bert."): array.numpy() for name, array in model.state_dict().items()}
    tokenizer, encoder = WordPiece(PIECES + WORDS), Encoder(quantized(arrays, 40), PIECES + WORDS)
    texts = [["my", "chest", "pains", "."], ["hello"], ["unbearable", "pain"] * 9, []]
    for text, scores in zip(texts, encoder.logits(texts), strict=True):
        ids = torch.tensor([tokenizer.encode(text, 40)])
        with torch.inference_mode():
            assert scores == pytest.approx(model(ids, torch.ones_like(ids))[0].numpy(), abs=0.02)
    assert encoder.logits(texts[:1])[0] == pytest.approx(encoder.logits(texts)[0], abs=1e-5), "alone or among others"
    assert encoder.logits([]).shape == (0, 2)


def test_it_learns_from_texts_and_is_saved(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(finetune, "base_folder", lambda: base)
    monkeypatch.setattr(finetune, "EPOCHS", 25)
    monkeypatch.setattr(finetune, "RATE", 2e-3)
    dice = random.Random(0)
    texts = [dice.choices(["my", "is", "hello", "friend", "."], k=5) for _ in range(200)]
    targets = np.array([[i % 2, i % 2] for i in range(200)])
    for i, text in enumerate(texts):
        text[dice.randrange(5)] = "pain" if targets[i, 0] else "chest"
    learned = finetune.fine_tuned(texts, targets, ["unbearable"], tmp_path)
    right = (learned.logits(texts) > 0) == targets
    assert right.mean() > 0.95
    again = Encoder.read(tmp_path)
    assert again.logits(texts[:3]) == pytest.approx(learned.logits(texts[:3]))
    assert finetune.fine_tuned(texts, targets, ["unbearable"], tmp_path).logits(texts[:3]) == pytest.approx(
        learned.logits(texts[:3]), abs=1e-3
    ), "the same input gives the same weights"
