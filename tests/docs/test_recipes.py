"""docs/recipes.md: its Python attributes the gradients of the losses that it defines, and its command runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import blocks
from torch.utils.data import DataLoader, default_collate

import trak_lightning
from trak_lightning.tasks.base import batch_of

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
CODE = {
    heading: "".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for heading, text in SECTIONS.items()
}


class Exact(trak_lightning.TRAK):
    """Without a projection, and with inner products of gradients as scores."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings, projector="identity")

    def featurize(self, dataset, **settings):
        self.train = dataset
        return super().featurize(dataset, **settings)

    def score(self, dataset, **settings):
        scores = super().score(dataset, **settings, scorer="gradient_dot")
        (targets, _), (rows, weights) = self.gradients(dataset), self.gradients(self.train)
        expected = targets @ (rows * weights).T
        np.testing.assert_allclose(scores.values, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
        compared.append(len(expected))
        return scores

    def gradients(self, data):
        """(n, p) gradients of the output of each sample collated alone, by autograd, and its loss weights (n, 1)."""
        dataset, collate = (data.dataset, data.collate_fn) if isinstance(data, DataLoader) else (data, default_collate)
        parameters = [each for each in self.model.parameters() if each.requires_grad]
        rows, weights = [], []
        for sample in dataset:
            batch = collate([sample])
            with batch_of(1):
                output = self.spec.task.output(self.model, batch)
                weights.append(self.spec.task.loss_weight(self.model, batch, output.detach()))
            grads = torch.autograd.grad(output.sum(), parameters, materialize_grads=True)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        return torch.stack(rows).detach().numpy(), torch.stack(weights).detach().numpy()


compared = []


@pytest.mark.parametrize("heading", [heading for heading, code in CODE.items() if code])
def test_a_recipe_attributes_the_gradient_of_its_loss_for_each_sample(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trak_lightning, "TRAK", Exact)
    compared.clear()
    exec(CODE[heading], {"__name__": "recipe"})
    assert compared


@pytest.mark.slow
def test_training_and_retraining_with_augmentation_run_as_the_page_says(tmp_path):
    (tmp_path / "trak").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m trak_lightning "$@"\n')
    (tmp_path / "trak").chmod(0o755)
    commands = []
    for block in blocks(PAGE):
        if block.file:
            (tmp_path / block.file).write_text(block.code)
        elif block.language == "bash":
            commands.append(block.code)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euc", "\n".join(commands)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over 2 retrained models" in done.stdout
