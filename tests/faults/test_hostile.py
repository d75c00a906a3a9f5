"""Files that are not what they claim to be: refused, with nothing executed, no link followed, and no memory allocated for them."""

import json
import os
import pickle
import resource
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest
import torch

from trak_lightning.cli import main
from trak_lightning.errors import CheckpointError, CorruptFileError
from trak_lightning.model import weight_files as weights
from trak_lightning.run.directory import read_subset
from trak_lightning.scoring.scores import Scores
from trak_lightning.stores.hdf5 import HDF5Store
from trak_lightning.stores.manifest import Manifest
from trak_lightning.testing.stores import SPEC, filled_store

SECRET = b"what somebody else's file holds "


@pytest.fixture
def stored(tmp_path):
    """A block file in a folder of blocks, and another file that no block may lead to."""
    created = filled_store(HDF5Store(), tmp_path / "features")
    (tmp_path / "secret").write_bytes(SECRET * 100)
    return created.folder / "block-00001.h5"


def replaced(path, make):
    """Replace `features` in a block file by what `make(file, the right values)` puts there."""
    with h5py.File(path, "r+") as file:
        values = file["features"][()]
        del file["features"]
        make(file, values)


def wrong_shape(file, values, folder):
    file["features"] = values.T


def wrong_type(file, values, folder):
    file["features"] = values.astype(">f4")


def objects(file, values, folder):
    file.create_dataset("features", values.shape, h5py.string_dtype())


def huge(file, values, folder):
    file.create_dataset("features", (2**32, 2**28), "<f4", chunks=(1, 2**20))


def never_written(file, values, folder):
    file.create_dataset("features", values.shape, "<f4")


def sparse_chunks(file, values, folder):
    file.create_dataset("features", values.shape, "<f4", chunks=values.shape)


def unknown_filter(file, values, folder):
    file.create_dataset("features", data=values, chunks=values.shape, compression="gzip")


def soft_link(file, values, folder):
    file["other"] = values
    file["features"] = h5py.SoftLink("/other")


def external_link(file, values, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["features"] = values
    file["features"] = h5py.ExternalLink(str(folder / "other.h5"), "features")


def external_storage(file, values, folder):
    file.create_dataset("features", values.shape, "<f4", external=[(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)])


def virtual(file, values, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["features"] = values
    layout = h5py.VirtualLayout(values.shape, "<f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "features", values.shape)
    file.create_virtual_dataset("features", layout)


def group(file, values, folder):
    file.create_group("features")


def nothing(file, values, folder):
    pass


CLAIMS = [
    wrong_shape,
    wrong_type,
    objects,
    huge,
    never_written,
    sparse_chunks,
    unknown_filter,
    soft_link,
    external_link,
    external_storage,
    virtual,
    group,
    nothing,
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_a_block_file_that_claims_something_else_is_refused(claim, stored, tmp_path):
    replaced(stored, lambda file, values: claim(file, values, tmp_path))
    store = HDF5Store()
    store.bind(tmp_path / "features")
    found = store.open("train", "a1")
    found.read_block(0)  # so that it knows what a right one looks like
    for read in (
        lambda: found.read_block(1),
        lambda: found.take([9]),
        lambda: found.verify_block(1),
    ):
        with pytest.raises(CorruptFileError, match=r"block-00001.h5 is not the block .*Delete the file"):
            read()
    assert main(["verify", str(tmp_path)]) == 1


def test_a_link_to_a_file_elsewhere_is_read_as_what_it_is(stored, tmp_path):
    stored.unlink()
    stored.symlink_to(tmp_path / "secret")
    assert main(["verify", str(tmp_path)]) == 1
    assert main(["merge", str(tmp_path), "--output", str(tmp_path / "merged.h5")]) == 1
    assert not (tmp_path / "merged.h5").exists()
    assert (tmp_path / "secret").read_bytes() == SECRET * 100


@pytest.mark.parametrize("name", ["../../outside", "/etc", "a/../../b", "..", "a\\b", "x\n", "x" * 300])
def test_a_manifest_with_a_name_that_leads_elsewhere_is_refused(name, stored, tmp_path):
    for field in ("split", "checkpoint"):
        manifest = Manifest.of(replace(SPEC, **{field: name}), "float32").dump()
        (stored.parent / "manifest.json").write_text(manifest)
        assert main(["verify", str(tmp_path)]) == 1
        assert main(["info", str(tmp_path)]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"features", "secret"}


@pytest.mark.parametrize(
    "claim",
    [
        {"num_samples": 2**60, "block_size": 2**58, "batch_size": 2**58},
        {"num_samples": 2**50, "block_size": 4, "batch_size": 4},
        {"dim": 2**50},
        {"dim": -5},
        {"num_samples": 0},
        {"num_samples": True},
        {"block_size": 7},
        {"fingerprint": []},
    ],
    ids=str,
)
def test_a_manifest_with_counts_that_cannot_be_is_refused_without_making_room(claim, stored, tmp_path):
    described = Manifest.of(SPEC, "float32")
    spec = type(SPEC)(**{**asdict(SPEC), **claim})
    (stored.parent / "manifest.json").write_text(replace(described, spec=spec).dump())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["verify", str(tmp_path)]) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def pickled(path, payload):
    path.write_bytes(pickle.dumps(payload))


def saved_by_torch(path, payload):
    torch.save({"state_dict": {"weight": torch.ones(3)}, "hyper_parameters": payload}, path)


@pytest.mark.parametrize("write", [pickled, saved_by_torch], ids=lambda write: write.__name__)
def test_a_checkpoint_with_a_payload_is_refused_and_not_executed(write, job, tmp_path):
    path, proof = tmp_path / "hostile.ckpt", tmp_path / "executed"
    write(path, Payload(proof))
    with pytest.raises(CheckpointError, match=r"hostile.ckpt cannot be read as a checkpoint"):
        weights.read(path)
    code, output = job.finish(tmp_path / "run", "--checkpoints", f"[{path}]")
    assert (code, "hostile.ckpt cannot be read" in output) == (1, True), output
    assert not proof.exists()


def test_arrays_with_a_payload_are_refused_and_not_executed(tmp_path):
    proof = tmp_path / "executed"
    np.save(tmp_path / "subset.npy", np.array([Payload(proof)], object), allow_pickle=True)
    with pytest.raises(
        CorruptFileError, match="subset.npy cannot be read as NumPy arrays .*positions of the training samples"
    ):
        read_subset(tmp_path / "subset.npy")
    assert not proof.exists()


def test_a_score_file_that_claims_something_else_is_refused(tmp_path):
    (tmp_path / "secret.h5").write_bytes(SECRET * 100)
    with pytest.raises(CorruptFileError, match="is not a score file"):
        Scores(tmp_path / "secret.h5")
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file.attrs.update(schema_version=1, settings=json.dumps({"scoring": {}}), shape=(2, 3))
        for name in ("scores", "top_indices"):
            file[name] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "scores")
    with pytest.raises(CorruptFileError, match="is not a score file"):
        Scores(tmp_path / "links.h5")
