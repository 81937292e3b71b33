"""Pictures of the explanations' page and of the app, for the README, with a real oracle in a real browser.

    python scripts/screenshots.py runs/demo docs

Needs Chromium and the extra `dev`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from diff_oracle.explain.asking import Explainer
from diff_oracle.explain.explanations import Explanations
from diff_oracle.explain.page import render_page
from diff_oracle.explain.server import serve
from diff_oracle.serve import load_app

TEXT = "The first argument is a list of names, and the second is a list of"
SITES = ["layers", "components", "heads"]
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def explain(explainer: Explainer, oracle: str) -> Explanations:
    """All layers, halves and heads at the last four tokens."""
    text = explainer.read(TEXT)
    queries = explainer.queries([text], SITES, [-4, -3, -2, -1])
    items = [item for part in explainer.explain([text], queries) for item in part]
    return Explanations(explainer.subject.identity.name, oracle, explainer.conventions, [text], items)


def strongest_step(explanations: Explanations) -> str:
    """The step without which the last token's prediction moves most."""
    last = max(item.position for item in explanations.items)
    return next(item.site for item in explanations.ranked("skip_kl") if item.position == last)


def picture_page(browser: Any, page: str, site: str, folder: Path) -> None:
    for name, view, scheme in (("explain_page", WIDE, "light"), ("explain_phone", PHONE, "dark")):
        tab = browser.new_page(viewport=view, color_scheme=scheme)
        tab.set_content(page)
        tab.locator("#measures").select_option("skip_kl")
        tab.locator(f"#map td[data-site='{site}']").click()
        tab.locator("#text-heading").evaluate("heading => heading.scrollIntoView()")
        tab.screenshot(path=folder / f"{name}.png")
        tab.close()


def picture_app(browser: Any, port: int, site: str, folder: Path) -> None:
    tab = browser.new_page(viewport=WIDE)
    tab.goto(f"http://localhost:{port}/")
    tab.get_by_label("A text of your own").fill(TEXT)
    tab.get_by_role("button", name="Read").click()
    tab.locator(f"#map td[data-site='{site}']").click()
    tab.get_by_label("Ask about this step").fill("Which tokens are raised?")
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.locator(".asked").wait_for()
    tab.locator("#read-form").evaluate("form => form.scrollIntoView()")
    tab.screenshot(path=folder / "explain_app.png")
    tab.locator("#progress:empty").wait_for(state="attached")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle", help="run directory of the oracle")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    arguments = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("error: no Chromium on this machine")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    app = load_app(arguments.oracle, SITES)
    explanations = explain(app.explainer, arguments.oracle)
    site = strongest_step(explanations)
    with sync_playwright() as playwright, serve(app, port=0) as server:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        picture_page(browser, render_page(explanations), site, arguments.folder)
        picture_app(browser, server.server_port, site, arguments.folder)
        browser.close()
        server.shutdown()
    app.close()


if __name__ == "__main__":
    main()
