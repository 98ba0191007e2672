"""Encoder: a small transformer (all-MiniLM-L6-v2, fine-tuned) that reads a short message in milliseconds, in numpy.

It needs neither torch nor a GPU nor the network, and gives the same numbers whatever the chat's engine does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

HEADS = 12
EPSILON = 1e-12  # layer_norm_eps
LONGEST_WORD = 40  # characters; the rest is not read


class WordPiece:
    """The tokens of a WordPiece vocabulary, by their id; texts are given as lower-case words."""

    def __init__(self, tokens: Sequence[str]):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self._pieces = lru_cache(maxsize=20_000)(self._cut)

    def encode(self, words: Sequence[str], longest: int) -> list[int]:
        """Return the ids of a text's tokens between [CLS] and [SEP]: at most `longest` in all, its end kept."""
        found = [piece for word in words for piece in self._pieces(word[:LONGEST_WORD])][-(longest - 2) :]
        return [self.ids["[CLS]"], *found, self.ids["[SEP]"]]

    def ends(self, words: Sequence[str]) -> np.ndarray:
        """Return how many pieces stand before each word, and in all [words + 1]."""
        return np.cumsum([0, *(len(self._pieces(word[:LONGEST_WORD])) for word in words)])

    def _cut(self, word: str) -> tuple[int, ...]:
        """Return the longest known pieces of a word, from its beginning."""
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                if (piece := self.ids.get(("##" if start else "") + word[start:end])) is not None:
                    break
            else:
                return (self.ids["[UNK]"],)
            found.append(piece)
            start = end
        return tuple(found)


class Encoder:
    """Weights of a BERT encoder and a linear head above the mean and the maximum of its last states.

    `arrays` are what `quantized` returns: matrices as 8-bit integers with a scale for each row, the rest as 16-bit
    floats. `tokens` is the vocabulary, in the order of its ids.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], tokens: Sequence[str]):
        self._tokenizer = WordPiece(tokens)
        # the table of words stays small: a message needs a few of its rows
        self._table, self._scale = arrays["words"], arrays["words.scale"].astype(np.float32)
        self._arrays = {
            name: array.astype(np.float32) * arrays[f"{name}.scale"].astype(np.float32)
            if f"{name}.scale" in arrays
            else array.astype(np.float32)
            for name, array in arrays.items()
            if not name.endswith(".scale") and name != "words"
        }
        self._layers = len({name.split(".")[0] for name in arrays if name[0].isdigit()})
        self._longest = len(self._arrays["positions"])  # tokens

    @classmethod
    def read(cls, folder: Path) -> Encoder:
        """Return the encoder saved in a folder: encoder.safetensors and vocabulary.txt."""
        from safetensors.numpy import load_file

        tokens = (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
        return cls(load_file(folder / "encoder.safetensors"), tokens)

    def spans(self, words: Sequence[str]) -> list[tuple[int, int]]:
        """Return (start, end) of the stretches of a text that can be read at once; neighbours overlap by half."""
        room, ends = self._longest - 2, self._tokenizer.ends(words)
        found, end = [], 0
        while end < len(words):
            end = max(end + 1, int(np.searchsorted(ends, ends[end] + (room // 2 if found else room), side="right")) - 1)
            start = int(np.searchsorted(ends, ends[end] - room))
            found.append((min(start, end - 1), end))
        return found

    def logits(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the head's logits [texts, outputs] of texts given as words."""
        head, bias = self._arrays["head"], self._arrays["head.bias"]
        pooled = [np.concatenate([states.mean(axis=0), states.max(axis=0)]) for states in self.hidden_states(texts)]
        return np.array(pooled).reshape(-1, head.shape[1]) @ head.T + bias

    def hidden_states(self, texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return the last states [tokens, 384] of each text. All go through each matrix together, without padding."""
        read = [self._tokenizer.encode(text, self._longest) for text in texts]
        if not read:
            return []
        sizes = [len(ids) for ids in read]
        ends = np.cumsum([0, *sizes])
        ids, w = np.concatenate(read), self._arrays
        x = self._table[ids] * self._scale[ids] + w["positions"][np.concatenate([np.arange(size) for size in sizes])]
        x = layer_norm(x, w, "norm")
        for n in range(self._layers):
            qkv = linear(x, w, f"{n}.qkv")
            seen = np.concatenate([attention(qkv[start:end]) for start, end in pairwise(ends)])
            x = layer_norm(x + linear(seen, w, f"{n}.out"), w, f"{n}.norm1")
            x = layer_norm(x + linear(gelu(linear(x, w, f"{n}.up")), w, f"{n}.down"), w, f"{n}.norm2")
        return [x[start:end] for start, end in pairwise(ends)]


def linear(x: np.ndarray, w: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return x @ w[name].T + w[f"{name}.bias"]


def attention(qkv: np.ndarray) -> np.ndarray:
    """Return what each token of one text takes from the others: [tokens, 3 * width] -> [tokens, width]."""
    queries, keys, values = qkv.reshape(len(qkv), 3, HEADS, -1).transpose(1, 2, 0, 3)
    weights = queries @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(queries.shape[-1]))
    weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ values).transpose(1, 0, 2).reshape(len(qkv), -1)


def layer_norm(x: np.ndarray, w: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON) * w[name] + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """Return GELU by its usual approximation, with which the encoder was fine-tuned (numpy has no error function)."""
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def quantized(bert: Mapping[str, np.ndarray], longest: int) -> dict[str, np.ndarray]:
    """Return the arrays of an `Encoder` of `longest` tokens from a BERT's, "head.weight" and "head.bias" among them."""
    # every token is of the first of the two kinds that BERT knows
    positions = (
        bert["embeddings.position_embeddings.weight"][:longest] + bert["embeddings.token_type_embeddings.weight"][0]
    )
    matrices = {"words": bert["embeddings.word_embeddings.weight"]}
    rest = {"positions": positions, "head": bert["head.weight"], "head.bias": bert["head.bias"]}
    norms = {"norm": "embeddings.LayerNorm"}
    layers = 1 + max(int(name.split(".")[2]) for name in bert if name.startswith("encoder.layer."))
    for n in range(layers):
        layer = f"encoder.layer.{n}."
        parts = [f"{layer}attention.self.{part}" for part in ("query", "key", "value")]
        matrices[f"{n}.qkv"] = np.concatenate([bert[f"{part}.weight"] for part in parts])
        rest[f"{n}.qkv.bias"] = np.concatenate([bert[f"{part}.bias"] for part in parts])
        for name, part in (("out", "attention.output.dense"), ("up", "intermediate.dense"), ("down", "output.dense")):
            matrices[f"{n}.{name}"] = bert[f"{layer}{part}.weight"]
            rest[f"{n}.{name}.bias"] = bert[f"{layer}{part}.bias"]
        norms |= {f"{n}.norm1": f"{layer}attention.output.LayerNorm", f"{n}.norm2": f"{layer}output.LayerNorm"}
    for name, part in norms.items():
        rest |= {name: bert[f"{part}.weight"], f"{name}.bias": bert[f"{part}.bias"]}
    arrays = {name: array.astype(np.float16) for name, array in rest.items()}
    for name, array in matrices.items():
        scale = np.maximum(np.abs(array).max(axis=1, keepdims=True) / 127, 1e-6).astype(np.float16)
        arrays |= {
            name: np.round(array / scale.astype(np.float32)).clip(-127, 127).astype(np.int8),
            f"{name}.scale": scale,
        }
    return arrays
