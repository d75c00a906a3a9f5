"""The how-tos from their first block to their last, as a reader would do it."""

from pathlib import Path

import pytest
from blocks import blocks

DOCS = Path(__file__).parents[2] / "docs"
SAYS = {
    "lightning": ["(100, 1697)", "(200, 200)", "Linear datamodeling score"],
    "hugging-face": ["(10, 60)"],
}
ALSO = {
    "hugging-face": """
from transformers import BertForSequenceClassification

trained = BertForSequenceClassification.from_pretrained("out/checkpoint-16")
found = Trainer(trained, TrainingArguments("out", report_to=[], use_cpu=True), data_collator=collate).predict(mine.test_set)
wrong = found.predictions.argmax(1) != found.label_ids
assert 0 < wrong.sum() < len(wrong)
assert np.flatnonzero(wrong).tolist() == errors.tolist(), "these are not the mistakes of the trained model"
"""
}
"""What is true after the Python of a page, and is not said there."""


@pytest.mark.parametrize("page", ["lightning", pytest.param("hugging-face", marks=pytest.mark.slow)])
def test_a_howto_does_what_it_says(page, reader):
    page_blocks = blocks(DOCS / f"{page}.md")
    reader.write(*(block for block in page_blocks if block.file))
    code = {
        language: "\n".join(block.code for block in page_blocks if block.language == language and not block.file)
        for language in ("python", "bash")
    }
    # All that is in Python runs in one process, and before the commands.
    said = reader.python(code["python"] + "\n" + ALSO.get(page, "")) + reader.bash(code["bash"])
    for words in SAYS[page]:
        assert words in said
