"""`python -m train merge ADAPTER_DIR --output DIR`: base and adapter as one full model, with the error measured."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medchat import adapters, embedded
from medchat.adapters import Adapter
from medchat.errors import UserError
from medchat.prompt import SYSTEM, Message, Template
from train import recipe as recipes
from train.recipe import Recipe

# The error is measured on these questions, each followed by the reply of base + adapter.
QUESTIONS = (
    "What are the early signs of iron deficiency?",
    "I have had a headache on one side since this morning. What could it be?",
    "Can I take ibuprofen together with paracetamol?",
    "My child has a fever of 39 degrees. When should we see a doctor?",
    "How is high blood pressure treated?",
    "Hello, who are you?",
)
REPLY_TOKENS = 32
FORMS = {"4bit": "the 4-bit base + adapter", "full": "the full-precision base + adapter"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("adapter", metavar="ADAPTER_DIR", help="adapter folder, Hub id, or `embedded`")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument(
        "--into",
        choices=tuple(FORMS),
        help="merge into the base as 4 bits left it (for an adapter that was trained on that), or into the base at "
        "full precision (default: as the recipe trained it)",
    )
    parser.add_argument(
        "--base", default="", metavar="ID|PATH|embedded", help="the base (default: the one that the adapter records)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Merge, and print the error against base + adapter."""
    errors = merge(arguments.adapter, arguments.output, into=arguments.into, base=arguments.base)
    for form, (relative, agreement) in errors.items():
        print(f"against {FORMS[form]:34} relative logit error {relative:.4f}, same next token {agreement:.1%}")
    print(f"Merged model saved in {arguments.output}.")


def merge(
    source: str, output: Path, *, into: str | None = None, base: str = "", shard_size: str = "5GB"
) -> dict[str, tuple[float, float]]:
    """Save base + adapter as a full model in `output`; return {form: (relative logit error, top-1 agreement)}.

    `into` is a key of FORMS, None for the form that the adapter was trained on; the error of the saved model is
    measured against base + adapter in both forms (in 4 bits only where bitsandbytes works). 4-bit weights are first
    dequantized: merging into them directly would round the update away. Raises UserError for a base that is unknown,
    absent or another one, an output that exists, and a full disk; then nothing is left behind.
    """
    import torch
    from transformers.utils import logging

    from medchat.engines.transformers import base_location, nf4_options

    adapter = adapters.open_adapter(source)
    base = base_of(adapter, base)
    recipe = recipe_of(adapter.folder)
    into = into or ("4bit" if recipe and recipe.method == "qlora" else "full")
    if base.endswith(".gguf"):
        raise UserError(f"{base} is a GGUF file, which cannot be merged into.", "Give --base the model's Hub id.")
    at = f"@{recipe.revision}" if recipe and recipe.revision and recipe.base == base else ""
    where, options = base_location(base + at)
    plan = _plan(base, where, options)
    linear = {n: (m.out_features, m.in_features) for n, m in plan.named_modules() if hasattr(m, "out_features")}
    adapters.open_adapter(source, linear)  # refuses an adapter for another base
    conversations = [conversation(adapter, question) for question in QUESTIONS]

    logging.disable_progress_bar()  # a bar for every loading: five of them
    logging.set_verbosity_error()
    with new_folder(output, room=plan.get_memory_footprint()) as partial:
        references: dict[str, Any] = {}
        texts: list[Any] = []
        model = tokenizer = None
        for form in sorted(FORMS, key=lambda form: form == into):  # the one to merge into comes last, and stays
            if form == "4bit" != into and not nf4_options("auto", "cpu", torch.float32):
                continue
            print(f"Replies and logits of {FORMS[form]} ...", file=sys.stderr)
            model = None  # before the next one is loaded
            model, tokenizer = _with_adapter(base, where, options, adapter, form)
            texts = texts or [_with_reply(model, tokenizer, adapter, messages) for messages in conversations]
            references[form] = logits(model, texts)
        print("Merging, saving, and measuring what was saved ...", file=sys.stderr)
        _save(_merged(model, adapter, into), tokenizer, adapter, partial, plan.dtype, shard_size)
        model = None
        saved = _load(str(partial), "full", {})
        errors = {form: error(reference, logits(saved, texts)) for form, reference in references.items()}
        (partial / "README.md").write_text(_card(adapter, base, into, errors), encoding="utf-8")
    return errors


def base_of(adapter: Adapter, chosen: str = "") -> str:
    """Return the base to load for an adapter: the one chosen, its recipe's, or its configuration's.

    That is "embedded", a folder or a Hub id. Raises UserError when none is recorded.
    """
    if chosen:
        return chosen
    recipe, trained_on_folder = recipe_of(adapter.folder), bool(adapter.base) and Path(adapter.base).is_dir()
    if recipe and (recipe.base == "embedded" or not trained_on_folder):
        return recipe.base
    if not adapter.base:
        raise UserError(
            f"The adapter {adapter.source!r} does not say which base it was trained on.", "Name it: --base ORG/NAME"
        )
    # Whoever trains on the embedded base records the model that it was made from.
    return "embedded" if adapter.base == embedded.ORIGINAL else adapter.base


def recipe_of(folder: Path) -> Recipe | None:
    """Return the recipe that an adapter folder was trained with, None where it has none or not one of ours."""
    path = folder / "recipe.yaml"
    try:
        return recipes.load(str(path)) if path.is_file() else None
    except UserError:
        return None


@contextmanager
def new_folder(output: Path, *, room: int) -> Iterator[Path]:
    """Yield a folder beside `output` that takes its name when the block succeeds, and vanishes when it fails.

    Raises UserError when `output` holds something already, has less than `room` bytes, or its disk fills up.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already.", "Choose another --output, or delete it.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output.parent).free
        if free < room:
            raise UserError(
                f"The model takes {room / 1e9:,.1f} GB, and the disk of {output} has {free / 1e9:,.1f} GB left.",
                "Make room there, or choose a folder on another disk.",
            )
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as failure:
        raise UserError(f"{output} cannot be written: {failure.strerror}.", "Choose another --output.") from failure
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp's folders are for nobody else
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    except Exception as failure:
        if reason := _disk_trouble(failure):
            raise UserError(
                f"{output} could not be written: {reason}. Nothing is left of it.",
                "Make room there, or choose a folder on another disk.",
            ) from failure
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _disk_trouble(failure: Exception) -> str | None:
    """Return what is wrong with the disk when that is what `failure` is about; safetensors only puts it into words."""
    number = failure.errno if isinstance(failure, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(failure))):
        number = int(found[1])
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    return os.strerror(number) if number in full else None


def error(reference: Sequence[Any], logits: Sequence[Any]) -> tuple[float, float]:
    """Return the relative error of logits, |difference| / |reference|, and how often both choose the same next token.

    Each item is one text's (tokens, vocabulary). The mean over the vocabulary is taken out first: it changes no
    probability, and in some models it is larger than all the rest.
    """
    import torch

    ours, theirs = torch.cat(list(logits)), torch.cat(list(reference))
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    ours, theirs = ours - ours.mean(-1, keepdim=True), theirs - theirs.mean(-1, keepdim=True)
    return ((ours - theirs).norm() / theirs.norm()).item(), same


def logits(model: Any, texts: Sequence[Any]) -> list[Any]:
    """Return a model's logits for token ids (1, tokens), each (tokens, vocabulary) in fp32 on the CPU."""
    import torch

    with torch.inference_mode():
        return [model(ids.to(model.device), use_cache=False).logits[0].float().cpu() for ids in texts]


def _plan(base: str, where: str, options: dict[str, Any]) -> Any:
    """Return the base without its weights, in the precision that it was saved in."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from medchat.engines.transformers import base_not_loaded

    try:
        config = AutoConfig.from_pretrained(where, **options)
        if getattr(config, "quantization_config", None):
            raise UserError(f"The base {base!r} is quantized itself.", "Give --base the model that it was made from.")
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    except (OSError, ValueError) as failure:
        raise base_not_loaded(base, failure) from failure


def _load(where: str, form: str, options: dict[str, Any]) -> Any:
    """Return a base in 4 bits (NF4, double quantization) or as it is; computing in fp32 on a CPU, bf16 on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM

    from medchat.engines.transformers import keep_cpu_weights_plain, nf4_options

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    how = nf4_options("4bit", device, dtype) if form == "4bit" else {}
    model = AutoModelForCausalLM.from_pretrained(
        where, dtype=dtype, device_map={"": device}, use_safetensors=True, **how, **options
    )
    keep_cpu_weights_plain(model)  # else the merge would be garbage after the first forward pass
    return model.eval()


def _with_adapter(base: str, where: str, options: dict[str, Any], adapter: Adapter, form: str) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoTokenizer

    from medchat.engines.transformers import base_not_loaded

    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = _load(where, form, options)
    except UserError:
        raise
    except Exception as failure:
        raise base_not_loaded(base, failure) from failure
    return PeftModel.from_pretrained(model, str(adapter.folder)).eval(), tokenizer


def _merged(model: Any, adapter: Adapter, into: str) -> Any:
    """Return the plain model that a PEFT model stands for; 4-bit layers become what their weights stand for."""
    from peft import PeftModel

    if into == "4bit":
        model = PeftModel.from_pretrained(model.unload().dequantize(), str(adapter.folder))
    return model.merge_and_unload(safe_merge=True)


def _save(model: Any, tokenizer: Any, adapter: Adapter, folder: Path, dtype: Any, shard_size: str) -> None:
    """Save weights in safetensors shards with the tokenizer, the adapter's chat template and generation settings."""
    settings, end = model.generation_config, tokenizer.eos_token_id
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if end is not None and end not in ends:  # the adapter learned to end its turn with it
        settings.eos_token_id = [end, *(e for e in ends if e is not None)]
    tokenizer.chat_template = adapter.template or tokenizer.chat_template
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)


def conversation(adapter: Adapter, question: str) -> list[Message]:
    """Return `question` behind the system prompt that the adapter was trained with."""
    system = SYSTEM if adapter.system is None else adapter.system
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": question}]


def _with_reply(model: Any, tokenizer: Any, adapter: Adapter, messages: list[Message]) -> Any:
    """Return the token ids (1, tokens) of a conversation and the model's greedy reply to it."""
    import torch

    template = adapter.template or tokenizer.chat_template
    if not template:
        raise UserError(f"Neither {adapter.source!r} nor its base has a chat template.", "Use the instruct version.")
    text = Template(template, tokenizer.bos_token or "", tokenizer.eos_token or "").render(messages)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    with torch.inference_mode():
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=REPLY_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )


def _card(adapter: Adapter, base: str, into: str, errors: dict[str, tuple[float, float]]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    original = embedded.ORIGINAL if base == "embedded" else base
    data = ModelCardData(base_model=original, library_name="transformers", tags=["medical", "education", "merge"])
    rows = [f"| {FORMS[form]} | {relative:.4f} | {same:.1%} |" for form, (relative, same) in errors.items()]
    how = "the base as 4 bits (NF4) left it, dequantized" if into == "4bit" else "the base at full precision"
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {original} with the adapter {adapter.source} merged",
        f"The adapter (SHA-256 `{adapter.sha256}`, rank {adapter.rank}) was merged into {how}.",
        f"The saved model against base + adapter, on {len(QUESTIONS)} questions with their replies:",
        "| against | relative logit error | same next token |\n| --- | --- | --- |\n" + "\n".join(rows),
        "The licences of the base and of the training data apply. For research and education only; never a doctor's "
        "substitute.",
    ]
    return str(ModelCard("\n\n".join(lines) + "\n", ignore_metadata_errors=True))
