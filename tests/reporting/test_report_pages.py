"""The pages of the retrieval report in a browser: what they show, filter and name, and how they look."""

import json
import re
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
from browser import open_browser
from tiny import make_tiny, random_sims, shared, write_report

import evaluation
from data import PrecompDataset
from reporting import candidates, pages
from vocab import load_vocab

READY = "!document.body.dataset.kind || document.body.dataset.ready"
NASTY = '<img src=x onerror="boom()"> & </script><script>boom()</script> “quoted” naïve'


@pytest.fixture(scope="module")
def browser():
    with open_browser() as one:
        yield one


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A report of 60 images and two models with their ensemble; half of the images are there."""
    from PIL import Image

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
    return SimpleNamespace(
        path=root / "site",
        texts=lines,
        sims=sims,
        ranks=[[r + 1 for r, _ in evaluation.metrics(one)["ranks"]] for one in sims],
    )


def shown(browser):
    """Numbers of the queries on the page."""
    return browser.run("[...document.querySelectorAll('.query')].map(q => Number(q.dataset.query))")


def change(browser, **fields):
    """Fill in the form as a user does, and wait until the result is drawn."""
    before = browser.run("document.body.dataset.ready")
    for name, value in fields.items():
        browser.run(f"document.forms[0].elements.{name}.value = {json.dumps(value)}")
    browser.run(f"document.forms[0].elements.{name}.dispatchEvent(new Event('input', {{ bubbles: true }}))")
    browser.wait(f"document.body.dataset.ready !== {json.dumps(before)}")


def open_page(browser, site, page):
    browser.errors.clear()
    browser.screen()
    browser.open((site.path / page.partition("#")[0]).as_uri() + "#" + page.partition("#")[2], READY)


def test_pages_load_without_errors_and_are_not_blank(browser, site, tmp_path):
    from PIL import Image

    for page in ("index.html", "images.html#beside=0&sort=gain", "captions.html"):
        open_page(browser, site, page)
        for look in ({}, {"dark": True}, {"width": 390, "height": 844, "phone": True}):
            browser.screen(**look)
            assert browser.run("document.documentElement.scrollWidth") <= look.get("width", 1280), (page, look)
            browser.screenshot(tmp_path / "shot.png")
            with Image.open(tmp_path / "shot.png") as shot:
                colours = shot.convert("RGB").getcolors(1 << 24)  # [(number of pixels, colour)]
                background = sum(max(colours, key=lambda c: c[0])[1]) / 3
            assert len(colours) > 100 and (background < 60) == look.get("dark", False)
            assert browser.errors == [], page


def test_query_shows_the_best_candidates(browser, site):
    open_page(browser, site, "images.html#query=5")
    sims, own = site.sims[-1][5], range(25, 30)
    order = sorted(range(300), key=lambda c: (-sims[c], c in own, c))
    texts = browser.run("[...document.querySelectorAll('.found a')].map(a => a.textContent)")
    assert texts[:10] == [site.texts[c] for c in order[:10]]
    marked = browser.run("[...document.querySelectorAll('.found .own .place')].map(p => p.firstChild.textContent)")
    assert marked == [f"✓ {place}" for place in sorted(order.index(c) + 1 for c in own)]
    assert browser.run("document.querySelector('.rank').textContent") == f"rank {site.ranks[-1][0][5]}"
    open_page(browser, site, "captions.html#query=40")
    order = sorted(range(60), key=lambda i: (-site.sims[-1][i, 40], i == 8, i))
    hrefs = browser.run("[...document.querySelectorAll('.found a')].map(a => a.getAttribute('href'))")
    assert hrefs[:10] == [f"images.html#query={i}" for i in order[:10]]
    browser.wait("[...document.images].every(i => i.complete && i.naturalWidth)")
    browser.wait("document.querySelectorAll('.regions path').length == document.querySelectorAll('.regions').length")
    assert browser.run("document.querySelectorAll('.query img').length") == sum(i < 30 for i in {*order[:10], 8})


def test_captions_are_text_never_markup(browser, site):
    open_page(browser, site, "captions.html#query=7")
    assert browser.run("document.querySelector('.query h2').firstChild.textContent") == NASTY
    open_page(browser, site, "images.html#query=1")
    assert NASTY in browser.run("[...document.querySelectorAll('.found a')].map(a => a.textContent)")
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
    assert want and shown(browser) == want[:20]
    assert browser.run("document.getElementById('count').textContent") == f"{len(want)} of 300 captions"
    change(browser, words="", to="3")  # 'a red dog .'
    assert {site.texts[c] for c in shown(browser)} <= {t for t in site.texts if re.fullmatch(r"a \w+ \w+ \.", t)}
    change(browser, to="", sort="worst")
    assert [ranks[c] for c in shown(browser)] == sorted(ranks.tolist(), reverse=True)[:20]
    change(browser, sort="best", words="nothing is like this")
    assert shown(browser) == [] and "nothing fits" in browser.run("document.getElementById('count').textContent")
    browser.run("document.querySelector('button[type=reset]').click()")
    browser.wait("document.querySelectorAll('.query').length == 20")
    assert browser.run("location.hash") in ("", "#") and browser.errors == []


def test_models_side_by_side_by_gain_and_loss(browser, site):
    gain = site.ranks[0][0] - site.ranks[2][0]
    open_page(browser, site, "images.html#beside=0&sort=gain")
    assert shown(browser) == np.argsort(-gain, kind="stable")[:20].tolist()
    heads = browser.run("[...document.querySelector('.query').querySelectorAll('h3')].map(h => h.textContent)")
    first = int(np.argmax(gain))
    assert heads == [f"ensemblerank {site.ranks[2][0][first]}", f"arank {site.ranks[0][0][first]}"]
    change(browser, sort="loss")
    assert shown(browser) == np.argsort(gain, kind="stable")[:20].tolist()
    open_page(browser, site, "index.html")
    links = browser.run(
        "[...document.querySelectorAll('a[href*=\"change=\"]')].map(a => [a.getAttribute('href'), a.textContent])"
    )
    assert len(links) == 2 * 2 * 3 and links[0] == ["images.html#beside=0&change=better&sort=gain", str(sum(gain > 0))]
    for href, number in links:
        open_page(browser, site, href)
        assert browser.run("document.getElementById('count').textContent").split()[0] == number, href
    change(browser, beside="")
    assert len(shown(browser)) == 20 and browser.run("document.forms[0].elements.change.disabled")


def test_bars_lead_to_their_queries(browser, site):
    open_page(browser, site, "index.html")
    links = browser.run("[...document.querySelectorAll('.bar')].map(a => [a.href.split('/').pop(), a.innerText])")
    labels = browser.run("[...document.querySelectorAll('.bars th[scope=row]')].map(th => th.innerText)")
    most = max(ranks[0].max() for ranks in site.ranks)  # 60 images have 300 captions
    assert 51 <= most <= 100, "the random scores of this test"
    assert labels == ["1", "2–5", "6–10", "11–50", "51–100", "1", "2–5", "6–10", "11–50", "51–60"]
    assert len(links) == 3 * len(labels)
    for href, number in links[::4]:
        open_page(browser, site, href)
        assert browser.run("document.getElementById('count').textContent").split()[0] == number, href


def test_keys_and_pages(browser, site):
    open_page(browser, site, "images.html")
    at = "Number(document.activeElement.dataset.query)"
    browser.press("ArrowRight")
    assert browser.run(at) == 0
    browser.press("ArrowRight")
    assert browser.run(at) == 1
    browser.press("ArrowLeft")
    assert browser.run(at) == 0
    for _ in range(20):
        browser.press("ArrowRight")
        browser.wait("document.activeElement.matches('.query')")
    browser.wait(f"{at} == 20")
    assert browser.run("location.hash") == "#page=2"
    browser.press("ArrowLeft")
    browser.wait(f"{at} == 19")
    browser.run("document.forms[0].elements.words.focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement.name") == "words"  # the field keeps its arrows
    browser.run("document.querySelector('[data-step=\"1\"]').click()")
    browser.wait("document.querySelector('.query')?.dataset.query == 20")
    browser.run("history.back()")
    browser.wait("document.querySelector('.query')?.dataset.query == 0")
    assert browser.errors == []


def test_everything_has_a_name(browser, site):
    """Every control and region has a name for assistive technology."""
    for page in ("index.html", "images.html#beside=0", "captions.html"):
        open_page(browser, site, page)
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        asked = {"link", "button", "combobox", "searchbox", "spinbutton", "article", "region", "image", "textbox"}
        found = [node for node in nodes if node.get("role", {}).get("value") in asked and not node["ignored"]]
        assert len(found) > 20
        assert [node["role"]["value"] for node in found if not node.get("name", {}).get("value", "").strip()] == []


def test_tables_are_copied_as_markdown_latex_and_csv(browser, site):
    """What the buttons copy holds the figures of the page; the best of a column is bold."""
    open_page(browser, site, "index.html")
    figures = [evaluation.metrics(one) for one in site.sims]
    best = max(f"{m['rsum']:.1f}" for m in figures)
    for button in ("Markdown", "LaTeX", "CSV"):
        browser.run("navigator.clipboard.writeText = async text => { window.copied = text; }")
        browser.run(f"[...document.querySelectorAll('.copy button')].find(b => b.innerText == '{button}').click()")
        browser.wait(f"document.querySelector('.copy [role=status]').textContent == '{button} copied'")
        text = browser.run("window.copied").splitlines()
        if button == "Markdown":
            assert text[0].startswith("| Model | rsum | Image to text Average | Image to text R@1 |")
            assert text[1] == "| --- |" + " ---: |" * 13 and len(text) == 5
            assert f"**{best}**" in text[2] + text[3] + text[4]
        elif button == "LaTeX":
            assert text[:3] == [
                r"\begin{tabular}{lrrrrrrrrrrrrr}",
                r"\toprule",
                r" &  & \multicolumn{6}{c}{Image to text} & \multicolumn{6}{c}{Text to image} \\",
            ]
            assert text[3].startswith("Model & rsum & Average & R@1") and text[-1] == r"\end{tabular}"
            assert rf"\textbf{{{best}}}" in "".join(text)
        else:
            rows = [line.split(",") for line in text]
            assert rows[0][:3] == ["Model", "rsum", "Image to text Average"] and len(rows) == 4
            assert [row[:2] for row in rows[1:]] == [
                [name, f"{m['rsum']:.1f}"] for name, m in zip(("a", "b", "ensemble"), figures)
            ]
    assert browser.errors == []


def test_best_of_each_column_is_bold(browser, site):
    open_page(browser, site, "index.html")
    rows = browser.run(
        "[...document.querySelector('table.metrics').tBodies[0].rows].map(row => [...row.cells].slice(1)"
        ".map(cell => [Number(cell.innerText), getComputedStyle(cell).fontWeight == '700']))"
    )
    for column in zip(*rows):
        bold = {value for value, is_bold in column if is_bold}
        assert len(bold) == 1 and bold <= {min(column)[0], max(column)[0]}
    recalls = np.array([[value for value, _ in row] for row in rows])[:, 0]
    assert [bool(row[0][1]) for row in rows] == (recalls == recalls.max()).tolist()
    ranks = np.array([row[6][0] for row in rows])  # mean rank, image to text
    assert [bool(row[6][1]) for row in rows] == (ranks == ranks.min()).tolist()


def test_tiles_without_a_picture_show_words(browser, site):
    open_page(browser, site, "captions.html#query=200")
    browser.wait("document.querySelectorAll('.regions .words').length == document.querySelectorAll('.regions').length")
    browser.wait(
        "[...document.querySelectorAll('.words')].every(w => w.innerText)"
    )  # drawn: content-visibility is auto
    words = browser.run(
        "[...document.querySelectorAll('.pictures a')].filter(a => a.querySelector('.words'))"
        ".map(a => [a.getAttribute('href').split('=')[1], a.innerText])"
    )
    assert words and all(text == site.texts[5 * int(image)] for image, text in words)


def test_curve_shows_its_values(browser, site):
    open_page(browser, site, "index.html")
    browser.run("document.querySelector('.chart svg').scrollIntoView({ block: 'center', behavior: 'instant' })")
    box = browser.run("document.querySelector('.chart svg').getBoundingClientRect().toJSON()")
    middle = box["left"] + box["width"] * (40 + 340 / 2) / 400  # of the logarithmic axis: K = 10
    browser.point(middle, box["top"] + box["height"] / 2)
    text = browser.run("document.querySelector('.readout').textContent")
    values = [evaluation.metrics(one)["r10"] for one in site.sims]
    assert text == "K = 10: " + ", ".join(f"{n} {v:.1f}" for n, v in zip(("a", "b", "ensemble"), values)) + " %"


def test_real_photographs_and_captions(browser, tmp_path, capsys):
    real = shared("real")
    tiny = SimpleNamespace(vocab_path=real / "vocab", data_name="flickr8k_precomp", data_path=real)
    vocab = load_vocab(tiny.vocab_path, tiny.data_name)
    dataset = PrecompDataset("dev", tiny.data_name, vocab, Namespace(data_path=real, img_dim=256))
    sims = random_sims(1000)
    one = pages.Report(tmp_path / "site", real / "flickr8k_images", "dev")
    one.add({"model": "m", "full": evaluation.metrics(sims)}, {"full": [sims]}, dataset, tiny.data_name)
    one.write()
    assert "800 of 1000 images are not there" in capsys.readouterr().err
    site = SimpleNamespace(path=tmp_path / "site")
    open_page(browser, site, "captions.html#words=two+dog*&sort=best")
    assert len(shown(browser)) == 20 and browser.errors == []
    start = browser.processor_time()
    change(browser, words="dog")
    assert browser.processor_time() - start < 5 and len(shown(browser)) == 20


# ---- a split of COCO's size


FILTER = """(async (name, value) => {
  const before = document.body.dataset.ready, field = document.forms[0].elements[name];
  field.value = value;
  field.dispatchEvent(new Event('input', { bubbles: true }));
  while (document.body.dataset.ready === before) await new Promise(resolve => setTimeout(resolve, 5));
  await new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)));
})"""


def random_candidates(rng, queries, n, own):
    ids, scores = rng.integers(n, size=(queries, 10)), -np.sort(-rng.random((queries, 10)))
    positions = np.sort(rng.integers(1, n, size=(queries, own)))
    return candidates.Found(ids, scores, positions, rng.random((queries, own)), positions[:, 0])


@pytest.fixture(scope="module")
def coco_site(tmp_path_factory):
    """A report of 5,000 images, 36 regions each, and 25,000 captions, for two models and their ensemble."""
    n, rng, words = 5000, np.random.default_rng(0), "a man two dogs riding on the beach with red surfboard near".split()
    dataset = SimpleNamespace(n_images=n, split="testall", folder=tmp_path_factory.mktemp("no_names"))
    dataset.captions = [" ".join(row) for row in rng.choice(words, size=(5 * n, 11)).tolist()]
    dataset.boxes, dataset.sizes = np.sort(rng.random((n, 36, 4)).astype(np.float32)), np.tile((640, 480), (n, 1))
    site = pages.Report(tmp_path_factory.mktemp("coco") / "site", split="testall")
    figures = {"model": "", "full": evaluation.metrics(random_sims(5))}
    with pytest.MonkeyPatch.context() as patch:
        kinds = {"images": (n, 5 * n, 5), "captions": (5 * n, n, 1)}
        patch.setattr(pages, "both_ways", lambda *_: {k: random_candidates(rng, *sizes) for k, sizes in kinds.items()})
        for path in ("a/m", "b/m", "ensemble"):
            site.add({**figures, "model": path}, {"full": [np.empty((n, 5 * n), np.float32)]}, Sized(dataset), "coco")
        site.write()
    return SimpleNamespace(path=site.folder)


class Sized:
    """A data set of five captions for each image."""

    def __init__(self, dataset):
        self.__dict__.update(vars(dataset))

    def __len__(self):
        return 5 * self.n_images


@pytest.mark.parametrize("page", ["index.html", "images.html", "captions.html"])
def test_a_report_of_cocos_size_answers_within_two_seconds(browser, coco_site, page):
    start = browser.processor_time()
    open_page(browser, coco_site, page)
    end = browser.processor_time()
    assert 0 < (end - start if end > start else end) < 2  # a new process of the browser's starts at 0
    if page != "index.html":
        fields = {"sort": "worst", "rank": "11-", "words": "two dog*", "from": "9", "beside": "0", "change": "better"}
        for name, value in fields.items():
            start = browser.processor_time()
            browser.run(f"{FILTER}({json.dumps(name)}, {json.dumps(value)})")
            assert 0 < browser.processor_time() - start < 2, name
    assert browser.errors == []
