"""Layers and architectures that people bring, tiny, each with a task that gives one number per sample."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from trak_lightning.data.trees import flatten
from trak_lightning.tasks.base import Task

B_SEED = 17


class Weighted(Task):
    """f(z) = tanh of a weighted sum of every output that has an entry for the sample, first dimension first."""

    def output(self, model, batch):
        found = model(**batch) if isinstance(batch, dict) else model(batch)
        tensors = [leaf for leaf in flatten(found)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return sum(self._one(tensor) for tensor in tensors)

    def _one(self, tensor):
        flat = tensor.flatten(1)
        return (flat * torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)).mean(1).tanh()


def close(found, expected, tolerance, scale=0.0):
    """Relative to the sample's own gradient; what is zero but for rounding is compared with the largest of all."""
    assert found.shape == expected.shape
    error = (found - expected).flatten(1).norm(dim=1) if found.ndim > 1 else (found - expected).abs()
    size = expected.flatten(1).norm(dim=1) if found.ndim > 1 else expected.abs()
    return bool((error <= tolerance * size.clamp(min=1e-3 * scale)).all())


@dataclass(frozen=True)
class Entry:
    """A model, a function that makes B samples for it, and the task."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    task: Task = field(default_factory=Weighted)
    tolerance: float = 1e-9


def normal(*shape: int) -> Callable[[int], Tensor]:
    return lambda B: torch.randn(B, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(B_SEED + B))


def tokens(length: int, vocabulary: int = 11) -> Callable[[int], Tensor]:
    return lambda B: torch.randint(0, vocabulary, (B, length), generator=torch.Generator().manual_seed(B_SEED + B))


class Apply(nn.Module):
    """A module, and a function of it and the batch."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


def lengths(x: Tensor) -> Tensor:
    """A length for every sample that depends on nothing but the sample."""
    return 1 + (x.double().flatten(1).sum(1).abs() * 10).long() % x.shape[1]


def bags(x: Tensor, bag: nn.EmbeddingBag, weighted: bool = False) -> Tensor:
    """The samples as bags of their own lengths, laid end to end."""
    sizes = lengths(x)
    flat = torch.cat([row[:size] for row, size in zip(x, sizes, strict=True)])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    weights = (
        torch.cat([torch.linspace(0.5, 2, int(size), dtype=torch.float64) for size in sizes]) if weighted else None
    )
    return bag(flat, offsets if bag.include_last_offset else offsets[:-1], weights)


def packed(x: Tensor, rnn: nn.RNNBase) -> tuple[Tensor, Tensor]:
    sizes = lengths(x)
    output, state = rnn(pack_padded_sequence(x, sizes, batch_first=True, enforce_sorted=False))
    state = state[0] if isinstance(state, tuple) else state
    return pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])[0], state.transpose(0, 1)


def recurrent(x: Tensor, rnn: nn.RNNBase) -> tuple[Tensor, ...]:
    """Time first if the layer says so, from a state that is given, and with the final states used."""
    shape = (rnn.num_layers * (2 if rnn.bidirectional else 1), x.shape[0])
    state = torch.linspace(-1, 1, rnn.hidden_size, dtype=x.dtype).expand(*shape, -1)
    hidden = torch.linspace(-1, 1, getattr(rnn, "proj_size", 0) or rnn.hidden_size, dtype=x.dtype).expand(*shape, -1)
    inputs = x if rnn.batch_first else x.transpose(0, 1)
    output, final = rnn(inputs, (hidden.contiguous(), state.contiguous()) if isinstance(rnn, nn.LSTM) else state)
    finals = final if isinstance(final, tuple) else (final,)
    return (output if rnn.batch_first else output.transpose(0, 1), *(f.transpose(0, 1) for f in finals))


def attention(x: Tensor, layer: nn.MultiheadAttention, key=None, **options: Any) -> Any:
    key = x if key is None else key(x)
    value = x if layer.vdim == layer.embed_dim else x[..., : layer.vdim]
    arguments = (x, key, value) if layer.batch_first else tuple(part.transpose(0, 1) for part in (x, key, value))
    output, weights = layer(*arguments, **{name: option(x) for name, option in options.items()})
    output = output if layer.batch_first else output.transpose(0, 1)
    return output if weights is None else (output, weights)


def padding(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1]) >= lengths(x).unsqueeze(1)


def causal(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


def bias_for_heads(x: Tensor) -> Tensor:
    """(B · heads, T, T), floating point."""
    return torch.linspace(0, 1, x.shape[1], dtype=x.dtype).expand(2 * x.shape[0], x.shape[1], x.shape[1])


def layer(name: str, make: Callable[[], nn.Module], *shape: int) -> Entry:
    return Entry(name, make, normal(*shape))


def applied(
    name: str, function: Callable[..., Any], make: Callable[[], nn.Module], batch: Callable[[int], Any]
) -> Entry:
    return Entry(name, lambda: Apply(function, make()), batch)


LAYERS = [
    *(
        layer(f"conv{n}d {mode}", partial((nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1], 4, 6, 3, stride=2, padding=1,
              dilation=2 if mode == "zeros" else 1, groups=2, padding_mode=mode), 4, *[6] * n)
        for n in (1, 2, 3) for mode in ("zeros", "reflect", "replicate", "circular")
        if not (n == 3 and mode == "reflect")
    ),
    *(
        layer(f"conv{n}d transposed", partial((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n - 1], 4, 6, 3,
              stride=2, padding=1, output_padding=1, dilation=2, groups=2), 4, *[4] * n)
        for n in (1, 2, 3)
    ),
    layer("conv2d depthwise, same", lambda: nn.Conv2d(4, 8, (2, 3), groups=4, padding="same"), 4, 5, 6),
    layer("rms norm", lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.RMSNorm((5, 4), eps=1e-3)), 5, 3),
    layer("instance norm 1d", lambda: nn.InstanceNorm1d(4, affine=True), 4, 5),
    layer("instance norm 2d, running statistics",
          lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), 4, 5, 3),
    layer("instance norm 3d", lambda: nn.InstanceNorm3d(4, affine=True), 4, 3, 2, 3),
    layer("prelu, one slope", lambda: nn.PReLU(), 4, 5),
    layer("prelu, a slope a channel", lambda: nn.PReLU(4), 4, 5),
    layer("bilinear, by the fallback", lambda: Apply(lambda x, f: f(x, x.flip(1)), nn.Bilinear(4, 4, 3)), 4),
    *(
        applied(f"embedding bag, {mode}{', offsets' if of is bags else ''}{', padding' if index else ''}", of,
                partial(nn.EmbeddingBag, 11, 4, mode=mode, padding_idx=index, include_last_offset=bool(index) and of is bags),
                tokens(5))
        for mode in ("sum", "mean", "max") for of in (bags, lambda x, bag: bag(x)) for index in (None, 3)
    ),
    applied("embedding bag, weighted", partial(bags, weighted=True), lambda: nn.EmbeddingBag(11, 4, mode="sum"), tokens(5)),
    *(
        applied(f"{cls.__name__.lower()}, {name}", of, partial(cls, 3, 4, **options), normal(5, 3))
        for cls in (nn.RNN, nn.LSTM, nn.GRU)
        for name, of, options in (
            ("time first, states", recurrent, {"num_layers": 2}),
            ("both ways", recurrent, {"bidirectional": True, "batch_first": True, "num_layers": 2}),
            ("packed", packed, {"bidirectional": True, "batch_first": True}),
            ("no bias", recurrent, {"bias": False, "batch_first": True}),
        )
    ),
    applied("rnn, relu", recurrent, partial(nn.RNN, 3, 4, nonlinearity="relu"), normal(5, 3)),
    applied("lstm, projected", recurrent, partial(nn.LSTM, 3, 5, 2, proj_size=4, bidirectional=True), normal(5, 3)),
    *(
        applied(f"attention, {name}", partial(attention, **call), partial(nn.MultiheadAttention, 4, 2, **options), normal(5, 4))
        for name, options, call in (
            ("time first, weights", {}, {}),
            ("batch first, fast", {"batch_first": True}, {"need_weights": lambda x: False}),
            ("padding mask", {"batch_first": True}, {"key_padding_mask": padding, "need_weights": lambda x: False}),
            ("causal, weights a head", {"batch_first": True},
             {"attn_mask": causal, "average_attn_weights": lambda x: False}),
            ("mask a head", {}, {"attn_mask": bias_for_heads, "need_weights": lambda x: False}),
            ("other sizes", {"kdim": 3, "vdim": 2, "batch_first": True, "bias": False}, {"key": lambda x: x[:, :, :3]}),
            ("other queries and keys", {"batch_first": True}, {"key": lambda x: x.flip(1).tanh()}),
            ("learned key and zeros", {"add_bias_kv": True, "add_zero_attn": True},
             {"key_padding_mask": padding, "attn_mask": causal}),
        )
    ),
    layer("transformer encoder, time first",
          lambda: Apply(lambda x, f: f(x.transpose(0, 1)).transpose(0, 1),
                        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False)), 5, 4),
    applied("transformer encoder, padding mask", lambda x, f: f(x, src_key_padding_mask=padding(x)),
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2), normal(5, 4)),
    applied("transformer decoder", lambda x, f: f(x, x.flip(1), tgt_mask=causal(x)),
            lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), 1), normal(5, 4)),
    layer("weight norm", lambda: nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(*size)) for size in ((3, 4), (4, 1)))), 3),
    layer("positions first", lambda: Apply(lambda x, f: f(x.transpose(0, 1)).transpose(0, 1), nn.Linear(3, 2)), 7, 3),
    layer("samples and positions flattened",
          lambda: Apply(lambda x, f: f(x.reshape(-1, 3)).view(len(x), -1), nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))),
          7, 3),
    layer("positions and samples flattened",
          lambda: Apply(lambda x, f: f(x.transpose(0, 1).reshape(-1, 3)).view(7, len(x), 2).transpose(0, 1), nn.Linear(3, 2)),
          7, 3),
    layer("convolution of frames", lambda: Apply(lambda x, f: f(x.flatten(0, 1)).unflatten(0, x.shape[:2]), nn.Conv2d(2, 3, 2)),
          3, 2, 4, 4),
]  # fmt: skip


def image_batch(key: str, size: int) -> Callable[[int], Any]:
    return lambda B: {key: normal(3, size, size)(B)}


def text_batch(length: int = 6, **more: Callable[[int], Any]) -> Callable[[int], Any]:
    """Sequences of different lengths, with a padding mask."""

    def draw(B: int) -> Any:
        ids = tokens(length, 30)(B)
        mask = (torch.arange(length) < lengths(ids).unsqueeze(1)).long()
        return {"input_ids": ids, "attention_mask": mask, **{key: make(B) for key, make in more.items()}}

    return draw


SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def bert(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(vocab_size=30, num_labels=3, max_position_embeddings=8, **SMALL, **options)
    )


def gpt2(**options: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=30,
            bos_token_id=0,
            eos_token_id=1,
            n_positions=8,
            n_embd=8,
            n_layer=2,
            n_head=2,
            use_cache=False,
            **options,
        )
    )


def llama(**options: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(vocab_size=30, num_key_value_heads=1, use_cache=False, tie_word_embeddings=True, **SMALL, **options)
    )


def t5(**options: Any) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0, **options
        )
    )


def resnet9() -> nn.Module:
    """The architecture of ResNet-9 at an eighth of its width, with statistics that were learned."""

    def conv(inward: int, outward: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inward, outward, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(outward),
            nn.ReLU(inplace=True),
        )

    def residual(width: int) -> nn.Module:
        return Apply(lambda x, f: x + f(x), nn.Sequential(conv(width, width), conv(width, width)))

    model = nn.Sequential(
        *(conv(3, 8), conv(8, 16, 5, 2, 2), residual(16), conv(16, 32), nn.MaxPool2d(2), residual(32)),
        *(conv(32, 16, padding=0), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 3, bias=False)),
    )
    model.train()(torch.randn(8, 3, 16, 16))
    return model


def vit(**options: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=3, image_size=8, patch_size=4, **SMALL, **options))


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": 30,
                "bos_token_id": 28,
                "max_position_embeddings": 8,
                "eos_token_id": 29,
                **SMALL,
            },
            vision_config={"image_size": 8, "patch_size": 4, **SMALL},
            projection_dim=4,
        )
    )


class Matching(Task):
    """CLIP's logit of an image with its own text."""

    def output(self, model, batch):
        return model(**batch).logits_per_image.diagonal()


class Logits(Task):
    def output(self, model, batch):
        logits = model(**batch).logits.flatten(1)
        return (logits * torch.linspace(0.5, 1.5, logits.shape[1], dtype=logits.dtype)).mean(1)


def lora(model: nn.Module, **options: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **options))
    assert all(("lora" in name) == p.requires_grad for name, p in adapted.named_parameters())
    return adapted


ARCHITECTURES = [
    Entry("resnet-9", resnet9, normal(3, 16, 16)),
    Entry("bert", bert, text_batch(), Logits()),
    Entry("bert, eager attention", lambda: bert(attn_implementation="eager"), text_batch(), Logits()),
    Entry("gpt-2, tied embeddings", gpt2, text_batch(), Logits()),
    # The norms of these two compute in float32, whatever the model does.
    Entry("llama, tied embeddings", llama, text_batch(), Logits(), tolerance=1e-5),
    Entry("t5", t5, text_batch(decoder_input_ids=tokens(4, 30)), Logits(), tolerance=1e-5),
    Entry("t5, gated", lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
          text_batch(decoder_input_ids=tokens(4, 30)), Logits(), tolerance=1e-5),
    Entry("vit", vit, image_batch("pixel_values", 8), Logits()),
    Entry("clip", clip, text_batch(pixel_values=normal(3, 8, 8)), Matching()),
    Entry("bert with lora", lambda: lora(bert(), target_modules=["query", "dense"]), text_batch(), Logits()),
    Entry("gpt-2 with lora", lambda: lora(gpt2(), target_modules=["c_attn", "wte"], fan_in_fan_out=True), text_batch(),
          Logits()),
    Entry("vit with dora", lambda: lora(vit(), target_modules=["query", "q_proj"], use_dora=True), image_batch("pixel_values", 8), Logits()),
]  # fmt: skip
