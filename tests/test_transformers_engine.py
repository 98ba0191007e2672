"""The transformers engine: a tiny random Llama for everything that can go wrong, the embedded base once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from threading import Event
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from medchat.engines import Delta, EngineError, Sampling, Stats  # noqa: E402
from medchat.engines import transformers as engine_module  # noqa: E402
from medchat.engines.transformers import TransformersEngine, open_transformers  # noqa: E402
from medchat.errors import UserError  # noqa: E402
from tests import tiny  # noqa: E402

GREEDY = Sampling(max_tokens=24, temperature=0, min_p=0, repetition_penalty=1)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUESTION = [
    {"role": "system", "content": "You are a friendly AI that explains health topics."},
    {"role": "user", "content": "What are the signs of a migraine?"},
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices are computed faster by one thread, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A base and three adapters for it."""
    root = tmp_path_factory.mktemp("tiny")
    folders = {"base": root / "base"}
    tiny.make_llama(folders["base"])
    for seed, name in enumerate(["first", "second", "third"]):
        folders[name] = root / name
        tiny.make_adapter(tiny.make_llama(folders["base"]), folders[name], targets=TARGETS, scale=0.5, seed=seed)
    return folders


@pytest.fixture
def engine(folders) -> TransformersEngine:
    return open_transformers(str(folders["base"]), [str(folders["first"]), str(folders["second"])], quant="none")


def run(engine: TransformersEngine, messages=QUESTION, adapter="", sampling=GREEDY, cancel=None) -> tuple[str, Any]:
    """Return the text of a whole reply and its last delta."""
    deltas = list(engine.stream(messages, adapter=adapter, sampling=sampling, cancel=cancel or Event()))
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
    return "".join(d.text for d in deltas), deltas[-1]


def generated(folders, ids: list[int], adapter: str = "", tokens: int = GREEDY.max_tokens) -> list[int]:
    """Return the new tokens that transformers' own generate writes after `ids`."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(folders["base"])
    if adapter:
        model = PeftModel.from_pretrained(model, str(folders[adapter]))
    with torch.inference_mode():
        inputs = torch.tensor([ids])
        output = model.eval().generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=tokens
        )
    return output[0, len(ids) :].tolist()


def expected_text(engine: TransformersEngine, tokens: list[int]) -> str:
    return engine.tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")


class Watch:
    """Counts the steps of an engine and runs something in the first of them, inside the real forward pass."""

    def __init__(self, engine: TransformersEngine, at_step=None):
        self.steps: list[str | None] = []
        self._engine, self._at_step = engine, at_step
        self._hook = engine._model.model.layers[-1].mlp.register_forward_pre_hook(self._on_step)

    def _on_step(self, *_):
        self.steps.append(self._engine._active)
        if self._at_step:
            self._at_step(len(self.steps))

    def stop(self):
        self._hook.remove()


# ---- one reply


@pytest.mark.parametrize("adapter", ["", "first", "second"])
def test_greedy_equals_generate(engine, folders, adapter):
    engine._step = 7  # the prompt takes several steps
    ids = engine.prompt_ids(QUESTION, adapter)
    tokens = generated(folders, ids, adapter)
    text, last = run(engine, adapter=adapter)
    assert text == expected_text(engine, tokens)
    assert (last.stats.prompt_tokens, last.stats.cached_tokens) == (len(ids), 0)
    assert last.stats.completion_tokens == len(tokens)


def test_the_adapters_differ_from_the_base(engine):
    assert len({run(engine, adapter=name)[0] for name in ("", "first", "second")}) == 3


def test_stops_at_every_end_token_of_the_generation_config(folders, tmp_path):
    base = shutil.copytree(folders["base"], tmp_path / "base")
    plain = open_transformers(str(base), [], quant="none")
    tokens = generated(folders, plain.prompt_ids(QUESTION))
    fourth = next(t for i, t in enumerate(tokens) if i >= 3 and t not in tokens[:i])
    config = json.loads((base / "generation_config.json").read_text())
    config["eos_token_id"] = [plain.tokenizer.eos_token_id, fourth]
    (base / "generation_config.json").write_text(json.dumps(config))
    text, last = run(open_transformers(str(base), [], quant="none"))
    assert last.finish_reason == "stop"
    assert text == expected_text(plain, tokens[: tokens.index(fourth)])


def test_length_and_context(engine):
    assert run(engine, sampling=Sampling(max_tokens=3, temperature=0))[1].finish_reason == "length"
    room = engine.context - len(engine.prompt_ids(QUESTION))
    engine.context -= room - 2
    _, last = run(engine, sampling=Sampling(max_tokens=50, temperature=0))
    assert (last.finish_reason, last.stats.completion_tokens) == ("length", 2)
    engine.context -= 2
    with pytest.raises(EngineError, match="fewer than"):
        run(engine)


def test_seeds(engine):
    def text(seed):
        return run(engine, sampling=Sampling(max_tokens=24, temperature=1.5, min_p=0, seed=seed))[0]

    assert text(0) == text(0)
    assert text(7) == text(7)
    assert len({text(0), text(7), text(8)}) == 3
    assert text(None) != text(None)


def test_penalty_and_min_p_are_those_of_transformers():
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
    )

    torch.manual_seed(0)
    ids = torch.randint(0, 300, (1, 40))
    for seed in range(20):
        logits = torch.randn(300) * 3
        scores = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits[None].clone())
        greedy = Sampling(temperature=0, repetition_penalty=1.3)
        drawn = engine_module._draw(logits, ids[0].tolist(), greedy, torch.Generator())
        assert drawn == int(scores.argmax())
        # min_p comes before the temperature, so that a high one does not let unlikely tokens in.
        scores = TemperatureLogitsWarper(1.7)(ids, MinPLogitsWarper(0.2)(ids, scores))
        shares = torch.softmax(scores[0], dim=-1)
        sampling = Sampling(temperature=1.7, min_p=0.2, repetition_penalty=1.3)
        drawn = engine_module._draw(logits, ids[0].tolist(), sampling, torch.Generator().manual_seed(seed))
        assert drawn == int(torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(seed)))


def test_penalty_looks_back_64_tokens():
    logits = torch.tensor([3.0, 2.9, 0.0])
    sampling = Sampling(temperature=0, repetition_penalty=2)
    assert engine_module._draw(logits, [0] + [2] * 63, sampling, torch.Generator()) == 1
    assert engine_module._draw(logits, [0] + [2] * 64, sampling, torch.Generator()) == 0


# ---- text


def metaspace_tokenizer() -> Any:
    """Return a tokenizer in the manner of Llama 2: spaces as ▁, unknown characters as bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(tiny.TEXT, trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [tiny.make_tokenizer, metaspace_tokenizer])
def test_pieces_are_whole_characters_and_keep_their_spaces(make):
    tokenizer = make()
    text = "Fièvre naïve: 39 °C 😀🩺 日本語 — see a doctor,  soon."
    ids = tokenizer(text, add_special_tokens=False).input_ids
    detokenizer = engine_module._Detokenizer(tokenizer)
    pieces = [detokenizer.add(token) for token in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + detokenizer.rest() == tokenizer.decode(ids, skip_special_tokens=True)
    assert sum(map(bool, pieces)) > 20
    assert "" in pieces  # a character of several tokens
    if make is tiny.make_tokenizer:
        assert "".join(pieces) == text


def test_a_character_cut_off_by_the_length_is_left_out():
    tokenizer = tiny.make_tokenizer()
    ids = tokenizer("ok 😀", add_special_tokens=False).input_ids[:-1]
    detokenizer = engine_module._Detokenizer(tokenizer)
    text = "".join(map(detokenizer.add, ids)) + detokenizer.rest()
    assert text.rstrip() == "ok"


@pytest.mark.parametrize("writes", [True, False])
def test_exactly_one_bos(folders, tmp_path, writes):
    from tokenizers.processors import TemplateProcessing

    base = shutil.copytree(folders["base"], tmp_path / "base")
    tokenizer = tiny.make_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    if writes:
        tokenizer.chat_template = "{{ bos_token }}" + tiny.CHATML
    tokenizer.save_pretrained(base)
    ids = open_transformers(str(base), [], quant="none").prompt_ids(QUESTION)
    assert ids[0] == bos
    assert ids.count(bos) == 1


def test_an_adapter_brings_its_template(folders, tmp_path):
    own = shutil.copytree(folders["first"], tmp_path / "own")
    (own / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}Answer:")
    engine = open_transformers(str(folders["base"]), [str(own)], quant="none")
    assert engine.tokenizer.decode(engine.prompt_ids(QUESTION, "own")).endswith("migraine?\nAnswer:")
    assert "<|im_start|>assistant" in engine.tokenizer.decode(engine.prompt_ids(QUESTION))
    assert engine.count_tokens(QUESTION) == len(engine.prompt_ids(QUESTION))


def test_a_refused_conversation_is_a_sentence(folders, tmp_path):
    own = shutil.copytree(folders["first"], tmp_path / "own")
    (own / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    engine = open_transformers(str(folders["base"]), [str(own)], quant="none")
    with pytest.raises(EngineError, match="roles must alternate"):
        run(engine, adapter="own")
    assert run(engine)[1].finish_reason


# ---- several at once, stopping, failing


def test_concurrent_replies_equal_their_solo_runs(engine):
    names = ["", "first", "second", "first", "", "second"]  # more than there are slots
    questions = [[{"role": "user", "content": f"Question {i}: {text}"}] for i, text in enumerate([*tiny.TEXT, "", ""])]
    solo = [run(engine, q, name)[0] for q, name in zip(questions, names, strict=True)]
    engine._kept.clear()
    gate = Event()
    watch = Watch(engine, lambda step: gate.wait())
    results: dict[int, str] = {}

    def work(i):
        results[i] = run(engine, questions[i], names[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(names))]
    for thread in threads:
        thread.start()
    while len(engine._jobs) < len(names):
        assert all(thread.is_alive() for thread in threads)
    gate.set()
    for thread in threads:
        thread.join()
    watch.stop()
    assert [results[i] for i in range(len(names))] == solo
    switches = sum(a != b for a, b in zip(watch.steps, watch.steps[1:], strict=False))
    assert switches > GREEDY.max_tokens  # they did run in turn


def test_empty_deltas_while_a_step_takes_long(engine):
    gate = Event()
    watch = Watch(engine, lambda step: gate.wait())
    stream = engine.stream(QUESTION, adapter="", sampling=GREEDY, cancel=Event())
    assert [next(stream) for _ in range(3)] == [Delta("")] * 3
    assert len(watch.steps) <= 1
    gate.set()
    assert [d.finish_reason for d in stream][-1] is not None
    watch.stop()


def test_cancel_while_the_prompt_is_read(engine):
    engine._step = 4
    cancel = Event()
    watch = Watch(engine, lambda step: cancel.set() if step == 2 else None)
    text, last = run(engine, cancel=cancel)
    watch.stop()
    assert (text, last.finish_reason, len(watch.steps)) == ("", "cancelled", 2)
    _, last = run(engine)  # goes on from what was read
    assert last.stats.cached_tokens == 8


def test_cancel_while_the_reply_is_written(engine):
    cancel = Event()
    watch = Watch(engine, lambda step: cancel.set() if step == 5 else None)
    _, last = run(engine, cancel=cancel)
    assert (last.finish_reason, len(watch.steps)) == ("cancelled", 5)
    watch.stop()


def test_closing_the_iterator_ends_the_computation(engine):
    watch = Watch(engine)
    stream = engine.stream(QUESTION, adapter="", sampling=Sampling(max_tokens=800, temperature=0), cancel=Event())
    for _ in range(5):
        next(stream)
    stream.close()
    assert engine._jobs == []
    assert len(watch.steps) < 100
    watch.stop()
    assert run(engine)[1].finish_reason


def test_a_cancelled_reply_in_the_queue_does_not_wait_for_a_slot(engine):
    gate = Event()
    watch = Watch(engine, lambda step: gate.wait())
    running = [engine.stream(QUESTION, adapter="", sampling=Sampling(max_tokens=900), cancel=Event()) for _ in range(4)]
    for stream in running:
        next(stream)
    waiting = engine.stream(QUESTION, adapter="", sampling=GREEDY, cancel=Event())
    assert next(waiting) == Delta("")
    gate.set()
    waiting.close()
    assert len(engine._jobs) == 4
    for stream in running:
        stream.close()
    watch.stop()


@pytest.mark.parametrize("step", [1, 4])
def test_out_of_memory_is_a_sentence_and_the_next_request_works(engine, step):
    def exhaust(number):
        if number == step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    expected = run(engine, adapter="first")[0]
    watch = Watch(engine, exhaust)
    with pytest.raises(EngineError, match="ran out of memory"):
        run(engine)
    watch.stop()
    assert engine._kept == []
    text, last = run(engine, adapter="first")
    assert text == expected
    assert last.stats.cached_tokens == 0


def test_an_allocation_that_the_cpu_cannot_serve_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert engine_module._is_out_of_memory(caught.value)
    assert not engine_module._is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_failing_step_reaches_the_consumer(engine):
    def fail(number):
        raise ValueError("a bad kernel")

    expected = run(engine)[0]
    watch = Watch(engine, fail)
    with pytest.raises(EngineError, match="a bad kernel"):
        run(engine)
    watch.stop()
    assert run(engine)[0] == expected


# ---- keys and values between turns


def test_the_next_turn_reuses_the_cache_and_says_the_same(engine, folders):
    fresh = open_transformers(str(folders["base"]), [str(folders["first"])], quant="none")
    messages = list(QUESTION)
    before = 0  # tokens of the prompt of the turn before
    for turn in range(4):
        text, last = run(engine, messages, "first")
        fresh._kept.clear()
        assert run(fresh, messages, "first")[0] == text
        assert last.stats.cached_tokens >= before
        before = last.stats.prompt_tokens
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"And number {turn}?"}]
    assert len(engine._kept) == 1


def test_the_cache_is_never_shared_between_adapters(engine):
    expected = run(engine, adapter="second")[0]
    engine._kept.clear()
    for name in ("", "first"):
        run(engine, adapter=name)
    text, last = run(engine, adapter="second")
    assert (text, last.stats.cached_tokens) == (expected, 0)


def test_two_conversations_with_one_system_prompt_keep_their_own(engine):
    other = [QUESTION[0], {"role": "user", "content": " ".join(tiny.TEXT)}]
    run(engine, other)
    _, last = run(engine)
    assert 0 < last.stats.cached_tokens < last.stats.prompt_tokens - 5
    assert len(engine._kept) == 2
    assert run(engine, other)[1].stats.cached_tokens == len(engine.prompt_ids(other)) - 1


def test_the_kept_caches_are_bounded(engine, monkeypatch):
    run(engine)
    one = engine._kept[0].nbytes()
    monkeypatch.setattr(engine_module, "KEPT_BYTES", 2 * one + one // 2)
    for adapter in ("first", "second", ""):
        run(engine, [{"role": "user", "content": f"For {adapter}"}], adapter)
        run(engine, QUESTION, adapter)
        assert sum(kept.nbytes() for kept in engine._kept) <= engine_module.KEPT_BYTES
    assert engine._kept[-1].adapter == ""


def test_a_base_with_sliding_windows(tmp_path):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    tokenizer = tiny.make_tokenizer()
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=1024,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model: Any = Gemma3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = open_transformers(str(tmp_path), [], quant="none")
    engine._step = 5
    ids = engine.prompt_ids(QUESTION)
    with torch.inference_mode():
        inputs = torch.tensor([ids])
        output = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=GREEDY.max_tokens
        )
    assert run(engine)[0] == expected_text(engine, output[0, len(ids) :].tolist())
    text, last = run(engine)
    assert text == expected_text(engine, output[0, len(ids) :].tolist())
    assert last.stats.cached_tokens == len(ids) - 1


# ---- adapters


def test_add_adapter_is_idempotent_and_works_during_a_reply(engine, folders):
    expected = run(engine, adapter="first")[0]
    stream = engine.stream(QUESTION, adapter="first", sampling=GREEDY, cancel=Event())
    pieces = [next(stream).text for _ in range(4)]
    added = engine.add_adapter(str(folders["third"]))
    assert added.name == "third"
    assert "".join([*pieces, *(delta.text for delta in stream)]) == expected
    modules = len(engine._peft.peft_config)
    assert engine.add_adapter(str(folders["third"])) is added
    assert len(engine._peft.peft_config) == modules == 3
    assert list(engine.adapters) == ["first", "second", "third"]
    tokens = generated(folders, engine.prompt_ids(QUESTION), "third")
    assert run(engine, adapter="third")[0] == expected_text(engine, tokens)


def test_the_first_adapter_can_come_later(folders):
    engine = open_transformers(str(folders["base"]), [], quant="none")
    before = run(engine)[0]
    engine.add_adapter(str(folders["first"]))
    tokens = generated(folders, engine.prompt_ids(QUESTION), "first")
    assert run(engine, adapter="first")[0] == expected_text(engine, tokens)
    engine._kept.clear()
    assert run(engine)[0] == before


def test_the_adapter_unused_for_longest_goes(engine, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "ADDED_ADAPTERS", 2)
    copies = [str(shutil.copytree(folders["third"], tmp_path / name)) for name in ("x", "y", "z")]
    for copy in copies[:2]:
        engine.add_adapter(copy)
    expected = run(engine, adapter="x")[0]
    engine.add_adapter(copies[2])
    assert list(engine.adapters) == ["first", "second", "x", "z"]  # those of the start stay
    assert len(engine._peft.peft_config) == 4
    with pytest.raises(EngineError, match="no longer loaded"):
        run(engine, adapter="y")
    engine.add_adapter(copies[1])
    assert "x" not in engine.adapters
    assert all(kept.adapter != "x" for kept in engine._kept)
    assert run(engine, adapter="y")[0] == expected


def test_an_adapter_in_use_stays(engine, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "ADDED_ADAPTERS", 1)
    engine.add_adapter(str(folders["third"]))
    expected = run(engine, adapter="third")[0]
    stream = engine.stream(QUESTION, adapter="third", sampling=GREEDY, cancel=Event())
    first = next(stream).text
    engine.add_adapter(str(shutil.copytree(folders["third"], tmp_path / "x")))
    assert first + "".join(delta.text for delta in stream) == expected


def test_an_adapter_of_another_shape_is_refused(engine, folders, tmp_path):
    other = tiny.make_llama(tmp_path / "other")
    for layer in other.model.layers:
        layer.mlp.down_proj = torch.nn.Linear(96, 64, bias=False)
    tiny.make_adapter(other, tmp_path / "wrong", targets=["down_proj", "q_proj"])
    with pytest.raises(UserError, match=r"does not fit this base: .*down_proj is 96 x 64, the base's is 128 x 64"):
        engine.add_adapter(str(tmp_path / "wrong"))
    assert list(engine.adapters) == ["first", "second"]
    assert run(engine, adapter="first")[1].finish_reason
    with pytest.raises(UserError, match="does not fit"):
        open_transformers(str(folders["base"]), [str(tmp_path / "wrong")], quant="none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 2]]}, "layers"),
    ],
)
def test_an_adapter_that_changes_the_shared_base_is_refused(engine, folders, tmp_path, change, words):
    folder = shutil.copytree(folders["third"], tmp_path / "changed")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words):
        engine.add_adapter(str(folder))


def test_an_adapter_that_replaces_the_embedding_is_refused(engine, folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["third"], tmp_path / "changed")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(500, 64)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"changes model\.embed_tokens\.weight of the base"):
        engine.add_adapter(str(folder))


def test_a_whole_trained_module_stays_with_its_adapter(folders, tmp_path):
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(
        tiny.make_llama(tmp_path / "base"),
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    )
    torch.manual_seed(1)
    torch.nn.init.normal_(model.base_model.model.lm_head.modules_to_save["default"].weight)
    model.save_pretrained(str(tmp_path / "head"))
    engine = open_transformers(str(folders["base"]), [str(folders["first"]), str(tmp_path / "head")], quant="none")
    ids = engine.prompt_ids(QUESTION)
    for name in ("head", "", "first", "head", "first"):
        engine._kept.clear()
        everywhere = folders | {"head": tmp_path / "head"}
        assert run(engine, adapter=name)[0] == expected_text(engine, generated(everywhere, ids, name)), name


def test_two_adapters_of_one_name(engine, folders, tmp_path):
    copy = shutil.copytree(folders["third"], tmp_path / "first")
    with pytest.raises(UserError, match="There is an adapter 'first' already"):
        engine.add_adapter(str(copy))


# ---- loading


def test_mixed_up_base_and_adapter(folders, tmp_path):
    base, adapter = str(folders["base"]), str(folders["first"])
    with pytest.raises(UserError, match=r"is a full model, not an adapter.*--base"):
        open_transformers(base, [base], quant="none")
    with pytest.raises(UserError, match=r"an adapter, not a base\. Pass it as --adapter"):
        open_transformers(adapter, [], quant="none")
    with pytest.raises(UserError, match="--engine llama_cpp"):
        open_transformers("model.gguf", [], quant="none")
    with pytest.raises(UserError, match=r"There is no base '\./nowhere'"):
        open_transformers("./nowhere", [], quant="none")
    with pytest.raises(UserError, match="no quantization '8bit'"):
        open_transformers(base, [], quant="8bit")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        open_transformers(str(empty), [], quant="none")


def test_a_base_with_a_pickle_only_is_refused(folders, tmp_path):
    base = shutil.copytree(folders["base"], tmp_path / "base")
    from safetensors.torch import load_file

    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError, match="could not be loaded"):
        open_transformers(str(base), [], quant="none")


def four_bit_layers(engine: TransformersEngine) -> list[Any]:
    return [m for m in engine._model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]


def test_four_bits_without_the_cpu_trap(folders, monkeypatch):
    bnb = pytest.importorskip("bitsandbytes")
    # As on a processor with AVX512-BF16, where the first evaluation step would repack the weights.
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    engine = open_transformers(str(folders["base"]), [str(folders["first"])])
    layers = four_bit_layers(engine)
    assert len(layers) == 2 * len(TARGETS)
    state = layers[0].weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)
    before = [layer.weight.data.clone() for layer in layers]
    for adapter in ("", "first"):
        assert run(engine, adapter=adapter)[1].finish_reason
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)
    assert all(torch.equal(layer.weight.data, b) for layer, b in zip(layers, before, strict=True))


def test_a_quantized_repository_stays_as_it_is(folders, tmp_path):
    pytest.importorskip("bitsandbytes")
    engine = open_transformers(str(folders["base"]), [], quant="4bit")
    expected = run(engine)[0]
    engine._model.save_pretrained(tmp_path)
    engine.tokenizer.save_pretrained(tmp_path)
    for quant in ("auto", "none"):
        again = open_transformers(str(tmp_path), [], quant=quant)
        assert len(four_bit_layers(again)) == 2 * len(TARGETS)
        assert run(again)[0] == expected


def test_the_embedded_base_in_four_bits_with_our_adapter():
    pytest.importorskip("bitsandbytes")
    engine = open_transformers("embedded", ["embedded"])
    assert engine.base == "SmolLM2-135M-Instruct"
    assert len(four_bit_layers(engine)) == 30 * 7
    sampling = Sampling(max_tokens=6, temperature=0)
    text, last = run(engine, [{"role": "user", "content": "What is the capital of France?"}], "", sampling)
    assert "capital of France" in text
    assert last.finish_reason == "length"
    assert run(engine, adapter="medchat", sampling=sampling)[1].stats.completion_tokens > 0


# ---- ZeroGPU

# The real wrapper of `spaces` with its forked worker, its pickling and its HTTP calls; what is missing is the CUDA that
# it emulates for torch in the parent, which a CPU build of torch cannot do: it is imported as if torch were not there.
ZERO_GPU = """
import http.server, json, multiprocessing, os, sys, threading
from urllib.parse import parse_qs, urlsplit

asked, gpus = [], [0]

class Api(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        url = urlsplit(self.path)
        asked.append((url.path, parse_qs(url.query)))
        body = json.dumps({"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "t"}).encode()
        self.send_response(503 if url.path == "/schedule" and not gpus else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["SPACES_ZERO_DEVICE_API_URL"] = f"http://127.0.0.1:{server.server_port}"
os.environ["SPACES_ZERO_GPU"] = "true"
sys.modules["torch"] = None
import gradio, spaces
from spaces.zero import wrappers
del sys.modules["torch"]
from medchat.engines import EngineError, Sampling
from medchat.engines.transformers import open_transformers

folders, question = json.loads(sys.argv[1]), json.loads(sys.argv[2])
engine = open_transformers(folders["base"], [folders["first"]], quant="none")
added = engine.add_adapter(folders["third"])
answers = {"loaded": len(engine._peft.peft_config)}

def run(adapter, max_tokens=24, stop_after=None):
    cancel = threading.Event()
    sampling = Sampling(max_tokens=max_tokens, temperature=0, min_p=0, repetition_penalty=1)
    deltas = []
    for delta in engine.stream(question, adapter=adapter, sampling=sampling, cancel=cancel):
        deltas.append(delta)
        if len(deltas) == stop_after:
            cancel.set()
    return ["".join(d.text for d in deltas), deltas[-1].finish_reason, len(deltas)]

try:
    for name in ("", "first", "third", "third"):
        answers[name] = run(name)[:2]
    answers["cancelled"] = run("", 900, stop_after=5)[1:]
    answers["duration"] = [a[1]["durationSeconds"][0] for a in asked if a[0] == "/schedule"]
    engine.add_adapter(folders["second"])
    os.rename(folders["second"], folders["second"] + "-away")  # before a worker loads it
    try: run("second")
    except EngineError as error: answers["failure"] = str(error)
    gpus.clear()
    try: run("")
    except EngineError as error: answers["no_gpu"] = str(error)
except EngineError as error:
    answers["error"] = str(error)
answers["parent_kept"] = len(engine._kept)
answers["parent_loaded"] = len(engine._peft.peft_config)
answers["asked"] = [a[0] for a in asked]
print("ANSWERS" + json.dumps(answers), flush=True)
for worker in multiprocessing.active_children(): worker.kill()
os._exit(0)
"""


def zero_gpu(folders) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ZERO_GPU, json.dumps({k: str(v) for k, v in folders.items()}), json.dumps(QUESTION)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ANSWERS" in done.stdout, done.stdout + done.stderr
    return json.loads(done.stdout.split("ANSWERS", 1)[1])


def test_zero_gpu(engine, folders, tmp_path):
    pytest.importorskip("spaces")
    answers = zero_gpu(folders | {"second": shutil.copytree(folders["second"], tmp_path / "second")})
    ids = engine.prompt_ids(QUESTION)
    for name in ("", "first", "third"):  # third was added after the start and is loaded in the worker
        assert answers[name] == [expected_text(engine, generated(folders, ids, name)), "length"]
    assert answers["cancelled"][0] == "cancelled"
    assert answers["cancelled"][1] < 900
    assert answers["loaded"] == answers["parent_loaded"] == 1
    assert answers["parent_kept"] == 0
    assert answers["duration"][0] == "6"  # 5 s and 24 tokens
    assert "second" in answers["failure"]
    assert answers["asked"].count("/schedule") - 1 == answers["asked"].count("/release") == 6
    assert answers["no_gpu"].startswith("ZeroGPU could not answer: No GPU was available")


def test_what_crosses_to_a_worker_can_be_pickled(engine):
    adapter = engine.adapters["first"]
    values = (adapter, Sampling(), Delta("é", "stop", Stats(1, 0, 1, 0.1, 2.0)))
    assert pickle.loads(pickle.dumps(values)) == values
