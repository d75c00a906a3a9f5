"""The tokens of an example, and which of them are trained on, are those of the SFTTrainer of TRL with its defaults."""

import pytest
from tiny import CHATML, MARKED, chat, make, tokenizer

from trak_lightning.chat import Encoder

trl = pytest.importorskip("trl", reason="compares with the trainer of TRL: pip install trl")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

CHAT = chat("2+2", "four", "five")
PAIR = {"prompt": CHAT["messages"][:3], "completion": CHAT["messages"][3:]}


@pytest.mark.parametrize(
    ("row", "train_on", "template", "settings"),
    [
        (CHAT, "all", CHATML, {}),
        (CHAT, "answers", MARKED, {"assistant_only_loss": True}),
        (PAIR, "answers", CHATML, {}),
        (PAIR, "answers", MARKED, {}),
        ({"prompt": "2+2=", "completion": "4"}, "answers", CHATML, {}),
        ({"prompt": "2+2=", "completion": "4"}, "all", CHATML, {"completion_only_loss": False}),
        ({"prompt": "2+2= ", "completion": "4"}, "answers", CHATML, {}),
        ({"text": "hello"}, "answers", CHATML, {}),
    ],
)
def test_an_example_is_encoded_as_by_trl(row, train_on, template, settings, tmp_path):
    import datasets

    made = tokenizer(template, ("Ġ", "4"))
    config = trl.SFTConfig(tmp_path, use_cpu=True, bf16=False, report_to=[], max_length=64, **settings)
    data = datasets.Dataset.from_list([row])
    trainer = trl.SFTTrainer(make("llama"), config, train_dataset=data, processing_class=made)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    found = Encoder(made, 64, train_on).encode(row, "")
    assert found.input_ids.tolist() == batch["input_ids"][0].tolist()
    assert found.labels.tolist() == batch["labels"][0].tolist()
