"""Pages in the machine's Chromium, with everything that goes wrong in them written down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with api.sync_playwright() as playwright:
        installed = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
        program = next(installed, playwright.chromium.executable_path)
        if not Path(program).is_file():
            pytest.skip("no Chromium on the path and none of playwright's own: playwright install chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """A page at an address; an error, a word on the console, a dialog or a request to another place fails the test."""
    page = browser.new_page(**options)
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text))
    page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith(address.partition("#")[0]) or trouble.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert trouble == []


def serious_violations(page: Any) -> list[str]:
    """What axe-core finds on a page of serious or critical impact."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html']}: {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
