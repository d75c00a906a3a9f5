"""Every sample once, under its own index, whatever the user's loader does."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from trak_lightning.data.content import content_hash
from trak_lightning.data.dataset import AttributionData
from trak_lightning.errors import DataError

SAMPLES = TensorDataset(torch.arange(10.0).unsqueeze(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffling_loader_is_read_in_the_order_of_its_dataset(workers):
    data = AttributionData.of(DataLoader(SAMPLES, batch_size=3, shuffle=True, drop_last=True, num_workers=workers))
    batches = list(data.loader([range(0, 3), range(3, 6), range(6, 9), range(9, 10)]))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch.batch[0] for batch in batches]).squeeze(1).tolist() == list(map(float, range(10)))


def test_the_collate_function_and_batch_size_of_a_loader_are_kept():
    loader = DataLoader(SAMPLES, batch_size=4, collate_fn=lambda samples: {"x": torch.stack([s[0] for s in samples])})
    data = AttributionData.of(loader)
    assert data.batch_size == 4
    assert data.batch([2, 5])["x"].tolist() == [[2.0], [5.0]]


def test_a_sampler_that_restricts_the_dataset_is_refused_by_name():
    with pytest.raises(DataError, match=r"SubsetRandomSampler.*torch.utils.data.Subset"):
        AttributionData.of(DataLoader(SAMPLES, batch_size=2, sampler=SubsetRandomSampler([1, 2])))


def test_a_batch_sampler_of_the_user_is_refused_by_name():
    class ByLength(BatchSampler):
        pass

    with pytest.raises(DataError, match="batch sampler of its own, ByLength"):
        AttributionData.of(DataLoader(SAMPLES, batch_sampler=ByLength(range(10), 2, False)))


def test_an_iterable_dataset_is_refused_with_the_way_out():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(DataError, match="Stream has no length or no indices.*map-style"):
        AttributionData.of(Stream())


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="empty"):
        AttributionData.of(TensorDataset(torch.empty(0, 1)))


def test_random_augmentation_is_refused():
    class Augmented(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.rand(2) + index

    with pytest.raises(DataError, match="sample 0 of Augmented differs each time it is read: random augmentation"):
        AttributionData.of(Augmented()).fingerprint()


def test_the_fingerprint_tells_data_apart():
    other = TensorDataset(torch.arange(10.0).unsqueeze(1) + 1)
    assert AttributionData.of(SAMPLES).fingerprint() == AttributionData.of(SAMPLES).fingerprint()
    assert AttributionData.of(SAMPLES).fingerprint() != AttributionData.of(other).fingerprint()


def test_a_collate_function_that_drops_samples_is_named_with_the_sample():
    samples = [(torch.randn(6), i % 3) for i in range(24)]
    samples[12] = None
    data = AttributionData.of(
        DataLoader(samples, 8, collate_fn=lambda items: default_collate([item for item in items if item is not None]))
    )
    with pytest.raises(DataError, match=r"samples 12 of list cannot be read and collated .* must not drop any"):
        data.fingerprint()


def test_samples_of_different_sizes_without_a_loader_are_told_what_is_missing():
    data = AttributionData.of([torch.ones(length) for length in (3, 4)])
    with pytest.raises(
        DataError, match=r"samples 0, 1 of list have different sizes.*Give a DataLoader with the collate_fn"
    ):
        data.batch([0, 1])


def test_lists_of_integers_keep_the_hashes_that_runs_have_stored():
    assert content_hash([5, -3, 10**20]) == 5470341050929300411
    assert content_hash({"input_ids": [1, 2, 3], "labels": [[1], [2, True]]}) == 3456343316197771452
