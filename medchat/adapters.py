"""LoRA adapters: find one (folder or Hub id), check it, describe it, convert it for llama.cpp."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medchat.errors import UserError
from medchat.files import cache_dir, sha256
from medchat.gguf_header import GGUFHeader

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
# All that is ever fetched from an adapter's repository: no pickle, no code.
ALLOWED = [CONFIG, WEIGHTS, "chat_template.jinja", "recipe.yaml"]

EMBEDDED = Path(__file__).parent.parent / "assets" / "adapter"

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class Adapter:
    """A checked PEFT LoRA adapter on disk.

    `source` is what the user named, `base` the model that it was trained on ("" if not recorded), `sha256` that of the
    weights; `system` and `template` are the prompt that it was trained with, None where it brings none.
    """

    name: str
    source: str
    folder: Path
    sha256: str
    rank: int
    base: str
    system: str | None = None
    template: str | None = None

    def summary(self) -> dict[str, Any]:
        """Return what `/models` tells of an adapter."""
        return {"name": self.name, "source": self.source, "sha256": self.sha256, "rank": self.rank}


def open_adapter(source: str) -> Adapter:
    """Return the adapter at a folder or Hub id `org/name[@revision]`, or "embedded" for the one in assets/.

    Raises UserError for a missing path, a folder that holds no adapter or only a pickle, and damaged weights.
    """
    if source == "embedded":
        folder = EMBEDDED
    else:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            folder = _from_hub(source)
    config = _config(folder, source)
    shapes = _shapes(folder / WEIGHTS)
    ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name}
    if not ranks:
        raise UserError(f"The adapter {source!r} holds no LoRA weights.", "Choose a LoRA adapter.")
    recipe, template = folder / "recipe.yaml", folder / "chat_template.jinja"
    return Adapter(
        name="medchat" if source == "embedded" else source if not Path(source).is_dir() else folder.resolve().name,
        source=source,
        folder=folder,
        sha256=sha256(folder / WEIGHTS),
        rank=max(ranks),
        base=config.get("base_model_name_or_path") or "",
        system=_system(recipe) if recipe.is_file() else None,
        template=template.read_text(encoding="utf-8") if template.is_file() else None,
    )


def to_gguf(adapter: Adapter, base: GGUFHeader) -> Path:
    """Return `adapter` as a GGUF LoRA for a base of the Llama or Gemma 3 architecture, converted once, then cached.

    Raises UserError when the adapter changes something that GGUF LoRA cannot hold, or its shapes are not the base's.
    """
    config = _config(adapter.folder, adapter.source)
    architecture = base.metadata.get("general.architecture")
    if architecture not in ("llama", "gemma3"):
        raise UserError(
            f"Adapters for the {architecture!r} architecture cannot be served by llama.cpp here.",
            "Type --engine transformers, or choose a Llama or Gemma 3 base.",
        )
    if extra := _unservable(config):
        raise UserError(
            f"The adapter {adapter.source!r} has {' and '.join(extra)}, which llama.cpp cannot add to a base.",
            "Type --engine transformers, or choose a plain LoRA adapter.",
        )
    pairs = _pairs(adapter, base)  # also before a cache hit: the base may be another one
    key = hashlib.sha256(f"{adapter.sha256} {sorted(map(str, config.items()))} {architecture}".encode()).hexdigest()
    target = cache_dir() / "adapters" / f"{key[:32]}.gguf"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        _write_gguf(partial, adapter, pairs, config, base)
        partial.replace(target)
    return target


def _pairs(adapter: Adapter, base: GGUFHeader) -> dict[str, tuple[str, str, str]]:
    """Return {GGUF tensor: (module, name of lora_A, name of lora_B)}, checked against the base's shapes."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    architecture = base.metadata["general.architecture"]
    arch = MODEL_ARCH.LLAMA if architecture == "llama" else MODEL_ARCH.GEMMA3
    names = get_tensor_name_map(arch, base.metadata[f"{architecture}.block_count"])
    shapes = _shapes(adapter.folder / WEIGHTS)
    pairs: dict[str, tuple[str, str, str]] = {}
    problems = []
    for name, (rank, inputs) in ((n, s) for n, s in shapes.items() if ".lora_A." in n):
        module = _TENSOR.fullmatch(name)
        partner = name.replace(".lora_A.", ".lora_B.")
        if module is None or partner not in shapes:
            problems.append(f"{name} has no counterpart")
            continue
        target = names.get_name(f"{module['module']}.weight", try_suffixes=(".weight",))
        if target is None or target not in base.shapes:
            problems.append(f"the base has no {module['module']}")
            continue
        outputs = shapes[partner][0]
        if shapes[partner][1] != rank or base.shapes[target] != (inputs, outputs):
            wanted = " x ".join(map(str, base.shapes[target]))
            problems.append(f"{module['module']} is {inputs} x {outputs}, the base's is {wanted}")
            continue
        pairs[target] = (module["module"], name, partner)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        made_for = f" It was trained on {adapter.base}." if adapter.base else ""
        raise UserError(
            f"The adapter {adapter.source!r} does not fit this base: {'; '.join(problems[:3])}{more}.{made_for}",
            "Choose that base with --base, or another adapter with --adapter.",
        )
    return pairs


def _write_gguf(
    path: Path, adapter: Adapter, pairs: Mapping[str, tuple[str, str, str]], config: dict[str, Any], base: GGUFHeader
) -> None:
    import numpy as np
    from gguf import GGUFWriter

    architecture = base.metadata["general.architecture"]
    heads = base.metadata[f"{architecture}.attention.head_count"]
    key_heads = base.metadata.get(f"{architecture}.attention.head_count_kv", heads)
    tensors = _tensors(adapter.folder / WEIGHTS)
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    for target, (module, name_a, name_b) in pairs.items():
        a, b = tensors[name_a], tensors[name_b]
        # llama.cpp scales by alpha / rank with one alpha for all tensors: PEFT's own scale goes into B instead.
        b = b * np.float32(_scale(config, module, rank=a.shape[0]) * a.shape[0])
        if architecture == "llama" and module.endswith("q_proj"):
            b = _permuted(b, heads)
        elif architecture == "llama" and module.endswith("k_proj"):
            b = _permuted(b, key_heads)
        writer.add_tensor(f"{target}.lora_a", np.ascontiguousarray(a, dtype=np.float16))
        writer.add_tensor(f"{target}.lora_b", np.ascontiguousarray(b, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(rows: Any, heads: int) -> Any:
    """Reorder the rows of a query or key matrix (rows, n) from transformers' rotary layout to llama.cpp's."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _scale(config: dict[str, Any], module: str, *, rank: int) -> float:
    """Return the factor that PEFT puts before B @ A for this module (peft/tuners/lora/layer.py)."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _config(folder: Path, source: str) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"{source!r} is not an adapter: it has no {CONFIG}.", "Give --adapter a PEFT LoRA folder or its Hub id."
        )
    if not (folder / WEIGHTS).is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        what = "only a pickle (adapter_model.bin), which could run code" if pickle else f"no {WEIGHTS}"
        raise UserError(f"The adapter {source!r} holds {what}.", "Choose one that is saved as safetensors.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON.", "Fetch or save the adapter again.") from error
    if config.get("peft_type") != "LORA":
        raise UserError(f"The adapter {source!r} is of the type {config.get('peft_type')}.", "Choose a LoRA adapter.")
    return config


def _unservable(config: dict[str, Any]) -> list[str]:
    """Return what this adapter does beyond B @ A, which a GGUF LoRA cannot hold."""
    features = {
        "DoRA": config.get("use_dora"),
        "trained biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "whole trained modules": config.get("modules_to_save"),
        "trained tokens": config.get("trainable_token_indices"),
    }
    return [name for name, used in features.items() if used]


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors; raises UserError when the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}).", "Fetch or save the adapter again.") from error


def _tensors(path: Path) -> dict[str, Any]:
    """Return a safetensors file's tensors as float32 arrays; numpy has no bfloat16, so its bits are widened here."""
    import numpy as np
    from safetensors import deserialize

    tensors = {}
    for name, item in deserialize(path.read_bytes()):
        if item["dtype"] == "BF16":
            array = (np.frombuffer(item["data"], dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(item["data"], dtype={"F16": np.float16, "F32": np.float32}[item["dtype"]])
        tensors[name] = array.reshape(item["shape"]).astype(np.float32)
    return tensors


def _system(recipe: Path) -> str | None:
    import yaml

    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    system = values.get("system") if isinstance(values, dict) else None
    return system if isinstance(system, str) else None


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repo, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or source.startswith((".", "/", "~")):
        raise UserError(f"There is no adapter folder {source!r}.", "Check the path, or give a Hub id like org/name.")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=ALLOWED, etag_timeout=5))
    except HFValidationError as error:
        raise UserError(f"{source!r} is not a Hub id.", "Hub ids look like org/name.") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The adapter {source!r} could not be fetched: {reason}",
            "Check the id and the network; for a private or gated one set HF_TOKEN.",
        ) from error
