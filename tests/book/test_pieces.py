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


def test_a_text_of_the_map_is_shown_by_mouse_and_keyboard(visit):
    page, problems = visit("notebooks/02_clusters.html")
    piece = page.locator("#fig-clusters-map .piece")
    says, chosen = piece.locator(".piece-says"), piece.locator("circle[r='7']")
    piece.scroll_into_view_if_needed()
    box = piece.locator("circle").nth(3).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert re.search(
        r"Cluster \d+ \(map: first 16 tokens\)\. \w+, \d+ tokens: “.{10,100}”", says.inner_text()
    )
    assert chosen.count() == 1
    stops = page.locator("#fig-clusters-map [tabindex='0']")
    assert stops.count() == 1  # for all texts of all maps
    seen = {}
    for key in ("Home", "ArrowRight", "ArrowDown", "ArrowUp", "End"):
        stops.press(key)
        seen[key] = (says.inner_text(), stops.get_attribute("aria-valuenow"))
    assert [now for _, now in seen.values()][:2] == ["1", "2"]
    number = {key: re.search(r"Cluster (\d+) ", text)[1] for key, (text, _) in seen.items()}
    assert number["Home"] == number["ArrowRight"] == number["ArrowUp"] != number["ArrowDown"]
    assert seen["ArrowUp"] == seen["Home"] and "map: padded row" in seen["End"][0]
    assert seen["End"][1] == stops.get_attribute("aria-valuemax") and chosen.count() == 1
    assert piece.locator("circle").count() <= 300 and problems == []


@pytest.mark.parametrize("width", [1280, 360])
def test_what_the_map_says_is_in_sight_of_the_text(visit, width):
    page, _ = visit("notebooks/02_clusters.html", width, "dark")
    piece = page.locator("#fig-clusters-map .piece")
    piece.locator(".piece-maps").press("Home")
    first, says = piece.locator("svg").first.bounding_box(), piece.locator(".piece-says").bounding_box()
    assert first["y"] + first["height"] <= says["y"] + 1 and says["y"] + says["height"] <= 900 + 1
    assert piece.evaluate("e => e.scrollWidth <= e.clientWidth")


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
    pieces = page.locator("[data-piece]").all()
    for piece in pieces:
        place = piece.get_attribute("data-instead")
        shown = page.locator(f"#{place} img") if place else piece.locator("p")
        assert shown.is_visible()
    assert pieces and page.locator(".piece").count() == 0
    context.close()
