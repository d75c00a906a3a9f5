"""Plug-ins are found through entry points; a broken one breaks only itself."""

import sys

import pytest

from trak_lightning import registry
from trak_lightning.errors import PluginError
from trak_lightning.projectors import Projector


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with these entry points, and this module, on the import path."""

    def install(distribution: str, entry_points: str, module: str = "", source: str = "") -> None:
        folder = tmp_path / distribution
        info = folder / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(entry_points)
        if module:
            (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        registry.scan.cache_clear()

    yield install
    registry.scan.cache_clear()
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", registry.BASES)
def test_built_ins_are_registered_like_any_plugin_and_can_be_made_without_options(kind):
    names = [
        plugin.name for plugin in registry.scan()[0] if plugin.kind == kind and plugin.distribution == "trak-lightning"
    ]
    assert names
    for name in names:
        assert registry.create(kind, name).__class__ is registry.find(kind, name).load()


def test_options_travel_with_the_name():
    assert registry.create("projectors", {"name": "sparse_jl", "dim": 7}).dim == 7


def test_an_object_is_taken_as_it_is():
    projector = registry.create("projectors", "gaussian")
    assert registry.create("projectors", projector) is projector


def test_a_class_that_is_not_registered_is_found_by_its_path():
    assert (
        registry.create("projectors", "trak_lightning.projectors.identity.Identity").state["class"].endswith("Identity")
    )


@pytest.mark.parametrize("old", registry.MOVED)
def test_a_class_path_of_an_earlier_version_is_found_where_the_class_is_now(old):
    kind = "projectors" if ".projectors." in old else "scorers"
    assert f"{(found := registry.resolve(kind, old).load()).__module__}.{found.__qualname__}" == registry.MOVED[old]


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(PluginError, match="no projector named 'sparse_jll' is installed; did you mean 'sparse_jl'"):
        registry.create("projectors", "sparse_jll")
    with pytest.raises(PluginError, match="did you mean 'causal_lm' or 'seq2seq_lm'"):
        registry.create("tasks", "lm")
    with pytest.raises(
        PluginError, match=r"did you mean 'image_classification'\? It is the default, for tables and graphs too\."
    ):
        registry.create("tasks", "classification")


@pytest.mark.parametrize(
    ("loss", "task"),
    [
        ("mse", "'regression'"),
        ("l2", "'regression'"),
        ("ce", "'image_classification' or 'text_classification'"),
        ("cross_entropy", "'image_classification' or 'text_classification'"),
        ("bce", "'binary_classification' or 'multilabel'"),
    ],
)
def test_the_name_of_a_loss_suggests_the_task_that_has_it(loss, task):
    with pytest.raises(PluginError, match=rf"did you mean {task}\?"):
        registry.create("tasks", loss)


def test_options_that_a_plugin_does_not_take_are_refused_by_name():
    with pytest.raises(PluginError, match=r"no option 'dimm'; did you mean 'dim'\? SparseJL takes dim, per, nnz\."):
        registry.create("projectors", {"name": "sparse_jl", "dimm": 7})
    with pytest.raises(PluginError, match=r"no option 'power'\. TracIn takes no options\."):
        registry.create("scorers", {"name": "tracin", "power": 7})


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(PluginError, match="projector must be a name, a dict with a 'name', or a Projector"):
        registry.create("projectors", 3)


def test_a_plugin_that_cannot_be_imported_names_its_distribution_and_breaks_only_itself(install):
    install(
        "acme-proj", "[trak_lightning.projectors]\nacme = acme_proj:Acme\n", "acme_proj", "import nowhere_to_be_found"
    )
    with pytest.raises(
        PluginError, match=r"'acme' .* of distribution acme-proj 1.5 could not be loaded: ModuleNotFoundError"
    ):
        registry.create("projectors", "acme")
    assert isinstance(registry.create("projectors", "sparse_jl"), Projector)


def test_a_plugin_of_the_wrong_type_is_refused(install):
    install("acme-proj", "[trak_lightning.projectors]\nacme = acme_proj:Acme\n", "acme_proj", "class Acme: pass")
    with pytest.raises(PluginError, match=r"acme-proj 1.5 is not a subclass of .*Projector"):
        registry.create("projectors", "acme")


PROJECTOR = """
from trak_lightning.projectors.identity import Identity

class Acme(Identity):
    trak_api = {}
"""


@pytest.mark.parametrize(
    ("declared", "remedy"),
    [
        ("(3, 0)", "Install a newer trak-lightning, or an older acme-proj."),
        ("(2, 99)", "Install a newer trak-lightning, or an older acme-proj."),
        ("(1, 0)", "Install a newer acme-proj, .* page plugins of the documentation lists what changed"),
    ],
)
def test_a_plugin_written_for_another_interface_is_refused_with_both_versions_and_the_way_out(
    install, declared, remedy
):
    install(
        "acme-proj", "[trak_lightning.projectors]\nacme = acme_proj:Acme\n", "acme_proj", PROJECTOR.format(declared)
    )
    theirs = declared.strip("()").replace(", ", ".")
    with pytest.raises(
        PluginError, match=rf"acme-proj 1.5 was written for version {theirs} .* has version 2\.0\. {remedy}"
    ):
        registry.create("projectors", "acme")


def test_a_plugin_written_for_this_interface_is_taken(install):
    install(
        "acme-proj", "[trak_lightning.projectors]\nacme = acme_proj:Acme\n", "acme_proj", PROJECTOR.format("(2, 0)")
    )
    assert isinstance(registry.create("projectors", "acme"), Projector)


def test_a_version_that_is_none_is_refused(install):
    install("acme-proj", "[trak_lightning.projectors]\nacme = acme_proj:Acme\n", "acme_proj", PROJECTOR.format("'1.0'"))
    with pytest.raises(PluginError, match=r"must declare trak_api as two integers, such as \(2, 0\); found '1.0'"):
        registry.create("projectors", "acme")


def test_two_distributions_with_one_name_clash_and_both_are_named(install):
    install("acme-one", "[trak_lightning.projectors]\nacme = acme_one:Acme\n")
    install("acme-two", "[trak_lightning.projectors]\nacme = acme_two:Acme\n")
    with pytest.raises(PluginError, match=r"2 distributions declare .* 'acme'.*acme-(one|two).*acme-(one|two)"):
        registry.find("projectors", "acme")


def test_a_malformed_declaration_of_any_distribution_does_not_hide_the_others(install, tmp_path):
    install("acme-scripts", "[console_scripts]\nthis line has no value\n")  # concerns nobody here
    install("acme-broken", "[trak_lightning.projectors]\nthis line has no value\n")
    install("acme-bytes", "")
    (tmp_path / "acme-bytes" / "acme_bytes-1.5.dist-info" / "entry_points.txt").write_bytes(
        b"[trak_lightning.projectors]\n\xff = a:B\n"
    )
    assert "sparse_jl" in registry.names("projectors")
    assert sorted(broken.distribution for broken in registry.scan()[1]) == ["acme-broken", "acme-bytes"]


@pytest.mark.parametrize("plugins_are_imported", [False, True])
def test_every_plugin_that_is_installed_here_works(plugins_are_imported):
    for kind in registry.BASES:
        for plugin, error in registry.diagnose(kind, load=plugins_are_imported):
            assert error is None, plugin


def test_a_plugin_is_found_broken_without_an_import_if_its_module_is_gone_and_with_one_if_it_fails(install):
    install("acme-gone", "[trak_lightning.projectors]\ngone = acme_gone:Acme\n")
    install("acme-deep", "[trak_lightning.projectors]\ndeep = trak_lightning.projectors.nowhere:Acme\n")
    install("acme-proj", "[trak_lightning.projectors]\nacme = acme_proj:Acme\n", "acme_proj", "import nowhere_at_all")

    def broken(load):
        return {plugin.name: str(error) for plugin, error in registry.diagnose("projectors", load=load) if error}

    found = broken(load=False)
    assert set(found) == {"gone", "deep"}
    assert "is missing from the installation. Install acme-gone again." in found["gone"]
    assert "acme_proj" not in sys.modules
    assert "No module named 'nowhere_at_all'" in broken(load=True)["acme"]
