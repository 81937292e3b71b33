"""The page shows what explanations hold, to everybody, and no text can change the page around it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diff_oracle.explain.explanations import Claim, Explanations
from diff_oracle.explain.page import render_page
from tests.browsing import chromium, opened, serious_violations
from tests.explain.made import CONVENTIONS, HOSTILE, make_explanation, make_explanations, make_rebuilt, make_text

MADE = make_explanations(n_layers=2, n_heads=3)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<script>"
HEBREW = ["<s>", "שלום", " עולם", "!", "\n", " טוב"]
ODD = ["<s>", "a", "\n", "\t", "   ", "", "😀", "\u202e", "\u200b", " b"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def show(explanations: Explanations, folder: Path) -> str:
    """The address of the page, on disk."""
    file = folder / "page.html"
    file.write_text(render_page(explanations), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    with opened(browser, show(MADE, tmp_path), viewport={"width": 1280, "height": 900}) as there:
        yield there


def token(page: Any, position: int) -> Any:
    return page.locator(f"#tokens [data-position='{position}']")


def cell(page: Any, site: str) -> Any:
    return page.locator(f"#map td[data-site='{site}']")


def column(page: Any, number: int) -> list[str]:
    return [text.strip() for text in page.locator(f"#list tbody td:nth-child({number})").all_inner_texts()]


def test_the_page_holds_the_explanations_and_lets_only_its_own_script_run() -> None:
    evil = replace(MADE, texts=[make_text(["<s>", EVIL]), MADE.texts[1]], subject=EVIL)
    html = render_page(evil)
    assert html.count("<script") == html.count("</script>") == 2
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", html, flags=re.DOTALL)
    assert json.loads(data) == {"explanations": json.loads(json.dumps(evil.to_dict())), "live": False}
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert policy.endswith(f"; script-src 'sha256-{hashed}'")
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "document.write" not in script
    assert "://" not in html and "url(" not in html
    assert render_page(evil) == html


def test_a_number_that_no_browser_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        render_page(replace(MADE, items=[make_explanation(0, 2, "L0", skip_kl=float("nan"))]))


def test_a_token_and_a_head_show_their_explanation_and_what_was_measured(page: Any) -> None:
    token(page, 2).click()
    cell(page, "L1H2").click()
    item = next(item for item in MADE.items if (item.text, item.position, item.site) == (0, 2, "L1H2"))
    assert page.locator("#site-heading").inner_text() == "L1H2 at token 2"
    claims = page.locator(".claim:has(.right), .claim:has(.wrong)").evaluate_all(
        "all => all.map(c => [c.querySelector('.token').textContent, c.querySelector('.right') !== null])"
    )
    expected = [*item.explanation_claims, *(claim for answer in item.answers for claim in answer.claims)]
    assert [(text.replace("␣", " "), right) for text, right in claims] == [(c.text, c.right) for c in expected]
    measured = page.locator(".answers .facts div:last-child dd").evaluate_all(
        "all => all.map(d => [...d.querySelectorAll('.token')].map(t => t.textContent).join('\\n'))"
    )
    assert [text.replace("␣", " ") for text in measured] == [answer.measured for answer in item.answers]
    amounts = page.locator(".measured dd").evaluate_all(
        "all => all.map(d => [...d.children[0].children].map(c => [c.firstChild.textContent, c.lastChild.textContent]))"
    )
    pairs = [item.promoted, item.suppressed, item.gained, item.lost]
    assert [[token.replace("␣", " ") for token, _ in row] for row in amounts] == [[t for t, _ in row] for row in pairs]
    numbers = [float(value.replace("−", "-")) for row in amounts for _, value in row]
    assert numbers == pytest.approx([value for row in pairs for _, value in row], rel=0.05)  # two digits are shown
    facts = page.locator("#site-body .facts").first.inner_text()
    for said in ("␣cat", "␣mat", "6 of 10 claims", f"{item.relative_size:.2g}", f"{item.skip_kl:.2g} nats"):
        assert said in facts


def test_what_was_read_is_drawn_on_the_text(page: Any) -> None:
    token(page, 5).click()
    cell(page, "L0H1").click()
    shares = page.evaluate(
        "[...document.querySelectorAll('#tokens [data-share]')].map(o => [+o.dataset.position, +o.dataset.share])"
    )
    assert shares == [[4, 0.5], [5, 0.125]]
    bars = [row.split() for row in page.locator(".bars tbody tr").all_inner_texts()]
    assert bars == [["␣on", "4", "50", "%"], ["␣the", "5", "13", "%"], ["<s>", "the", "first", "token", "0", "25", "%"]]
    colours = [token(page, p).evaluate("o => getComputedStyle(o).backgroundColor") for p in (3, 4, 5)]
    assert len(set(colours)) == 3
    cell(page, "L0.mlp").click()
    assert page.locator("#tokens [data-share], .bars").count() == 0


def test_arrow_keys_go_over_tokens_and_map(page: Any) -> None:
    token(page, 2).click()
    for key, position in (
        ("ArrowRight", 5),
        ("ArrowRight", 7),
        ("ArrowRight", 7),
        ("ArrowLeft", 5),
        ("Home", 2),
        ("End", 7),
    ):
        page.keyboard.press(key)
        assert page.locator(":focus").get_attribute("data-position") == str(position)
        assert page.locator("#site-heading").inner_text().endswith(f"at token {position}")
    cell(page, "L0H0").click()
    cell(page, "L0H0").focus()
    for key, site in (
        ("ArrowDown", "L1H0"), ("ArrowDown", "L1H0"), ("ArrowRight", "L1H1"), ("ArrowRight", "L1H2"),
        ("ArrowRight", "L1.attn"), ("ArrowUp", "L0.attn"), ("ArrowLeft", "L0H2"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert page.locator(":focus").get_attribute("data-site") == site
        assert page.locator("#site-heading").inner_text() == f"{site} at token 7"
    assert page.locator("#tokens [tabindex='0'], #map [tabindex='0']").count() == 2  # one stop each for the tab key


def test_up_and_down_go_to_the_line_above_and_below(browser: Any, tmp_path: Path) -> None:
    tokens = ["<s>", *(" word\n" if i % 5 == 0 else " word" for i in range(1, 21))]
    items = [make_explanation(0, position, "L0") for position in range(1, 21)]
    made = Explanations("made", "", CONVENTIONS, [make_text(tokens)], items)
    with opened(browser, show(made, tmp_path)) as page:
        token(page, 8).click()
        for key, position in (("ArrowDown", 13), ("ArrowDown", 18), ("ArrowDown", 18), ("ArrowUp", 13), ("ArrowUp", 8)):
            page.keyboard.press(key)
            assert page.locator(":focus").get_attribute("data-position") == str(position)


def test_the_map_is_shaded_by_what_is_chosen(page: Any) -> None:
    token(page, 2).click()
    values = {item.site: item for item in MADE.items if (item.text, item.position) == (0, 2)}

    def shades() -> dict[str, float]:
        return page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#map td[data-site]')].map("
            "c => [c.dataset.site, parseFloat(c.style.getPropertyValue('--share'))]))"
        )

    assert set(shades()) == set(values)
    for measure in ("relative_size", "direct_effect", "skip_kl"):
        page.locator("#measures").select_option(measure)
        sizes = sorted(abs(getattr(item, measure)) for item in values.values())
        most = sizes[int(0.9 * (len(sizes) - 1))]
        assert shades() == pytest.approx(
            {site: min(100, 100 * abs(getattr(item, measure)) / most) for site, item in values.items()}
        )
        assert page.locator("#map-note").inner_text().endswith(" or more." if measure != "direct_effect" else " down.")
    page.locator("#measures").select_option("right")
    assert cell(page, "L0H1").inner_text() == "60 %"


def test_what_a_pair_rebuilt_is_told_mapped_and_sorted(browser: Any, tmp_path: Path) -> None:
    carried = {"L0H0": 0.5, "L0H1": -0.25, "L0H2": 0.1, "L1": 0.004}
    items = [make_explanation(0, 2, site, rebuilt=make_rebuilt(share)) for site, share in carried.items()]
    made = replace(MADE, items=items, conventions={"carried": "rebuilt less without words"})
    with opened(browser, show(made, tmp_path)) as page:
        cell(page, "L0H1").click()
        told = page.locator(".rebuilt").inner_text()
        for said in ("−25 % of the write", "−5 %, without words 20 %", "0.6", "␣the", "<i>", "␣dog"):
            assert said in told
        assert "9 % of a write, on average" in page.locator("#facts").inner_text()
        page.locator("#measures").select_option("carried")
        assert [cell(page, site).inner_text() for site in carried] == ["50 %", "−25 %", "10 %", "0 %"]
        assert "--less" in cell(page, "L0H1").get_attribute("style")
        assert "--more" in cell(page, "L0H0").get_attribute("style")
        assert page.locator("#map-note").inner_text().endswith("is 25 % or more, red where words mislead.")
        page.get_by_role("button", name="carried").click()
        assert column(page, 2) == ["L0H0", "L0H2", "L1", "L0H1"]  # what misleads comes last
        assert column(page, 7) == ["50 %", "10 %", "0 %", "−25 %"]
        assert serious_violations(page) == []


def test_without_a_pair_nothing_is_said_of_one(page: Any) -> None:
    assert page.locator("#measures option").all_inner_texts() == [
        "size",
        "direct effect",
        "skip effect",
        "right claims",
    ]
    assert page.locator("#list th").count() == 7 and page.locator(".rebuilt").count() == 0
    assert "carried" not in page.locator("body").inner_text()


def test_headings_sort_by_mouse_and_keyboard(page: Any) -> None:
    token(page, 2).click()
    items = [item for item in MADE.items if (item.text, item.position) == (0, 2)]
    assert column(page, 2)[0] == max(items, key=lambda item: item.relative_size).site
    page.get_by_role("button", name="skip effect").click()
    effects = [float(text) for text in column(page, 5)]
    assert effects == sorted(effects, reverse=True) and len(set(effects)) > 2
    page.get_by_role("button", name="direct effect").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.locator("#list th[aria-sort=ascending]").inner_text().startswith("direct effect")
    sizes = [abs(float(text.replace("−", "-"))) for text in column(page, 4)]
    assert sizes == sorted(sizes)
    page.get_by_role("button", name="step").click()
    assert column(page, 2) == sorted(item.site for item in items)


def test_search_finds_what_was_said_and_measured_anywhere(page: Any) -> None:
    page.keyboard.press("/")
    page.keyboard.type("right5")  # what some steps named at token 2
    assert page.locator("#list tbody tr").count() == 0  # token 7 is chosen at first
    page.locator("#scope").select_option("text")
    there = [item.site for item in MADE.items if item.text == 0 and " right5" in str(item.promoted)]
    assert sorted(column(page, 2)) == sorted(there) and there
    page.locator("#search").fill("שלום")
    assert page.locator("#list tbody tr").count() == 0
    page.locator("#scope").select_option("all")
    assert column(page, 1) == ["␣שלוםtext 2, 8"]
    page.get_by_role("button", name="L0H1").click()
    assert page.locator("#site-heading").inner_text() == "L0H1 at token 8"
    assert page.locator("#texts").input_value() == "1"
    page.reload()
    assert page.locator("#site-heading").inner_text() == "L0H1 at token 8"  # the address kept it


@pytest.mark.parametrize("tokens", [HOSTILE, ["<s>", EVIL, EVIL], ODD], ids=["hostile", "evil", "odd"])
def test_text_is_data(browser: Any, tmp_path: Path, tokens: list[str]) -> None:
    claims = [Claim(EVIL, False), Claim("not a line of it", True)]
    evil = {"promoted": [(EVIL, 1.0)], "explanation": f"{EVIL}\nelse", "next_token": EVIL, "explanation_claims": claims}
    items = [make_explanation(0, position, "L0H1", **evil) for position in range(1, len(tokens))]
    made = Explanations(EVIL, EVIL, {EVIL: EVIL}, [make_text(tokens), make_text([EVIL] * 2)], items)
    with opened(browser, show(made, tmp_path)) as page:
        for position in range(1, len(tokens)):
            token(page, position).click()
            assert page.locator("#site-heading").inner_text() == f"L0H1 at token {position}"
        assert page.locator("script").count() == 2 and page.locator("img").count() == 0
        said = page.locator("#site-body .claims .line").evaluate_all("all => all.map(line => line.textContent)")
        assert said == [f"{EVIL}✗ wrong", "else", "not a line of it✓ right"]
        texts = [page.evaluate(f"options()[{i}].textContent") for i in range(len(tokens))]
    if tokens is ODD:
        assert texts == ["<s>", "a", "↵\n", "⇥", "␣␣␣", "∅", "😀", "⟨202E⟩", "⟨200B⟩", " b"]
    if tokens[1] is EVIL:
        assert texts == tokens


def test_a_script_from_right_to_left_is_walked_that_way(browser: Any, tmp_path: Path) -> None:
    items = [make_explanation(0, position, "L0") for position in range(1, len(HEBREW))]
    with opened(browser, show(Explanations("made", "", {}, [make_text(HEBREW)], items), tmp_path)) as page:
        token(page, 1).click()
        first, second = (token(page, i).bounding_box()["x"] for i in (1, 2))
        assert second < first
        page.keyboard.press("ArrowLeft")
        assert page.locator(":focus").get_attribute("data-position") == "2"


def test_five_thousand_tokens(browser: Any, tmp_path: Path) -> None:
    tokens = ["<s>", *(f" w{i}" for i in range(4999))]
    items = [make_explanation(0, position, site) for position in range(4000, 5000) for site in ("L0", "L1")]
    with opened(browser, show(Explanations("made", "", {}, [make_text(tokens)], items), tmp_path)) as page:
        assert page.locator("#tokens [role=option]").count() == 5000
        token(page, 4500).click()
        assert page.locator("#list tbody tr").count() == 2
        page.locator("#scope").select_option("all")
        assert page.locator("#list tbody tr").count() == 100
        assert page.locator("#list caption").inner_text() == "2000 steps, 100 shown"
        page.get_by_role("button", name="Show more").click()
        assert page.locator("#list tbody tr").count() == 200


def test_nothing_explained_is_a_page_too(browser: Any, tmp_path: Path) -> None:
    made = Explanations("made", "", {}, [make_text(["<s>", "a"])], [])
    with opened(browser, show(made, tmp_path)) as page:
        assert page.locator("#map-note").inner_text() == "Nothing was asked here."
        assert page.locator("#tokens .explained").count() == 0
        assert serious_violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_and_a_phone_need_not_scroll_sideways(
    browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    view = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    with opened(browser, show(make_explanations(4, 8), tmp_path), **view) as page:
        page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
        page.locator("#measures").select_option("direct_effect")  # both hues
        assert page.locator("#map td").count() == 4 * 11
        assert serious_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_has_the_choice_and_no_controls(page: Any) -> None:
    page.emulate_media(media="print")
    for name in ("#tokens", "#map", "#site-body", "#list"):
        assert page.locator(name).is_visible()
        assert page.locator(name).evaluate("e => e.scrollHeight - e.clientHeight") <= 1
    assert page.locator("input:visible, select:visible, #more:visible").count() == 0
    assert page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_ink_can_be_read_on_every_shade_in_light_dark_and_print() -> None:
    """Shades lie between a hue and the paper, so that both ends are enough."""
    palettes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{[^}]*\}", render_page(MADE))
    ]
    assert len(palettes) == 3 and all(set(palette) == set(palettes[0]) for palette in palettes)
    pairs = [("ink", ground) for ground in ("paper", "panel", "more", "less", "reads")]
    pairs += [(name, ground) for name in ("muted", "link", "right", "wrong") for ground in ("paper", "panel")]
    for palette in palettes:
        for name, ground in pairs:
            dark, light = sorted((luminance(palette[name]), luminance(palette[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)
