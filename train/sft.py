"""`python -m train sft RECIPE`: supervised fine-tuning on TRL's SFTTrainer; also under `accelerate launch`."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medchat.errors import UserError
from medchat.prompt import Message, Template, named_template
from train import data
from train.check import ON_CPU, for_cpu, named_size
from train.recipe import Lora, Recipe

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports home unless told not to
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHORTEST_QUESTION = 32  # tokens that are left of a question that is shortened
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes")


@dataclass
class Ledger:
    """What became of the rows at `max_length`: how many fit, were shortened or left out; `lengths` in tokens, uncut."""

    rows: int = 0
    fits: int = 0
    shortened: int = 0
    left_out: int = 0
    lengths: list[int] = field(default_factory=list)


def run(recipe: Recipe) -> Path:
    """Train `recipe` and return its folder: PEFT files (or a whole model), template, recipe, data report and log.

    A run that was interrupted or killed goes on from its last complete checkpoint when the same recipe is run again.
    Raises UserError for what a person can mend, and KeyboardInterrupt after saving a checkpoint.
    """
    output = Path(recipe.output_dir)
    try:
        return _run(recipe, output)
    except UserError:
        raise
    except Exception as error:
        if not _is_disk_full(error):
            raise
        raise UserError(
            f"The disk is full; the run in {output} could not go on.",
            f"Free some space and run the same command again. {_kept(output)}",
        ) from error


def _run(recipe: Recipe, output: Path) -> Path:
    checkpoint = last_checkpoint(output, recipe)
    check_trackers(recipe)
    _warn_without_gpu(recipe)
    mixture = data.load(recipe)
    model, tokenizer, template = load_base(recipe)
    train_set, ledger = tokenize(mixture.train, tokenizer, template, recipe.sft.max_length, recipe.sft.truncate)
    held_set, _ = tokenize(mixture.held_out, tokenizer, template, recipe.sft.max_length, recipe.sft.truncate)
    if not len(train_set):
        raise UserError(
            f"Every answer is longer than sft.max_length={recipe.sft.max_length} tokens.", "Type a larger one."
        )
    trainer = build_trainer(recipe, model, tokenizer, train_set, held_set)
    first = trainer.is_world_process_zero()
    if first:
        print(f"{len(train_set)} conversations to learn from, {len(held_set)} held out.")
        if ledger.shortened or ledger.left_out:
            print(f"Longer than {recipe.sft.max_length} tokens: {ledger.shortened} questions shortened, ", end="")
            print(f"{ledger.left_out} conversations left out. `python -m train check` shows which length fits.")
    proof = {"recipe": _hash(recipe.to_yaml()), "data": _data_hash(train_set), "code": _code_hash()}
    if first:
        print(_resumed(output, checkpoint, proof), flush=True)
        output.mkdir(parents=True, exist_ok=True)
        (output / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        (output / "run.json").write_text(json.dumps(proof, indent=1), encoding="utf-8")
        (output / "data_report.json").write_text(json.dumps(mixture.report, indent=1), encoding="utf-8")
        (output / "data_report.md").write_text(data.report_markdown(mixture.report), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    started = time.time()
    _train(trainer, checkpoint, output)
    save(trainer, tokenizer, output, recipe, template, time.time() - started)
    return output


def _warn_without_gpu(recipe: Recipe) -> None:
    """Say so when a recipe is for a GPU and there is none, before a base is loaded that may not fit into memory."""
    import torch

    heavy = recipe.method == "qlora" or recipe.sft.optimizer != "adamw" or named_size(recipe) >= ON_CPU
    if heavy and not torch.cuda.is_available() and os.environ.get("RANK", "0") == "0":
        changes = " ".join(for_cpu(recipe))
        print(f"There is no GPU here, which this recipe is for. For a CPU add: {changes}", flush=True)


def load_base(recipe: Recipe, *, weights: bool = True) -> tuple[Any, Any, Template]:
    """Return (model, tokenizer, template) of the recipe's base; the model is None without `weights`.

    4 bits (NF4, double quantization) for method qlora. Raises UserError saying what to do about a gated or absent base.
    """
    from transformers import AutoTokenizer

    from medchat.engines.transformers import base_not_loaded

    base, where, options = base_place(recipe)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = _load_model(recipe, where, options) if weights else None
    except UserError:
        raise
    except Exception as error:
        raise base_not_loaded(base, error) from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    template = base_template(recipe, tokenizer)
    try:
        template.learned_spans([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except ValueError as error:
        raise UserError(str(error), "Name another one: template=llama-3, llama-3.2 or alpaca.") from error
    return model, tokenizer, template


def base_place(recipe: Recipe) -> tuple[str, str, dict[str, Any]]:
    """Return the base's name with its revision, and what from_pretrained takes for it. Raises UserError."""
    from medchat.engines.transformers import base_location

    if recipe.base.startswith("runs/") and not Path(recipe.base).is_dir():
        raise UserError(
            f"The base {recipe.base!r} is the result of another run, and is not there yet.",
            f"Type: python -m train sft {Path(recipe.base).name}",
        )
    base = f"{recipe.base}@{recipe.revision}" if recipe.revision else recipe.base
    return base, *base_location(base)


def base_template(recipe: Recipe, tokenizer: Any) -> Template:
    """Return the recipe's named chat template, or the base's own, with the token that ends a turn in it."""
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token
    if recipe.template:
        template = named_template(recipe.template, bos=bos, eos=eos)
        end = "<|eot_id|>" if recipe.template.startswith("llama-3") else eos
        return Template(template.source, bos, end if end in tokenizer.get_vocab() else eos)
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(
            f"The base {recipe.base!r} has no chat template.",
            "Choose its instruct version, or a template: template=llama-3, llama-3.2 or alpaca.",
        )
    return Template(tokenizer.chat_template, bos, eos)


def _load_model(recipe: Recipe, where: str, options: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from medchat.engines.transformers import keep_cpu_weights_plain, nf4_options

    bf16 = uses_bf16(recipe)
    # Full fine-tuning keeps fp32 weights under bf16 autocast: bf16 alone would round small updates away.
    dtype = torch.bfloat16 if bf16 and recipe.method != "full" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how: dict[str, Any] = {}
    if recipe.method == "qlora":
        how = nf4_options("nf4", device, torch.bfloat16 if bf16 else torch.float32)
    if device == "cuda" and "WORLD_SIZE" not in os.environ:
        how["device_map"] = {"": 0}
    elif device == "cuda" and recipe.method == "qlora":  # quantized weights are placed while they are read
        how["device_map"] = {"": int(os.environ.get("LOCAL_RANK", 0))}
    model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, use_safetensors=True, **how, **options)
    keep_cpu_weights_plain(model)
    return model


def uses_bf16(recipe: Recipe) -> bool:
    """Return whether the run computes in bf16: on a GPU that has it, unless the recipe says otherwise."""
    import torch

    if recipe.sft.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return recipe.sft.precision == "bf16"


# ---- rows -> tokens


def tokenize(rows: Any, tokenizer: Any, template: Template, max_length: int, truncate: str) -> tuple[Any, Ledger]:
    """Return a data set of `input_ids` and `labels` (-100 where nothing is learned), and what happened to long rows.

    Only the assistant's tokens carry loss, the end-of-turn token included; an answer is never cut. `rows` is a data
    set of `messages` and `last_only`, whether just the last answer is learned.
    """

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        ids, labels = learned_tokens(messages, tokenizer, template, last_only=row["last_only"])
        length, state = len(ids), "fits"
        if length > max_length:
            shorter = shorten(messages, length - max_length, tokenizer) if truncate == "question" else messages
            ids, labels = learned_tokens(shorter, tokenizer, template, last_only=row["last_only"])
            state = "shortened" if len(ids) <= max_length else "left out"
        return {"input_ids": ids, "labels": labels, "length": length, "state": state}

    if not len(rows):
        from datasets import Dataset

        return Dataset.from_dict({"input_ids": [], "labels": []}), Ledger()
    # Short work is quicker than the fingerprint that a cache would need.
    encoded = rows.map(encode, remove_columns=rows.column_names, load_from_cache_file=len(rows) > 10_000)
    states = encoded["state"][:]
    kept = [i for i, state in enumerate(states) if state != "left out"]
    counts = {state: states.count(state) for state in ("fits", "shortened", "left out")}
    ledger = Ledger(len(rows), counts["fits"], counts["shortened"], counts["left out"], encoded["length"][:])
    if counts["left out"]:
        encoded = encoded.select(kept)
    return encoded.select_columns(["input_ids", "labels"]), ledger


def learned_tokens(
    messages: list[Message], tokenizer: Any, template: Template, *, last_only: bool = False
) -> tuple[list[int], list[int]]:
    """Return (ids, labels) of a conversation; labels are -100 but for the assistant's tokens."""
    text, spans = template.learned_spans(messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = spans[-1:] if last_only else spans
    labels = [
        token if any(start < high and end > low for low, high in spans) else -100
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return encoded["input_ids"], labels


def shorten(messages: list[Message], excess: int, tokenizer: Any) -> list[Message]:
    """Return the conversation with `excess` tokens less, cut from the beginnings of its longest questions.

    A question's last SHORTEST_QUESTION tokens always stay, so the result can still be too long.
    """
    shorter = [dict(message) for message in messages]
    asked = [message for message in shorter if message["role"] == "user"]
    for message in sorted(asked, key=lambda m: len(m["content"]), reverse=True):
        offsets = tokenizer(message["content"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        cut = min(excess + 2, len(offsets) - SHORTEST_QUESTION)  # 2: a word's pieces can change at the new beginning
        if excess <= 0 or cut <= 0:
            continue
        message["content"] = message["content"][offsets[cut][0] :].lstrip()
        excess -= cut - 2
    return shorter


# ---- the trainer


def build_trainer(recipe: Recipe, model: Any, tokenizer: Any, train_set: Any, held_set: Any) -> Any:
    """Return TRL's trainer for `recipe`, with the faster parts of train.kernels where they apply."""
    import torch
    from peft import LoraConfig
    from transformers import EarlyStoppingCallback, PrinterCallback

    from train import kernels
    from train.trainer import AnswerTrainer, Progress, SaveOnInterrupt

    sft, lora, cpu = recipe.sft, recipe.lora, not torch.cuda.is_available()
    if model.config.model_type != "llama":
        raise UserError(
            f"The base {recipe.base!r} is a {model.config.model_type} model.", "Choose one of the Llama architecture."
        )
    kernels.use_answer_loss(model)
    if cpu and sft.packing:
        kernels.use_packed_attention(model)
    peft_config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        **adapted(lora, model),
    )
    interrupt = SaveOnInterrupt()
    callbacks = [Progress(), interrupt]
    if sft.patience is not None and len(held_set):
        callbacks.append(EarlyStoppingCallback(sft.patience))
    trainer = AnswerTrainer(
        model=model,
        args=_arguments(recipe, evaluate=len(held_set) > 0),
        train_dataset=train_set,
        eval_dataset=held_set if len(held_set) else None,
        processing_class=tokenizer,
        peft_config=peft_config if recipe.method != "full" else None,
        callbacks=callbacks,
    )
    interrupt.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    if cpu and recipe.method == "lora":
        kernels.use_fused_lora(trainer.model)
    return trainer


def adapted(lora: Lora, model: Any) -> dict[str, Any]:
    """Return which matrices get an adapter, as LoraConfig takes it."""
    # One matrix's name in a list: PEFT takes a text for a pattern that must fit a module's whole path.
    named = isinstance(lora.targets, str) and lora.targets != "all-linear"
    targets = [lora.targets] if named else lora.targets
    if lora.top_layers is None:
        return {"target_modules": targets}
    if targets == "all-linear":  # PEFT takes layers only for matrices that are named
        import torch

        layer = model.get_decoder().layers[0].named_modules()
        targets = sorted(name.rpartition(".")[2] for name, module in layer if isinstance(module, torch.nn.Linear))
    depth = model.config.num_hidden_layers
    return {"target_modules": targets, "layers_to_transform": list(range(max(0, depth - lora.top_layers), depth))}


def _arguments(recipe: Recipe, *, evaluate: bool) -> Any:
    import torch
    from trl.trainer.sft_config import SFTConfig

    sft, cuda = recipe.sft, torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(Path(recipe.output_dir) / "checkpoints"),
        num_train_epochs=sft.epochs,
        max_steps=sft.max_steps or -1,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.scheduler if sft.scheduler != "constant" else "constant_with_warmup",
        warmup_steps=sft.warmup,
        weight_decay=sft.weight_decay,
        optim="adamw_torch" if sft.optimizer == "adamw" else sft.optimizer,
        per_device_train_batch_size=sft.batch,
        per_device_eval_batch_size=sft.batch,
        gradient_accumulation_steps=sft.accumulation,
        max_length=sft.max_length,
        packing=sft.packing,
        packing_strategy="bfd",
        bf16=uses_bf16(recipe),
        tf32=True if cuda and torch.cuda.get_device_capability()[0] >= 8 else None,
        use_cpu=not cuda,
        activation_checkpointing=cuda if sft.checkpointing is None else sft.checkpointing,
        torch_compile=sft.compile,
        logging_steps=sft.log_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=sft.eval_steps,
        save_steps=sft.save_steps,
        save_total_limit=sft.keep,
        load_best_model_at_end=evaluate,
        metric_for_best_model="eval_loss" if evaluate else None,
        greater_is_better=False if evaluate else None,
        prediction_loss_only=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
        ddp_find_unused_parameters=False,
        report_to=sft.trackers or "none",
        project="medchat",
        run_name=Path(recipe.output_dir).name,
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
    )


def check_trackers(recipe: Recipe) -> None:
    """Raise UserError for trackers that are not installed."""
    missing = [name for name in recipe.sft.trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} is not installed.", f"Type: pip install {' '.join(missing)}")


def _train(trainer: Any, checkpoint: Path | None, output: Path) -> None:
    """Run the training; whatever ends it early, the message says where the run can go on from."""
    from train.trainer import SaveOnInterrupt

    interrupt = next(c for c in trainer.callback_handler.callbacks if isinstance(c, SaveOnInterrupt))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UserError as error:
        raise UserError(error.what, f"{error.fix} {_kept(output)}") from error
    finally:
        interrupt.restore()
    if interrupt.interrupted:
        if trainer.is_world_process_zero():
            print(f"Saved at step {trainer.state.global_step}. Run the same command again to go on.", flush=True)
        raise KeyboardInterrupt


def _kept(output: Path) -> str:
    checkpoint = newest_complete(output / "checkpoints")
    return f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint had been saved yet."


def _is_disk_full(error: BaseException) -> bool:
    """Return whether a write failed for want of room; safetensors and torch wrap the system's error in their own."""
    numbers = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
    texts = [os.strerror(number) for number in numbers]
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in numbers or any(text in str(cause) for text in texts):
            return True
        cause = cause.__cause__ or cause.__context__
    return "PytorchStreamWriter failed" in str(error)


# ---- going on from a checkpoint


def last_checkpoint(output: Path, recipe: Recipe) -> Path | None:
    """Return the newest complete checkpoint of this very recipe; raise UserError for another run's folder."""
    written = output / "recipe.yaml"
    if not written.is_file():
        return None
    if written.read_text(encoding="utf-8") != recipe.to_yaml():
        raise UserError(
            f"{output} holds a run of another recipe.", "Choose another folder with output_dir=DIR, or delete that one."
        )
    if (output / "log.json").is_file():
        raise UserError(f"{output} holds the finished run of this recipe.", "Choose another folder, or delete it.")
    return newest_complete(output / "checkpoints")


def newest_complete(folder: Path) -> Path | None:
    """Return the checkpoint with the highest step whose saving was not cut off, or None."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in found if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    try:  # the trainer writes its state last
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _resumed(output: Path, checkpoint: Path | None, proof: dict[str, str]) -> str:
    """Return the sentence that says whether the run is resumed; raise UserError when its data has changed."""
    if checkpoint is None:
        return "Starting fresh."
    before = json.loads((output / "run.json").read_text(encoding="utf-8"))
    if before["data"] != proof["data"]:
        raise UserError(
            f"The data of the run in {output} has changed since it began.",
            "Choose another folder with output_dir=DIR, or put the data back as it was.",
        )
    step = checkpoint.name.rpartition("-")[2]
    if before["code"] != proof["code"]:
        return f"Resuming at step {step}: the same recipe and data, but other code, so the losses may differ."
    return f"Resuming at step {step}: the same recipe, data and code."


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _data_hash(rows: Any) -> str:
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(1000):
        for column in ("input_ids", "labels"):
            digest.update(json.dumps(batch[column].to_pylist()).encode())
    return digest.hexdigest()


def _code_hash() -> str:
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), here.parent / "medchat" / "prompt.py"])
    return _hash("".join(path.read_text(encoding="utf-8") for path in files))


# ---- the result


def save(trainer: Any, tokenizer: Any, output: Path, recipe: Recipe, template: Template, seconds: float) -> None:
    """Write the best adapter (or model) into `output`, with its chat template and the log of the run."""
    from medchat import embedded

    base = embedded.ORIGINAL if recipe.base == "embedded" else recipe.base
    if recipe.method == "full":
        trainer.save_model(str(output))
        tokenizer.chat_template = template.source
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(str(output))
    elif trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        config = model.peft_config["default"]
        config.base_model_name_or_path, config.revision = base, recipe.revision
        alpha = recipe.lora.alpha * recipe.lora.strength  # the update is proportional to it
        config.lora_alpha = int(alpha) if alpha == int(alpha) else alpha
        # Never an embedding: PEFT would look the base up on the Hub to decide.
        model.save_pretrained(str(output), save_embedding_layers=False)
    if not trainer.is_world_process_zero():
        return
    (output / "README.md").unlink(missing_ok=True)  # an empty card
    (output / "training_args.bin").unlink(missing_ok=True)  # a pickle
    (output / "chat_template.jinja").write_text(template.source, encoding="utf-8")
    state = trainer.state
    log = {
        "seconds": round(seconds),
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "best_held_out": state.best_metric,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
        "history": state.log_history,
    }
    (output / "log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    best = f", best at step {state.best_global_step}" if state.best_global_step else ""
    print(f"Saved in {output} after {seconds / 60:.1f} minutes{best}.")
