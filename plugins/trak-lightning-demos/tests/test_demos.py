"""The configurations of the demos and of CLIP and mT5 run as they stand: the demos on less of their data and for fewer steps, those of the
paper on a few dozen samples in the format of the real files, with models of the same architecture and a fraction of the size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trak_lightning_demos import EmojiDataModule, QuestionDataModule, SupersenseDataModule, TabularDataModule
from trak_lightning_demos.coco import read_captions
from trak_lightning_demos.ftrace import read_rows
from trak_lightning_demos.glosses import read_glosses
from trak_lightning_demos.questions import facts
from trak_lightning_demos.supersenses import categories, tags
from trak_lightning_demos.words import Vocabulary, words

from trak_lightning.cli import main
from trak_lightning.errors import DataError
from trak_lightning.scoring.scores import Scores

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL = {
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1,
    "ensemble.size": 1,
    "evaluation.models": 2,
    "projector.dim": 32,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Scores of a configuration with some settings changed, after all its stages."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # lightning 2.6 with jsonargparse 4.53

    def run(config, **settings):
        changed = {**SMALL, **settings, "run_dir": tmp_path / "run"}
        options = [f"--{key}={changed[key]}" for key in sorted(changed)]
        assert main(["run", "--config", str(CONFIGS / f"{config}.yaml"), *options]) == 0
        assert (tmp_path / "run" / "evaluation" / "lds-test.json").exists()
        scores = np.array(Scores(tmp_path / "run" / "scores" / "test.h5").values)
        assert np.isfinite(scores).all()
        assert np.ptp(scores) > 0
        return scores

    return run


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        pytest.param(
            "emoji",
            {"trainer.limit_train_batches": 2, "model.width": 16, "task.negatives": 20},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "countries",
            {"trainer.limit_train_batches": 2, "model.width": 16, "model.layers": 1},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "words", {"trainer.limit_train_batches": 2, "model.width": 16, "model.layers": 1}, marks=pytest.mark.slow
        ),
        ("dictionary", {"model.width": 16, "model.layers": 1, "data.num_train": 96}),
        pytest.param(
            "supersenses", {"model.width": 16, "model.layers": 1, "data.num_train": 96}, marks=pytest.mark.slow
        ),
        ("diabetes", {"projector": "sparse_jl"}),
        pytest.param("breast_cancer", {"projector": "sparse_jl"}, marks=pytest.mark.slow),
        pytest.param("digit_properties", {}, marks=pytest.mark.slow),
    ],
)
def test_a_demo_runs(config, settings, run):
    assert run(config, **settings, **{"data.num_targets": 5}).shape[0] == 5


def test_emoji_are_distinguished_and_named():
    data = EmojiDataModule(num_targets=3)
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (1633, 3)
    images = torch.stack([data.train_set[i]["pixel_values"] for i in range(200)])
    assert images.shape == (200, 3, 24, 24)
    assert (images.min(), images.max()) == (-1, 1)
    assert len({image.numpy().tobytes() for image in images}) > 190
    assert not set(data.train_set.names) & set(data.test_set.names)


@pytest.mark.parametrize("subject", ["countries", "words"])
def test_every_fact_is_asked_for_twice_in_training_and_in_other_words_as_a_target(subject):
    data, known = QuestionDataModule(subject, num_targets=50), facts(subject)
    data.setup()
    assert sorted(data.train_set.facts) == sorted(2 * list(range(len(known))))
    assert not {question for question, _ in data.train_set.texts} & {question for question, _ in data.test_set.texts}
    for fact, (question, answer) in zip(data.test_set.facts, data.test_set.texts, strict=True):
        assert known[fact].about in question
        assert known[fact].answer == answer


def test_words_have_the_tags_that_the_dictionary_gives_them():
    data = SupersenseDataModule(num_targets=3)
    data.setup()
    known = {gloss.word: gloss.category for gloss in read_glosses()}
    text, sample = data.train_set.texts[0], data.train_set[0]
    tagged = {
        word: categories()[label] for word, label in zip(words(text), sample["labels"], strict=True) if label >= 0
    }
    assert tagged
    assert all(known[word] == tag for word, tag in tagged.items())
    assert tags("raw meat from Mexico") == [None, "food", None, "location"]


@pytest.mark.parametrize(("dataset", "labels"), [("diabetes", 1), ("breast_cancer", 1), ("digit_properties", 4)])
def test_tables_are_standardised_by_their_training_rows(dataset, labels):
    data = TabularDataModule(dataset)
    data.setup()
    rows, answers = data.train_set.tensors
    assert answers.shape == (len(rows), labels)
    torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), rtol=0, atol=1e-5)
    varies = rows.std(0) > 0
    torch.testing.assert_close(rows.std(0)[varies], torch.ones(int(varies.sum())), rtol=1e-4, atol=0)
    if dataset == "diabetes":
        assert abs(float(answers.std()) - 1) < 1e-4
    else:
        assert set(answers.flatten().tolist()) == {0, 1}
        assert answers.float().mean(0).min() > 0.3


def test_a_vocabulary_keeps_the_most_frequent_words():
    known = Vocabulary(["a cat, a dog", "a cat"], size=6)
    assert known.decode(known.encode("A cat!")) == "a cat <unk>"


@pytest.fixture
def coco(tmp_path):
    """Captions and images as MS COCO has them, and a folder with a small CLIP, its tokenizer and its image processor."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        folder = tmp_path / f"{split}2014"
        folder.mkdir()
        images, annotations = [], []
        for number in range(count):
            name = f"COCO_{split}2014_{number:012d}.jpg"
            pixels = random.integers(0, 255, (40 + number, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels if number else pixels[..., 0]).save(folder / name)  # some of COCO are grey
            images.append({"id": 1000 + number, "file_name": name, "height": 40 + number, "width": 60})
            for caption in (f"a photo of thing {chr(97 + number)}", "something else"):
                annotations.append({"id": len(annotations), "image_id": 1000 + number, "caption": caption})
        (tmp_path / f"captions_{split}2014.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    save_clip(tmp_path / "clip")
    return tmp_path


def save_clip(folder):
    from transformers import CLIPConfig, CLIPTokenizer

    folder.mkdir()
    letters = [chr(code) for code in range(97, 123)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = {**tower, **special, "vocab_size": len(tokens), "max_position_embeddings": 77}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPConfig(text_config=text, vision_config=vision, projection_dim=8).save_pretrained(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "resample": 3}
    processor |= {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "do_normalize": True}
    processor |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def test_clip_on_coco(coco, run):
    files = {
        f"data.{split}_{kind}": coco / name
        for split, folder in (("train", "train2014"), ("test", "val2014"))
        for kind, name in (("captions", f"captions_{folder}.json"), ("images", folder))
    }
    pretrained = {"model.pretrained": coco / "clip", "data.pretrained": coco / "clip"}
    sizes = {"data.batch_size": 8, "data.num_workers": 0, "data.num_targets": 4, "task.negatives": 10}
    assert run("paper/clip_coco", **files, **pretrained, **sizes).shape == (4, 24)


def test_captions_are_read_in_the_order_of_the_images(coco):
    captions = coco / "captions_val2014.json"
    assert [caption for _, caption in read_captions(captions, 1)] == [f"a photo of thing {c}" for c in "abcdef"]
    assert len(read_captions(captions, 5)) == 12
    captions.write_text("[]")
    with pytest.raises(DataError, match="is not a file of COCO captions"):
        read_captions(captions, 1)


ABSTRACTS = [
    {
        "inputs_pretokenized": f"<extra_id_0> lies in land {chr(97 + number)}.",
        "targets_pretokenized": f"<extra_id_0> town {chr(97 + number)}",
        "page_uri": f"Q{number}",
        "masked_uri": f"Q{number}",
        "masked_type": "subject",
        "example_uris": f"Q{number}-1",
        "facts": f"P17,Q{100 + number},Q{number};P131,Q{100 + number},Q{number}",
        "id": str(number),
    }
    for number in range(24)
]
QUERIES = [
    {
        "inputs_pretokenized": f"town {chr(97 + number)} is in <extra_id_0> .",
        "targets_pretokenized": f"<extra_id_0> land {chr(97 + number)}",
        "uuid": str(number),
        "obj_uri": f"Q{100 + number}",
        "sub_uri": f"Q{number}",
        "predicate_id": "P17",
        "obj_surface": f"land {chr(97 + number)}",
        "sub_surface": f"town {chr(97 + number)}",
    }
    for number in range(6)
]


@pytest.fixture
def ftrace(tmp_path):
    """Rows as FTRACE has them, and a folder with a small mT5 that reads bytes."""
    from transformers import ByT5Tokenizer, MT5Config, MT5ForConditionalGeneration

    for name, rows in (("abstracts", ABSTRACTS), ("queries", QUERIES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = MT5ForConditionalGeneration(MT5Config(vocab_size=384, tie_word_embeddings=False, **sizes))
    model.save_pretrained(tmp_path / "mt5")
    ByT5Tokenizer().save_pretrained(tmp_path / "mt5")
    return tmp_path


def test_mt5_on_ftrace(ftrace, run):
    files = {
        "data.abstracts": [str(ftrace / "**" / "abstract*.jsonl")],
        "data.queries": [str(ftrace / "queries.jsonl")],
    }
    pretrained = {"model.pretrained": ftrace / "mt5", "data.pretrained": ftrace / "mt5"}
    sizes = {"data.batch_size": 8, "data.num_targets": 4, "data.num_train": 20}
    files = {key: json.dumps(value) for key, value in files.items()}
    assert run("paper/mt5_ftrace", **files, **pretrained, **sizes).shape == (4, 20)


def test_which_abstracts_state_the_fact_of_a_query_is_known(ftrace):
    from trak_lightning_demos import FTrace

    data = FTrace(str(ftrace / "mt5"), [str(ftrace / "abstracts.jsonl")], [str(ftrace / "queries.jsonl")])
    data.setup()
    for target, asked in enumerate(data.test_set.facts):
        support = [i for i, stated in enumerate(data.train_set.facts) if stated & asked]
        assert len(support) == 1
        letter = data.test_set.texts[target][0][5]
        assert data.train_set.texts[support[0]][0] == f"<extra_id_0> lies in land {letter}."
    batch = next(iter(data.test_dataloader()))
    assert (batch["labels"] == -100).any() == (batch["labels"].shape[1] > min(len(t) for _, t in data.test_set.texts))


def test_rows_come_from_parquet_files_as_well(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="only Parquet files need it: pip install pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(QUERIES), tmp_path / "queries.parquet")
    assert read_rows([str(tmp_path / "queries.parquet")], ["obj_uri"]) == QUERIES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"inputs": "x"}\n', "has no column 'facts'; its columns are inputs"),
        ("rows.jsonl", "x\n", "must hold one JSON object per line"),
        ("rows.jsonl", "", "no rows were found in"),
        ("other.jsonl", "", "there is no file"),
    ],
)
def test_files_of_another_kind_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows([str(tmp_path / "rows.jsonl")], ["facts"])
