"""Names of demos in configuration files of earlier versions, before these demos became a distribution of their own."""

import sys

import pytest
import trak_lightning_demos
import trak_lightning_demos.text

from trak_lightning import demos
from trak_lightning.cli import main, plugin_names
from trak_lightning.errors import PluginError


def test_a_demo_that_moved_is_found_under_its_old_name():
    assert demos.TextClassifier is trak_lightning_demos.TextClassifier
    assert demos.text.EncodedTexts is trak_lightning_demos.text.EncodedTexts


def test_a_name_that_never_was_a_demo_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'VoiceClassifier'"):
        _ = demos.VoiceClassifier


def test_an_old_name_says_what_to_install_where_the_demos_are_missing(missing):
    with pytest.raises(PluginError, match="distribution trak-lightning-demos is not installed"):
        _ = demos.TextClassifier


@pytest.mark.parametrize(
    "path",
    ["trak_lightning.demos.TabularMLP", "trak_lightning.demos.tabular.TabularMLP", "trak_lightning_demos.TabularMLP"],
)
def test_a_configuration_says_what_to_install_where_the_demos_are_missing(path, missing, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"run_dir: {tmp_path / 'run'}\nmodel: {{class_path: {path}}}\ndata: mine.Data\n")
    assert main(["train", "--config", str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"model is {path}, but the distribution trak-lightning-demos, which has TabularMLP, is not installed" in line


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "trak_lightning_demos", None)
    monkeypatch.setattr(plugin_names, "find_spec", lambda name: None)
