"""The page's list of entries and plain messages, what an answer rests on, and the line in front of the engine."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from medchat.chat import Reply, finished
from medchat.engines import Delta, Sampling
from medchat.knowledge import Passage
from medchat.line import Busy, Limits, Line
from medchat.triage import Assessment
from medchat.ui import conversation as talk
from tests.conftest import wait_until
from tests.scripted import INVENTED, ScriptedEngine

NONE = Assessment("none", (), "")
SIGNS = "Gout causes sudden pain in the big toe. Joints swell and feel hot."
PASSAGE = Passage("t#signs", "t", "Gout: typical signs", SIGNS, "MedlinePlus", "https://x")
TEXT = f"Gout causes sudden pain in the big toe. {INVENTED} The joints swell and feel hot."


def user(text):
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def test_marks_reports_notes_and_frames_never_go_back_to_the_model():
    final = finished(TEXT, NONE, [PASSAGE])
    piece = Reply(Delta("", "stop"), NONE, "medchat", passages=(PASSAGE,), final=final)
    report = talk.report(ScriptedEngine(), piece, searched=True, seed=1, follow_up=[])
    entries = talk.answer(f"<think>hm</think>{final}", [PASSAGE], ended=True)
    danger = Assessment("emergency", (), "### This may be an emergency\n\n**Call 911 now**")
    history = [
        user("Gout?"),
        *entries,
        report,
        user("lost"),
        talk.note("No answer", "x"),
        user("pain"),
        *talk.card(danger),
    ]
    assert [item["role"] for item in talk.flatten(history)] == ["user", "assistant"] * 2
    assert talk.flatten(history)[1]["content"] == TEXT
    assert talk.flatten(history)[3]["content"] == danger.message


def test_a_sentence_gets_its_number_or_its_doubt_and_the_panel_marks_all_that_was_used():
    final = finished(TEXT, NONE, [PASSAGE])
    marked = talk.marked(final, [PASSAGE])
    assert marked == f"Gout causes sudden pain in the big toe. [1] {INVENTED} [?] The joints swell and feel hot. [1]"
    piece = Reply(Delta("", "stop"), NONE, passages=(PASSAGE,), final=final)
    panel = talk.report(ScriptedEngine(), piece, searched=True, seed=1, follow_up=[])["content"]
    assert panel.count("<mark>") == 2
    assert "Rests on 1 passage: Gout" in panel


def test_an_open_thought_is_shown_while_it_lasts():
    assert " open" in talk.answer("<think>I wond")[0]["content"]
    entries = talk.answer("<think><b>x</b></think>Rest.")
    assert "&lt;b&gt;" in entries[0]["content"]
    assert entries[1]["content"] == "Rest."


def test_the_line_keeps_the_order_tells_places_and_refuses_at_once():
    engine = ScriptedEngine(slots=1)
    line = Line(engine, Limits(waiting=2, per_minute=100))
    done: list[str] = []
    cancels = {name: Event() for name in ("first", "second", "third")}

    def run(name):
        asked = [{"role": "user", "content": "SLOW"}]
        for delta in line.for_visitor(name).stream(asked, adapter="", sampling=Sampling(), cancel=cancels[name]):
            if delta.finish_reason:
                done.append(name)

    threads = [Thread(target=run, args=(name,)) for name in cancels]
    for count, thread in enumerate(threads):
        thread.start()
        assert wait_until(lambda count=count: len(line._whose) == count + 1)
        assert wait_until(lambda: engine.computing == 1)
    assert [line.place(cancel)[0] for cancel in cancels.values()] == [0, 1, 2]
    with pytest.raises(Busy, match="2 questions are waiting"):
        next(line.for_visitor("fourth").stream([], adapter="", sampling=Sampling(), cancel=Event()))
    line.gone("second")
    assert wait_until(lambda: line.place(cancels["third"])[0] == 1)
    cancels["first"].set()
    assert wait_until(lambda: line.place(cancels["third"])[0] == 0)
    cancels["third"].set()
    for thread in threads:
        thread.join(5)
    assert done == ["second", "first", "third"]
    assert not line._whose
    assert engine.computing == 0


def test_one_visitor_who_asks_too_often_is_told_when_to_come_back():
    line = Line(ScriptedEngine(pause=0), Limits(per_minute=2))

    def ask(visitor):
        asked = [{"role": "user", "content": "hi"}]
        return list(line.for_visitor(visitor).stream(asked, adapter="", sampling=Sampling(), cancel=Event()))

    assert ask("a")
    assert ask("a")
    with pytest.raises(Busy, match="try again in"):
        ask("a")
    assert ask("b")
