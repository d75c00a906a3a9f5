"""Sentiment of 3,000 sentences (Kotzias et al. 2015, UCI Sentiment Labelled Sentences): a small network on frozen embeddings."""

import csv
import gzip
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trak_lightning_demos.pretrained import locate, transformers

ROOT = Path("sentiment_3k.tsv.gz")
"""A table with the columns label (0 or 1) and text, of the three files of https://archive.ics.uci.edu/dataset/331."""


class SentimentMLP(L.LightningModule):
    """One hidden layer with GELU on 384 embedding dimensions; AdamW.

    Args:
        width: of the hidden layer.
        lr: learning rate.
        weight_decay: of AdamW.
    """

    def __init__(self, width: int = 32, lr: float = 3e-3, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = nn.Sequential(nn.Linear(384, width), nn.GELU(), nn.Linear(width, 2))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (B, 2) of embeddings (B, 384)."""
        logits: Tensor = self.net(embeddings)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        embeddings, labels = batch
        return nn.functional.cross_entropy(self(embeddings), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


class SentimentData(L.LightningDataModule):
    """Sentences as embeddings of all-MiniLM-L6-v2, of variance 1, and whether they are positive; a fixed split.

    Args:
        root: the table; embeddings are kept next to it.
        num_targets: sentences held out as the test set.
        batch_size: of both loaders.
        seed: of the split.
    """

    def __init__(self, root: str | Path = ROOT, num_targets: int = 500, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.root = Path(root)
        self.num_targets = num_targets
        self.batch_size = batch_size
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        with gzip.open(self.root, "rt", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        kept = self.root.with_suffix(".npy")
        if not kept.exists():
            np.save(kept, _embeddings([row["text"] for row in rows]))
        embeddings = torch.tensor(np.load(kept))
        embeddings = (embeddings - embeddings.mean(0)) / embeddings.std()
        labels = torch.tensor([int(row["label"]) for row in rows])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        test, train = order[: self.num_targets], order[self.num_targets :]
        self.train_set = TensorDataset(embeddings[train], labels[train])
        self.test_set = TensorDataset(embeddings[test], labels[test])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=self.batch_size)


def _embeddings(texts: list[str]) -> np.ndarray:
    """Mean of the last hidden states, of unit length: (n, 384)."""
    with transformers() as library, torch.no_grad():
        where = locate("sentence-transformers/all-MiniLM-L6-v2")
        tokenizer, model = library.AutoTokenizer.from_pretrained(where), library.AutoModel.from_pretrained(where)
        found = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1)
            found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return nn.functional.normalize(torch.cat(found)).numpy()
