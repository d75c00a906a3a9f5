"""The page in a real browser: Chromium, driven by Playwright, neither of which the tests' requirements bring."""

import shutil

import pytest
from hostile import HOSTILE

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(params=["desktop", "phone, dark"])
def context(request):
    if CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH")
    options = {"viewport": {"width": 1280, "height": 900}}
    if request.param == "phone, dark":
        options = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "color_scheme": "dark"}
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(offline=True, **options)
        browser.close()


@pytest.fixture
def opened(context, make, form):
    """The page in a tab, and all that the console said."""
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(make(form).as_uri())
    return tab, said


def visible(tab):
    return [int(each.get_attribute("data-index")) for each in tab.query_selector_all(".target") if each.is_visible()]


def test_it_loads_in_silence_fits_the_screen_and_text_stays_text(opened):
    tab, said = opened
    assert said == []
    assert tab.title() == "run · training data attribution"
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.evaluate(
        "(table => table.scrollWidth <= table.clientWidth)(document.querySelector('#suspects .scroll'))"
    )
    assert HOSTILE in tab.inner_text("body")


@pytest.mark.parametrize("form", ["image"], indirect=True)
def test_search_and_sort_act(opened):
    tab, said = opened
    before = visible(tab)
    assert len(before) == 6
    tab.fill("#search", f"#{before[2]}")
    assert visible(tab) == [before[2]]
    assert tab.inner_text("#count") == "1 of 6 targets"
    tab.fill("#search", "no such words")
    assert tab.is_visible("#nothing")
    tab.fill("#search", "dog")
    assert 0 < len(visible(tab)) < 6
    tab.fill("#search", "")
    tab.select_option("#sort", "index")
    assert visible(tab) == sorted(before)
    tab.select_option("#sort", "-output")
    outputs = [float(each.get_attribute("data-output")) for each in tab.query_selector_all(".target")]
    assert outputs == sorted(outputs, reverse=True)
    if tab.query_selector("#wrong"):
        tab.check("#wrong")
        assert {
            each.get_attribute("data-wrong") for each in tab.query_selector_all(".target") if each.is_visible()
        } == {"1"}
    assert said == []


@pytest.mark.parametrize("form", ["image"], indirect=True)
def test_the_table_is_sorted_from_the_keyboard(opened):
    tab, _ = opened
    tab.focus("th:nth-child(2) button")
    for expected in ("descending", "ascending"):
        tab.keyboard.press("Enter")
        assert tab.get_attribute("th:nth-child(2)", "aria-sort") == expected
        numbers = [int(cell.inner_text()[1:]) for cell in tab.query_selector_all("#suspects td:nth-child(2)")]
        assert numbers == sorted(numbers, reverse=expected == "descending")
