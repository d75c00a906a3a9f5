"""Scores (m, n) by traker, the paper's own library, with its defaults: PROBLEM FASHION_ROOT K OUTPUT CHECKPOINT…

Run by benchmarks/lds.py in an environment that has traker.
"""

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
# Not this file, but the library, which shares no name with it: its module is called trak.
from problems import PROBLEMS
from problems.fashion import FashionData
from trak import TRAKer
from trak.projectors import BasicProjector


def main(problem: str, fashion: str, k: int, output: str, checkpoints: list[str]) -> None:
    """Write the scores of all targets."""
    PROBLEMS["fashion"] = PROBLEMS["fashion"].with_data(partial(FashionData, root=fashion))
    data, model = PROBLEMS[problem].data(), PROBLEMS[problem].model().eval()
    data.setup()
    folder = tempfile.mkdtemp()
    size = sum(parameter.numel() for parameter in model.parameters())
    projector = BasicProjector(
        grad_dim=size, proj_dim=k, seed=0, proj_type="normal", device=torch.device("cpu"), block_size=min(k, 512)
    )
    traker = TRAKer(
        model=model,
        task="image_classification",
        train_set_size=len(data.train_set),
        save_dir=folder,
        device="cpu",
        proj_dim=k,
        projector=projector,
        use_half_precision=False,
    )
    states = [torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in checkpoints]
    for position, state in enumerate(states):
        traker.load_checkpoint(state, model_id=position)
        for batch in _batches(data.train_set):
            traker.featurize(batch=batch, num_samples=len(batch[1]))
    traker.finalize_features()
    for position, state in enumerate(states):
        traker.start_scoring_checkpoint("x", checkpoint=state, model_id=position, num_targets=len(data.test_set))
        for batch in _batches(data.test_set):
            traker.score(batch=batch, num_samples=len(batch[1]))
    scores = np.array(traker.finalize_scores(exp_name="x"))
    np.save(output, scores.T.astype(np.float32))
    shutil.rmtree(folder)


def _batches(dataset: torch.utils.data.TensorDataset):  # type: ignore[no-untyped-def]
    return torch.utils.data.DataLoader(dataset, batch_size=64)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:])
