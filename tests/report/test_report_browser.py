"""The page in a real browser: sorting, curves that are hidden, widths on a phone, and that no script fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PROGRAM, Browser
from report_runs import demo_runs, evaluated, report, score, trained, write_suite

from l2v.runs.files import read_json, write_json
from l2v.runs.lineage import Lineage

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium or Chrome on the PATH")
SCORES = "#scores table"
ORDER = f"[...document.querySelectorAll('{SCORES} tbody th')].map(head => head.dataset.value)"
SORTED = f"[...document.querySelectorAll('{SCORES} thead th')].map(head => head.getAttribute('aria-sort'))"
ODD, LONG = "<script>throw 1<", "a-rather-long-name-of-a-run-with-learning-rate-0.0003-and-rank-16"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of the demo; one with a script in its name, two of LLaMA-2 on MTEB, and one with a long name."""
    folder = tmp_path_factory.mktemp("report")
    runs = demo_runs(folder)
    evaluated(runs[1], 0.3322, 0.4127, 1812.4)
    for number, name in enumerate((ODD, LONG)):
        run = folder / name
        trained(run, "simcse", Lineage("meta-llama/Llama-2-7b-chat-hf", "commit:1"), learning_rate=0.1 * (number + 1))
        tasks = {**score("Average", "3 tasks", 0.5), "details": {"STS12": 0.5, "STS13": 0.25 * number, "STS14": 0.5}}
        write_suite(run, "mteb", mteb=tasks)
        record = read_json(run / "run.json")
        write_json(run / "run.json", {**record, "choices": {**record["choices"], "data": "x" * 200}})
        runs.append(run)
    report(runs, folder, title="A page")
    return folder / "out" / "report.html"


def test_clicks_and_keys_sort_a_table(browser: Browser, page: Path) -> None:
    browser.open(page, 1200)
    unsorted = [
        "causal",
        "bidirectional",
        "mntp",
        "simcse",
        ODD,
        LONG,
    ]
    assert browser.run(ORDER) == unsorted
    perplexity = f"{SCORES} thead th:nth-child(4) button"
    browser.click(perplexity)
    assert browser.run(ORDER)[:3] == ["bidirectional", "simcse", "mntp"], "1812 is more than 64: by number"
    assert browser.run(ORDER)[3:] == ["causal", *unsorted[4:]], "missing values are last"
    assert browser.run(SORTED)[3] == "descending"
    browser.run(f"document.querySelector('{perplexity}').focus()")
    browser.press("Enter", 13)
    assert browser.run(ORDER)[:3] == ["mntp", "simcse", "bidirectional"]
    assert browser.run(ORDER)[3:] == ["causal", *unsorted[4:]], "missing values are last in both directions"
    assert browser.run(SORTED)[3] == "ascending"
    browser.press(" ", 32)
    assert browser.run(SORTED)[3] == "descending"
    browser.click(f"{SCORES} thead th:first-child button")
    names = browser.run(ORDER)
    assert names[1:] == sorted(unsorted[:4] + unsorted[5:]) and names[0] == ODD
    assert [value is None for value in browser.run(SORTED)[:4]] == [False, True, True, True]
    assert browser.problems == []


def test_settings_are_not_sortable(browser: Browser, page: Path) -> None:
    browser.open(page, 1200)
    assert browser.run("document.querySelectorAll('#settings table').length") > 0
    assert browser.run("document.querySelectorAll('#settings thead button').length") == 0
    assert browser.run("document.querySelectorAll('table.sortable thead th').length") == browser.run(
        "document.querySelectorAll('thead th button').length"
    )


def test_the_legend_hides_a_runs_curves(browser: Browser, page: Path) -> None:
    browser.open(page, 1200)
    visible = """[0, 1, 2].map(n => document.querySelector(`[id^="curve-1-train-loss-"][id$="-run${n}"]`)
        .getBoundingClientRect().width > 0)"""
    assert browser.run(visible) == [True, True, True]
    browser.click(".legend button[data-run='1']")
    assert browser.run(visible) == [True, False, True]
    assert browser.run("document.querySelector(`.legend button[data-run='1']`).ariaPressed") == "false"
    browser.click(".legend button[data-run='1']")
    assert browser.run(visible) == [True, True, True]
    assert browser.problems == []


@pytest.mark.parametrize("width", [390, 320, 1200])
def test_nothing_is_wider_than_the_screen(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.run("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    outside = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg')
        && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.run(outside) == []
    assert browser.run("document.querySelector('#lineage .scroll').scrollWidth > 400")


def test_text_and_targets_are_large_enough_on_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, 390)
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    small: list[Any] = browser.run("""(() => {
        const found = [], walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
            if (!text || !element.getClientRects().length || element.closest('title')) continue;
            const matrix = element.ownerSVGElement ? element.getScreenCTM().a : 1;
            const size = parseFloat(getComputedStyle(element).fontSize) * matrix;
            if (size < 13.99) found.push([text, size]);
        }
        return found;
    })()""")
    assert small == []
    targets = """[...document.querySelectorAll('button, summary, nav a')].map(e => e.getBoundingClientRect())
        .filter(box => box.height < 36).length"""
    assert browser.run(targets) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_painted_in_both_schemes(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, 1200, dark=dark)
    assert len(browser.screenshot()) > 50_000
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(21, 25, 30)" if dark else "rgb(254, 254, 254)")
    assert browser.problems == []
