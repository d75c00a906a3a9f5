"""Samples of every kind, some of them malicious."""

import numpy as np
import torch
from torch.utils.data import Dataset

from trak_lightning import Task
from trak_lightning.tasks.margin import margin

HOSTILE = '<script>document.title="broken"</script><img src=x onerror="document.title=1">'
WORDS = ("plain", "words", "& <b>markup</b>", "“quotes” and 'apostrophes'", "שלום", HOSTILE)


class Rows(Dataset):
    """Samples as `form` makes them of a position."""

    def __init__(self, form, n, seed):
        self.form, self.n = form, n
        self.rng = np.random.default_rng(seed)
        self.inputs = torch.tensor(self.rng.standard_normal((n, 6)), dtype=torch.float32)
        self.labels = torch.tensor(self.rng.integers(0, 3, n))

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return FORMS[self.form](i, self.inputs[i], self.labels[i])


FORMS = {
    "image": lambda i, x, y: {"image": torch.outer(x, x).expand(3, 6, 6), "x": x, "label": y},
    "text": lambda i, x, y: {"text": f"{WORDS[i % len(WORDS)]} {i}", "x": x, "label": y},
    "pair": lambda i, x, y: {"image": torch.outer(x, x), "caption": f"{WORDS[i % len(WORDS)]} {i}", "x": x, "label": y},
    "table": lambda i, x, y: {"age": float(x[0]), "town": WORDS[i % len(WORDS)], "x": x, "label": y},
}


class Margin(Task):
    def output(self, model, batch):
        return margin(model(batch["x"]), batch["label"])

    def probabilities(self, model, batch):
        return model(batch["x"]).softmax(-1)


class Names:
    """What a DataModule may tell about its classes."""

    class_names = ("cat", HOSTILE, "dog")

    @staticmethod
    def render(sample):
        return {name: value for name, value in sample.items() if name != "x"}
