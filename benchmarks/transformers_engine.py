"""`python -m benchmarks.transformers_engine PART...`: the transformers engine on this machine, one process a part.

speed       the embedded base in 4 bits: tokens/s without and with the adapter, turn-5 first token, memory
agreement   the embedded base's likeliest next tokens against llama.cpp's, over 200 positions of knowledge text
llama       a randomly initialised Llama-3.2-1B: quantize, add a LoRA, stream, peak memory
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from threading import Event
from typing import Any

from medchat.engines import Sampling, Stats

QUESTIONS = [
    "What are the symptoms of iron deficiency?",
    "Which foods help?",
    "How long does it take to feel better?",
    "Can I take iron together with coffee?",
    "When should I see a doctor?",
]
POSITIONS = 200


def main(parts: list[str]) -> None:
    known = {"speed": speed, "agreement": agreement, "llama": llama}
    for part in parts or known:
        print(json.dumps({"part": part, **known[part](), "peak_gb": round(peak_gb(), 2)}), flush=True)


def speed() -> dict[str, Any]:
    """Return tokens/s, and the first token of turn 5 with and without the cache of the turns before."""
    from medchat.engines.transformers import open_transformers

    started = time.perf_counter()
    engine = open_transformers("embedded", ["embedded"])
    result: dict[str, Any] = {"ready_s": round(time.perf_counter() - started, 1), "ready_gb": round(peak_gb(), 2)}
    sampling = Sampling(max_tokens=48, temperature=0)
    for name in ("", "medchat"):
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        stats = reply(engine, messages, name, sampling)[1]
        result[f"tokens_per_s_{name or 'base'}"] = round(stats.tokens_per_second, 1)
    messages, before, reused = [], [], None
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        before = list(messages)
        text, reused = reply(engine, messages, "", sampling)
        messages.append({"role": "assistant", "content": text})
    assert reused is not None
    engine._kept.clear()
    fresh = reply(engine, before, "", sampling)[1]
    result["turn5"] = {
        "prompt_tokens": reused.prompt_tokens,
        "cached_tokens": reused.cached_tokens,
        "first_token_s": round(reused.first_token_seconds, 3),
        "without_reuse_s": round(fresh.first_token_seconds, 3),
        "ratio": round(reused.first_token_seconds / fresh.first_token_seconds, 3),
    }
    return result


def agreement() -> dict[str, Any]:
    """Return the share of positions where the likeliest next token is llama.cpp's, and where the others lie."""
    from medchat.engines.llama_cpp import open_llama_cpp
    from medchat.engines.transformers import open_transformers

    text = knowledge_text()
    reference = open_llama_cpp("embedded", [])
    full = open_transformers("embedded", [], quant="none")
    ids = full.tokenizer(text, add_special_tokens=False).input_ids
    same_ids = ids == reference.tokenize(text)
    context = 100
    ids = ids[: context + POSITIONS]
    theirs = []
    for position in range(context, context + POSITIONS):
        request = {
            "prompt": ids[:position],
            "max_tokens": 1,
            "temperature": 0,
            "repeat_penalty": 1.0,
            "n_probs": 2,
            "cache_prompt": True,
            "post_sampling_probs": False,
        }
        top = _top_two(reference.complete(request))
        theirs.append(top)
    ours_full, nll_full = likeliest(full, ids, context)
    del full
    ours_nf4, nll_nf4 = likeliest(open_transformers("embedded", [], quant="4bit"), ids, context)
    names = [token for token, _ in theirs]
    result: dict[str, Any] = {"positions": POSITIONS, "same_token_ids": same_ids}
    result |= {"nats_a_token_full": round(nll_full, 3), "nats_a_token_nf4": round(nll_nf4, 3)}
    pairs = {
        "full_vs_llama_cpp": (ours_full, names),
        "nf4_vs_llama_cpp": (ours_nf4, names),
        "nf4_vs_full": (ours_nf4, ours_full),
    }
    for name, (a, b) in pairs.items():
        wrong = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        result[name] = round(1 - len(wrong) / POSITIONS, 3)
        margins = sorted(theirs[i][1] for i in wrong)
        result[name + "_median_margin_where_different"] = round(margins[len(margins) // 2], 3) if margins else None
    margins = sorted(margin for _, margin in theirs)
    result["median_margin_everywhere"] = round(margins[len(margins) // 2], 3)
    return result


def llama() -> dict[str, Any]:
    """Return what a Llama-3.2-1B with random weights needs: load and quantize, tokens/s with a LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from medchat import embedded
    from medchat.engines.transformers import open_transformers

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = Path(folder) / "base", Path(folder) / "adapter"
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(base)
        AutoTokenizer.from_pretrained(embedded.transformers_path()).save_pretrained(base)
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
        wrapped.save_pretrained(str(adapter), save_embedding_layers=False)
        made = peak_gb()
        del model, wrapped
        started = time.perf_counter()
        engine = open_transformers(str(base), [str(adapter)], quant="4bit")
        ready = time.perf_counter() - started
        rss = resident_gb()
        stats = reply(engine, [{"role": "user", "content": QUESTIONS[0]}], "adapter", Sampling(max_tokens=12))[1]
    return {
        "making_the_files_peak_gb": round(made, 2),
        "ready_s": round(ready, 1),
        "resident_after_loading_gb": round(rss, 2),
        "completion_tokens": stats.completion_tokens,
        "tokens_per_s": round(stats.tokens_per_second, 2),
        "first_token_s": round(stats.first_token_seconds, 2),
    }


def reply(engine: Any, messages: list[dict[str, str]], adapter: str, sampling: Sampling) -> tuple[str, Stats]:
    deltas = list(engine.stream(list(messages), adapter=adapter, sampling=sampling, cancel=Event()))
    stats = deltas[-1].stats
    assert stats is not None
    return "".join(delta.text for delta in deltas), stats


def likeliest(engine: Any, ids: list[int], context: int) -> tuple[list[int], float]:
    """Return the likeliest token after each prefix of `ids` from `context` tokens on, and the text's nats a token."""
    import torch

    with torch.inference_mode():
        logits = engine._model(torch.tensor([ids])).logits[0, context - 1 : -1].float()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[context:]))
    return logits.argmax(-1).tolist(), float(loss)


def knowledge_text() -> str:
    folder = Path(__file__).parent.parent / "assets" / "knowledge"
    with (folder / "infections.jsonl").open(encoding="utf-8") as file:
        entries = [json.loads(line) for line, _ in zip(file, range(10), strict=False)]
    return "\n\n".join(f"{entry['title']}\n{entry['overview']}" for entry in entries)


def _top_two(answer: dict[str, Any]) -> tuple[int, float]:
    """Return the likeliest token and by how much its log-probability leads, in nats."""
    if "choices" in answer and answer["choices"][0].get("logprobs"):
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    else:
        top = answer["completion_probabilities"][0]["top_logprobs"]
    top = sorted(top, key=lambda entry: -entry["logprob"])
    return top[0]["id"], top[0]["logprob"] - top[1]["logprob"]


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def resident_gb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


if __name__ == "__main__":
    main(sys.argv[1:])
