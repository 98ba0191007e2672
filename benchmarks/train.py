"""`python -m benchmarks.train`: `train sft` beside TRL as it comes and beside a loop like the published scripts'.

The same rows once, the same adapter, about the same tokens a step, each in a process of its own, one after the other.
Tokens are those of the conversations, without padding. Needs lavita/MedQuAD (the Hub, or DATASETS_MIRROR). Writes
benchmarks/results/train.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from medchat.engines.llama_cpp import usable_cores
from train import data, recipe, sft

ROOT = Path(__file__).parent.parent
ROWS, HELD_OUT = 96, 32
BATCH = 8  # rows a step where rows are not packed: about as many tokens as the recipe's packs
WAYS = {
    "sft": "python -m train sft",
    "trl": "TRL's SFTTrainer as it comes",
    "loop": "a loop like the published scripts'",
}


def main() -> None:
    """Run all three and print tokens/s, their ratios, the loss reached and the memory."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=WAYS, help="one of them, its figures as JSON on the last line")
    if only := arguments.parse_args().only:
        print(json.dumps(measure(only)))
        return
    results: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {usable_cores()} cores"}
    results |= {"rows": ROWS, "recipe": "embedded"}
    for way, title in WAYS.items():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.train", "--only", way], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        done.check_returncode()
        found = results[way] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{title:36} {found['tokens/s']:6.0f} tokens/s  {results['sft']['tokens/s'] / found['tokens/s']:5.2f}x"
            f"  held out {found['held out before']:.3f} -> {found['held out after']:.3f} nats per token"
            f"  {found['peak memory, MB']:,.0f} MB",
            flush=True,
        )
    path = ROOT / "benchmarks" / "results" / "train.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(way: str) -> dict[str, float]:
    """Train in one of the three ways and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        institutes = "[CDC, CancerGov, MPlusHealthTopics, NHLBI, NIDDK, NIHSeniorHealth, NINDS]"
        source = f"dataset: lavita/MedQuAD, institutes: {institutes}, max_chars: 600, rows: {ROWS + HELD_OUT}"
        typed = [f"data=[{{{source}}}]", f"held_out={HELD_OUT}", f"output_dir={folder}", "sft.epochs=1"]
        chosen = recipe.load("embedded", typed)
        mixture = data.load(chosen)
        model, tokenizer, template = sft.load_base(chosen)
        train_set, _ = sft.tokenize(mixture.train, tokenizer, template, 1024, "question")
        held_set, _ = sft.tokenize(mixture.held_out, tokenizer, template, 1024, "question")
        before = held_out(model, held_set)
        trained, seconds = globals()[f"by_{way}"](chosen, model, tokenizer, train_set, mixture.train, folder)
        tokens = sum(len(row["input_ids"]) for row in train_set)
        return {
            "tokens": tokens,
            "learned tokens": sum(label != -100 for row in train_set for label in row["labels"]),
            "seconds": seconds,
            "tokens/s": tokens / seconds,
            "held out before": before,
            "held out after": held_out(trained, held_set),
            "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }


def by_sft(chosen: Any, model: Any, tokenizer: Any, train_set: Any, rows: Any, folder: str) -> tuple[Any, float]:
    trainer = sft.build_trainer(chosen, model, tokenizer, train_set, train_set.select([]))
    started = time.perf_counter()
    trainer.train()
    return trainer.model, time.perf_counter() - started


def by_trl(chosen: Any, model: Any, tokenizer: Any, train_set: Any, rows: Any, folder: str) -> tuple[Any, float]:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    pairs = rows.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns=rows.column_names,
    )
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        learning_rate=chosen.sft.learning_rate,
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        seed=chosen.seed,
        bf16=False,  # its default, which a CPU refuses
        use_cpu=True,
    )
    trainer = SFTTrainer(
        model, arguments, train_dataset=pairs, processing_class=tokenizer, peft_config=lora(chosen, model)
    )
    started = time.perf_counter()
    trainer.train()
    return trainer.model, time.perf_counter() - started


def by_loop(chosen: Any, model: Any, tokenizer: Any, train_set: Any, rows: Any, folder: str) -> tuple[Any, float]:
    """Dynamic padding to the longest row of a batch, loss on every token, AdamW."""
    import torch
    from peft import get_peft_model
    from transformers import DataCollatorForLanguageModeling

    torch.manual_seed(chosen.seed)
    model = get_peft_model(model, lora(chosen, model)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=chosen.sft.learning_rate)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    loader = torch.utils.data.DataLoader(
        train_set.select_columns("input_ids"), batch_size=BATCH, shuffle=True, collate_fn=collate
    )
    started = time.perf_counter()
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, time.perf_counter() - started


def lora(chosen: Any, model: Any) -> Any:
    from peft import LoraConfig

    own = chosen.lora
    return LoraConfig(task_type="CAUSAL_LM", r=own.r, lora_alpha=own.alpha, **sft.adapted(own, model))


def held_out(model: Any, rows: Any) -> float:
    """Return nats per learned token of `rows`, each alone, through the model's plain logits."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids, targets = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            count += int((targets != -100).sum())
    return total / count


if __name__ == "__main__":
    main()
