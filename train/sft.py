"""`python -m train sft RECIPE`: supervised fine-tuning of a LoRA adapter, on TRL's SFTTrainer."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medchat.errors import UserError
from medchat.prompt import Message, Template
from train import data
from train.recipe import Recipe

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports home unless told not to
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def run(recipe: Recipe) -> Path:
    """Train `recipe` and return the adapter folder: PEFT files, chat template, resolved recipe and log.

    A run that was interrupted goes on from its last checkpoint when the same recipe is run again.
    Raises UserError for what a person can mend, and KeyboardInterrupt after saving a checkpoint.
    """
    output = Path(recipe.output_dir)
    checkpoint = _checkpoint(output, recipe)
    train_rows, held_rows = data.load_rows(recipe)
    print(f"{len(train_rows)} conversations to learn from, {len(held_rows)} held out.")
    model, tokenizer, template = _load_base(recipe)
    train_set, dropped = tokenize(train_rows, tokenizer, template, recipe.sft.max_length)
    held_set, _ = tokenize(held_rows, tokenizer, template, recipe.sft.max_length)
    if not len(train_set):
        raise UserError(
            f"Every conversation is longer than sft.max_length={recipe.sft.max_length} tokens.", "Type a larger one."
        )
    if dropped:
        print(f"{dropped} conversations are longer than {recipe.sft.max_length} tokens and left out.")

    trainer = _trainer(recipe, model, tokenizer, train_set, held_set)
    output.mkdir(parents=True, exist_ok=True)
    (output / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    if checkpoint:
        print(f"Resuming from {checkpoint}.")
    started = time.time()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        trainer._save_checkpoint(trainer.model, trial=None)  # transformers has no public way to save one now
        print(f"\nInterrupted and saved at step {trainer.state.global_step}. Run the same command again to go on.")
        raise
    _save(trainer, output, recipe, template, time.time() - started)
    return output


def tokenize(rows: Sequence[list[Message]], tokenizer: Any, template: Template, max_length: int) -> tuple[Any, int]:
    """Return a data set of `input_ids` and `labels` (-100 where nothing is learned), and how many rows were too long.

    Only the assistant's tokens carry loss, the end-of-turn token included; nothing is ever cut off.
    """
    from datasets import Dataset

    examples = []
    for messages in rows:
        text, spans = template.learned_spans(messages)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        if len(ids) > max_length:
            continue
        labels = [
            token if any(start < high and end > low for low, high in spans) else -100
            for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
        ]
        examples.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(examples), len(rows) - len(examples)


def _load_base(recipe: Recipe) -> tuple[Any, Any, Template]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medchat import embedded

    path = embedded.transformers_path() if recipe.base == "embedded" else recipe.base
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map="auto" if cuda else None)
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(
            f"The base {recipe.base!r} could not be loaded: {first_line}",
            "Check the id or path; for a gated one, accept its licence on the Hub and set HF_TOKEN.",
        ) from error
    if not tokenizer.chat_template:
        raise UserError(f"The base {recipe.base!r} has no chat template.", "Choose its instruct version.")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer, Template(tokenizer.chat_template, tokenizer.bos_token or "", tokenizer.eos_token)


def _trainer(recipe: Recipe, model: Any, tokenizer: Any, train_set: Any, held_set: Any) -> Any:
    import torch
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig

    from train.trainer import AnswerTrainer, ProgressLine

    sft, cuda = recipe.sft, torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(Path(recipe.output_dir) / "checkpoints"),
        num_train_epochs=sft.epochs,
        max_steps=sft.max_steps or -1,
        learning_rate=sft.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=sft.warmup,
        per_device_train_batch_size=sft.batch,
        per_device_eval_batch_size=sft.batch,
        gradient_accumulation_steps=sft.accumulation,
        max_length=sft.max_length,
        packing=True,
        packing_strategy="bfd",
        bf16=cuda,
        use_cpu=not cuda,
        activation_checkpointing=cuda,
        logging_steps=sft.log_steps,
        eval_strategy="steps" if len(held_set) else "no",
        eval_steps=sft.eval_steps,
        save_steps=sft.save_steps,
        save_total_limit=2,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
    )
    lora = recipe.lora
    trainer = AnswerTrainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=held_set if len(held_set) else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
        ),
        callbacks=[ProgressLine()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _checkpoint(output: Path, recipe: Recipe) -> Path | None:
    """Return the checkpoint to go on from; refuse a folder that holds another run."""
    from transformers.trainer_utils import get_last_checkpoint

    written = output / "recipe.yaml"
    if not written.is_file():
        return None
    if written.read_text(encoding="utf-8") != recipe.to_yaml():
        raise UserError(
            f"{output} holds a run of another recipe.", "Choose another folder with output_dir=DIR, or delete that one."
        )
    if (output / "adapter_model.safetensors").is_file():
        raise UserError(f"{output} holds the finished adapter of this recipe.", "Choose another folder, or delete it.")
    checkpoints = output / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    return Path(last) if last else None


def _save(trainer: Any, output: Path, recipe: Recipe, template: Template, seconds: float) -> None:
    from medchat import embedded

    config = trainer.model.peft_config["default"]
    config.base_model_name_or_path = embedded.ORIGINAL if recipe.base == "embedded" else recipe.base
    alpha = recipe.lora.alpha * recipe.lora.strength  # the update is proportional to it
    config.lora_alpha = int(alpha) if alpha == int(alpha) else alpha
    # Never an embedding: PEFT would look the base up on the Hub to decide.
    trainer.model.save_pretrained(str(output), save_embedding_layers=False)
    (output / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    (output / "chat_template.jinja").write_text(template.source, encoding="utf-8")
    log = {"seconds": round(seconds), "steps": trainer.state.global_step, "history": trainer.state.log_history}
    (output / "log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    print(f"Adapter saved in {output} after {seconds / 60:.1f} minutes.", file=sys.stderr)
