"""Make the picture of a page for the README: `python -m tests.studies.pictures` needs Chromium and selenium."""

import argparse
import base64
import shutil
import tempfile
from pathlib import Path

from gate.__main__ import main as gate
from tests.meta.sessions import ROOT

PICTURE = ROOT / "docs" / "pictures" / "report.webp"


def main() -> int:
    """Open the page of the H200 baseline, and write what a window of 1,280 by 800 shows of it."""
    argparse.ArgumentParser(prog="python -m tests.studies.pictures", description=main.__doc__).parse_args()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        with tempfile.TemporaryDirectory() as folder:
            gate(["report", str(ROOT / "baselines" / "NVIDIA-H200" / "article.json"), "--to", folder])
            size = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get((Path(folder) / "report.html").as_uri())
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 80})
    finally:
        driver.quit()
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(base64.b64decode(shot["data"]))
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
