"""Settings: the only reader of the command line and of the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ENGINES = ("auto", "llama_cpp", "transformers", "remote")
QUANTS = ("auto", "4bit", "none")
SHORTEST_SECRET = 16  # characters


@dataclass(frozen=True)
class Settings:
    """What the user asked for; every field is a flag, and MEDCHAT_<FLAG> in the environment is its default.

    `base` "" and no `adapters` stand for what suits the machine, which engines.choose looks at.
    """

    host: str
    port: int
    engine: str
    base: str
    quant: str
    base_url: str
    api_key: str | None = field(repr=False)
    adapters: tuple[str, ...]
    knowledge: str
    feedback_dataset: str
    share: bool
    on_space: bool
    zero_gpu: bool
    secret: str | None = field(default=None, repr=False)


def read_settings(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings; exits with code 2 and a sentence when they are wrong, with code 0 after `--help`."""
    env = {key.removeprefix("MEDCHAT_").lower(): value for key, value in environ.items() if key.startswith("MEDCHAT_")}
    # Spaces set Gradio's own variables.
    host = env.get("host") or environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = env.get("port") or environ.get("GRADIO_SERVER_PORT") or "7860"
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Chat about health. For research and education; not a doctor's substitute.",
        epilog="Every option can also be set as MEDCHAT_<OPTION> in the environment; adapters separated by commas.",
    )
    parser.add_argument("--host", default=host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=port, type=_port, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--engine",
        default=env.get("engine") or "auto",
        metavar="|".join(ENGINES),
        help="what runs the model (default: %(default)s, by base and machine)",
    )
    parser.add_argument(
        "--base",
        default=env.get("base", ""),
        metavar="ID|PATH|embedded",
        help="base model: a Hub id or folder of a transformers model; a GGUF file or the Hub id of one (org/name or "
        "org/name/file.gguf); or the embedded one, the default without a GPU",
    )
    parser.add_argument(
        "--quant",
        default=env.get("quant") or "auto",
        metavar="|".join(QUANTS),
        help="the transformers engine's base in 4 bits (NF4), as it is, or 4 bits where that works "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--base-url",
        default=env.get("base_url", ""),
        metavar="URL",
        help="OpenAI-compatible server that runs the model, http://HOST:8000/v1; --base and --adapter name its models; "
        "its key goes into MEDCHAT_API_KEY",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="ID|PATH",
        help="LoRA adapter: a PEFT folder or Hub id; may be repeated (default: ours with the embedded base)",
    )
    parser.add_argument(
        "--knowledge",
        default=env.get("knowledge", "builtin"),
        metavar="builtin|medquad|none|DIR",
        help="passages that answers rest on: our topics, MedQuAD from the Hub, none, or a folder of your own texts "
        "(Markdown, plain text, PDF)",
    )
    parser.add_argument(
        "--feedback-dataset",
        default=env.get("feedback_dataset", ""),
        metavar="ORG/NAME",
        help="private dataset on the Hub that gets a copy of the feedback, written with HF_TOKEN (default: none)",
    )
    parser.add_argument("--share", action="store_true", default=env.get("share") == "1", help="open a public link")
    arguments = parser.parse_args(argv)
    # Not argparse's own `choices`: they let through what comes from the environment.
    limited = [
        ("--engine", arguments.engine, ENGINES),
        ("--quant", arguments.quant, QUANTS),
        ("MEDCHAT_SHARE", env.get("share") or "0", ("0", "1")),
    ]
    if wrong := [
        f"{what} {value!r} is none of {', '.join(names)}." for what, value, names in limited if value not in names
    ]:
        parser.error(" ".join(wrong))
    secret = env.get("secret", "").strip()  # no flag, like the key
    if 0 < len(secret) < SHORTEST_SECRET:
        parser.error(
            f"MEDCHAT_SECRET has {len(secret)} characters; at least {SHORTEST_SECRET} are needed. "
            "Type: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    adapters = arguments.adapter or [name.strip() for name in env.get("adapter", "").split(",") if name.strip()]
    return Settings(
        host=arguments.host,
        port=arguments.port,
        engine=arguments.engine,
        base=arguments.base,
        quant=arguments.quant,
        base_url=arguments.base_url,
        api_key=env.get("api_key", "").strip() or None,  # no flag: every user of a machine can read those
        adapters=tuple(dict.fromkeys(adapters)),
        knowledge=arguments.knowledge,
        feedback_dataset=arguments.feedback_dataset,
        share=arguments.share,
        on_space=bool(environ.get("SPACE_ID")),
        zero_gpu=bool(environ.get("SPACES_ZERO_GPU")),
        secret=secret or None,
    )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: type a number from 1 to 65535")
    return int(text)
