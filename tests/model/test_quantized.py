"""Adapters on quantized weights: gradients by autograd, whatever the quantized layers keep in attributes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trak_lightning import TRAK
from trak_lightning.errors import UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and bitsandbytes


class Quantized(nn.Module):
    """A layer with its scale in an attribute, which it would fill again with another, as Linear8bitLt does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-9, 9, (4, 4), dtype=torch.int8), requires_grad=False)
        self.state = SimpleNamespace(scale=torch.full((4, 1), 0.1))

    def forward(self, x):
        if self.state.scale is None:
            self.state.scale = torch.ones(4, 1)
        return x @ (self.weight * self.state.scale).T


def test_scales_of_quantized_weights_are_no_caches(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(Quantized(), nn.Tanh(), nn.Linear(4, 1)).eval()
    inputs, targets = torch.randn(6, 4), torch.randn(6)
    expected = torch.cat([model[:2](inputs), torch.ones(6, 1)], 1)
    trak = TRAK(model, "regression", tmp_path, projector="identity")
    trak.featurize(torch.utils.data.TensorDataset(inputs, targets))
    torch.testing.assert_close(torch.tensor(trak.features("train")[:]).abs(), expected.abs())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"load_in_4bit": True}, {"load_in_8bit": True}, {"load_in_8bit": True, "llm_int8_threshold": 0.0}],
    ids=["4 bits", "8 bits", "8 bits without outliers"],
)
def test_an_adapter_on_weights_of_bitsandbytes_has_the_gradients_of_autograd(options, tmp_path):
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, initializer_range=0.1, **sizes)).save_pretrained(tmp_path / "base")
    quantized = BitsAndBytesConfig(**options)
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantized, dtype=torch.float32)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, adapter).eval()
    packing = [module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)]
    if packing:
        with pytest.raises(UnsupportedModelError, match="q_proj.*repacks its 4-bit weights.*= False"):
            TRAK(model, "causal_lm", tmp_path / "refused")
        for module in packing:
            module.support_avx512bf16_for_cpu = False
    ids = torch.randint(0, 32, (3, 7))
    trak = TRAK(model, "causal_lm", tmp_path / "run", projector="identity")
    trak.featurize([{"input_ids": each, "labels": each} for each in ids])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for each, row in zip(ids, trak.features("train")[:], strict=True):
        probability = model(input_ids=each[None]).logits[0, :-1].softmax(-1).gather(1, each[1:, None])
        expected = torch.autograd.grad(torch.logit(probability).sum(), parameters)
        expected = torch.cat([grad.flatten() for grad in expected])
        torch.testing.assert_close(torch.tensor(row), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
