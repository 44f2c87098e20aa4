"""The pages of the retrieval report in a browser: what they show, filter and copy; texts stay texts."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from browser import open_browser
from PIL import Image
from tiny import make_tiny, write_report

import evaluation

READY = "!document.body.dataset.kind || document.body.dataset.ready"
NASTY = '<img src=x onerror="boom()"> & </script><script>boom()</script> “quoted” naïve'


@pytest.fixture(scope="module")
def browser():
    with open_browser() as one:
        yield one


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A report of 60 images and two models with their ensemble; half of the images are there."""
    root = tmp_path_factory.mktemp("report")
    tiny = make_tiny(root, splits={"test": 60})
    (root / "images").mkdir()
    for i in range(30):
        Image.new("RGB", (64, 48), (8 * i, 100, 50)).save(root / "images" / f"{i}.png")
    (tiny.folder / "test_imagename.txt").write_text("".join(f"{i}.png\n" for i in range(60)))
    lines = (tiny.folder / "test_caps.txt").read_text().splitlines()
    lines[7] = NASTY
    (tiny.folder / "test_caps.txt").write_text("\n".join(lines) + "\n")
    sims = write_report(tiny, root / "site", 2, root / "images")
    ranks = [[r + 1 for r, _ in evaluation.metrics(one)["ranks"]] for one in sims]
    return SimpleNamespace(path=root / "site", texts=lines, sims=sims, ranks=ranks)


def shown(browser):
    """Numbers of the queries on the page."""
    return browser.each(".query", "Number(e.dataset.query)")


def count(browser):
    return browser.run("document.getElementById('count').textContent")


def change(browser, **fields):
    """Fill in the form as a user does, and wait until the result is drawn."""
    before = browser.run("document.body.dataset.ready")
    for name, value in fields.items():
        browser.run(f"document.forms[0].elements.{name}.value = {json.dumps(value)}")
    browser.run(f"document.forms[0].elements.{name}.dispatchEvent(new Event('input', {{ bubbles: true }}))")
    browser.wait(f"document.body.dataset.ready !== {json.dumps(before)}")


def open_page(browser, site, page):
    browser.errors.clear()
    name, _, fragment = page.partition("#")
    browser.open(site.path / name, READY, fragment)


@pytest.mark.parametrize("page", ["index.html", "images.html#beside=0&sort=gain", "captions.html"])
def test_pages_fit_a_telephone_and_every_control_has_a_name(browser, site, page):
    open_page(browser, site, page)
    assert browser.fits(390)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    asked = {"link", "button", "combobox", "searchbox", "spinbutton", "article", "region", "image", "textbox"}
    found = [node for node in nodes if node.get("role", {}).get("value") in asked and not node["ignored"]]
    assert len(found) > 15 and all(node.get("name", {}).get("value", "").strip() for node in found)
    assert browser.errors == []


def test_query_shows_the_best_candidates(browser, site):
    open_page(browser, site, "images.html#query=5")
    sims, own = site.sims[-1][5], range(25, 30)
    order = sorted(range(300), key=lambda c: (-sims[c], c in own, c))
    assert browser.each(".found a")[:10] == [site.texts[c] for c in order[:10]]
    marked = browser.each(".found .own .place", "parseInt(e.firstChild.textContent.slice(2))")
    assert marked == sorted(order.index(c) + 1 for c in own)
    assert str(site.ranks[-1][0][5]) in browser.run("document.querySelector('.rank').textContent")
    open_page(browser, site, "captions.html#query=40")
    order = sorted(range(60), key=lambda i: (-site.sims[-1][i, 40], i == 8, i))
    hrefs = browser.each(".found a", "e.getAttribute('href')")
    assert hrefs[:10] == [f"images.html#query={i}" for i in order[:10]]
    browser.wait("[...document.images].every(i => i.complete && i.naturalWidth)")
    pictures = browser.each(".query img", "e.getAttribute('src')")
    assert pictures[:10] == [f"thumbs/{i}.{'jpg' if i < 30 else 'svg'}" for i in order[:10]]


def test_captions_are_text_never_markup(browser, site):
    open_page(browser, site, "captions.html#query=7")
    assert browser.run("document.querySelector('.query h2').firstChild.textContent") == NASTY
    open_page(browser, site, "images.html#query=1")
    assert NASTY in browser.each(".found a")
    assert browser.run("document.querySelectorAll('img[onerror], main script').length") == 0 and not browser.errors


def test_filters_filter(browser, site):
    ranks = site.ranks[-1][1]
    open_page(browser, site, "captions.html")
    assert shown(browser) == list(range(20))
    change(browser, rank="1-1")
    assert shown(browser) == np.flatnonzero(ranks == 1)[:20].tolist()
    change(browser, rank="11-")
    assert shown(browser) == np.flatnonzero(ranks >= 11)[:20].tolist()
    change(browser, rank="", words="RED do")  # whole words, any case: nothing has the word 'do'
    assert shown(browser) == []
    change(browser, words="RED do*")
    want = [c for c, text in enumerate(site.texts) if "red" in text.split() and "dog" in text.split()]
    assert want and shown(browser) == want[:20] and count(browser).split()[:3:2] == [str(len(want)), "300"]
    change(browser, words="", to="3")  # 'a red dog .'
    assert len(shown(browser)) == 20 and all(c % 5 == 0 for c in shown(browser))
    change(browser, to="", sort="worst")
    assert [ranks[c] for c in shown(browser)] == sorted(ranks.tolist(), reverse=True)[:20]
    browser.run("document.querySelector('.filters a').click()")
    browser.wait("document.querySelector('.query')?.dataset.query == 0")
    assert browser.run("location.hash") in ("", "#") and browser.errors == []


def test_models_side_by_side_by_gain_and_loss(browser, site):
    gain = site.ranks[0][0] - site.ranks[2][0]
    open_page(browser, site, "images.html#beside=0&sort=gain")
    assert shown(browser) == np.argsort(-gain, kind="stable")[:20].tolist()
    heads = browser.each(".query:first-child h3")
    first = int(np.argmax(gain))
    assert heads == [f"ensemblerank {site.ranks[2][0][first]}", f"arank {site.ranks[0][0][first]}"]
    change(browser, sort="loss")
    assert shown(browser) == np.argsort(gain, kind="stable")[:20].tolist()


def test_links_of_the_first_page_lead_to_as_many_queries_as_they_say(browser, site):
    open_page(browser, site, "index.html")
    changes = browser.each('a[href*="change="]', "[e.getAttribute('href'), e.textContent]")
    assert len(changes) == 2 * 2 * 3 and changes[0][1] == str(sum(site.ranks[0][0] > site.ranks[2][0]))
    for href, number in changes[::4]:
        open_page(browser, site, href)
        assert count(browser).split()[0] == number, href


def test_pages_of_queries(browser, site):
    open_page(browser, site, "images.html")
    browser.run("document.querySelector('[data-step=\"1\"]').click()")
    browser.wait("document.querySelector('.query')?.dataset.query == 20")
    assert browser.run("location.hash") == "#page=2"
    browser.run("history.back()")
    browser.wait("document.querySelector('.query')?.dataset.query == 0")
    assert browser.errors == []
