"""causal_lm and seq2seq_lm: the laws, the formulas, exact gradients of real architectures, and what counts as a target."""

import pytest
import torch
from hugging_face import VOCABULARY, gpt2, llama, mt5, t5
from torch.utils.data import default_collate

from trak_lightning import TRAK
from trak_lightning.data.samples import SampleBatch
from trak_lightning.errors import DataError
from trak_lightning.extractors.hooks import Hooks
from trak_lightning.gradients import ParameterLayout
from trak_lightning.tasks.language import CausalLM, Seq2SeqLM
from trak_lightning.tasks.token_targets import TokenTargets, continuation
from trak_lightning.testing import TaskConformance
from trak_lightning.testing.extractors import autograd_loop


def tokens(*shape):
    return torch.randint(3, VOCABULARY, shape)


def padded(size, length=8):
    """Sequences of 4, 5, … tokens: ids, attention mask."""
    mask = (torch.arange(length) < 4 + torch.arange(size).unsqueeze(1)).long()
    return {"input_ids": tokens(size, length) * mask, "attention_mask": mask}


def question_and_answer(size):
    labels = tokens(size, 5)
    labels[-1, 3:] = -100
    return {**padded(size), "labels": labels}


class TestCausalLM(TaskConformance):
    task = CausalLM
    exact_loss = False
    model, batch = staticmethod(gpt2), staticmethod(padded)

    def probability(self, model, batch):
        """The mean over the tokens to predict, not the product."""
        p = model(**batch).logits[:, :-1].softmax(-1)
        counted = batch["attention_mask"][:, 1:]
        return (p.gather(-1, batch["input_ids"][:, 1:, None])[..., 0] * counted).sum(1) / counted.sum(1)


class TestSeq2SeqLM(TaskConformance):
    task = Seq2SeqLM
    exact_loss = False
    model, batch = staticmethod(mt5), staticmethod(question_and_answer)


PROBLEMS = {
    "gpt2": (gpt2, CausalLM, padded),
    "llama": (llama, CausalLM, padded),
    "t5": (t5, Seq2SeqLM, question_and_answer),
    "mt5": (mt5, Seq2SeqLM, question_and_answer),
}


def problem(name, **settings):
    make, task, batch = PROBLEMS[name]
    torch.manual_seed(0)
    return make().double().eval(), task(**settings), batch(4)


def log_probabilities(model, batch, row):
    """log p of every target token of a sequence, from the sequence without its padding, by softmax alone."""
    here = batch["attention_mask"][row].bool()
    ids = batch["input_ids"][row, here].unsqueeze(0)
    if "labels" in batch:
        labels = batch["labels"][row, batch["labels"][row] != -100].unsqueeze(0)
        logits = model(input_ids=ids, labels=labels).logits
    else:
        labels, logits = ids[:, 1:], model(input_ids=ids).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).flatten()


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_output_and_loss_weight_are_those_of_the_unpadded_sequence(name, reduction):
    model, task, batch = problem(name, reduction=reduction)
    output = task.output(model, batch)
    weight, curvature = task.loss_weight(model, batch, output), task.curvature(model, batch, output)
    for row in range(4):
        p = log_probabilities(model, batch, row).exp()
        margins = torch.log(p / (1 - p))
        torch.testing.assert_close(output[row], getattr(margins, reduction)(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(weight[row], (1 - p).mean(), rtol=1e-9, atol=1e-9)
        expected = (p * (1 - p)).mean() / (len(p) if reduction == "sum" else 1)
        torch.testing.assert_close(curvature[row], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_at_token_level_weighted_gradients_are_those_of_the_training_loss(name):
    model, task, batch = problem(name, level="token")
    output = task.output(model, batch)
    weight = task.loss_weight(model, batch, output)
    for row in range(4):
        loss = -log_probabilities(model, batch, row).sum()
        torch.testing.assert_close(output[row], -loss, rtol=1e-9, atol=1e-9)
        expected = torch.autograd.grad(loss, tuple(model.parameters()), allow_unused=True)
        found = torch.autograd.grad(output[row], tuple(model.parameters()), retain_graph=True, allow_unused=True)
        for one, other in zip(found, expected, strict=True):
            if other is not None:
                torch.testing.assert_close(weight[row] * one, -other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_exact_with_default_attention(name):
    model, task, batch = problem(name)
    assert model.config._attn_implementation == "sdpa"
    layout = ParameterLayout.of(model)
    found = {slot.name: torch.zeros(4, *slot.shape, dtype=torch.float64) for slot in layout}

    def sink(block):
        found[block.name][block.samples] += block.dense()

    output = Hooks().extract(model, task, SampleBatch.of_rows(batch, 4), layout, sink)
    expected_output, expected = autograd_loop(model, task, batch, 4)
    torch.testing.assert_close(output, expected_output, rtol=1e-9, atol=1e-9)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-8, atol=1e-9)


def test_padding_on_the_left_changes_nothing():
    model, task, batch = problem("gpt2")
    left = {key: torch.stack([row.roll(8 - n) for row, n in zip(value, range(4, 8), strict=True)])
            for key, value in batch.items()}  # fmt: skip
    left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = task.output(model, batch)
    torch.testing.assert_close(task.output(model, left), expected, rtol=1e-9, atol=1e-9)
    left["labels"] = left["input_ids"].masked_fill(left["attention_mask"] == 0, -100)  # as collators make them
    torch.testing.assert_close(task.output(model, left), expected, rtol=1e-9, atol=1e-9)


def test_labels_after_what_is_masked_elsewhere_count_as_in_the_loss_of_transformers():
    model, task, batch = problem("gpt2", level="token")
    row = {"input_ids": batch["input_ids"][:1]}
    # Within the sequence, and on the right, where beginners label the padding too.
    row["attention_mask"] = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 0]])
    row["labels"] = row["input_ids"]
    expected = -7 * model(**row).loss.double()[None]  # which transformers computes in float32
    torch.testing.assert_close(task.output(model, row), expected, rtol=1e-5, atol=1e-5)


def test_documents_packed_into_a_row_are_not_predicted_from_each_other():
    model, task, _ = problem("llama")
    one, two = tokens(1, 5), tokens(1, 6)
    packed = {
        "input_ids": torch.cat([one, two], dim=1),
        "position_ids": torch.cat([torch.arange(5), torch.arange(6)]).unsqueeze(0),
    }
    alone = sum(task.output(model, {"input_ids": ids}) for ids in (one, two))
    torch.testing.assert_close(task.output(model, packed), alone, rtol=1e-9, atol=1e-9)
    labels = packed["input_ids"].clone()
    labels[:, [0, 5]] = -100
    torch.testing.assert_close(task.output(model, {**packed, "labels": labels}), alone, rtol=1e-9, atol=1e-9)


def test_loss_weights_take_no_forward_pass_of_their_own():
    model, task, batch = problem("gpt2")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    output = task.output(model, batch)
    first = task.loss_weight(model, batch, output.detach())
    assert len(calls) == 1
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    output = task.output(model, dict(batch))
    assert not torch.equal(task.loss_weight(model, batch, output), first), "stale"
    task.curvature(model, batch, output)
    assert len(calls) == 3


@pytest.mark.parametrize(("name", "position"), [("gpt2", 2), ("t5", 0)])
def test_token_targets_add_up_to_the_sequence(name, position):
    model, task, batch = problem(name)
    batch = {key: value[3:] for key, value in batch.items()}
    if name == "gpt2":
        sample = continuation(batch["input_ids"][0, :7], prompt_length=2)
    else:
        sample = {key: value[0] for key, value in batch.items()}
    single = TokenTargets(sample)
    together = task.output(model, default_collate([sample]))
    each = task.output(model, default_collate([single[i] for i in range(len(single))]))
    assert single.positions[0] == position
    torch.testing.assert_close(each.sum(), together[0], rtol=1e-9, atol=1e-9)


def test_a_generated_continuation_is_attributed_and_its_tokens_add_up(tmp_path):
    torch.manual_seed(0)
    model = gpt2().eval()
    train = [{key: value[0] for key, value in padded(1).items()} for _ in range(12)]
    prompt = tokens(1, 3)
    written = model.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)[0]
    trak = TRAK(model, "causal_lm", tmp_path, projector={"name": "sparse_jl", "dim": 64})
    trak.featurize(train, batch_size=5)
    target = continuation(written, prompt.shape[1])
    whole = trak.score([target], name="whole", regularization=1.0).values[:]
    tokenwise = trak.score(TokenTargets(target), name="tokens", regularization=1.0).values[:]
    assert whole.shape == (1, 12)
    assert tokenwise.shape == (4, 12)
    assert abs(tokenwise.sum(0) - whole[0]).max() < 1e-4 * abs(whole).max()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (tokens(2, 4), "expects batches with input_ids"),
        ({"input_ids": tokens(2, 4), "labels": torch.full((2, 4), -100)}, "sequence 0 of the batch has no token"),
        (
            {"input_ids": tokens(2, 4), "labels": torch.tensor([0, 1])},
            r"labels must be tokens, .* got \(2,\)\. For one label per sequence, use task text_classification",
        ),
        ({"input_ids": tokens(2, 4), "labels": torch.full((2, 4), VOCABULARY)}, f"label {VOCABULARY} is out of range"),
    ],
)
def test_a_wrong_batch_is_refused_by_what_is_wrong_with_it(batch, message):
    model, task, _ = problem("gpt2")
    with pytest.raises(DataError, match=message):
        task.output(model, batch)


def test_a_seq2seq_batch_without_labels_names_its_keys():
    model, task, batch = problem("t5")
    del batch["labels"]
    with pytest.raises(DataError, match="no entry of the batch is called labels"):
        task.output(model, batch)


def test_nothing_after_the_prompt_is_no_continuation():
    with pytest.raises(DataError, match="prompt_length must lie in 1 … 3"):
        continuation(tokens(4), 4)
