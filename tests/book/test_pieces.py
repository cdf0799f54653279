"""The interactive pieces of the built site, by mouse and by keyboard; run after `make book` (`make browser`)."""

import re

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default")]


def test_padding_slider_says_what_the_formula_says(visit):
    page, problems = visit("notebooks/01_tokens.html")
    piece = page.locator("[data-piece='padding']")
    assert "Cosine of the two texts: 0.9730" in piece.inner_text()  # two tokens in a row of eight, as by hand
    piece.get_by_label("padded length T").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert "Cosine of the two texts: 0.8000" in piece.inner_text() and problems == []
    piece.get_by_label("tokens of each text").fill("4")  # no padding is left
    assert "Cosine of the two texts: 0.0000" in piece.inner_text()


def test_kmeans_is_stepped_and_its_centres_are_moved_by_mouse_and_keyboard(visit):
    page, problems = visit("notebooks/02_clusters.html")
    piece = page.locator("#fig-clusters-six .piece")
    step = piece.get_by_role("button", name="Step")
    for _ in range(6):
        step.click()
    assert "Inertia 16.0 after 3 rounds. Nothing changes any more." in piece.inner_text()
    assert "(1.00, 1.00) and (8.00, 7.00)" in piece.inner_text()
    piece.get_by_role("button", name="Start again").focus()
    page.keyboard.press("Enter")
    first, second = piece.locator(".piece-handle").all()
    second.focus()
    page.keyboard.press("ArrowUp")
    assert "(0.00, 0.00) and (2.00, 0.50)" in piece.inner_text()
    box = first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 80, box["y"] - 40, steps=4)
    page.mouse.up()
    assert "(0.00, 0.00)" not in piece.inner_text() and problems == []


def test_released_loss_is_taken_apart(visit):
    page, problems = visit("notebooks/06_released_loss.html")
    piece = page.locator("[data-piece='released']")
    piece.get_by_role("button", name="LoRA: 0.5023").click()
    assert "L = 0.5023 nats, 100 % of it" in piece.inner_text()
    piece.get_by_role("button", name=re.compile("frozen")).focus()
    page.keyboard.press("Enter")
    assert re.search(r"L = 13\.7\d+ nats", piece.inner_text())
    piece.get_by_label("score every next token").focus()
    page.keyboard.press("Space")
    assert "10.00 nats, whatever the padding costs" in piece.inner_text()
    piece.get_by_label("loss of full rows").fill("3")
    assert "3.00 nats, whatever" in piece.inner_text() and problems == []


def test_claims_are_filtered_and_opened(visit):
    page, problems = visit("notebooks/09_claims.html")
    piece = page.locator("#fig-claims .piece")
    rows = piece.locator("tbody tr")
    every = rows.count()
    piece.get_by_label("any verdict").select_option("supported")
    assert 0 < rows.count() < every
    cell = piece.locator("tbody button").first
    cell.focus()
    page.keyboard.press("Enter")
    assert cell.get_attribute("aria-label") in piece.locator(".piece-says").inner_text()
    assert "Supported if" in piece.locator(".piece-says").inner_text() and problems == []
    piece.get_by_label("any verdict").select_option("")
    assert rows.count() == every


@pytest.mark.parametrize("name", ["01_tokens", "02_clusters", "06_released_loss", "09_claims"])
def test_without_scripts_a_static_text_or_figure_stands_there(browser, address, name):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}notebooks/{name}.html")
    piece = page.locator("[data-piece]")
    place = piece.get_attribute("data-instead")
    shown = page.locator(f"#{place} img") if place else piece.locator("p")
    assert shown.is_visible() and page.locator(".piece").count() == 0
    context.close()
