"""answer(): to a greeting, thanks, goodbye or a question about itself, in the product's own words.

What MedChat is should not depend on a model's mood: one of 135 million parameters says now that it is an AI, now that
it is none, and answers "Hello" with condolences.
"""

from __future__ import annotations

import re

ITSELF = (
    "I am MedChat, an AI for research and education. I am not a doctor and not a person. I look health topics up and "
    "explain them in plain words, and I can be wrong. I do not diagnose or prescribe, and I know only what you tell me "
    "here. What would you like to understand better?"
)
HELLO = "Hello! I explain health topics in plain words. What would you like to know?"
THANKS = "You are welcome. If something is still unclear, just ask."
BYE = "Goodbye, and take care."

_BEING = (
    r"(?:an? |my |the )?(?:(?:real|actual|human|licensed|medical|artificial) )*"
    r"(?:doctor|doc|physician|nurse|pharmacist|human|person|man|woman|robot|bot|chatbot|ai|intelligence|machine|computer|"
    r"program|medchat|chatgpt|gpt|professional|expert|real|alive)"
)
_FOR = r"for (?:your|the|all your) (?:help|answer|time|advice)"
_SAID = [
    (ITSELF, r"(?:who|what)(?: exactly)? are you(?: exactly)?"),
    (ITSELF, rf"are you {_BEING}(?: or {_BEING})*"),
    (ITSELF, r"what is your name|who (?:made|built|created|trained) you|tell me about yourself|introduce yourself"),
    (ITSELF, r"what can you do(?: for me)?|(?:how|what) can you help(?: me)?(?: with)?|how do you work"),
    (ITSELF, r"can you (?:diagnose|prescribe|examine|treat)(?: me)?|can you be wrong|do you make mistakes"),
    (ITSELF, r"how are you(?: doing)?(?: today)?"),
    (THANKS, rf"(?:thanks|thank you|thx|ty|cheers)(?: (?:so|very|much|a lot|a bunch|again|anyway|doc|doctor|{_FOR}))*"),
    (THANKS, r"(?:that|this|it) (?:was|is) (?:(?:really|very|so) )?(?:helpful|useful|great|clear|kind)"),
    (THANKS, r"(?:that|this|it) (?:helped|helps)(?: me)?(?: a lot)?"),
    (BYE, r"bye|bye bye|goodbye|good bye|see you(?: later| soon)?|good night|take care"),
    (
        HELLO,
        r"(?:hi|hello|hey|hiya|howdy|greetings|good (?:morning|afternoon|evening|day))(?: (?:there|again|doc|doctor))*",
    ),
    (HELLO, r"test|testing|doc|doctor|medchat"),
]
_FIRST = r"(?:and |so |but |ok |okay |wait |well |great |perfect |many |no |alright |good )*"
_PATTERNS = [(said, re.compile(f"{_FIRST}(?:{pattern})")) for said, pattern in _SAID]


def answer(message: str) -> str | None:
    """Return what to say to a message that is nothing but courtesy or asks what MedChat is, else None.

    English alone; every sentence of the message must be of that sort ("Thanks. And in children?" is a question), and
    what it is comes before thanks, these before a goodbye.
    """
    sentences = [_plain(part) for part in re.split(r"[.,!?;\n]+", message)]
    found = [_reply(sentence) for sentence in sentences if sentence]
    if not found or None in found:
        return None
    return next(said for said in (ITSELF, THANKS, BYE, HELLO) if said in found)


def _reply(sentence: str) -> str | None:
    return next((said for said, pattern in _PATTERNS if pattern.fullmatch(sentence)), None)


def _plain(text: str) -> str:
    """Return a text in small letters and single spaces, without signs: "What's up?" is "whats up"."""
    return " ".join(re.sub(r"[^\w ]", "", text.lower().replace("what's", "what is").replace("-", " ")).split())
