"""What training takes on a machine, known from the base's config.json alone: memory, disk and time."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medchat.adapters import within
from medchat.errors import UserError
from train.recipe import Recipe

GB = 1e9
ACCESS_SECONDS = 15  # to read config.json from the Hub
EFFICIENCY = 0.4  # of the machine's matrix products, what training reaches where nothing was measured


@dataclass(frozen=True)
class Machine:
    """What trains: `device` is "cuda" or "cpu", `count` how many; the memory of one in bytes, free and in all, and its
    speed in matrix products, in FLOP/s."""

    device: str
    name: str
    count: int
    memory: int
    total: int
    speed: float


def this_machine() -> Machine:
    """Return what this machine is; takes a second for its speed."""
    import psutil
    import torch

    from medchat.engines.llama_cpp import usable_cores

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Machine("cuda", torch.cuda.get_device_name(), torch.cuda.device_count(), free, total, _speed("cuda"))
    ram = psutil.virtual_memory()
    return Machine("cpu", f"no GPU, {usable_cores()} CPU cores", 1, ram.available, ram.total, _speed("cpu"))


def _speed(device: str) -> float:
    """Return the speed of matrix products in the type that trains there (bf16 on a GPU, fp32 on a CPU), in FLOP/s."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


@dataclass(frozen=True)
class Base:
    """A base in numbers. `local`: its weights are on this machine. `linear`: each kind of matrix inside the layers ->
    the (inputs, outputs) of all of that kind; `kept`: numbers that one layer keeps of one token for the way back."""

    local: bool
    parameters: int
    linear: dict[str, list[tuple[int, int]]]
    layers: int
    hidden: int
    kept: int
    vocabulary: int
    context: int

    @property
    def inner(self) -> int:
        """Return the number of parameters in the matrices inside the layers."""
        return sum(inputs * outputs for shapes in self.linear.values() for inputs, outputs in shapes)

    def trained(self, recipe: Recipe) -> int:
        """Return how many parameters the recipe trains."""
        if recipe.method == "full":
            return self.parameters
        top = recipe.lora.top_layers or self.layers
        shapes = itertools.chain(*(self.linear.get(kind, [])[-top:] for kind in self._targets(recipe)))
        return recipe.lora.r * sum(inputs + outputs for inputs, outputs in shapes)

    def misfits(self, recipe: Recipe) -> list[str]:
        """Return what of the recipe this base cannot do."""
        found = []
        if absent := [kind for kind in self._targets(recipe) if kind not in self.linear]:
            have = ", ".join(self.linear)
            found.append(f"lora.targets names {', '.join(absent)}, which this base does not have. Choose among {have}.")
        if recipe.sft.max_length > self.context:
            found.append(f"This base reads at most {self.context} tokens. Type sft.max_length={self.context}")
        return found

    def _targets(self, recipe: Recipe) -> Sequence[str]:
        if recipe.method == "full":
            return []
        targets = recipe.lora.targets
        return list(self.linear) if targets == "all-linear" else [targets] if isinstance(targets, str) else targets


def read_base(recipe: Recipe) -> Base:
    """Return the numbers of the recipe's base; raises UserError, within seconds where the Hub cannot be reached."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from medchat.engines.transformers import base_not_loaded
    from train.sft import base_place

    named, where, options = base_place(recipe)
    try:  # a gated repository shows everybody its files and gives them to few: here it is found out
        config: Any = within(ACCESS_SECONDS, lambda: AutoConfig.from_pretrained(where, **options))
    except Exception as error:
        raise base_not_loaded(named, error) from error
    if config.model_type != "llama":
        raise UserError(
            f"The base {recipe.base!r} is a {config.model_type} model.", "Choose one of the Llama architecture."
        )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    linear: dict[str, list[tuple[int, int]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            linear.setdefault(name.rsplit(".", 1)[-1], []).append((module.in_features, module.out_features))
    layers, hidden = config.num_hidden_layers, config.hidden_size
    return Base(
        local=_is_local(where, options),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear=linear,
        layers=layers,
        hidden=hidden,
        # What every matrix reads and writes, shared inputs once (q, k and v read the same, as do gate and up), the
        # activation function's result and the two norms': 8 d + 2 kv + 4 ff for a Llama, 2 % below what torch keeps.
        kept=sum(a + b for shapes in linear.values() for a, b in shapes) // layers - hidden + config.intermediate_size,
        vocabulary=config.vocab_size,
        context=getattr(config, "max_position_embeddings", None) or sys.maxsize,
    )


def _is_local(where: str, options: dict[str, Any]) -> bool:
    """Tell whether the weights are on this machine, in a folder or in the Hub's cache."""
    from huggingface_hub import snapshot_download

    folder = Path(where)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(where, revision=options.get("revision"), local_files_only=True))
        except Exception:  # not in the cache: it raises one of several types
            return False
    return any(folder.glob("*.safetensors"))


def memory(recipe: Recipe, base: Base, machine: Machine) -> dict[str, float]:
    """Return the bytes that training takes on one device, by what takes them.

    weights: 4 a parameter for full fine-tuning (and 2 for autocast's bf16 copy), 2 for LoRA in bf16, 4 in fp32; QLoRA
    0.516 for each in the layers (4 bits, and 0.127 for the constants of NF4 quantized twice, arXiv:2305.14314), the
    embeddings as for LoRA. trained: for each trained parameter a gradient of 4 and Adam's moments of 8, or 2 in 8 bits;
    LoRA's own weights 4. activations: `kept` numbers of each token in each layer, of 2 or 4 bytes; recomputed, only the
    layer's input in all and `kept` in one (arXiv:2205.05198); too many where few matrices have adapters, since a frozen
    one needs no input. logits: kernels.CHUNK rows of them, and as much again for
    their gradient, in fp32. Last, what Python and the libraries take themselves.
    """
    from train.kernels import CHUNK
    from train.sft import uses_bf16

    sft, full = recipe.sft, recipe.method == "full"
    number = 2 if uses_bf16(recipe) else 4
    trained, outer = base.trained(recipe), base.parameters - base.inner
    weights = {
        "full": base.parameters * (6 if number == 2 else 4),
        "lora": base.parameters * number,
        "qlora": base.inner * 0.516 + outer * number,
    }[recipe.method]
    tokens = sft.batch * sft.max_length
    layer = tokens * base.kept * number
    inputs = base.layers * tokens * base.hidden * number
    parts = {
        "weights": weights,
        "trained": trained * ((0 if full else 4) + 4 + _moments(recipe)),
        "activations": inputs + 2 * layer if recomputes(recipe, machine) else base.layers * layer,
        "logits": 2 * 4 * CHUNK * base.vocabulary,
        "libraries": 0.8 * GB,
    }
    sharded = machine.count if full else 1  # FSDP
    return {name: size / sharded if name in ("weights", "trained") else size for name, size in parts.items()}


def recomputes(recipe: Recipe, machine: Machine) -> bool:
    """Return whether activations are computed again on the way back."""
    chosen = recipe.sft.checkpointing
    return machine.device == "cuda" if chosen is None else chosen


def operations(recipe: Recipe, base: Base, machine: Machine) -> int:
    """Return the floating point operations that one token takes.

    2 for each parameter of the layers forwards, 2 backwards, 2 more where all weights are trained, and 2 where the
    activations are recomputed (arXiv:2001.08361); attention itself is left out, it is small at these lengths.
    """
    return (4 + 2 * (recipe.method == "full") + 2 * recomputes(recipe, machine)) * base.inner


def speed(recipe: Recipe, base: Base, machine: Machine) -> float:
    """Return the tokens a second to be expected of one device."""
    return EFFICIENCY * machine.speed / operations(recipe, base, machine)


def disk(recipe: Recipe, base: Base) -> dict[Path, float]:
    """Return the bytes that will be written, by folder: checkpoints and result, and the base where it is fetched.

    A checkpoint holds 4 bytes for each trained parameter and Adam's moments of 8, or 2 in 8 bits.
    """
    from huggingface_hub import constants

    trained = base.trained(recipe)
    checkpoint = trained * (4 + _moments(recipe))
    return {
        Path(recipe.output_dir): checkpoint * (recipe.sft.keep + 1) + trained * 4,  # one more while the next is saved
        Path(constants.HF_HUB_CACHE): 0 if base.local else 2 * base.parameters,
    }


def _moments(recipe: Recipe) -> int:
    return 8 if recipe.sft.optimizer == "adamw" else 2
