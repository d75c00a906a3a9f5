"""What new users get wrong first, and what they are told: what, where, why, and what to do."""

import pickle

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from trak_lightning import TRAK, Task, errors

CLASSES = 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()


def attribute(model=None, run_dir="run", task="image_classification", **options):
    options = {"projector": {"name": "sparse_jl", "dim": 8}, "store": "memory", **options}
    return TRAK(model or network(), task=task, run_dir=run_dir, **options)


def samples(n=20, labels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 6, generator=generator)
    return TensorDataset(inputs, torch.arange(n) % CLASSES if labels is None else labels)


class Keyed(Dataset):
    """Samples as mappings with a label under another name."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"image": torch.ones(6) * i, "species": i % CLASSES}


class Augmented(Keyed):
    def __getitem__(self, i):
        return torch.rand(6), i % CLASSES


class Stream(IterableDataset):
    def __iter__(self):
        yield from samples()


class BatchMean(Task):
    def output(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


class EveryRow(Task):
    def output(self, model, batch):
        return model(batch[0]).flatten()


class Detached(Task):
    def output(self, model, batch):
        with torch.no_grad():
            return model(batch[0])[:, 0]


class Elsewhere(nn.Module):
    """A loss with a model of its own."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, model, batch):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1], reduction="none")


class Huge(Task):
    def output(self, model, batch):
        return model(batch[0])[:, 0] + torch.empty(2**50).sum()


def files(tmp_path, contents):
    torch.save(contents, tmp_path / "it.ckpt")
    return [tmp_path / "it.ckpt"]


def prefixed(prefix, model=None):
    return {prefix + name: tensor for name, tensor in (model or network()).state_dict().items()}


def in_train_mode(layer):
    model = nn.Sequential(nn.Linear(6, CLASSES), layer)
    return model.train()


def other_tokenizer(run_dir):
    attribute(run_dir=run_dir, store="hdf5").featurize(samples())
    attribute(run_dir=run_dir, store="hdf5").featurize(samples(seed=1))


def other_targets(run_dir):
    trak = attribute(run_dir=run_dir, store="hdf5")
    trak.featurize(samples())
    for count in (4, 5):
        trak.score(samples(count), name="test")


def targets_of_other_sizes():
    trak = attribute()
    trak.featurize(samples())
    trak.score([(torch.randn(3 + i, 6), i) for i in range(3)])


def of_type(dtype):
    return TensorDataset(torch.ones(4, 6).to(dtype), torch.zeros(4).long())


def ragged():
    """Samples of 1, 2 and 3 rows, in a nested tensor."""

    def collate(rows):
        return torch.nested.as_nested_tensor([x for x, _ in rows]), torch.tensor([y for _, y in rows])

    return DataLoader([(torch.ones(n + 1, 6), n) for n in range(3)], batch_size=3, collate_fn=collate)


class RowMeans(nn.Linear):
    def forward(self, x):
        return torch.stack([super(RowMeans, self).forward(rows).mean(0) for rows in x.unbind()])


class AddsInPlace(nn.Linear):
    def forward(self, x):
        return torch.zeros(len(x), self.out_features).index_add_(0, torch.arange(len(x)), super().forward(x))


class AddsNoise(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1e-4 * torch.randn(self.out_features)


class ReadsItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, CLASSES)

    def forward(self, batch):
        return self.linear(batch["image"])


def changed(values, place, value):
    values[place] = value
    return values


def outlier(value):
    found = samples()
    found.tensors[0][17, 2] = value
    return found


def bag():
    return nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, CLASSES)).eval()


def ignoring(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], ignore_index=-100)


def mean_over_samples(model, batch):
    """The loss (T,) of predictions (T, B)."""
    return model(batch[0]).T.square().mean(1)


def scored_on(targets):
    trak = attribute()
    trak.featurize(samples())
    trak.score(targets)


def narrow_targets():
    trak = attribute()
    trak.featurize(samples())
    trak.score(TensorDataset(torch.ones(3, 5), torch.arange(3)))


def text(path, content):
    path.write_text(content)
    return path


def pickled(path, module):
    path.write_bytes(pickle.dumps(module, protocol=2))
    return path


def diverged(module):
    for parameter in module.parameters():
        parameter.data *= torch.nan
    return module


def other_dim(run_dir):
    attribute(run_dir=run_dir, store="hdf5").featurize(samples())
    attribute(run_dir=run_dir, store="hdf5", projector={"name": "sparse_jl", "dim": 16}).featurize(samples())


MISTAKES = {
    "the label has another key": (
        lambda path: attribute().featurize(Keyed()),
        errors.DataError,
        r"no entry of the batch is called labels, .*image.*species.*Say which holds the labels: task: \{name: …, labels: species\}",
    ),
    "labels begin with 1": (
        lambda path: attribute().featurize(samples(labels=torch.arange(20) % CLASSES + 1)),
        errors.DataError,
        r"split 'train': in sample 2 of the dataset, and in 5 more of this batch: label 3 is out of range: the model returns 3 logits, so labels must "
        r"lie in 0 … 2\.",
    ),
    "a label is out of range, far from the start": (
        lambda path: attribute().featurize(samples(labels=changed(torch.arange(20) % CLASSES, 17, 7)), batch_size=8),
        errors.DataError,
        r"in sample 17 of the dataset: label 7 is out of range",
    ),
    "a label is out of range, in batches of one": (
        lambda path: attribute().featurize(samples(labels=changed(torch.arange(20) % CLASSES, 17, 7)), batch_size=1),
        errors.DataError,
        r"in sample 17 of the dataset: label 7 is out of range",
    ),
    "a label is out of range, under vmap": (
        lambda path: attribute(extractor="functional").featurize(
            samples(labels=changed(torch.arange(20) % CLASSES, 17, 7)), batch_size=8
        ),
        errors.NonFiniteGradientError,
        r"samples: \[17\] \(positions in the dataset\)\. Sample 17: label 7 is out of range",
    ),
    "labels are text": (
        lambda path: attribute().featurize([(torch.ones(6), "dog")] * 3),
        errors.DataError,
        r"labels must be numbers, got text such as 'dog'\. Map it to 0 … C−1 in the dataset.*classes\.index\(name\)",
    ),
    "a category is outside of its embedding": (
        lambda path: attribute(bag()).featurize(
            TensorDataset(changed(torch.arange(20) % 5, 13, 5), torch.arange(20) % CLASSES), batch_size=8
        ),
        errors.DataError,
        r"in sample 13 of the dataset: IndexError: index out of range in self\. It holds int64 \(1,\) of 5 … 5, int64 \(1,\) of 1 … 1",
    ),
    "targets have another width": (
        lambda path: narrow_targets(),
        errors.DataError,
        r"Sequential does not take sample 0 of 'targets': RuntimeError: mat1 and mat2.*It holds float32 \(1, 5\), int64 \(1,\), and the "
        r"first training sample float32 \(1, 6\), int64 \(1,\)",
    ),
    "a number overflows": (
        lambda path: attribute().featurize(outlier(1e20), batch_size=8),
        errors.NonFiniteGradientError,
        r"squared norm of the gradient of 1 of 4 samples: \[17\].*The largest number in sample 17 is 1e\+20 \(float32 \(1, 6\)\), and the "
        r"largest weight 0\.\d+\. If the number is an outlier",
    ),
    "a number overflows while the projector is fitted": (
        lambda path: attribute(projector={"name": "second_moment", "projector": "identity"}).featurize(
            outlier(1e20), batch_size=8
        ),
        errors.NonFiniteGradientError,
        r"squares of the gradient of sample 17 .* overflow, to which the projector is fitted\. The largest number in sample 17 is 1e\+20",
    ),
    "a number is missing": (
        lambda path: attribute().featurize(outlier(torch.nan)),
        errors.NonFiniteGradientError,
        r"samples: \[17\].*Sample 17 itself holds nan \(float32 \(1, 6\)\): correct it, or leave it out",
    ),
    "no label of a sample counts": (
        lambda path: attribute(task={"name": "loss", "function": ignoring}).featurize(
            samples(labels=changed(torch.arange(20) % CLASSES, 17, -100)), batch_size=8
        ),
        errors.NonFiniteGradientError,
        r"samples: \[17\].*All labels of sample 17 are -100.*ignore_index, the mean of its losses is 0/0",
    ),
    "labels are soft": (
        lambda path: attribute().featurize(samples(labels=0.9 * torch.eye(CLASSES)[torch.arange(20) % CLASSES])),
        errors.DataError,
        r"labels of shape \(20, 3\).* are not one-hot at position \(0,\): \[0\.9, 0\.0, 0\.0\]\. For soft labels .*use task loss",
    ),
    "batches have a third element": (
        lambda path: attribute().featurize(TensorDataset(torch.randn(4, 6), torch.zeros(4).long(), torch.arange(4))),
        errors.DataError,
        r"the batch is a list of length 3.*, where a pair \(inputs, labels\).*write a Task",
    ),
    "inputs and labels are a pair of tensors": (
        lambda path: attribute().featurize(samples().tensors),
        errors.DataError,
        r"the data is a tuple of columns, where a dataset of samples .*TensorDataset\(X, y\)",
    ),
    "inputs and labels are a list of arrays": (
        lambda path: attribute().featurize([each.numpy() for each in samples().tensors]),
        errors.DataError,
        r"the data is a list of columns.*TensorDataset\(X, y\)",
    ),
    "targets are a pair of tensors": (
        lambda path: scored_on(samples().tensors),
        errors.DataError,
        r"the data is a tuple of columns.*TensorDataset\(X, y\)",
    ),
    "the data is a table": (
        lambda path: attribute().featurize(pd.DataFrame({"a": [1.0, 2.0]})),
        errors.DataError,
        r"the data is a DataFrame of columns.*TensorDataset\(X, y\)",
    ),
    "there are inputs alone": (
        lambda path: attribute().featurize(samples().tensors[0]),
        errors.DataError,
        r"the batch is a Tensor.*It has no labels.*TensorDataset\(X, y\)",
    ),
    "the dataset has no labels": (
        lambda path: attribute().featurize(TensorDataset(samples().tensors[0])),
        errors.DataError,
        r"the batch is a list of length 1.*It has no labels.*TensorDataset\(X, y\)",
    ),
    "a network with one output predicts numbers": (
        lambda path: attribute(nn.Linear(6, 1).eval()).featurize(samples(labels=torch.ones(20))),
        errors.DataError,
        r"one logit, \(20, 1\).*binary_classification.*for a number to predict, regression",
    ),
    "void pixels have a label of their own": (
        lambda path: attribute(nn.Conv2d(2, 4, 1).eval(), task="segmentation").featurize(
            TensorDataset(torch.ones(3, 2, 4, 4), changed(torch.zeros(3, 4, 4).long(), (1, 2, 3), 255))
        ),
        errors.DataError,
        r"in sample 1 of the dataset: label 255 is out of range.*\(pixel 11, counted row by row\)\. If 255 marks what has no label, "
        r"set .*ignore_index: 255\.",
    ),
    "the loss is the mean over samples, as time comes first": (
        lambda path: attribute(task={"name": "loss", "function": mean_over_samples}).featurize(samples()),
        errors.DataError,
        r"got a tensor of shape \(3,\)\. The mean or sum was taken over the dimension of the samples\. Keep the dimension with 20 entries.*"
        r"square\(\)\.mean\(0\)\.$",
    ),
    "dropout is on": (
        lambda path: attribute(in_train_mode(nn.Dropout())),
        errors.TrainModeError,
        r"1 \(Dropout.*model\.eval\(\)",
    ),
    "the model was made in inference mode": (
        lambda path: attribute(torch.inference_mode()(network)()),
        errors.UnsupportedModelError,
        r"0\.weight of Sequential was made under torch\.inference_mode\(\).*outside of that context",
    ),
    "the model adds a little noise": (
        lambda path: attribute(AddsNoise(6, CLASSES).eval()).featurize(samples()),
        errors.SampleDependenceError,
        r"differs by 0\.0\d+% when it is computed again",
    ),
    "batch normalization is in train mode": (
        lambda path: attribute(in_train_mode(nn.BatchNorm1d(CLASSES))),
        errors.TrainModeError,
        r"1 \(BatchNorm1d.*model\.eval\(\)",
    ),
    "a Lightning checkpoint is of the module around the model": (
        lambda path: attribute().featurize(samples(), files(path, {"state_dict": prefixed("net.")})),
        errors.CheckpointError,
        r"differ only by the prefix 'net\.' in the checkpoint",
    ),
    "a checkpoint is of another width": (
        lambda path: attribute().featurize(samples(), files(path, nn.Sequential(nn.Linear(6, 4)).state_dict())),
        errors.CheckpointError,
        r"does not fit Sequential: 2 missing, such as '2\.weight'; 0\.weight is \(4, 6\) in the checkpoint and \(8, 6\) in the model",
    ),
    "a checkpoint is not there": (
        lambda path: attribute().featurize(samples(), [path / "nowhere.ckpt"]),
        errors.CheckpointError,
        r"there is no checkpoint file .*nowhere\.ckpt \(looked in ",
    ),
    "a checkpoint holds pickled objects": (
        lambda path: attribute().featurize(samples(), files(path, {"model": network()})),
        errors.CheckpointError,
        r"cannot be read as a checkpoint: .*it holds an object of torch.nn.\S+Sequential, .*read it with weights_only=False",
    ),
    "a checkpoint is a text file": (
        lambda path: attribute().featurize(
            samples(), [text(path / "a.ckpt", "version https://git-lfs.github.com/spec/v1\n")]
        ),
        errors.CheckpointError,
        r"a\.ckpt is a text file and holds no weights; it begins with 'version https.*run git lfs pull",
    ),
    "a checkpoint is an empty file": (
        lambda path: attribute().featurize(samples(), [text(path / "a.ckpt", "")]),
        errors.CheckpointError,
        r"a\.ckpt is empty: it was not written to its end\. Save it again\.$",
    ),
    "a checkpoint is a pickled module": (
        lambda path: attribute().featurize(samples(), [pickled(path / "a.pkl", network())]),
        errors.CheckpointError,
        r"a\.pkl cannot be read as a checkpoint: UnpicklingError: it holds .* If you trust the file",
    ),
    "a batch is half a sample": (
        lambda path: attribute().featurize(samples(), batch_size=8.5),
        errors.SettingsError,
        r"batch_size must be a number of samples, 1 or more, got 8\.5",
    ),
    "the trainer is the name of a device": (
        lambda path: attribute(trainer="gpu"),
        errors.SettingsError,
        r"trainer must be a lightning Trainer, such as .*, got 'gpu'",
    ),
    "one of several checkpoints has diverged": (
        lambda path: attribute().featurize(samples(), [network(), nn.Sequential(*map(diverged, network()))]),
        errors.NonFiniteGradientError,
        r"split 'train' under checkpoint <state dict> \(2 of 2\): parameter 0\.weight",
    ),
    "the model is a name": (
        lambda path: attribute("resnet18"),
        errors.SettingsError,
        r"model must be a torch\.nn\.Module, got 'resnet18', of type str\. Make the module first",
    ),
    "the dataset is a stream": (
        lambda path: attribute().featurize(Stream()),
        errors.DataError,
        r"Stream has no length or no indices.*Use a map-style dataset",
    ),
    "the dataset is empty": (
        lambda path: attribute().featurize(Subset(samples(), [])),
        errors.DataError,
        r"Subset is empty: there is nothing to attribute",
    ),
    "training data is augmented at random": (
        lambda path: attribute().featurize(Augmented()),
        errors.DataError,
        r"sample 0 of Augmented differs each time it is read: random augmentation, or a collate function.*without random transforms",
    ),
    "a sampler picks part of the data": (
        lambda path: attribute().featurize(DataLoader(samples(), sampler=SubsetRandomSampler([1, 2]))),
        errors.DataError,
        r"draws through SubsetRandomSampler.*Wrap the dataset in torch.utils.data.Subset",
    ),
    "the data were tokenized otherwise than before": (
        other_tokenizer,
        errors.StaleRowsError,
        r"20 samples of 'train' are not what the stored rows were computed from: 0, 1, .*Use another run directory",
    ),
    "other targets have the name of earlier ones": (
        other_targets,
        errors.IncompatibleRunError,
        r"'test' holds 4 targets, and 5 are given: these are others\. Give them a name of their own.*--grow true",
    ),
    "targets have different sizes": (
        lambda path: targets_of_other_sizes(),
        errors.DataError,
        r"samples 0, 1, 2 of list have different sizes.*Give a DataLoader with the collate_fn",
    ),
    "samples are objects": (
        lambda path: attribute().featurize([object()] * 3),
        errors.DataError,
        r"samples 0 of list cannot be stacked.*Give a DataLoader with the collate_fn",
    ),
    "inputs are numbers of double precision": (
        lambda path: attribute().featurize(of_type(torch.float64)),
        errors.DataError,
        r"Sequential has parameters of type float32 and does not take this batch.*float64 \(4, 6\), int64 \(4,\).*x\.float\(\)",
    ),
    "inputs are integers": (
        lambda path: attribute().featurize(of_type(torch.int64)),
        errors.DataError,
        r"does not take this batch.*int64 \(4, 6\), int64 \(4,\).*x\.float\(\)",
    ),
    "autocast has the model add numbers of two types": (
        lambda path: attribute(
            AddsInPlace(6, CLASSES).eval(), trainer=L.Trainer(accelerator="cpu", logger=False, precision="bf16-mixed")
        ).featurize(samples()),
        errors.DataError,
        r"index_add_\(\).*Autocast is on.*precision 32-true; else let the model convert",
    ),
    "the samples of a nested tensor cannot be stacked": (
        lambda path: attribute(RowMeans(6, CLASSES).eval(), extractor="functional").featurize(ragged()),
        errors.OneSampleAtATime,
        "tensors of different shapes",
    ),
    "the model looks up entries itself": (
        lambda path: attribute(
            ReadsItsBatch().eval(), task={"name": "image_classification", "labels": "species"}
        ).featurize(Keyed()),
        errors.DataError,
        r"cannot use the tensor that it was called with.*If its forward takes the whole batch as one argument, write inputs: '\*'",
    ),
    "the model looks up entries of the first of a pair": (
        lambda path: attribute(ReadsItsBatch().eval()).featurize([({"image": torch.ones(6)}, 0)] * 3),
        errors.DataError,
        r"If its forward takes the whole first entry of the batch as one argument, write inputs: 0",
    ),
    "k was changed": (
        other_dim,
        errors.IncompatibleRunError,
        r"dim = 8, and 16 is asked for now\. Use another run directory",
    ),
    "scores are asked for before features": (
        lambda path: attribute().score(samples()),
        errors.IncompleteRunError,
        r"no training data yet: call featurize\(train_dataset, checkpoints=…\) first",
    ),
    "training has diverged": (
        lambda path: attribute().featurize(
            samples(), [{name: t * torch.nan for name, t in network().state_dict().items()}]
        ),
        errors.NonFiniteGradientError,
        r"under checkpoint <state dict>: parameter 0\.weight of Sequential holds NaN or infinity in 48 of 48 entries: the weights are at "
        r"fault.*output of 20 of 20 samples",
    ),
    "the task returns one number per batch": (
        lambda path: attribute(task=BatchMean()).featurize(samples()),
        errors.DataError,
        r"the output of BatchMean must have shape \(20,\), one number per sample; got shape \(\)\. Do not average",
    ),
    "a sample has several rows": (
        lambda path: attribute(task=EveryRow()).featurize(samples()),
        errors.DataError,
        r"one number per sample.*[Dd]oes a sample have several rows, such as nodes",
    ),
    "the task's output has no gradient": (
        lambda path: attribute(task=Detached()).featurize(samples()),
        errors.DataError,
        r"the output of Detached does not depend on any parameter of Sequential.*do not detach it",
    ),
    "the task uses another model": (
        lambda path: attribute(task={"name": "loss", "function": Elsewhere()}).featurize(samples()),
        errors.DataError,
        r"the output of Loss does not depend on any parameter of Sequential.*Compute it with the model that the task is given",
    ),
    "the batch does not fit into memory": (
        lambda path: attribute(task=Huge()).featurize(samples()),
        errors.DeviceMemoryError,
        r"cpu does not have enough memory for the gradients of a batch of 20 samples.*--batch_size 10",
    ),
    "a plug-in's name is misspelt": (
        lambda path: attribute(projector="sparse-jl"),
        errors.PluginError,
        r"did you mean 'sparse_jl'",
    ),
    "a layer's name is misspelt": (
        lambda path: attribute(parameters=["layer2.*"]),
        errors.SettingsError,
        r"'layer2\.\*' matches nothing in Sequential",
    ),
    "a subset is a mask of integers": (
        lambda path: attribute().featurize(samples(), subsets=[np.arange(20) % 2]),
        errors.DataError,
        r"sample 0 is given 10 times; positions must be distinct. If these 20 integers are a mask, make it boolean",
    ),
    "subsets are of other data": (
        lambda path: attribute().featurize(samples(), subsets=[np.array([3, 20])]),
        errors.DataError,
        r"the training subset of .*: sample 20 is out of range: the training set has samples 0 … 19",
    ),
    "a subset is empty": (
        lambda path: attribute().featurize(samples(), subsets=[[]]),
        errors.DataError,
        r"the training subset of .* holds no sample; give None where it is not known",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_message_says_what_where_and_what_to_do(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    act, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=f"(?s){message}"):
        act(tmp_path)


def test_a_model_may_be_called_with_the_first_of_a_pair(tmp_path):
    trak = attribute(ReadsItsBatch().eval(), tmp_path, {"name": "image_classification", "inputs": 0})
    assert trak.featurize([({"image": torch.ones(6)}, 0)] * 3) == 3


def test_a_model_may_be_called_with_the_whole_batch(tmp_path):
    model, task = ReadsItsBatch().eval(), {"name": "image_classification", "inputs": "*", "labels": "species"}
    trak = attribute(model, tmp_path, task)
    trak.featurize(Keyed())
    logits = model({"image": torch.stack([Keyed()[i]["image"] for i in range(4)])}).softmax(1)
    of_label = logits[torch.arange(4), torch.arange(4) % CLASSES]
    expected = (of_label / (1 - of_label)).log()
    np.testing.assert_allclose(trak.features("train").output[:], expected.detach(), rtol=1e-5)


def test_weights_that_are_attributed_to_because_no_others_are_given_are_named(caplog, tmp_path):
    attribute(run_dir=tmp_path).featurize(samples(), checkpoints=[network()])
    assert not caplog.text
    attribute(run_dir=tmp_path / "other").featurize(samples())
    assert "the weights that the model has now are used" in caplog.text


def test_a_target_of_which_nothing_counts_is_named(caplog, tmp_path):
    labels = torch.randint(4, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    labels[1] = 255
    trak = attribute(nn.Conv2d(2, 4, 1).eval(), tmp_path, {"name": "segmentation", "ignore_index": 255})
    trak.featurize(TensorDataset(torch.ones(3, 2, 4, 4), labels.clamp(max=3)))
    trak.score(TensorDataset(torch.ones(3, 2, 4, 4), labels))
    assert "output, loss weight and gradient of sample 1 are exactly 0" in caplog.text
