"""The page in a real browser: Chromium, driven by Playwright, neither of which the tests' requirements bring."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile import HOSTILE

from trak_lightning.scoring.scores import Scores

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
    cut_off = """Array.from(document.querySelectorAll('.caption, .verdict dd, .findings a, .gallery li, nav'))
        .filter((each) => each.scrollWidth > each.clientWidth + 1).map((each) => each.outerHTML.slice(0, 200))"""
    assert tab.evaluate(cut_off) == []
    assert HOSTILE in tab.inner_text("body")


only_images = pytest.mark.parametrize("form", ["image"], indirect=True)
only_text = pytest.mark.parametrize("form", ["text"], indirect=True)


@only_images
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
    tab.select_option("#sort", "-error")
    errors = [float(each.get_attribute("data-error")) for each in tab.query_selector_all(".target")]
    assert errors == sorted(errors, reverse=True)
    tab.check("#wrong")
    wrong = {each.get_attribute("data-wrong") for each in tab.query_selector_all(".target") if each.is_visible()}
    assert wrong == {"1"}
    assert said == []


@only_images
def test_suspects_are_marked_from_the_keyboard_and_copied(opened):
    tab, said = opened
    boxes = tab.query_selector_all(".marker")
    for box in boxes[1:3]:
        box.focus()
        tab.keyboard.press("Space")
    assert tab.inner_text("#marked") == f"2 of {len(boxes)} marked"
    chosen = [box.get_attribute("value") for box in boxes[1:3]]
    tab.click("#copy-indices")
    assert tab.input_value("#copied") == f"[{', '.join(chosen)}]"
    tab.click("#copy-csv")
    header, *rows = csv.reader(tab.input_value("#copied").splitlines())
    assert header == ["index", "label", "says", "why"]
    assert [row[0] for row in rows] == chosen
    assert all(row[1] in ("cat", "dog", HOSTILE) for row in rows)
    tab.click("#mark-all")
    assert tab.inner_text("#marked") == f"{len(boxes)} of {len(boxes)} marked"
    tab.select_option("#suspect-sort", "index")
    numbers = [int(each.get_attribute("data-index")) for each in tab.query_selector_all(".gallery li")]
    assert numbers == sorted(numbers)
    assert said == []


@only_images
def test_an_example_opens_on_all_targets_that_it_helps_and_harms(opened):
    tab, said = opened
    button = tab.query_selector(".target .open")
    train = int(button.get_attribute("data-open"))
    button.focus()
    tab.keyboard.press("Enter")
    assert tab.is_visible("#detail")
    assert tab.inner_text("#detail-title") == f"Training example #{train}"
    assert tab.query_selector("#detail .folded") is None, "nothing is hidden here"
    scores = Scores(Path(tab.url.removeprefix("file://")).parents[1] / "scores" / "test.h5").values[:, train]
    for kind, expected in (("helpful", (-scores).argsort()), ("harmful", scores.argsort())):
        shown = tab.eval_on_selector_all(f"#detail .{kind} li", "all => all.map((each) => each.textContent)")
        assert [int(re.search(r"#(\d+)", line)[1]) for line in shown] == expected[: len(shown)].tolist()
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#detail")
    assert tab.evaluate("document.activeElement.dataset.open") == str(train), "the focus is back where it was"
    tab.click(".gallery .sample img")
    assert tab.is_visible("#detail")
    link = tab.query_selector("#detail a")
    target = link.get_attribute("href")
    link.click()
    assert not tab.is_visible("#detail")
    assert tab.url.endswith(target)
    assert said == []


@only_text
def test_words_that_an_example_shares_with_its_target_are_marked(opened):
    tab, _ = opened
    for card in tab.query_selector_all(".target"):
        own = card.query_selector(".subject .text").inner_text().lower()
        for mark in card.query_selector_all("mark"):
            assert mark.text_content().lower() in own


def test_words_that_many_texts_of_the_page_have_are_not_marked(context, make):
    tab = context.new_page()

    def said(sample):
        return {"text": f"it was sweet and number{sample['text'].rpartition(' ')[2]}", "label": 0}

    tab.goto(make("text", render=said, targets=[0, 1]).as_uri())
    tab.eval_on_selector_all(".target details", "all => all.forEach((each) => { each.open = true; })")
    marked = [each.text_content() for each in tab.query_selector_all("mark")]
    assert not {"was", "and"} & set(marked)
    assert any("number" in word for word in marked), "the target is one of the texts"


@only_text
def test_what_is_folded_says_so_and_unfolds(opened):
    tab, _ = opened
    before = len(tab.query_selector_all(".target:first-child .evidence .sample:visible"))
    tab.click(".target:first-child details summary")
    assert len(tab.query_selector_all(".target:first-child .evidence .sample:visible")) == before + 7
    assert all(each.is_visible() for each in tab.query_selector_all(".folded + .unfold"))
    assert len(tab.query_selector_all(".folded")) == len(tab.query_selector_all(".folded + .unfold"))


def masked(sample):
    """Three pictures and much to read."""
    image = np.kron(np.asarray(sample["image"][0]), np.ones((4, 4)))
    mask = np.arange(24 * 24).reshape(24, 24) // 200
    return {"scan": image, "mask": mask, "other": mask.T.copy(), "note": "word " * 200, "label": 0}


def test_pictures_of_a_sample_are_side_by_side_and_no_fade_cuts_them(context, make):
    tab = context.new_page()
    tab.goto(make("image", render=masked).as_uri())
    assert tab.query_selector_all(".gallery .folded"), "the text below them is folded"
    side_by_side = """Array.from(document.querySelectorAll('.gallery .pictures, .target .pictures')).every((each) => {
        const [first, second] = Array.from(each.children, (image) => image.getBoundingClientRect());
        return !first.width || (first.top === second.top && first.right <= second.left && first.width > 40);
    })"""
    assert tab.evaluate(side_by_side)
    faded = """Array.from(document.querySelectorAll('.folded img')).filter((image) => {
        const fade = image.closest('.folded').getBoundingClientRect().bottom - 2.5 * 16;
        return image.getBoundingClientRect().bottom > fade + 1;
    }).length"""
    assert tab.evaluate(faded) == 0
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.inner_text(".gallery").count("show all") == len(tab.query_selector_all(".gallery .folded"))
    assert [each.inner_text() for each in tab.query_selector_all(".legend >> nth=0 >> li")] == ["cat", HOSTILE, "dog"]
