"""Every file in configs/paper/ goes from its data to its evaluation, on a few dozen samples in the same format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trak_lightning_demos.cifar import CIFAR10DataModule
from trak_lightning_demos.images import shift_and_mirror
from trak_lightning_demos.resnets import ResNet9, ResNet18

from trak_lightning.cli import main
from trak_lightning.errors import DataError
from trak_lightning.scoring.scores import Scores

CONFIGS = Path(__file__).parents[3] / "configs" / "paper"
SMALL = {
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "ensemble.size": 1,
    "evaluation.models": 2,
    "projector.dim": 32,
    "batch_size": 16,
}


def cifar(root):
    """Six files of four records."""
    random = np.random.default_rng(0)
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = random.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = [3, 5, 3, 8]
        records.tofile(folder / f"{name}.bin")
    return folder


def imagenet(root):
    """Images of three classes and different sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("n01440764", "n01443537", "n01484850")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 64, (40 + 4 * number, 60, 3), dtype=np.uint8) + np.uint8(80 * label)
                Image.fromarray(pixels).save(root / split / name / f"{name}_{number}.JPEG")
    return root


def qnli(root):
    """Questions, sentences and whether these answer them."""
    for file, count in (("train.tsv", 24), ("dev.tsv", 6)):
        rows = [
            f'{number}\tWhat is the number "{number}?\tIt is {number + number % 2}.\t{["", "not_"][number % 2]}entailment'
            for number in range(count)
        ]
        (root / file).write_text("\n".join(["index\tquestion\tsentence\tlabel", *rows]) + "\n")
    return root


def tiny_bert(folder):
    """A folder as the hub has it, with a vocabulary for the stand-in of QNLI."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["what", "is", "the", "number", "it", "?", ".", '"'],
        *map(str, range(30)),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def settings(name, root):
    """What is changed of a file: where things are, and how large."""
    if name in ("cifar2", "cifar10"):
        return {"data.init_args.root": cifar(root)}
    if name == "imagenet":
        changed = {"root": imagenet(root), "size": 32, "num_workers": 0, "num_targets": 4, "batch_size": 32}
        return {f"data.init_args.{key}": value for key, value in changed.items()} | {"model.init_args.num_classes": 3}
    bert = tiny_bert(root / "bert")
    qnli(root)
    return {
        "model.init_args.pretrained": bert,
        "data.init_args.pretrained": bert,
        "data.init_args.train_file": root / "train.tsv",
        "data.init_args.test_file": root / "dev.tsv",
    }


SIZES = {"cifar2": (3, 15), "cifar10": (4, 20), "imagenet": (4, 18), "qnli": (6, 24)}


@pytest.mark.parametrize(
    "name", [name if name == "qnli" else pytest.param(name, marks=pytest.mark.slow) for name in SIZES]
)
def test_an_experiment_of_the_paper_runs_from_end_to_end(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # lightning 2.6 with jsonargparse 4.53
    options = SMALL | settings(name, tmp_path) | {"run_dir": tmp_path / "run"}
    arguments = [f"--{key}={value}" for key, value in options.items()]
    assert main(["run", "--config", str(CONFIGS / f"{name}.yaml"), *arguments]) == 0
    scores = Scores(tmp_path / "run" / "scores" / "test.h5")
    assert scores.values.shape == SIZES[name]
    assert np.isfinite(np.array(scores.values)).all()
    assert "Linear datamodeling score" in capsys.readouterr().out


def test_the_networks_have_as_many_parameters_as_those_of_the_paper():
    count = [sum(parameter.numel() for parameter in network().parameters()) for network in (ResNet9, ResNet18)]
    assert count == [2_274_880, 11_689_512]


def test_images_and_labels_are_those_in_the_file(tmp_path):
    data = CIFAR10DataModule(str(cifar(tmp_path)), classes=["dog", "cat"])
    data.setup()
    raw = np.fromfile(tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin", np.uint8).reshape(4, 3073)
    image, label = data.train_set[1]
    assert label == 0, "the second is a dog, the first of the classes asked for"
    flat = np.corrcoef(image[1].flatten().numpy(), raw[1, 1 + 1024 : 1 + 2048])
    assert flat[0, 1] > 0.9999
    for channel in range(3):
        values = torch.stack([image[channel] for image, _ in data.train_set])
        assert abs(float(values.mean())) < 1e-4
        assert abs(float(values.std()) - 1) < 1e-4


def test_a_file_of_another_format_is_refused(tmp_path):
    folder = cifar(tmp_path)
    (folder / "test_batch.bin").write_bytes(b"\x80\x03}pickled")
    with pytest.raises(DataError, match=r"test_batch.bin is not a file of CIFAR-10's binary version"):
        CIFAR10DataModule(str(folder)).setup()
    with pytest.raises(DataError, match=r"no .*/nowhere/data_batch_1.bin.*cifar-10-binary.tar.gz"):
        CIFAR10DataModule(str(tmp_path / "nowhere")).setup()


def test_augmented_images_are_windows_of_the_padded_image_mirrored_or_not():
    torch.manual_seed(0)
    image = torch.arange(2 * 36.0).reshape(1, 2, 6, 6)
    padded = torch.nn.functional.pad(image, (2,) * 4, mode="reflect")[0]
    windows = [padded[:, top : top + 6, left : left + 6] for top in range(5) for left in range(5)]
    moved = shift_and_mirror(image.expand(200, -1, -1, -1), 2)
    kinds = {
        (number, mirrored)
        for one in moved
        for number, window in enumerate(windows)
        for mirrored in (False, True)
        if torch.equal(one, window.flip(-1) if mirrored else window)
    }
    assert len(kinds) > 40, "all 25 places and both directions occur"
    assert all(any(torch.equal(one, w) or torch.equal(one, w.flip(-1)) for w in windows) for one in moved)
