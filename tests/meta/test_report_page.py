"""The page of `--report`, opened by a real browser: it shows what was found, asks for nothing, and runs no text.

Needs Chromium with its driver, selenium and axe-core-python; skipped without them.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gate.__main__ import main
from gate.baseline.store import load
from gate.record.cell import CellRecord
from gate.report.outcomes import Outcome
from gate.report.page import Page, write_page
from gate.report.tables import typical
from tests.meta.sessions import ROOT

selenium = pytest.importorskip("selenium", reason="needs selenium")
axe = pytest.importorskip("axe_core_python.selenium", reason="needs axe-core-python")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = [
    pytest.mark.meta,
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Chromium"),
]

H200 = ROOT / "baselines" / "NVIDIA-H200" / "article.json"
H100 = ROOT / "baselines" / "NVIDIA-H100-80GB-HBM3" / "article.json"
CELL = "{}-packed-train-causal-float32-eager-drawn"
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def verdict(cell: str, kind: str, change: float | None, why: str = "") -> dict[str, Any]:
    low, high = (None, None) if change is None else (change - 0.01, change + 0.01)
    times = {"base_ms": 10.0, "head_ms": None if change is None else 10 * (1 + change)}
    return {"cell": cell, "verdict": kind, "why": why, "change": change, "low": low, "high": high, **times}


def pages(folder: Path) -> dict[str, Path]:
    """Write every kind of page."""
    record = typical(load(H200).processes)
    outcomes = {
        CELL.format("sdpa_loop"): Outcome(passed=12),
        CELL.format("sdpa_nested"): Outcome(passed=3, known=1, why="a known defect"),
        CELL.format("fa2_varlen"): Outcome(skipped=9, why="needs a CUDA GPU"),
        CELL.format("xformers_auto"): Outcome(passed=4, failed=1, why="logits of sequence 1 are wrong"),
    }
    slower = [verdict(name, "same", 0.001) for name in record.cells]
    slower[3] |= verdict(slower[3]["cell"], "regressed", 0.05, "device: kernel gemm took longer")
    backend = "b" * 4_000
    odd: dict[str, CellRecord] = {}
    for number, name in enumerate((HOSTILE, backend, "schnell🚀")):
        one = list(record.cells.values())[number]
        odd[name] = replace(one, cell={**one.cell, "backend": name}, verdict="failed", reason=HOSTILE)
    many = [
        {"family": f"family{number}", "verdict": "safe with use_cache=False" if number % 7 else "leaks (1.4)"}
        for number in range(10_000)
    ]
    packing = [{"family": "falcon", "verdict": "safe"}, {"family": "bloom", "verdict": "leaks"}]
    machine = record.machine
    made = {
        "proved": Page("pytest -m correctness", False, machine, outcomes, packing=packing),
        "slower": Page(machine=machine, passed=False, comparison=slower, compared="main against HEAD"),
        "odd": Page(
            machine={**machine, "device": HOSTILE},
            outcomes={CELL.format(HOSTILE.replace("-", "")): Outcome(failed=1, why=HOSTILE)},
            times=[*odd.values()],
            comparison=[verdict(CELL.format(backend), "regressed", 0.2, HOSTILE)],
            packing=[{"family": HOSTILE, "verdict": "🚀" * 100}],
        ),
        "timed": Page(
            times=[*record.cells.values()], machine=machine, lengths=[*range(1, 1024, 3)], padding={"as they come": 0.5}
        ),
        "empty": Page(),
        "many": Page(packing=many),
    }
    found = {name: write_page(page, folder / name) for name, page in made.items()}
    for name, baseline in (("h200", H200), ("h100", H100)):
        assert main(["report", str(baseline), "--to", str(folder / name)]) == 0
        found[name] = folder / name / "report.html"
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


def opened(browser: Any, path: Path, *, width: int = 1440, dark: bool = False, fragment: str = "") -> Any:
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri() + fragment)
    return browser


NAMES = ("proved", "slower", "odd", "timed", "empty", "many", "h200", "h100")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_asks_for_nothing_and_says_no_error(browser: Any, written: dict[str, Path], name: str) -> None:
    opened(browser, written[name])
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [written[name].as_uri()]
    assert browser.title.startswith("varlen-gate: ")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "many"])
def test_a_page_is_accessible(browser: Any, written: dict[str, Path], name: str, dark: bool) -> None:
    opened(browser, written[name], dark=dark)
    found = axe.Axe().run(browser)["violations"]
    told = [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")]
    assert told == []


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_does_not_overflow(browser: Any, written: dict[str, Path], name: str, width: int) -> None:
    opened(browser, written[name], width=width)
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width


def shown(browser: Any, table: str) -> list[str]:
    rows = f"[...document.querySelectorAll('#{table} tbody tr')].filter(row => !row.hidden)"
    return list(browser.execute_script(f"return {rows}.map(row => row.cells[0].textContent)"))


def test_a_table_is_filtered_and_sorted_by_the_keyboard(browser: Any, written: dict[str, Path]) -> None:
    opened(browser, written["h200"])
    cells = load(H200).cell_ids
    assert sorted(shown(browser, "t-times")) == sorted(cells)
    field = browser.find_element(By.CSS_SELECTOR, "[data-filters=t-times]")
    field.send_keys("fa2_varlen-packed-")
    chosen = shown(browser, "t-times")
    assert len(chosen) == 4
    assert all("fa2_varlen-packed-" in one for one in chosen)
    assert f"4 of {len(cells)} shown" in browser.find_element(By.CSS_SELECTOR, "[data-count=t-times]").text
    field.send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    while focused.text.strip() != "ms a step":
        focused.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
    focused.send_keys(Keys.ENTER)
    assert shown(browser, "t-times")[0] == "fa2_varlen-packed-eval-full-bfloat16-compiled-article"
    focused.send_keys(Keys.ENTER)
    assert shown(browser, "t-times")[0] == "fa2_varlen-packed-train-causal-bfloat16-eager-article"


def test_a_link_leads_to_a_cell(browser: Any, written: dict[str, Path]) -> None:
    name = CELL.format("xformers_auto")
    opened(browser, written["proved"], fragment=f"#{name}")
    where = browser.execute_script("return document.querySelector(':target').getBoundingClientRect().top")
    assert 0 <= where < 900
    opened(browser, written["proved"])
    browser.find_element(By.CSS_SELECTOR, "#matrix .s-wrong[href]").click()
    assert browser.current_url.endswith(f"#{name}")
    assert "logits of sequence 1 are wrong" in browser.find_element(By.CSS_SELECTOR, ":target").text


def test_text_from_records_runs_nothing(browser: Any, written: dict[str, Path]) -> None:
    opened(browser, written["odd"])
    assert browser.title.startswith("varlen-gate: ")
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return document.images.length") == 0
    assert HOSTILE in browser.find_element(By.ID, "environment").text


def test_ten_thousand_rows_filter_in_a_fifth_of_a_second(browser: Any, written: dict[str, Path]) -> None:
    opened(browser, written["many"])
    ms = browser.execute_script(
        """
        const field = document.querySelector("[data-filters=t-packing]");
        const times = [];
        for (const words of ["leaks", "family99", ""]) {
          const begin = performance.now();
          field.value = words;
          field.dispatchEvent(new Event("input"));
          document.body.getBoundingClientRect();
          times.push(performance.now() - begin);
        }
        return times;
        """
    )
    assert max(ms) < 200, ms
    assert "300 of 10000 shown" in browser.find_element(By.CSS_SELECTOR, "[data-count=t-packing]").text


def test_a_page_is_small_and_quick(browser: Any, written: dict[str, Path]) -> None:
    assert written["h200"].stat().st_size < 200_000
    opened(browser, written["h200"])
    (entry,) = browser.execute_script("return performance.getEntriesByType('navigation')")
    assert entry["domInteractive"] < 1000
