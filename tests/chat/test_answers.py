"""What is asked of a model: given answers, written answers, spans, groups and differences."""

import json

import pytest
import torch
from tiny import chat, make, tokenizer

from trak_lightning import TRAK
from trak_lightning.chat import ChatData, ChatDataset, Encoder, Generation, Records, collate, read_answers
from trak_lightning.chat.answers import combination
from trak_lightning.chat.data import AnswerSet
from trak_lightning.errors import DataError

WRITE = Generation(max_new_tokens=6)
ASK = {"prompt": [{"role": "user", "content": "2+2"}]}


def answers(rows, name="llama", generation=WRITE, kept=None, model=None, **settings):
    encoder = Encoder(tokenizer(), settings.pop("max_length", 64), encoder_decoder=name == "t5")
    return read_answers(Records.read(rows), encoder, model or (lambda: make(name)), generation, kept)


def refused():
    raise AssertionError("nothing is to be written")


def target(answer):
    labels = answer.encoded.labels
    return tokenizer().decode(labels[labels >= 0])


def test_the_answer_that_the_model_writes_is_its_most_probable_one():
    (answer,) = answers([ASK])
    prompt = tokenizer().apply_chat_template(ASK["prompt"], tokenize=False, add_generation_prompt=True)
    model, ids = make("llama"), tokenizer()(prompt)["input_ids"]
    for _ in range(6):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    assert answer.encoded.input_ids.tolist() == ids
    assert answer.encoded.labels.tolist() == [-100] * (len(ids) - 6) + ids[-6:]


def test_a_question_is_what_the_user_said_last_before_the_answer(tmp_path):
    talk = [{"role": role, "content": said} for role, said in (("user", "1+1"), ("assistant", "2"), ("user", "2+2"))]
    rows = [
        {"messages": talk},
        {"messages": [*talk, {"role": "assistant", "content": "4"}]},
        {"prompt": talk, "chosen": "4", "rejected": "5"},
        {
            "chosen": [*talk, {"role": "assistant", "content": "4"}],
            "rejected": [*talk, {"role": "assistant", "content": "5"}],
        },
        {"prompt": "a", "completion": "b"},
        {"text": "a text that answers nothing"},
    ]
    found = answers(rows, kept=tmp_path / "answers.jsonl")
    expected = ["2+2"] * 6 + ["a", ""]
    assert [answer.question for answer in found] == expected
    assert [json.loads(line)["question"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == expected


def test_an_encoder_decoder_answers_too():
    (answer,) = answers([{"prompt": "2+2"}], "t5")
    assert 0 < len(answer.encoded.labels) <= 6
    assert answer.encoded.input_ids.tolist() == tokenizer()("2+2")["input_ids"]


def test_drawn_answers_depend_on_the_seed_alone():
    drawn = [answers([ASK], generation=Generation(6, temperature=2.0, seed=seed))[0].text for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_answers_are_kept_and_those_of_other_weights_or_settings_are_refused(tmp_path):
    kept = tmp_path / "answers.jsonl"
    first = answers([ASK], kept=kept)
    text = kept.read_text()
    assert json.loads(text)["answer"] == first[0].text
    assert answers([ASK], kept=kept, model=refused)[0].reply == first[0].reply
    for other, message in (
        (Generation(6, weights="0f"), "written with other weights .* Use another run directory, or"),
        (
            Generation(7),
            r"max_new_tokens 6 \(now 7\)\. .* Use another name of these targets, trak sft --name again, or",
        ),
    ):
        with pytest.raises(DataError, match=message):
            answers([ASK], kept=kept, generation=other)
    assert kept.read_text() == text


def test_answers_without_the_span_are_counted_and_kept_for_the_next_call(tmp_path):
    kept = tmp_path / "answers.jsonl"
    other = {"prompt": [{"role": "user", "content": "2+3"}]}
    message = r"the span 'Bern', which does not occur in its answer .*; the spans of 2 questions do not occur\. .*answers.jsonl has all"
    with pytest.raises(DataError, match=message):
        answers([ASK | {"span": "Bern"}, other | {"span": "Bern"}], kept=kept)
    written = [json.loads(line)["answer"] for line in kept.read_text().splitlines()]
    part = written[0].strip()[:2]
    first, second = answers([ASK | {"span": part}, other], kept=kept, model=refused)
    assert (first.text, second.text, first.span) == (*written, part)
    assert len(first.encoded.labels[first.encoded.labels != -100]) < len(first.reply)


def test_answers_of_a_model_that_has_been_trained_again_since_are_refused(folder, lines, tmp_path):
    def read():
        data = ChatData(folder, "", lines("targets.jsonl", [ASK]), answers=str(tmp_path / "kept"), max_new_tokens=2)
        data.setup("test")

    read()
    read()
    make("llama", seed=1).save_pretrained(folder)
    with pytest.raises(DataError, match="other weights"):
        read()


def test_a_given_answer_is_the_last_one_and_a_span_is_a_part_of_it():
    whole, part = answers(
        [chat("hi", "yes", "no, it is Bern."), {**chat("hi", "it is Bern."), "span": "Bern", "prompt": None}],
        model=refused,
    )
    assert target(whole) == "no, it is Bern.<|im_end|>"
    assert (target(part), part.text) == ("Bern", "it is Bern.")


def test_answers_of_a_conversation_may_be_text():
    asked = [{"role": "user", "content": "2+2="}]
    as_text, as_messages = answers(
        [
            {"prompt": asked, "chosen": "4", "rejected": "5"},
            {"prompt": asked}
            | {part: [{"role": "assistant", "content": text}] for part, text in (("chosen", "4"), ("rejected", "5"))},
        ],
        model=refused,
    )[::2]
    assert torch.equal(as_text.encoded.input_ids, as_messages.encoded.input_ids)


def test_chosen_and_rejected_are_scored_as_their_difference_and_groups_as_their_mean(tmp_path):
    rows = [
        {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
        {"prompt": "3+3=", "completion": "6", "group": "sums"},
        {"prompt": "4+4=", "completion": "8", "group": "sums"},
        {"prompt": "who", "completion": "me"},
    ]
    found = answers(rows, model=refused)
    names, groups, coefficients = combination(found)
    assert names == ["example 0: chosen − rejected", "sums", "example 3"]
    train = [
        answer.encoded.sample for answer in answers([{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(8)])
    ]
    trak = TRAK(make("llama"), "causal_lm", tmp_path, projector={"name": "sparse_jl", "dim": 64})
    trak.featurize(torch.utils.data.DataLoader(train, batch_size=4, collate_fn=collate))
    loader = torch.utils.data.DataLoader(AnswerSet(found), batch_size=4, collate_fn=collate)
    each = torch.tensor(trak.score(loader, name="each", regularization=1.0).values[:])
    grouped = trak.score(
        loader, name="each", regularization=1.0, groups=groups, coefficients=coefficients, reduction="sum"
    ).values[:]
    expected = torch.stack([each[0] - each[1], (each[2] + each[3]) / 2, each[4]])
    torch.testing.assert_close(torch.tensor(grouped), expected, rtol=1e-4, atol=1e-5 * float(each.abs().max()))


def test_an_answer_of_no_given_length_has_the_room_after_its_prompt(tmp_path):
    kept, longer = tmp_path / "kept", {"prompt": [{"role": "user", "content": "2+2+2"}]}
    model = make("llama")
    model.generation_config.eos_token_id = None
    found = answers([ASK, longer], generation=Generation(), kept=kept, model=lambda: model, max_length=30)
    assert [len(each.encoded.input_ids) for each in found] == [30, 30]
    assert (
        answers([longer], generation=Generation(), kept=kept, model=refused, max_length=30)[0].reply == found[1].reply
    )
    with pytest.raises(
        DataError, match="1 of 1 prompts leave no room for an answer: the longest, example 0 .* 22 tokens long"
    ):
        answers([ASK], generation=Generation(), max_length=22)


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({**chat("hi", "yes"), "span": "no"}, {}, "asks about the span 'no', which does not occur in its answer"),
        (
            {"question": "2+2"},
            {},
            r"the columns question \(str\); expected messages or a prompt that the model answers",
        ),
        (
            {"prompt": "2+2=", "chosen": "4"},
            {},
            "the columns prompt .str., chosen .str.; expected .* prompt and chosen and rejected",
        ),
        (
            chat("hi", "yes"),
            {"max_length": 20},
            "is 26 tokens long, and may have 20 .max_length, .*; a target is not cut off",
        ),
        (
            ASK,
            {"max_length": 26},
            "1 of 1 prompts .* is 22 tokens long, and prompt and answer together may have 26 .max_length, .* Lower max_new_tokens to 4",
        ),
    ],
)
def test_a_target_that_cannot_be_explained_is_refused(row, settings, message):
    with pytest.raises(DataError, match=message):
        answers([row], **settings)


def test_scores_in_python_show_the_text_of_conversations_and_answers(tmp_path, capsys):
    encoder = Encoder(tokenizer(), 64)
    train = ChatDataset([chat(f"2+{n}", f"={2 + n}") for n in range(4)], encoder)
    trak = TRAK(make("llama"), "causal_lm", tmp_path, projector={"name": "sparse_jl", "dim": 64})
    trak.featurize(torch.utils.data.DataLoader(train, batch_size=4, collate_fn=collate))
    targets = AnswerSet(answers([chat("7+1", "=8")]))  # whose tokenizer is that of the conversations
    trak.score(torch.utils.data.DataLoader(targets, batch_size=4, collate_fn=collate))[0].show(4)
    shown = capsys.readouterr().out
    assert "7+1 → =8" in shown
    assert "2+3 → =5" in shown
