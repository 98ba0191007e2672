"""The llama.cpp engine on real models: tokens, adapters, streaming, stopping, the cache."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from medchat import adapters, embedded, prompt
from medchat.engines import Sampling
from medchat.engines.llama_cpp import open_llama_cpp, usable_cores
from medchat.errors import UserError
from medchat.gguf_header import read_header
from tests import tiny as make
from tests.conftest import ROOT, wait_until

GREEDY = Sampling(temperature=0, max_tokens=40)
QUESTION = [{"role": "system", "content": prompt.SYSTEM}, {"role": "user", "content": "How is a cold treated?"}]


def text_of(engine, messages=QUESTION, adapter="", sampling=GREEDY):
    return "".join(d.text for d in engine.stream(messages, adapter=adapter, sampling=sampling, cancel=Event()))


def passages(count):
    lines = (ROOT / "assets/knowledge/digestion.jsonl").read_text(encoding="utf-8").splitlines()
    return " ".join(json.loads(line)["overview"] for line in lines[:count])


def agreement(engine, model, ids, lora_scale):
    """Return the share of positions where llama.cpp and transformers choose the same next token."""
    import torch

    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    same = 0
    for i, token in enumerate(expected, 1):
        request = {"prompt": ids[:i], "n_predict": 1, "temperature": 0, "lora": [{"id": 0, "scale": lora_scale}]}
        same += engine.complete(request)["tokens"] == [token]
    return same / len(ids)


def test_token_ids_agree_with_transformers_and_have_the_expected_bos(embedded_engine):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.transformers_path())
    expected = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = embedded_engine.prompt_ids(QUESTION)
    assert ids == expected
    assert ids[:2] != [tokenizer.bos_token_id] * 2
    assert len(ids) == embedded_engine.count_tokens(QUESTION)


def test_a_base_that_adds_its_bos_gets_exactly_one(tmp_path):
    model = make.make_llama(tmp_path / "base")
    tokenizer = make.make_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + make.CHATML.replace("<|im_start|>", "<|endoftext|>")
    make.write_gguf(model, tokenizer, tmp_path / "base.gguf", add_bos=True)
    engine = open_llama_cpp(str(tmp_path / "base.gguf"), [])
    ids = engine.prompt_ids(QUESTION)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_large_adapter_on_query_and_key_agrees_on_a_tiny_llama(tmp_path):
    # Without the rotary permutation the agreement is 0.3 here: this test is about that.
    model = make.make_llama(tmp_path / "base")
    tokenizer = make.make_tokenizer()
    make.write_gguf(model, tokenizer, tmp_path / "base.gguf")
    peft_model = make.make_adapter(model, tmp_path / "adapter", targets=["q_proj", "k_proj"], scale=0.5)
    engine = open_llama_cpp(str(tmp_path / "base.gguf"), [str(tmp_path / "adapter")])
    ids = tokenizer(" ".join(make.TEXT) * 3, add_special_tokens=False)["input_ids"][:200]
    assert engine.tokenize(tokenizer.decode(ids)) == ids
    assert agreement(engine, peft_model, ids, 1.0) >= 0.95
    with peft_model.disable_adapter():
        assert agreement(engine, peft_model, ids, 0.0) >= 0.95
        assert agreement(engine, peft_model, ids, 1.0) < 0.6  # the adapter changes much


def test_a_large_adapter_on_query_and_key_agrees_on_the_embedded_base(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = embedded.transformers_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    peft_model = make.make_adapter(model, tmp_path / "adapter", targets=["q_proj", "k_proj"], rank=16, scale=0.6)
    engine = open_llama_cpp("embedded", [str(tmp_path / "adapter")])
    ids = AutoTokenizer.from_pretrained(path)(passages(6))["input_ids"][:200]
    assert len(ids) == 200
    assert agreement(engine, peft_model, ids, 1.0) >= 0.95  # 0.82 without the permutation


@pytest.mark.parametrize("rslora", [False, True])
def test_scaling_follows_peft(tmp_path, rslora):
    """Different alphas and ranks per module, and rank-stabilised scaling, give PEFT's own numbers."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = make.make_llama(tmp_path / "base")
    tokenizer = make.make_tokenizer()
    make.write_gguf(model, tokenizer, tmp_path / "base.gguf")
    config = LoraConfig(
        r=8,
        lora_alpha=4,
        target_modules=["v_proj", "down_proj"],
        alpha_pattern={"down_proj": 16},
        rank_pattern={"v_proj": 4},
        use_rslora=rslora,
    )
    peft_model = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.3
    peft_model.eval().save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    engine = open_llama_cpp(str(tmp_path / "base.gguf"), [str(tmp_path / "adapter")])
    ids = tokenizer(" ".join(make.TEXT), add_special_tokens=False)["input_ids"][:60]
    assert agreement(engine, peft_model, ids, 1.0) >= 0.98


def test_streams_ends_by_itself_and_repeats_at_temperature_0(embedded_engine):
    messages = [QUESTION[0], {"role": "user", "content": "What are the symptoms of iron deficiency anemia?"}]
    sampling = Sampling(temperature=0, max_tokens=400)
    deltas = list(embedded_engine.stream(messages, adapter="medchat", sampling=sampling, cancel=Event()))
    assert sum(bool(d.text) for d in deltas) > 10
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].stats.completion_tokens > 10
    text = "".join(d.text for d in deltas)
    assert "iron" in text.lower()
    assert text == text_of(embedded_engine, messages, "medchat", sampling)
    assert text != text_of(embedded_engine, messages, "", sampling)


def test_a_seed_makes_sampling_repeatable(embedded_engine):
    def draw(seed):
        return text_of(embedded_engine, sampling=Sampling(temperature=1.0, max_tokens=30, seed=seed))

    assert draw(0) == draw(0)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_two_adapters_and_the_base_at_once_each_equal_their_solo_run(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny / "adapter", tmp_path / "second")
    config = json.loads((tmp_path / "second/adapter_config.json").read_text())
    config["lora_alpha"] *= -1  # another adapter altogether
    (tmp_path / "second/adapter_config.json").write_text(json.dumps(config))
    engine = open_llama_cpp(str(tiny / "base.gguf"), [str(tiny / "adapter"), str(tmp_path / "second")])
    names = ["adapter", "second", ""]
    solo = {name: text_of(engine, adapter=name) for name in names}
    assert len(set(solo.values())) == 3
    together: dict[str, str] = {}
    threads = [threading.Thread(target=lambda n=n: together.update({n: text_of(engine, adapter=n)})) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == solo


def test_every_slot_copies_at_once(embedded_engine):
    said = "Wash your hands with soap and water, rub them for twenty seconds, and dry them on a clean towel."

    def go_on(number):
        request = {"prompt": f"{number}. {f' {said}' * 6} Wash", "n_predict": 40, "temperature": 0}
        return embedded_engine.complete(request)["content"]

    with ThreadPoolExecutor(embedded_engine.slots) as pool:
        together = list(pool.map(go_on, range(2 * embedded_engine.slots)))
    assert all("your hands with soap and water, rub them for twenty seconds" in text for text in together)


def test_cancel_and_closing_leave_the_slot_idle(embedded_engine):
    long = Sampling(temperature=0, max_tokens=2000, min_p=0)
    cancel = Event()
    reasons = []
    for delta in embedded_engine.stream(QUESTION, adapter="", sampling=long, cancel=cancel):
        if delta.text:
            cancel.set()
        reasons.append(delta.finish_reason)
    assert reasons[-1] == "cancelled"
    assert wait_until(lambda: embedded_engine.busy() == 0, 5)

    stream = embedded_engine.stream(QUESTION, adapter="", sampling=long, cancel=Event())
    assert any(delta.text for delta in stream)
    stream.close()
    assert wait_until(lambda: embedded_engine.busy() == 0, 5)


def test_a_long_prompt_can_be_stopped_before_the_first_word(embedded_engine):
    messages = [{"role": "user", "content": passages(20)}]
    stream = embedded_engine.stream(messages, adapter="", sampling=GREEDY, cancel=Event())
    first = next(stream)
    assert first.text == ""  # alive while it reads
    stream.close()
    assert wait_until(lambda: embedded_engine.busy() == 0, 5)


def test_a_later_turn_reuses_the_conversations_cache(embedded_engine):
    messages = list(QUESTION)
    cached = []
    for question in ("And for children?", "When should I see a doctor?", "Thank you."):
        deltas = list(embedded_engine.stream(messages, adapter="medchat", sampling=GREEDY, cancel=Event()))
        cached.append(deltas[-1].stats.cached_tokens)
        messages += [
            {"role": "assistant", "content": "".join(d.text for d in deltas)},
            {"role": "user", "content": question},
        ]
    assert cached[2] > cached[1] > 40


def test_the_adapters_own_template_wins(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny / "adapter", tmp_path / "own")
    (tmp_path / "own/chat_template.jinja").write_text("ASK {{ messages[-1]['content'] }} ANSWER")
    engine = open_llama_cpp(str(tiny / "base.gguf"), [str(tmp_path / "own")])
    assert engine.prompt_ids(QUESTION, "own") == engine.tokenize("ASK How is a cold treated? ANSWER")
    assert engine.prompt_ids(QUESTION) != engine.prompt_ids(QUESTION, "own")


def test_nobody_else_may_use_the_local_port(embedded_engine):
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(embedded_engine._server.listening_address + "/slots")


@pytest.mark.parametrize("kind", ["missing", "not gguf", "cut off", "folder"])
def test_a_bad_base_file_is_a_sentence(tmp_path, tiny, kind):
    path = tmp_path / "base.gguf"
    if kind == "not gguf":
        path.write_bytes(b"PK\3\4" + bytes(500))
    elif kind == "cut off":
        path.write_bytes((tiny / "base.gguf").read_bytes()[:3000])
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UserError) as error:
        open_llama_cpp(str(path), [])
    assert str(path) in error.value.what
    assert error.value.fix.endswith(".")


def test_the_conversion_is_cached_by_content(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDCHAT_CACHE", str(tmp_path))
    header = read_header(tiny / "base.gguf")
    adapter = adapters.open_adapter(str(tiny / "adapter"))
    first = adapters.to_gguf(adapter, header)
    written = first.stat().st_mtime_ns
    assert adapters.to_gguf(adapter, header) == first
    assert first.stat().st_mtime_ns == written
    assert [path.name for path in first.parent.iterdir()] == [first.name]  # nothing half-written stays


def test_usable_cores_is_a_positive_number():
    assert usable_cores() >= 1
