"""Lightning's private API is used in one module only."""

import ast
import signal
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import trak_lightning
from trak_lightning.runtime.signals import interruptible

PACKAGE = Path(trak_lightning.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "runtime" / "lightning.py")


def private(name):
    return name.startswith("_") and not name.startswith("__")


@pytest.fixture(scope="module")
def private_names():
    """The private attributes of the objects that Lightning hands out, less those of every module."""
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    connectors = [value for name, value in vars(trainer).items() if name.endswith("_connector")]
    owners = [trainer, *connectors, DDPStrategy(), L.LightningModule(), L.LightningDataModule()]
    return {name for owner in owners for name in dir(owner) if private(name)} - set(dir(nn.Module()))


def uses(tree, private_names):
    own = {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and is_self(n)
    }
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("lightning", "pytorch_lightning"):
            yield from (
                name for name in [*node.module.split("."), *(alias.name for alias in node.names)] if private(name)
            )
        elif (
            isinstance(node, ast.Attribute) and node.attr in private_names and not (is_self(node) and node.attr in own)
        ):
            yield node.attr
        elif isinstance(node, ast.Constant) and node.value in private_names - own:  # getattr, setattr
            yield node.value


def is_self(node):
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def test_only_one_module_uses_the_private_api_of_lightning(private_names):
    found = {str(path.relative_to(PACKAGE)): list(uses(ast.parse(path.read_text()), private_names)) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "trainer._accelerator_connector.cluster_environment",
        "self.model._device_mesh = self._device_mesh",
        "from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher",
        "from lightning.fabric.utilities._pytree import x",
        "getattr(trainer, '_checkpoint_connector')",
        "connector._select_ckpt_path = None",
    ],
)
def test_a_private_name_is_found(source, private_names):
    assert list(uses(ast.parse(source), private_names))


class Freed:
    """Ctrl+C reaches Python while this object is freed, where no exception can be raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_raised_at_the_next_check():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible() as check:  # noqa: PT012
            Freed()
            check()
            pytest.fail("the interrupt is lost")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_the_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as check:
            signal.raise_signal(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)
