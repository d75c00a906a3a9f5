"""Models and tokenizers from folders that ``save_pretrained`` or a trainer left, adapters of PEFT included."""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, TypeAlias

from torch import nn

from trak_lightning.errors import CheckpointError, DataError, needed_for

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16", "float64", "auto"]

_READ_FROM = (".safetensors", ".bin", ".json", ".jinja")
"""Endings of the files that say what a model writes; not those of optimizers."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")


def load_model(folder: str | Path, *, base: str | Path | None = None, dtype: Dtype = "float32") -> nn.Module:
    """Load a language model, in eval mode. An adapter is put on its base model, and is trainable.

    Args:
        folder: of a model or an adapter, or a name on the hub.
        base: the base model of an adapter, if it has moved since the adapter was trained.
        dtype: of the weights; ``auto`` for that of the file.

    Raises:
        CheckpointError: there is no model, or the adapter was trained on another base.
    """
    if is_adapter(folder):
        return _adapted(folder, base or base_of(folder), dtype)
    with transformers() as library, _named(folder):
        model: nn.Module = _auto(folder, library).from_pretrained(folder, dtype=dtype)
    return model.eval()


def load_tokenizer(folder: str | Path, *, base: str | Path | None = None) -> Any:
    """Load the tokenizer in a folder; if an adapter has none, that of its base model.

    Raises:
        CheckpointError: there is none, or it cannot tell which characters a token stands for.
    """
    tokenizer = find_tokenizer(folder, base=base)
    if tokenizer is None:
        raise CheckpointError(
            f"{' and '.join(map(str, _places(folder, base)))} holds no tokenizer. Save it there (tokenizer.save_pretrained, or "
            "Trainer(processing_class=tokenizer)), or name its folder: --tokenizer FOLDER."
        )
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"the tokenizer in {folder} cannot say which characters a token stands for: use a fast one"
        )
    return tokenizer


def find_tokenizer(folder: str | Path, *, base: str | Path | None = None) -> Any:
    """As `load_tokenizer`; None if there is none."""
    places = _places(folder, base)
    found = next((place for place in places if not Path(place).is_dir() or _has_tokenizer(Path(place))), None)
    if found is None:
        return None
    with transformers() as library, _named(found):
        return library.AutoTokenizer.from_pretrained(found)


def require_fitting(tokenizer: Any, config: Any, model: str | Path, own: Any = None) -> None:
    """Refuse a tokenizer that has tokens for which the model has no embedding, or other numbers for tokens of the model's own.

    Args:
        tokenizer: the tokenizer.
        config: the configuration of the model.
        model: how messages name the model.
        own: the tokenizer that was saved with the model, if that is another.

    Raises:
        DataError: it is that of another model.
    """
    rows, vocabulary = config.get_text_config().vocab_size, tokenizer.get_vocab()
    largest = max(vocabulary.values())
    other = next((t for t, n in own.get_vocab().items() if vocabulary.get(t) != n), None) if own is not None else None
    if largest >= rows:
        fault = f"the tokenizer has tokens up to number {largest}, and {model} embeds {rows}"
    elif other is not None:
        numbers = f"{vocabulary.get(other)} in the tokenizer and {own.get_vocab()[other]} in that of {model}"
        fault = f"token {other!r} has number {numbers}"
    else:
        return
    raise DataError(
        f"{fault}: it is the tokenizer of another model. Name that which the model was trained with: --tokenizer FOLDER."
    )


def read_config(folder: str | Path, *, base: str | Path | None = None) -> Any:
    """The configuration of a model, or of the base model of an adapter."""
    place = (base or base_of(folder)) if is_adapter(folder) else folder
    with transformers() as library, _named(place):
        return library.AutoConfig.from_pretrained(place)


def context_length(tokenizer: Any, config: Any) -> int:
    """How many tokens model and tokenizer take at most."""
    limits = [tokenizer.model_max_length, getattr(config.get_text_config(), "max_position_embeddings", None)]
    return min(sys.maxsize, *(int(limit) for limit in limits if limit is not None))


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder is that of an adapter of PEFT."""
    return (Path(folder) / "adapter_config.json").is_file()


def base_of(folder: str | Path) -> str:
    """The base model of an adapter: where it was when the adapter was trained.

    Raises:
        CheckpointError: the adapter does not say, or it is no longer there.
    """
    name = json.loads((Path(folder) / "adapter_config.json").read_text()).get("base_model_name_or_path")
    looks_local = name and (name.startswith((".", "/", "~")) or name.count("/") > 1)
    if not name or (looks_local and not Path(name).is_dir()):
        raise CheckpointError(
            f"adapter {folder} was trained on {name or 'a model without a name'}"
            + (", and there is no such folder" if name else "")
            + ". Name the base model: --base FOLDER."
        )
    return str(name)


def content_of(folder: str | Path, *, base: str | Path | None = None) -> str:
    """What is in the folder of a model, and in that of its base model if it is an adapter: a hash of weights and settings, or name
    and commit on the hub."""
    digest = hashlib.sha256()
    for place in _places(folder, base):
        if not Path(place).is_dir():
            digest.update(f"{place} {getattr(read_config(place), '_commit_hash', None)}".encode())
            continue
        for path in sorted(path for path in Path(place).iterdir() if path.suffix in _READ_FROM):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                for chunk in iter(lambda: file.read(1 << 20), b""):
                    digest.update(chunk)
    return digest.hexdigest()[:12]


@contextmanager
def transformers() -> Iterator[Any]:
    """The library `transformers`, without its progress bars.

    Raises:
        DataError: it is not installed.
    """
    with needed_for("a language model", "'trak-lightning[chat]'"):
        import transformers as library
    shown = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated"
            )  # peft, of transformers
            yield library
    finally:
        if shown:
            library.utils.logging.enable_progress_bar()


@contextmanager
def _named(place: str | Path) -> Iterator[None]:
    """Raise errors of `transformers` that name the folder."""
    try:
        if not Path(place).exists():
            _require_on_hub(str(place))
        yield
    except (OSError, ValueError) as error:
        steps = sorted(path.name for path in Path(place).glob("checkpoint-*"))
        if steps:
            raise CheckpointError(f"{place} holds checkpoints: name {place}/checkpoint-*, or one of them") from error
        if not Path(place).exists():
            raise CheckpointError(
                f"there is no folder {place} (looked in {Path(place).absolute().parent}). If it is the base model of an adapter, say where it "
                f"is now: --base FOLDER. It cannot be loaded from the hub either: {_first_line(error)}"
            ) from error
        raise CheckpointError(f"{place} cannot be loaded: {_first_line(error)}") from error


def _require_on_hub(name: str) -> None:
    """Ask the hub once for a model that is not in its cache: `transformers` tries for half a minute.

    Raises:
        OSError: there is none, or the hub cannot be reached.
        ValueError: the hub has no such names.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except (errors.EntryNotFoundError, errors.OfflineModeIsEnabled):
        return  # the files of a tokenizer, or in the cache
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the HTTP client, which is another one in other versions
        raise OSError(str(error)) from error


def _adapted(folder: str | Path, base: str | Path, dtype: Dtype) -> nn.Module:
    with needed_for(f"{folder}, an adapter of PEFT,", "peft"):
        from peft import PeftConfig, PeftModel
    model = load_model(base, dtype=dtype)
    try:
        with transformers():
            prompts = PeftConfig.from_pretrained(str(folder)).is_prompt_learning
            adapted: Any = PeftModel.from_pretrained(model, str(folder), is_trainable=not prompts)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"adapter {folder} does not fit its base model, {base}: {_first_line(error)} Name the base that it was trained on: "
            "--base FOLDER."
        ) from error
    if prompts:  # which PEFT refuses to load for training
        adapted.active_peft_config.inference_mode = False
        adapted.prompt_encoder.requires_grad_(True)
    made: nn.Module = adapted.eval()
    return made


def _auto(folder: str | Path, library: Any) -> Any:
    config = library.AutoConfig.from_pretrained(folder)
    return library.AutoModelForSeq2SeqLM if config.is_encoder_decoder else library.AutoModelForCausalLM


def _places(folder: str | Path, base: str | Path | None) -> list[str | Path]:
    """A folder, and that of its base model if it is of an adapter."""
    return [folder, base or base_of(folder)] if is_adapter(folder) else [folder]


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        shorten(" ".join(lines[:2]), 200, placeholder=" …").rstrip(".") + "." if lines else type(error).__name__ + "."
    )
