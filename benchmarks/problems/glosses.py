"""WordNet glosses: which of ten categories does the defined word belong to? And a small transformer for it."""

import re
from collections import Counter

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trak_lightning_demos.glosses import read_glosses

from problems.noise import with_noise

LENGTH = 24
"""Words of a gloss that are read."""


class GlossTransformer(L.LightningModule):
    """Two pre-norm transformer layers over word embeddings, mean pooling, a linear layer; AdamW, one cycle.

    Args:
        vocabulary: number of words; 0 is padding.
        width: of the embedding and of every layer.
        heads: of attention.
        layers: number of layers.
        lr: peak learning rate.
        weight_decay: of AdamW.
        eps: of AdamW.
    """

    def __init__(
        self,
        vocabulary: int = 2500,
        width: int = 32,
        heads: int = 4,
        layers: int = 2,
        lr: float = 1e-2,
        weight_decay: float = 0.1,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.eps = eps
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(LENGTH, width)
        for embedding in (self.embedding, self.position):
            nn.init.normal_(embedding.weight, std=0.1)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, words: Tensor) -> Tensor:
        """Logits (B, 10) of word numbers (B, LENGTH)."""
        there = words > 0
        positions = torch.arange(words.shape[1], device=words.device).expand_as(words)
        hidden = self.embedding(words) + self.position(positions)
        for layer in self.layers:
            hidden = layer(hidden, there)
        weight = there.unsqueeze(-1).to(hidden.dtype)
        logits: Tensor = self.head((self.norm(hidden) * weight).sum(1) / weight.sum(1))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        words, labels = batch
        return nn.functional.cross_entropy(self(words), labels)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, eps=self.eps)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor, there: Tensor) -> Tensor:
        B, T, width = hidden.shape
        normed = self.before_attention(hidden)
        query, key, value = (
            part(normed).view(B, T, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5
        attention = scores.masked_fill(~there[:, None, None], -torch.inf).softmax(-1)
        hidden = hidden + self.out((attention @ value).transpose(1, 2).reshape(B, T, width))
        down: Tensor = self.down(nn.functional.gelu(self.up(self.before_mlp(hidden))))
        return hidden + down


class GlossData(L.LightningDataModule):
    """7,591 glosses of WordNet 3.0 as word numbers, with the category of the word defined; a fixed split.

    Args:
        num_targets: glosses held out as the test set.
        batch_size: of both loaders.
        vocabulary: number of words told apart; rarer ones are all number 1.
        seed: of the split.
        num_train: the first of the other glosses; None for all of them.
        label_noise: share of the training labels that are replaced by another category.
    """

    def __init__(
        self,
        num_targets: int = 500,
        batch_size: int = 128,
        vocabulary: int = 2500,
        seed: int = 0,
        num_train: int | None = None,
        label_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_train = num_train
        self.label_noise = label_noise
        self.num_targets = num_targets
        self.batch_size = batch_size
        self.vocabulary = vocabulary
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        rows = read_glosses()
        texts = [re.findall(r"[a-z]+", row.gloss.lower())[:LENGTH] for row in rows]
        categories = sorted({row.category for row in rows})
        counts = Counter(word for text in texts for word in text)
        known = [
            word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: self.vocabulary - 2]
        ]
        number = {word: position + 2 for position, word in enumerate(known)}
        words = torch.zeros(len(texts), LENGTH, dtype=torch.long)
        for row, text in enumerate(texts):
            words[row, : len(text)] = torch.tensor([number.get(word, 1) for word in text])
        labels = torch.tensor([categories.index(row.category) for row in rows])
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(self.seed))
        test, train = order[: self.num_targets], order[self.num_targets :][: self.num_train]
        self.train_set = TensorDataset(words[train], with_noise(labels[train], self.label_noise, seed=self.seed))
        self.test_set = TensorDataset(words[test], labels[test])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=self.batch_size)
