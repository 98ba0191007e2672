"""LoRA adapters: find one (folder or Hub id), check it, describe it, convert it for llama.cpp."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from medchat.errors import Unavailable, UserError
from medchat.files import cache_dir, sha256
from medchat.gguf_header import GGUFHeader

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
# All that is ever fetched from an adapter's repository, in this order: no pickle, no code. The weights come last, so
# that a folder of the cache that has them has the rest too.
ALLOWED = [CONFIG, "chat_template.jinja", "recipe.yaml", WEIGHTS]
LIMIT = 512 * 10**6  # bytes of an adapter from the Hub; rank 64 on all linear layers of an 8B model in bf16 is 336 MB
PATIENCE = 3.0  # seconds for the Hub's first answer; HF_HUB_ETAG_TIMEOUT sets another

EMBEDDED = Path(__file__).parent.parent / "assets" / "adapter"
CURATED = Path(__file__).parent.parent / "assets" / "adapters.yaml"

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class Adapter:
    """A checked PEFT LoRA adapter on disk.

    `source` is what the user named, `base` the model that it was trained on ("" if not recorded), `sha256` that of the
    weights; `system` and `template` are the prompt that it was trained with, None where it brings none; `revision` is
    the commit that it was fetched at, None for a folder.
    """

    name: str
    source: str
    folder: Path
    sha256: str
    rank: int
    base: str
    system: str | None = None
    template: str | None = None
    revision: str | None = None

    def summary(self) -> dict[str, Any]:
        """Return what `/models` tells of an adapter."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "rank": self.rank,
            "revision": self.revision,
        }


def open_adapter(source: str, modules: Mapping[str, tuple[int, int]] | None = None) -> Adapter:
    """Return the adapter at a folder or Hub id `org/name[@revision]`, or "embedded" for the one in assets/.

    `modules` are the base's linear modules by name, each (outputs, inputs), as `gguf_modules` gives them; with them, an
    adapter for another base is refused before its weights are fetched. Raises UserError for that, for a missing path,
    a folder that holds no adapter or only a pickle, and damaged weights; Unavailable for all that about one of the Hub,
    and for what can go wrong with the Hub itself.
    """
    if source == "embedded":
        return _adapter("medchat", source, EMBEDDED, None, modules)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _adapter(folder.resolve().name, source, folder, None, modules)
    return open_hub_adapter(source, modules)


def open_hub_adapter(source: str, modules: Mapping[str, tuple[int, int]] | None = None) -> Adapter:
    """Return the adapter of a Hub id `org/name[@revision]`, fetched where needed; `open_adapter` says the rest.

    It never opens a folder of that name, so it is the one for what a visitor types.
    """
    repo, revision = _hub_id(source)
    try:
        folder = _from_hub(source, repo, revision, modules)
        return _adapter(source, source, folder, folder.name, modules)
    except UserError as error:
        raise Unavailable(error.what, error.fix, source) from error


def unfit(adapter: Adapter, what: str, fix: str) -> UserError:
    """Return the error for an adapter that the engine cannot serve: of the Hub it is Unavailable, here a mistake."""
    return Unavailable(what, fix, adapter.source) if adapter.revision else UserError(what, fix)


def base_files(base: str, repo: str, revision: str | None = None) -> tuple[str, list[str]]:
    """Return the commit and the files of a base's repository on the Hub: those in the cache when the Hub is away.

    Raises Unavailable; UserError for a token that cannot be sent.
    """
    import huggingface_hub as hub

    _check_token()
    try:
        commit, sizes = within(_patience(), lambda: _listing(repo, revision))
        return commit, list(sizes)
    except Exception as error:
        try:
            if not _hub_is_away(error):
                raise hub.errors.LocalEntryNotFoundError("not looked for")
            folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
        except hub.errors.LocalEntryNotFoundError:
            raise base_problem(base, error) from error
        return folder.name, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def base_problem(base: str, error: BaseException) -> Unavailable:
    """Return why a base of the Hub cannot be had: the Hub's reason where one is among the causes of `error`."""
    import httpx2
    from huggingface_hub import errors

    repo, cause = "/".join(base.partition("@")[0].split("/")[:2]), error
    while cause is not None:
        from_hub = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx2.HTTPError, futures.TimeoutError)
        if isinstance(cause, (*from_hub, ConnectionError, json.JSONDecodeError)) or getattr(cause, "errno", None):
            found = _explained(cause, base, repo, fetching=not isinstance(cause, futures.TimeoutError), kind="base")
            return Unavailable(found.what, found.fix)
        cause = cause.__cause__ or cause.__context__
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return Unavailable(f"The base {base!r} could not be loaded: {reason}", "Choose another --base.")


def curated() -> list[dict[str, Any]]:
    """Return the adapters that the page offers: id, title, base, about, license, non_commercial and unverified.

    `unverified` says what of an entry nobody has looked up yet ("" for nothing). Raises UserError naming all mistakes.
    """
    import yaml

    kinds = dict.fromkeys(("id", "title", "base", "about", "license", "unverified"), str) | {"non_commercial": bool}
    entries = yaml.safe_load(CURATED.read_text(encoding="utf-8"))
    problems = []
    for number, entry in enumerate(entries, start=1):
        for key in entry.keys() - kinds.keys():
            near = difflib.get_close_matches(str(key), kinds, n=1, cutoff=0)[0]
            problems.append(f"entry {number} has {key!r}, meant may be {near!r}")
        for key, kind in kinds.items():
            if type(entry.get(key)) is not kind:
                problems.append(f"entry {number} needs {key!r} as {'true or false' if kind is bool else 'text'}")
    if problems:
        raise UserError(f"{CURATED} has mistakes: {'; '.join(problems)}.", "Correct the file.")
    return entries


def to_gguf(adapter: Adapter, base: GGUFHeader) -> Path:
    """Return `adapter` as a GGUF LoRA for a base of the Llama or Gemma 3 architecture, converted once, then cached.

    Raises UserError when the adapter changes something that GGUF LoRA cannot hold, or its shapes are not the base's.
    """
    config = _config(adapter.folder, adapter.source)
    modules = gguf_modules(base)
    if extra := _unservable(config):
        raise unfit(
            adapter,
            f"The adapter {adapter.source!r} has {' and '.join(extra)}, which llama.cpp cannot add to a base.",
            "Type --engine transformers, or choose a plain LoRA adapter.",
        )
    shapes = _shapes(adapter.folder / WEIGHTS)
    if others := [name for name in shapes if not _TENSOR.fullmatch(name)]:
        raise unfit(
            adapter,
            f"The adapter {adapter.source!r} changes more than linear layers ({others[0]}), which llama.cpp cannot do.",
            "Type --engine transformers, or choose a plain LoRA adapter.",
        )
    # Also before a cache hit: the base may be another one.
    check_fit(shapes, modules, adapter.source, adapter.base)
    key = hashlib.sha256(
        f"{adapter.sha256} {sorted(map(str, config.items()))} {base.metadata['general.architecture']}".encode()
    ).hexdigest()
    target = cache_dir() / "adapters" / f"{key[:32]}.gguf"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}.partial")
        _write_gguf(partial, adapter, config, base)
        partial.replace(target)
    return target


def gguf_modules(base: GGUFHeader) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of a Llama or Gemma 3 base's linear modules, by their names in transformers.

    Raises UserError for a base of another architecture.
    """
    return {
        module: (shape[1], shape[0])
        for module, target in _gguf_names(base).items()
        if len(shape := base.shapes.get(f"{target}.weight", ())) == 2
    }


def check_fit(
    shapes: Mapping[str, tuple[int, ...]], modules: Mapping[str, tuple[int, int]], source: str, trained_on: str
) -> None:
    """Raise UserError unless each LoRA pair in `shapes`, named as PEFT saves them, has its module in the base."""
    problems = []
    for name, shape in shapes.items():
        tensor = _TENSOR.fullmatch(name)
        if tensor is None or tensor["side"] == "B":  # a B is looked at together with its A
            continue
        module, partner = tensor["module"], shapes.get(name.replace(".lora_A.", ".lora_B."))
        if partner is None or (len(shape), len(partner)) != (2, 2) or partner[1] != shape[0]:
            problems.append(f"{name} has no counterpart")
        elif module not in modules:
            problems.append(f"the base has no {module}")
        elif modules[module] != (partner[0], shape[1]):
            outputs, inputs = modules[module]
            problems.append(f"{module} is {shape[1]} x {partner[0]}, the base's is {inputs} x {outputs}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        made_for = f" It was trained on {trained_on}." if trained_on else ""
        raise UserError(
            f"The adapter {source!r} does not fit this base: {'; '.join(problems[:3])}{more}.{made_for}",
            "Choose that base with --base, or another adapter with --adapter.",
        )


def _gguf_names(base: GGUFHeader) -> dict[str, str]:
    """Return {module of transformers: name in GGUF}, both without ".weight"."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    architecture = base.metadata.get("general.architecture")
    if architecture not in ("llama", "gemma3"):
        raise UserError(
            f"Adapters for the {architecture!r} architecture cannot be served by llama.cpp here.",
            "Type --engine transformers, or choose a Llama or Gemma 3 base.",
        )
    arch = MODEL_ARCH.LLAMA if architecture == "llama" else MODEL_ARCH.GEMMA3
    names = get_tensor_name_map(arch, base.metadata[f"{architecture}.block_count"])
    return {module: target for module, (_, target) in names.mapping.items()}


def _write_gguf(path: Path, adapter: Adapter, config: dict[str, Any], base: GGUFHeader) -> None:
    import numpy as np
    from gguf import GGUFWriter

    architecture = base.metadata["general.architecture"]
    heads = base.metadata[f"{architecture}.attention.head_count"]
    key_heads = base.metadata.get(f"{architecture}.attention.head_count_kv", heads)
    names = _gguf_names(base)
    tensors = _tensors(adapter.folder / WEIGHTS)
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    for name, a in tensors.items():
        tensor = _TENSOR.fullmatch(name)
        if tensor is None or tensor["side"] == "B":
            continue
        module, b = tensor["module"], tensors[name.replace(".lora_A.", ".lora_B.")]
        # llama.cpp scales by alpha / rank with one alpha for all tensors: PEFT's own scale goes into B instead.
        b = b * np.float32(_scale(config, module, rank=a.shape[0]) * a.shape[0])
        if architecture == "llama" and module.endswith("q_proj"):
            b = _permuted(b, heads)
        elif architecture == "llama" and module.endswith("k_proj"):
            b = _permuted(b, key_heads)
        writer.add_tensor(f"{names[module]}.weight.lora_a", np.ascontiguousarray(a, dtype=np.float16))
        writer.add_tensor(f"{names[module]}.weight.lora_b", np.ascontiguousarray(b, dtype=np.float16))
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


def _adapter(
    name: str, source: str, folder: Path, revision: str | None, modules: Mapping[str, tuple[int, int]] | None
) -> Adapter:
    """Return the adapter in a folder, checked."""
    _check_files([path.name for path in folder.iterdir()], source)
    config = _config(folder, source)
    base = str(config.get("base_model_name_or_path") or "")
    shapes = _shapes(folder / WEIGHTS)
    if modules is not None:
        check_fit(shapes, modules, source, base)
    ranks = {shape[0] for tensor, shape in shapes.items() if ".lora_A." in tensor and shape}
    if not ranks:
        raise UserError(f"The adapter {source!r} holds no LoRA weights.", "Choose a LoRA adapter.")
    recipe, template = folder / "recipe.yaml", folder / "chat_template.jinja"
    return Adapter(
        name=name,
        source=source,
        folder=folder,
        sha256=sha256(folder / WEIGHTS),
        rank=max(ranks),
        base=base,
        system=_system(recipe) if recipe.is_file() else None,
        template=template.read_text(encoding="utf-8", errors="replace") if template.is_file() else None,
        revision=revision,
    )


def _check_files(names: Collection[str], source: str) -> None:
    """Raise UserError unless a folder or repository with these files is an adapter that is safe to read."""
    if CONFIG not in names:
        if "config.json" in names or any(name.endswith(".gguf") for name in names):
            raise UserError(f"{source!r} is a full model, not an adapter: it has no {CONFIG}.", f"Type --base {source}")
        raise UserError(
            f"{source!r} is not an adapter: it has no {CONFIG}.", "Give --adapter a PEFT LoRA folder or its Hub id."
        )
    if WEIGHTS not in names:
        pickle = "adapter_model.bin" in names
        what = "only a pickle (adapter_model.bin), which could run code" if pickle else f"no {WEIGHTS}"
        raise UserError(f"The adapter {source!r} holds {what}.", "Choose one that is saved as safetensors.")


def _config(folder: Path, source: str) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON.", "Fetch or save the adapter again.") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UserError(f"The adapter {source!r} is of the type {kind}.", "Choose a LoRA adapter.")
    if not all(isinstance(config.get(key), int | float) for key in ("r", "lora_alpha")):
        raise UserError(f"{path} lacks the numbers r or lora_alpha.", "Fetch or save the adapter again.")
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
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
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
        elif item["dtype"] in (types := {"F16": np.float16, "F32": np.float32, "F64": np.float64}):
            array = np.frombuffer(item["data"], dtype=types[item["dtype"]])
        else:
            raise UserError(f"{path} holds numbers of the type {item['dtype']}.", "Save it in float32 or bfloat16.")
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


def _from_hub(source: str, repo: str, revision: str | None, modules: Mapping[str, tuple[int, int]] | None) -> Path:
    """Return the folder in the Hub's cache with the adapter `org/name[@revision]`; the folder's name is the commit."""
    import huggingface_hub as hub

    pinned = revision is not None and re.fullmatch("[0-9a-f]{40}", revision)
    if (pinned or hub.is_offline_mode()) and (folder := _cached(repo, revision)):
        return folder
    try:
        commit, sizes = within(_patience(), lambda: _listing(repo, revision))
    except Exception as error:
        if _hub_is_away(error) and (folder := _cached(repo, revision)):
            return folder
        raise _explained(error, source, repo) from error
    _check_files(sizes, source)
    size = sum(sizes.get(name, 0) for name in ALLOWED)
    if size > LIMIT:
        raise UserError(
            f"The adapter {source!r} has {size / 1e6:,.0f} MB; one from the Hub may have {LIMIT / 1e6:.0f} MB.",
            "Choose a smaller one, or download it yourself and give --adapter its folder.",
        )

    def fetch(name: str) -> Path:
        return Path(hub.hf_hub_download(repo, name, revision=commit, etag_timeout=_patience()))

    try:
        folder = fetch(CONFIG).parent
        config = _config(folder, source)
        if modules is not None and not _cached(repo, commit):
            header = hub.HfApi().parse_safetensors_file_metadata(repo, WEIGHTS, revision=commit)
            shapes = {name: tuple(tensor.shape) for name, tensor in header.tensors.items()}
            check_fit(shapes, modules, source, str(config.get("base_model_name_or_path") or ""))
        for name in ALLOWED:
            if name in sizes:
                fetch(name)
    except UserError:
        raise
    except Exception as error:
        raise _explained(error, source, repo, fetching=True) from error
    return folder


def _hub_id(source: str) -> tuple[str, str | None]:
    """Return (org/name, revision or None); raises UserError for what is no id, or a token that cannot be sent."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    # A revision becomes a path in the cache: it must not climb out of it.
    match = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?", source, re.ASCII)
    try:
        validate_repo_id(match[1] if match else source)
    except HFValidationError:
        match = None
    if match is None:
        raise UserError(f"There is no adapter folder {source!r}.", "Check the path, or give a Hub id like org/name.")
    _check_token()
    return match[1], match[2]


def _check_token() -> None:
    from huggingface_hub import get_token

    if not re.fullmatch("[!-~]*", get_token() or ""):  # the HTTP client's own complaint would quote it
        raise UserError(
            "The token in HF_TOKEN holds a blank or another character that no token has.",
            "Copy it again from https://huggingface.co/settings/tokens",
        )


def _cached(repo: str, revision: str | None) -> Path | None:
    """Return the folder of a complete adapter in the Hub's cache, without the network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        weights = Path(hf_hub_download(repo, WEIGHTS, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return weights.parent if (weights.parent / CONFIG).is_file() else None


def _listing(repo: str, revision: str | None, *, again: bool = True) -> tuple[str, dict[str, int]]:
    """Return the commit that `revision` stands for, and {file: bytes} of it."""
    import huggingface_hub as hub

    try:
        commit = hub.resolve_revision(repo, revision=revision).resolved  # notes it in the cache, for offline use
        info = hub.HfApi().model_info(repo, revision=commit, files_metadata=True, timeout=_patience())
    except Exception as error:
        if again and _status(error) >= 500:  # the Hub's passing troubles
            time.sleep(0.5)
            return _listing(repo, revision, again=False)
        raise
    return commit, {file.rfilename: file.size or 0 for file in info.siblings or []}


_Result = TypeVar("_Result")


def within(seconds: float, call: Callable[[], _Result]) -> _Result:
    """Return call(), or raise futures.TimeoutError; an HTTP client's own limit leaves out name look-up and retries."""
    future: futures.Future[_Result] = futures.Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(timeout=seconds)


def _patience() -> float:
    from huggingface_hub import constants

    chosen = constants.HF_HUB_ETAG_TIMEOUT
    return PATIENCE if chosen == constants.DEFAULT_ETAG_TIMEOUT else chosen


def _status(error: BaseException | None) -> int:
    """Return the HTTP status that an error is about, 0 for none."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response.status_code
        error = error.__cause__
    return 0


def _hub_is_away(error: Exception) -> bool:
    """Tell whether the Hub gave no answer of its own, so that what is in the cache may stand in."""
    return _status(error) == 0 or _status(error) >= 500


def _explained(
    error: BaseException, source: str, repo: str, *, fetching: bool = False, kind: str = "adapter"
) -> UserError:
    """Return what went wrong with the Hub as a sentence and its fix.

    Never in the error's own words: they may be long, technical, and in the worst case quote the token.
    """
    from huggingface_hub import constants, errors, is_offline_mode

    host = urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
    own_copy = f"give --{kind} a {'folder' if kind == 'adapter' else 'copy on this machine'}"
    if _status(error):
        return _refused(error, source, repo)
    if is_offline_mode():
        return UserError(
            f"The {kind} {source!r} is not on this machine, and HF_HUB_OFFLINE=1 forbids to fetch it.",
            f"Take HF_HUB_OFFLINE away for the first start, or {own_copy}.",
        )
    if isinstance(error, errors.SafetensorsParsingError):
        return UserError(f"The weights of {source!r} are damaged.", "Choose another adapter, or tell its author.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return UserError(
            f"The {kind} {source!r} cannot be saved under {constants.HF_HUB_CACHE}: {os.strerror(error.errno)}.",
            "Make room there, or set HF_HOME to a folder on another disk.",
        )
    if isinstance(error, json.JSONDecodeError):
        return UserError(
            f"What answers at {host} is not the Hub.",
            "Check HF_ENDPOINT, and whether this network asks to log in or to use a proxy.",
        )
    if fetching:
        return UserError(
            f"The connection to {host} broke while {source!r} was being fetched.",
            "Check the network and start again; files that were complete are kept.",
        )
    return UserError(
        f"The Hub ({host}) cannot be reached, and {source!r} is not on this machine.",
        f"Check the network, or {own_copy}; for a slow network set HF_HUB_ETAG_TIMEOUT=30",
    )


def _refused(error: BaseException, source: str, repo: str) -> UserError:
    """Return why the Hub answered with an error status, and the fix."""
    from huggingface_hub import constants, errors, get_token

    has_token, status = get_token() is not None, _status(error)
    page, tokens = f"{constants.ENDPOINT}/{repo}", f"{constants.ENDPOINT}/settings/tokens"
    if isinstance(error, errors.GatedRepoError):
        if has_token:
            return UserError(f"{repo!r} is gated, and your account is not on its list.", f"Ask for access at {page}")
        return UserError(f"{repo!r} is gated.", f"Accept its terms at {page} and set HF_TOKEN to a token from {tokens}")
    if isinstance(error, errors.RepositoryNotFoundError):
        if has_token:
            return UserError(
                f"The Hub has no repository {repo!r} that your token may read.",
                "Check the spelling, or set HF_TOKEN to a token of an account that may.",
            )
        return UserError(
            f"The Hub has no public repository {repo!r}.",
            f"Check the spelling; if it is private, set HF_TOKEN to a token from {tokens}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"The repository {repo!r} has no revision {source.partition('@')[2]!r}.",
            f"Choose a branch or commit from {page}/commits/main, or leave @... out for the newest.",
        )
    if status == 401:
        return UserError(
            "The Hub does not accept your token.",
            f"Set HF_TOKEN to a valid one from {tokens}, or take it away if the adapter is public.",
        )
    if status == 403:
        return UserError(f"Your token may not read {repo!r}.", f"Give it read access to that repository at {tokens}")
    if status == 429:
        return UserError(
            "The Hub takes no more requests from here for now (status 429).",
            "Wait five minutes." if has_token else "Wait five minutes, or set HF_TOKEN, which has a higher limit.",
        )
    return UserError(f"The Hub answers with an error (status {status}).", "Try again in a few minutes.")
