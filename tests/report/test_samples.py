"""Whatever a dataset returns is shown."""

import base64
import io
import re
from dataclasses import make_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from trak_lightning import registry
from trak_lightning.data.dataset import AttributionData
from trak_lightning.decisions.columns import value_of
from trak_lightning.decisions.outcome import Outcome
from trak_lightning.errors import DataError
from trak_lightning.report import Samples
from trak_lightning.report.accuracy import headline
from trak_lightning.report.known import class_names_of, feature_names_of, samples_of
from trak_lightning.report.pictures import Picture
from trak_lightning.report.shown import Shown, Table, Text, Turn
from trak_lightning.report.tokens import token_texts
from trak_lightning.report.turns import decoder
from trak_lightning.run.meaning import Meaning
from trak_lightning.tasks.segmentation import Segmentation


def shown(sample, **options):
    return Samples([sample], **options).show(0)


def pixels(part):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(part.source.partition(",")[2]))))


@pytest.mark.parametrize(
    "image",
    [
        torch.arange(48, dtype=torch.uint8).view(3, 4, 4),
        np.arange(48, dtype=np.uint8).reshape(3, 4, 4).transpose(1, 2, 0),
        torch.arange(48, dtype=torch.float32).view(3, 4, 4) / 255,
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(3, 4, 4).transpose(1, 2, 0)),
    ],
    ids=["bytes, channels first", "bytes, channels last", "0 to 1", "PIL"],
)
def test_an_image_keeps_its_pixels_in_every_layout(image):
    (part,) = shown((image, 1)).parts
    np.testing.assert_array_equal(pixels(part), np.arange(48).reshape(3, 4, 4).transpose(1, 2, 0))


def test_a_standardized_image_is_stretched_from_black_to_white_and_a_large_one_is_scaled_down():
    (part,) = shown((torch.randn(1, 8, 8), torch.tensor(3))).parts
    assert (pixels(part).min(), pixels(part).max()) == (0, 255)
    (part,) = shown((torch.rand(3, 400, 300), 3)).parts
    assert (part.width, part.height, part.sharp) == (120, 160, False)


def test_a_mask_has_one_color_per_class_and_another_where_pixels_do_not_count():
    image, mask = torch.rand(1, 8, 8), torch.arange(4).repeat(8, 2)
    mask[0] = 255
    task = registry.create("tasks", {"name": "segmentation", "ignore_index": 255})
    samples = [(image, mask.byte()), {"image": image, "labels": mask}, (image, mask.where(mask > 1, 0))]
    data = AttributionData.of(DataLoader(samples, collate_fn=list))
    first, second, third = (samples_of(data, task=task).show(index).parts for index in range(3))
    assert [part.name for part in (*first, *third)] == ["image", "mask", "image", "mask"]
    (drawn, alike, other) = (pixels(parts[1]) for parts in (first, second, third))
    assert np.array_equal(drawn, alike)
    assert drawn[0].tolist() == [[128] * 3] * 8
    assert drawn[1, :2].tolist() == [[0] * 3, [255] * 3]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 5
    assert np.array_equal(drawn[:, 2:4], other[:, 2:4]), "whatever other classes an image has"
    assert first[1].legend == (), "numbers say nothing"


def test_the_colors_of_a_mask_have_the_names_of_its_classes():
    mask = torch.arange(4).repeat(8, 2)
    mask[0] = 255
    task = registry.create("tasks", {"name": "segmentation", "ignore_index": 255})
    named = SimpleNamespace(class_names=["sky", "tree", "road"])
    data = AttributionData.of(DataLoader([(torch.rand(1, 8, 8), mask)], collate_fn=list), hooks=named)
    found = samples_of(data, task=task).show(0)
    drawn = pixels(found.parts[1])
    assert [name for _, _, name in found.parts[1].legend] == ["sky", "tree", "road", "not counted"]
    for label, color, _ in found.parts[1].legend:
        place = (0, 0) if label == 255 else (1, label)
        assert color == f"#{bytes(drawn[place]).hex()}"


def test_pictures_that_follow_each_other_are_one_row():
    image = torch.rand(8, 8)
    found = shown({"first": image, "second": image, "caption": "a text", "third": image})
    assert [[type(part).__name__ for part in row] for row in found.rows] == [["Picture"] * 3, ["Table"]]
    found = Shown((Text("before"), *found.parts[:2], Text("between"), found.parts[2]))
    assert [len(row) for row in found.rows] == [1, 2, 1, 1]


def test_labels_have_names_where_classes_do():
    assert shown((torch.rand(2, 2), torch.tensor(1))).label == "1"
    assert shown((torch.rand(2, 2), 1), class_names=["cat", "dog"]).label == "dog"
    assert shown({"image": torch.rand(2, 2), "y": 0}, class_names=["cat", "dog"], label_keys=["y"]).label == "cat"


class Graph:
    def __init__(self, y):
        self.x, self.y = torch.zeros(3, 2), torch.tensor([y])


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ({"name": "image_classification", "inputs": "*", "labels": "y"}, "1"),
        ({"name": "regression", "inputs": "*", "labels": "y"}, "1"),
        ({"name": "image_classification", "inputs": "*"}, None),  # which finds no labels in such a batch
    ],
)
def test_an_object_shows_the_label_that_the_task_finds_in_its_batch(task, label):
    loader = DataLoader([Graph(0), Graph(1)], collate_fn=lambda graphs: graphs[0])
    samples = samples_of(AttributionData.of(loader), task=registry.create("tasks", task))
    assert samples.show(1).label == samples.label(1) == label


def test_token_ids_are_decoded_and_what_only_models_read_is_left_out():
    sample = {"input_ids": torch.tensor([1, 2]), "attention_mask": torch.tensor([1, 1]), "labels": torch.tensor(0)}
    assert shown(sample, decode=lambda ids: f"words {ids}").parts == (Text("words [1, 2]"),)


def test_a_list_of_token_ids_is_decoded_without_padding():
    def words(ids):
        return " ".join(f"word{i}" for i in ids)

    question = {"id": "document-7", "input_ids": [1, 2, 3], "labels": [4, 5, -100, -100], "attention_mask": [1, 1, 1]}
    assert shown(question, decode=words).parts == (
        Text("word1 word2 word3"),
        Text("word4 word5"),
        Table((("id", "document-7"),)),
    )
    assert shown({"input_ids": [1, 2], "labels": [1, 2]}, decode=words).parts == (Text("word1 word2"),)


def test_text_comes_before_numbers_and_token_ids_without_a_tokenizer_are_not_shown_next_to_it():
    row = {
        "input_ids": [102, 100, 1],
        "labels": [87, 1],
        "weight": 2.5,
        "question": "capital of Albania",
        "answer": "Tirana",
    }
    assert shown(row).line.strip() == "question: capital of Albania · answer: Tirana · weight: 2.5"
    assert shown({"scores": torch.tensor([0.5, 2.0]), **row}).line.endswith(" · scores[0]: 0.5 · scores[1]: 2")
    pair = {"pixel_values": torch.rand(3, 8, 8), "input_ids": torch.tensor([4, 5, 0, 0])}
    assert shown(pair).line.strip() == "pixel_values 8×8"


def test_token_ids_are_shown_where_there_is_nothing_better_without_their_padding():
    row = {"input_ids": [102, 100, 1, 0, 0], "labels": [87, -1, 3], "idx": 7}
    assert shown(row).parts == (
        Table((("idx", "7"),)),
        Table((("token ids", "102 100 1"),)),
        Table((("token ids of labels", "87 -1 3"),)),
    )
    assert (
        shown((torch.rand(3, 8, 8), torch.tensor([7, 2, 9, 4] + [0] * 20))).line.strip()
        == "image 8×8 · token ids: 7 2 9 4"
    )
    assert shown((torch.rand(3, 8, 8), torch.arange(30))).line.endswith(" 14 15 …")
    box = shown((torch.rand(3, 8, 8), torch.tensor([1, 2, 6, 7]))).line
    assert box == "image 8×8 · x1[0]: 1 · x1[1]: 2 · x1[2]: 6 · x1[3]: 7", "a few integers are no caption"


def test_several_texts_have_the_names_of_their_columns_share_a_line_and_say_the_label_once():
    pair = {"premise": "A man " * 40, "hypothesis": "He sleeps.", "label": 1, "labels": 1, "label_text": "neutral"}
    names = ["entailment", "neutral", "contradiction"]
    sample = shown(pair, class_names=names)
    assert sample.label == "neutral"
    assert sample.line.startswith("premise: A man A man")
    assert sample.line.endswith(" … · hypothesis: He sleeps.")
    assert len(sample.line) <= 100
    assert shown((("One.", "Two."), 1)).line == "One. · Two."
    assert shown({"tokens": ["EU", "rejects", "calls"], "label": 1}).line == "EU rejects calls"
    assert shown({**pair, "label_text": "maybe"}, class_names=names).line.endswith(" · label_text: maybe")


def test_all_samples_show_a_column_in_the_same_way():
    questions = ["capital of Albania", "capital of the Democratic Republic of the Congo"]
    samples = Samples([{"id": str(i), "question": text, "n": i} for i, text in enumerate(questions)])
    assert [[type(part) for part in samples.show(i).parts] for i in range(2)] == [[Text, Table]] * 2


def test_a_sample_that_cannot_be_read_does_not_hide_others():
    class Broken(list):
        def __getitem__(self, index):
            return {"a": "x", "b": "y", "c": 1} if index == 0 else 1 / 0

    assert Samples(Broken(range(9))).show(0).parts == (Table((("a", "x"), ("b", "y"), ("c", "1"))),)


LONG = "An ÉTUDE, in four parts; the third of which is slow. "


@pytest.mark.parametrize(
    ("columns", "text", "parts"),
    [
        ({"text": LONG}, "an etude , in four parts ; the third of", (Text(LONG),)),  # uncased, cut off
        (
            {"sentence1": LONG, "sentence2": LONG[3:]},
            LONG + LONG[3:],
            (Text(LONG, "sentence1"), Text(LONG[3:], "sentence2")),
        ),
        ({"messages": [{"role": "user", "content": LONG}], "n": 1}, LONG, (Turn("user", LONG), Table((("n", "1"),)))),
        ({"id": "a", "text": "short"}, "Short", (Text("short", "text"), Table((("id", "a"),)))),
        ({"text": LONG}, "another text", (Text(LONG), Text("another text"))),
    ],
)
def test_text_that_is_there_next_to_its_token_ids_is_shown_once(columns, text, parts):
    assert shown({**columns, "input_ids": [1, 2], "label": 1}, decode=lambda ids: text).parts == parts


def test_a_text_beside_its_tokens_is_shown_once_though_the_tokenizer_does_not_know_all_words():
    sample = {"text": "A simple phone, but breakage is unacceptable.", "input_ids": [1, 2], "label": 1}
    assert shown(sample, decode=lambda ids: "a simple phone, but is.").parts == (Text(sample["text"]),)


def test_classes_of_tokens_are_not_decoded():
    sample = {"input_ids": [7, 8, 9], "labels": [0, 1, -100]}
    assert shown(sample, decode=str).parts == (
        Text("[7, 8, 9]"),
        Table((("labels[0]", "0"), ("labels[1]", "1"), ("labels[2]", "-100"))),
    )


def test_numbers_and_several_classes_are_labels_too():
    assert shown((torch.rand(5), torch.tensor([1.3186]))).label == "1.319"
    assert shown((torch.rand(5), torch.tensor(-2.5))).label == "-2.5"
    assert (
        shown((torch.rand(5), torch.tensor([1.0, 0.0, 1.0])), class_names=["red", "green", "blue"]).label == "red, blue"
    )
    assert shown((torch.rand(5), torch.tensor([0, 0, 0]))).label == "no label"


TURNS = [("user", "Is it raining?"), ("assistant", "No.\nIt is not.")]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": role, "content": text} for role, text in TURNS],
        [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TURNS],
    ],
    ids=["text", "parts"],
)
def test_a_conversation_is_shown_as_turns(messages):
    assert shown({"messages": messages, "label": 1}).parts == tuple(Turn(*turn) for turn in TURNS)


@pytest.mark.parametrize(
    "template",
    [
        "<|im_start|>{}\n{}<|im_end|>\n",
        "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>",
        "<start_of_turn>{}\n{}<end_of_turn>\n",
        "<|{}|>\n{}</s>\n",
    ],
    ids=["ChatML", "Llama 3", "Gemma", "Zephyr"],
)
def test_turns_are_found_in_what_a_chat_template_wrote(template):
    class Tokenizer:
        def decode(self, ids, skip_special_tokens=False):
            assert not skip_special_tokens, "the special tokens say whose turn it is"
            return "".join(template.format(*turn) for turn in TURNS)

    assert shown({"input_ids": [1, 2, 3]}, decode=decoder(Tokenizer())).parts == tuple(Turn(*turn) for turn in TURNS)


LLAMA_2 = (
    "<s>{% for m in messages %}{% if m['role'] == 'system' %}[INST] <<SYS>>\n{{ m['content'] }}\n<</SYS>>\n\n{% elif m['role'] == 'user' %}"
    "{% if loop.index0 == 0 or messages[loop.index0 - 1]['role'] != 'system' %}[INST] {% endif %}{{ m['content'] }} [/INST]{% else %}"
    " {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
    " {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
WORDS = "{% for m in messages %}{{ 'Q: ' if m['role'] == 'user' else 'A: ' }}{{ m['content'] }}\n\n{% endfor %}"
MARKS = "{% for m in messages %}<|begin|>{{ m['role'] }}<|said|>{{ m['content'] }}<|end|>{% endfor %}"
SYSTEM = [("system", "Be brief.")]


@pytest.mark.parametrize("spaces", ["kept", "joined", "added"])
@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (MISTRAL, TURNS),
        (WORDS, TURNS),
        (LLAMA_2, TURNS),
        (LLAMA_2, SYSTEM + TURNS),
        (MARKS, TURNS),
        (MARKS, SYSTEM + TURNS),
        (MARKS, SYSTEM + TURNS * 2),
    ],
    ids=["Mistral", "words", "Llama 2", "Llama 2, system", "marks", "marks, system", "marks, two questions"],
)
def test_turns_are_found_by_the_template_of_the_tokenizer(template, turns, spaces):
    from jinja2 import Template

    class Tokenizer:
        def apply_chat_template(self, messages, tokenize):
            return Template(template, keep_trailing_newline=True).render(messages=messages)

        def decode(self, ids, skip_special_tokens=False):
            assert not skip_special_tokens, "the special tokens say whose turn it is"
            text = self.apply_chat_template([{"role": role, "content": text} for role, text in turns], False)
            if spaces == "added":
                text = re.sub(r"(<[^<>]+>|\[/?INST\])", r" \1 ", text)
            return text if spaces == "kept" else " ".join(text.split())

    found = shown({"input_ids": [1, 2, 3]}, decode=decoder(Tokenizer())).parts
    told = [(part.role, " ".join(part.text.split())) for part in found]
    assert told == [(role, " ".join(text.split())) for role, text in turns]


def test_an_image_text_pair_is_both_and_has_no_label():
    image, text = shown((torch.rand(3, 8, 8), "a caption")).parts
    assert isinstance(image, Picture)
    assert text == Text("a caption")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("system user assistant", "user → assistant"),
        ("user0 assistant0 user1 tool model1", "user1 → model1"),
        ("user assistant0 user assistant1", "user → assistant0 | assistant1"),  # chosen and rejected
        ("system user", "user"),
        ("system", "system"),
    ],
)
def test_the_line_of_a_conversation_is_its_last_answer_after_its_question(said, line):
    turns = [{"role": word.strip("01"), "content": word} for word in said.split()]
    assert shown({"messages": turns}).line.strip() == line
    turns = [
        {"role": "system", "content": "s" * 200},
        {"role": "user", "content": "Why " * 99},
        {"role": "assistant", "content": "So"},
    ]
    assert shown(turns).line == f"{('Why ' * 12)}… → So"
    assert "So" in shown(turns).html


def test_the_line_of_a_text_whose_prompt_is_masked_is_the_answer_after_the_end_of_the_prompt():
    def decode(ids):
        return " ".join(f"word{i}" for i in ids if i)

    ids = torch.arange(1, 41)
    labels = torch.where((ids == 9) | (ids > 38), ids, -100)
    row = {
        "input_ids": torch.cat([ids, torch.zeros(3, dtype=int)]),
        "labels": torch.cat([labels, torch.full((3,), -100)]),
    }
    assert shown(row, decode=decode).line == "… word32 word33 word34 word35 word36 word37 word38 → word39 word40"
    assert [part.role for part in shown(row, decode=decode).parts] == ["prompt", "assistant"] * 2
    whole = {"input_ids": ids, "labels": ids}
    assert shown(whole, decode=decode).parts == (Text(decode(range(1, 41))),), "nothing says where an answer begins"


def test_token_ids_under_any_name_are_not_shown_next_to_a_text():
    text = "a text that is longer than what a field of a table may be, as reviews are"
    rows = [{"text": text, "ids": torch.arange(12)}, {"city": "Bern", "visits": torch.arange(12)}]
    assert Samples(rows[:1]).show(0).line == text
    assert "visits[1]: 1" in Samples(rows[1:]).show(0).line


def test_numbers_are_a_table():
    row = {"age": 31, "income": 2.5, "town": "Bern", "label": 1}
    assert shown(row).parts == (Table((("age", "31"), ("income", "2.5"), ("town", "Bern"))),)
    assert shown((torch.tensor([1.0, 2.0]), 0), feature_names=["a", "b"]).parts == (Table((("a", "1"), ("b", "2"))),)
    (named,), (unnamed,) = (
        shown((torch.ones(30), 0), feature_names=names).parts for names in (list(map(str, range(30))), None)
    )
    assert (len(named.fields), unnamed.fields[-1]) == (30, ("…", "14 more"))


def test_the_vectors_of_a_sample_with_several_have_names_of_their_own():
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    names = [name for part in shown(((one, other), 0)).parts for name, _ in part.fields]
    assert names == ["x0[0]", "x0[1]", "x1[0]"]
    assert [name for part in shown((other, one, other)).parts for name, _ in part.fields] == [
        "x0[0]", "x1[0]", "x1[1]", "x2[0]",
    ]  # fmt: skip
    named = {"numeric": one, "dose": torch.tensor([3.0, 4.0])}
    assert [name for part in shown((named, 0)).parts for name, _ in part.fields] == [
        "numeric[0]", "numeric[1]", "dose[0]", "dose[1]",
    ]  # fmt: skip
    assert shown((one, 0)).parts[0].fields[0] == ("x[0]", "1")


def test_a_tuple_shows_its_label_once_and_other_columns_as_conditions_name_them():
    sample = torch.tensor([1.0, 2.0]), 5, 0
    by_place = Samples([sample], label_keys=[2], class_names=["no"]).show(0)
    assert (by_place.label, by_place.line) == ("no", "x0[0]: 1 · x0[1]: 2 · x1: 5")
    assert Samples([sample[::-1]], label_keys=[-3]).show(0).line == "x1: 5 · x2[0]: 1 · x2[1]: 2"
    columns = [name for part in by_place.parts for name, _ in part.fields]
    assert [value_of(sample, column) for column in columns] == ["1.0", "2.0", "5"]
    assert shown({"scores": [0.5, 2.0]}).line == "scores[0]: 0.5 · scores[1]: 2"


def test_the_text_that_was_tokenized_is_shown_without_the_name_of_its_column():
    row = {"text": "a treaty", "input_ids": [4, 5, 6], "attention_mask": [1, 1, 1], "label": 1}
    assert shown(row, decode=lambda ids: "a treaty").line.strip() == "a treaty"
    assert shown({**row, "source": "web"}, decode=lambda ids: "a treaty").line == "text: a treaty · source: web"


class Columns(list):
    def __init__(self):
        self.features = {"text": None, "label": SimpleNamespace(names=["tree", "ship"])}


@pytest.mark.parametrize(
    ("dataset", "ids", "names"),
    [
        (Columns(), {0: "a", 1: "b"}, ["tree", "ship"]),
        (Subset(Subset(Columns(), [0]), [0]), {0: "a", 1: "b"}, ["tree", "ship"]),
        (Subset(SimpleNamespace(classes=["tree", "ship"]), [0]), None, ["tree", "ship"]),
        ([], {1: "b", 0: "a"}, ["a", "b"]),
        ([], {0: "LABEL_0", 1: "LABEL_1"}, None),
        ([], None, None),
    ],
)
def test_classes_have_the_names_of_the_dataset_or_of_the_model(dataset, ids, names):
    model = SimpleNamespace(config=SimpleNamespace(id2label=ids))
    data = AttributionData(dataset, default_collate, 1)
    assert class_names_of(data, model=model) == names
    named = AttributionData.of(data, hooks=SimpleNamespace(class_names=["x", "y"]))
    assert class_names_of(named, model=model) == ["x", "y"]


def test_features_have_the_names_of_the_dataset_that_a_subset_is_a_part_of():
    part = Subset(SimpleNamespace(feature_names=["age", "sex"]), [0])
    assert feature_names_of(AttributionData.of(part)) == ["age", "sex"]
    named = SimpleNamespace(feature_names=["weight", "height"])
    assert feature_names_of(AttributionData.of(part, hooks=named)) == ["weight", "height"]


def test_classes_have_the_names_of_a_model_inside_the_model():
    class Classifier(nn.Module):
        def __init__(self, ids):
            super().__init__()
            self.config = SimpleNamespace(id2label=ids)

    data, wrapped = AttributionData([], default_collate, 1), nn.Module()
    wrapped.body, wrapped.bert = nn.Linear(2, 2), Classifier({0: "no", 1: "yes"})
    assert class_names_of(data, model=wrapped) == ["no", "yes"]
    wrapped.bert = Classifier({0: "LABEL_0", 1: "LABEL_1"})
    assert class_names_of(data, model=wrapped) is None


@pytest.mark.parametrize(("names", "label"), [(["paid", "defaulted"], "paid"), (None, "no")])
def test_a_label_has_the_name_of_its_class_and_not_another_word_of_render(names, label):
    rows = TensorDataset(torch.rand(2, 3), torch.tensor([0, 1]))
    module = SimpleNamespace(class_names=names, render=lambda row: {"age": 3, "label": "yes" if row[1] else "no"})
    task = registry.create("tasks", "image_classification")
    samples = samples_of(AttributionData.of(rows, hooks=module), task=task)
    assert samples.show(0).label == samples.label(0) == label
    assert samples.show(0).line == "age: 3"


def test_render_decides_and_its_errors_name_the_sample():
    assert shown((torch.rand(3), 1), render=lambda sample: f"label {sample[1]}").parts == (Text("label 1"),)
    with pytest.raises(DataError, match="render failed on sample 0 of list: KeyError: 'nothing'"):
        shown({"text": "a"}, render=lambda sample: sample["nothing"])


@pytest.mark.parametrize(
    "sample",
    [
        (torch.rand(9, 16), torch.randint(9, (2, 20)), 1),
        {"x": torch.rand(9, 16), "edge_index": torch.randint(9, (2, 20)), "label": 1},
        (torch.rand(30, 3), 1),
    ],
)
def test_matrices_of_graphs_and_points_are_no_pictures(sample):
    assert not any(isinstance(part, Picture) for part in shown(sample).parts)


def test_objects_are_shown_as_they_print():
    class Data:
        def __str__(self):
            return "Data(x=[4, 3], edge_index=[2, 6])"

    assert shown(Data()).parts == (Text("Data(x=[4, 3], edge_index=[2, 6])"),)
    assert shown(object()).parts == (Text("object"),)
    graph = SimpleNamespace(
        name="mol3", x=torch.rand(6, 4), edge_index=torch.zeros(2, 12, dtype=int), y=torch.tensor(1)
    )
    Graph = type("Graph", (), {"num_nodes": 6})
    for edges, line in ((True, "Graph: mol3, 6 nodes, 12 edges"), (False, "Graph: mol3, 6 nodes")):
        found = Graph()
        found.__dict__.update(vars(graph))
        if not edges:
            del found.edge_index
        assert shown(found).line == line
    assert (
        shown(type("Cloud", (), {"__init__": lambda self: setattr(self, "x", graph.x)})()).line
        == "Cloud: x of shape (6, 4)"
    )
    Molecule = make_dataclass("Molecule", ["x", "edge_index", "y"])
    assert shown(Molecule(graph.x, graph.edge_index, graph.y)).line == "Molecule: 6 nodes, 12 edges"
    assert shown({"city": "Bern", "source": "", "age": 3}).line == "city: Bern · age: 3"


def test_texts_of_tokens_join_to_the_decoded_text():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    ids = list("naïve – 日本".encode())
    texts = token_texts(Bytes(), ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == Bytes().decode(ids)


def test_the_mean_of_an_output_that_is_no_probability_is_named_in_words():
    outcome = Outcome(
        Meaning("minus the loss"), np.array([-1.0, -3.0]), np.ones(2), None, np.ones(2), {}, np.ones(2, bool)
    )
    assert headline(outcome).text == "is the mean over 2 targets of minus the loss."


@pytest.mark.parametrize("channel", [(), (1,)])
def test_a_pixel_goes_by_row_and_column(channel):
    data = AttributionData.of(TensorDataset(torch.randn(2, 3, 4, 6), torch.zeros(2, *channel, 4, 6, dtype=torch.long)))
    samples = samples_of(data, task=Segmentation())
    assert samples.token_texts(0, np.array([0, 7, 23])) == ["(0, 0)", "(1, 1)", "(3, 5)"]
    assert samples_of(data).token_texts(0, np.array([7])) == ["7"]
