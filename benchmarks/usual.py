"""`python -m benchmarks.usual PORT`: the stack of the usual Space, to compare with, on the same base and adapter.

transformers in NF4, PEFT and a TextIteratorStreamer behind a Gradio generator, one visitor at a time, as such Spaces
are commonly written: no cache between turns, no Stop in the model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from threading import Thread
from typing import Any

import gradio as gr
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TextIteratorStreamer

from benchmarks.knowledge import ROOT
from medchat.embedded import transformers_path
from medchat.prompt import SYSTEM


def main(port: int) -> None:
    """Load and serve until the process ends."""
    folder = transformers_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, ROOT / "assets" / "adapter").eval()

    def chat(
        message: str,
        history: list[dict[str, str]] = [],  # noqa: B006
        max_tokens: int = 200,
        temperature: float = 0,
        knowledge: bool = False,
    ) -> Iterator[str]:
        del temperature, knowledge  # always greedy, always without passages
        messages = [{"role": "system", "content": SYSTEM}, *history, {"role": "user", "content": message}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        settings = {**inputs, "streamer": streamer, "max_new_tokens": max_tokens, "do_sample": False}
        Thread(target=model.generate, kwargs=settings).start()
        text = ""
        for piece in streamer:
            text += piece
            yield text

    with gr.Blocks() as page:
        gr.api(chat, api_name="chat", concurrency_limit=1)
    page.queue().launch(server_port=port, quiet=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
