"""`python -m benchmarks.limits`: how fast this machine could decode and train at most, and how near our figures come.

Decoding reads all weights and each conversation's cache once a step, so the rate of reading bounds it: beyond the
caches, and at the weights' own size, which large caches hold; only speculation gets more than one token a step.
Training is bound by the rate of fp32 products, square or of the base's shapes. llama.cpp multiplies 8-bit numbers,
whose rate (AVX2, VNNI) Python cannot measure simply: where the processor holds decoding back, not memory, decoding
looks farther from its limit than it is. Run it alone. Writes benchmarks/results/limits.json, with what serve.json and
train.json there reach.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from medchat import embedded
from medchat.engines.llama_cpp import SLOTS, usable_cores
from medchat.errors import UserError
from medchat.gguf_header import read_header
from train import data, estimate, recipe, sft

RESULTS = Path(__file__).parent / "results"
BEYOND = 2**30  # bytes of a buffer that no cache holds
MATRIX = 2048
REPEATS = 7  # the quickest counts: the machine at its best is what bounds
ROWS = 200  # conversations of the recipe that are looked at
FAR, NEAR = "read beyond the caches, GB/s", "read at the weights' size, GB/s"
BEST, SHAPES = "GFLOP/s of square products", "GFLOP/s of products of the base's shapes"


def main() -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits")
    parser.add_argument("--base", default="embedded", help="GGUF file that decodes (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens of its conversation (default: %(default)s)")
    parser.add_argument("--recipe", default="embedded", help="what trains (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        chosen = recipe.load(arguments.recipe)
        length, learned = lengths(chosen)
        base = estimate.read_base(chosen)
        decoding = decode(arguments.base, arguments.length)
        training = train(chosen, base, length, learned)
    except UserError as error:
        sys.exit(str(error))
    figures = list(decoded(decoding)) if arguments.base == "embedded" else []
    if known("train").get("recipe") == arguments.recipe:
        figures += trained(training, chosen, base)
    results = {"machine": machine(), **vars(arguments), "decoding": decoding, "training": training, "figures": figures}
    print(f"{results['machine']}; {arguments.base} decodes, {arguments.recipe} trains")
    for name, value in (decoding | training).items():
        print(f"{name:66} {value:12,.2f}")
    for row in figures:
        print(f"{row['figure']:66} {row['tokens/s']:12,.2f}  {row['share']:.0%} of {row['limit']:,.0f}")
    if any(row["share"] > 1 for row in figures):
        print("More than the limit: something else ran beside this measurement. Run it again, alone.", file=sys.stderr)
    (RESULTS / "limits.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """Return what computes here: processor, cores and the largest cache."""
    names, cache = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    found = re.search(r"model name\s*: (.+)", names.read_text()) if names.exists() else None
    parts = [found[1] if found else platform.processor() or platform.machine(), f"{usable_cores()} cores"]
    return ", ".join([*parts, f"L3 cache {cache.read_text().strip()}"] if cache.exists() else parts)


def best(work: Callable[[], Any]) -> float:
    """Return the seconds of the quickest of REPEATS runs."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


# --- decoding ---


def decode(base: str, length: int) -> dict[str, float]:
    """Return the rates of memory, the bytes of a step, and tokens/s at most for one user and for SLOTS at once."""
    weights, cache = step_bytes(embedded.gguf_path() if base == "embedded" else Path(base))
    big, other, small = torch.ones(BEYOND // 4), torch.ones(BEYOND // 4), torch.ones(weights // 4)
    torch.set_num_threads(1)
    found = {f"{FAR}, one thread": read_rate(big), "copied, GB/s read and written, one thread": copy_rate(big, other)}
    torch.set_num_threads(usable_cores())
    found |= {FAR: read_rate(big), NEAR: read_rate(small), "copied, GB/s read and written": copy_rate(big, other)}
    found |= {"weights, MB a step": weights / 1e6, "cache, MB a step and user": cache * length / 1e6}
    for users in (1, SLOTS):
        found[f"decoding at most, tokens/s, weights in memory, users: {users}"] = tokens_per_second(found, users, FAR)
        found[f"decoding at most, tokens/s, weights in caches, users: {users}"] = tokens_per_second(found, users, NEAR)
    return found


def tokens_per_second(limits: dict[str, float], users: int, rate: str) -> float:
    """Return tokens/s at most, all `users` together, where steps read at `rate`: one of the weights serves them all."""
    step = limits["weights, MB a step"] + users * limits["cache, MB a step and user"]
    return users * limits[rate] * 1e3 / step


def step_bytes(path: Path) -> tuple[int, int]:
    """Return the bytes of weights that one step of a dense model reads, and those of the fp16 cache of one token.

    A table of embeddings counts only where it is the output head too: of any other a step reads one row.
    """
    from gguf import GGUFReader

    own = read_header(path).metadata  # raises UserError for what is no GGUF file
    of = {key.removeprefix(f"{own['general.architecture']}."): value for key, value in own.items()}
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    weights = sum(sizes.values()) - ("output.weight" in sizes) * sizes["token_embd.weight"]
    heads = of["attention.head_count"]
    size = of.get("attention.key_length", of["embedding_length"] // heads)
    return weights, of["block_count"] * 2 * of.get("attention.head_count_kv", heads) * size * 2


def read_rate(numbers: torch.Tensor) -> float:
    """Return GB/s at which a matrix is read to multiply it with a vector, as decoding does."""
    columns = 4096
    matrix = numbers[: len(numbers) // columns * columns].view(-1, columns)
    vector, out = torch.ones(columns), torch.empty(len(matrix))
    return matrix.nbytes / best(lambda: torch.mv(matrix, vector, out=out)) / 1e9


def copy_rate(numbers: torch.Tensor, other: torch.Tensor) -> float:
    return 2 * numbers.nbytes / best(lambda: other.copy_(numbers)) / 1e9


# --- training ---


def lengths(chosen: recipe.Recipe) -> tuple[float, float]:
    """Return the mean tokens of the recipe's conversations and the share of them that is learned, of ROWS seeded."""
    _, tokenizer, template = sft.load_base(chosen, weights=False)
    rows = data.load(chosen).train.shuffle(seed=0)
    rows = rows.select(range(min(ROWS, len(rows))))
    some, _ = sft.tokenize(rows, tokenizer, template, chosen.sft.max_length, chosen.sft.truncate)
    tokens = sum(len(ids) for ids in some["input_ids"])
    return tokens / len(some), sum(label != -100 for labels in some["labels"] for label in labels) / tokens


def train(chosen: recipe.Recipe, base: estimate.Base, length: float, learned: float) -> dict[str, float]:
    """Return the rates of products with all threads, the operations of a token of the recipe, and tokens/s at most."""
    torch.set_num_threads(usable_cores())
    pack = chosen.sft.batch * chosen.sft.max_length
    rates = {
        BEST: product_rate([(MATRIX, MATRIX, MATRIX)]),
        SHAPES: product_rate([(pack, *shapes[0]) for shapes in base.linear.values()]),
    }
    parts = operations(chosen, base, length, learned)
    found = rates | {"tokens of a conversation": length, "share of its tokens that is learned": learned}
    found |= {f"MFLOP a token, {name}": count / 1e6 for name, count in parts.items()}
    return found | {f"training at most, tokens/s by {n}": rate * 1e9 / sum(parts.values()) for n, rate in rates.items()}


def product_rate(shapes: list[tuple[int, int, int]]) -> float:
    """Return GFLOP/s of fp32 products (n, i) by (i, o), over all (n, i, o) together."""
    seconds = 0.0
    for n, i, o in shapes:
        x, weight = torch.ones(n, i), torch.ones(o, i)
        seconds += best(lambda x=x, weight=weight: x @ weight.T)
    return sum(2 * n * i * o for n, i, o in shapes) / seconds / 1e9


def operations(chosen: recipe.Recipe, base: estimate.Base, length: float, learned: float) -> dict[str, float]:
    """Return the floating point operations that one token cannot do without, by what needs them.

    A product takes 2 for each parameter; its gradients to the input, and to trained weights, as many. Layers below the
    lowest adapter have no way back, the head works for learned tokens only, attention looks back half of `length`
    (tokens of a conversation) on average, and nothing is computed twice.
    """
    full = chosen.method == "full"
    back = base.layers if full else min(base.layers, chosen.lora.top_layers or base.layers)
    return {
        "layers forwards": 2 * base.inner,
        "layers backwards": (4 if full else 2) * base.inner * back / base.layers,
        "adapter": 0 if full else 6 * base.trained(chosen),
        "attention": 2 * length * base.hidden * (base.layers + 2 * back),
        "head": (6 if full else 4) * base.hidden * base.vocabulary * learned,
    }


# --- what is reached ---


def decoded(decoding: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Yield each tokens/s of serve.json, its limit with the weights in caches, and the share of it."""
    for name, speed in leaves(known("serve")):
        if "tokens/s" in name:
            users = re.search(r"visitors, (\d+)", name)
            limit = tokens_per_second(decoding, min(int(users[1]) if users else 1, SLOTS), NEAR)
            yield {"figure": f"serve: {name}", "tokens/s": speed, "limit": limit, "share": speed / limit}


def trained(training: dict[str, float], chosen: recipe.Recipe, base: estimate.Base) -> Iterator[dict[str, Any]]:
    """Yield each way's tokens/s of train.json, the limit of square products for its rows, and the share of it."""
    results = known("train")
    for way, row in results.items():
        if not isinstance(row, dict) or "tokens/s" not in row:
            continue
        if "learned tokens" not in row:  # of an earlier day
            print(f"train.json has no learned tokens of {way}. Type: python -m benchmarks.train", file=sys.stderr)
            continue
        parts = operations(chosen, base, row["tokens"] / results["rows"], row["learned tokens"] / row["tokens"])
        limit = training[BEST] * 1e9 / sum(parts.values())
        speed = row["tokens/s"]
        yield {"figure": f"train: {way}", "tokens/s": speed, "limit": limit, "share": speed / limit}


def known(name: str) -> dict[str, Any]:
    """Return the results of another benchmark, none where it has not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield (keys joined, number) of every number in nested results."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}, {key}" if name else key)
    elif isinstance(value, int | float):
        yield name, value


if __name__ == "__main__":
    main()
