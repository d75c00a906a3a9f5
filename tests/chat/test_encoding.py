"""Which tokens of an example are answers, and which examples are refused."""

import pytest
from tiny import CHATML, MARKED, chat, tokenizer

from trak_lightning.chat import ChatDataset, Encoder
from trak_lightning.errors import DataError

CHAT = chat("hi", "yes", "no")


def answers(record, template=CHATML, **settings):
    """The text of all tokens that are trained on."""
    made = tokenizer(template)
    encoded = Encoder(made, settings.pop("max_length", 200), **settings).encode(record, "example 3")
    return made.decode(encoded.labels[encoded.labels >= 0])


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_the_turns_of_the_assistant_are_trained_on_up_to_the_token_that_ends_them(template):
    assert answers(CHAT, template) == "yes<|im_end|>no<|im_end|>"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "2+2=", "completion": "4"}, "4<|im_end|>"),
        ({"text": "so it is"}, "so it is<|im_end|>"),
        ({"text": "so it is<|im_end|>"}, "so it is<|im_end|>"),
        ({"prompt": CHAT["messages"][:3], "completion": CHAT["messages"][3:]}, "no<|im_end|>\n"),
    ],
)
def test_a_completion_and_a_text_are_trained_on_as_by_trl(record, expected):
    assert answers(record) == expected


def test_a_token_across_the_end_of_the_prompt_belongs_to_the_answer_and_is_named(caplog):
    made = tokenizer(CHATML, ("Ġ", "4"))
    plain, merged = ({"prompt": prompt, "completion": "4"} for prompt in ("2+2=", "2+2= "))
    trained = ChatDataset([plain, plain, merged], Encoder(made, 64))
    told = [made.decode(each["labels"][each["labels"] >= 0]) for each in trained]
    assert told == ["4<|im_end|>"] * 2 + [" 4<|im_end|>"]
    assert "in 1 of 3 examples of list (the first is example 2)" in caplog.text


def test_all_tokens_of_a_conversation_may_be_trained_on():
    everything = answers(CHAT, train_on="all")
    assert everything == tokenizer().apply_chat_template(CHAT["messages"], tokenize=False)


def test_an_example_is_cut_off_at_the_end():
    assert answers(chat("hi", "a long answer"), max_length=25) == "a lo"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    rewriting = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'][:1] }}")
    with pytest.raises(DataError, match=r"renders turn 1 of example 3 otherwise .*\{% generation %\}"):
        answers(CHAT, rewriting)


@pytest.mark.parametrize(
    ("record", "settings", "message"),
    [
        ({"messages": CHAT["messages"][:1]}, {}, "example 3 has no turn of the assistant \\(roles: user\\)"),
        (
            {"question": "2+2"},
            {},
            r"example 3 has the columns question \(str\); expected messages, prompt and completion, or text",
        ),
        (
            {"prompt": CHAT["messages"][:1], "completion": "4"},
            {},
            r"the columns prompt \(list\), completion \(str\); expected .* prompt and completion are both strings or both such lists",
        ),
        (CHAT, {"max_length": 20}, "example 3 has no answer to train on within max_length=20 of its 51 tokens"),
        (
            {"prompt": "2", "completion": None},
            {"encoder_decoder": True},
            "needs a prompt and a completion, both of them text",
        ),
        (CHAT, {"template": None}, "the tokenizer has no chat template"),
        (
            CHAT,
            {"template": "{{ raise_exception('no such role') }}"},
            "the chat template refuses example 3.*no such role",
        ),
    ],
)
def test_an_example_without_an_answer_is_refused_by_name(record, settings, message):
    with pytest.raises(DataError, match=message):
        answers(record, **{"template": CHATML, **settings})
