"""The live page in a browser, from disk: the answers are the model's, deadlines are kept as the run-time keeps them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

pytest.importorskip("onnxscript")
pytest.importorskip("playwright", reason="no playwright, which drives the browser: pip install playwright")

from playwright import sync_api

import anytime
from anytime.combine import Caching, Combiner, Geometric, Last, Mixture, Product, Temperature
from anytime.export.html.examples import Accuracies, Examples
from anytime.export.html.page import LivePage, write_page
from anytime.export.html.web_engine import kept_engine
from anytime.runtime.plan import Plan
from anytime.runtime.profile import BatchProfile, Latency, Profile
from anytime.stopping import Confidence, Fitted, save_rule
from anytime.stopping.rules import ConfidenceBands, Entropy, Margin, Patience, Rule, SelectionLatency
from anytime.support.views import middle_view, to_channels

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ENGINE = kept_engine()
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path: apt-get install chromium"),
    pytest.mark.skipif(ENGINE is None, reason="no onnxruntime-web: anytime export fast_cifar10 --html page.html --download"),
]
HOSTILE = "<img src=x onerror=document.title='hit'></script>{{facts}}"
NAMES = (HOSTILE, "", *"cdefghij")


@pytest.fixture(scope="module")
def model() -> anytime.AnytimeModel:
    torch.manual_seed(0)
    model = anytime.create_model("fast_views", 10, widths=(8, 16), head_widths=(4,), views=2, scale=3.0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_((tensor + 0.1 * torch.rand_like(tensor)).half().float())
    model.info.input_size, model.info.class_names = (3, 32, 32), NAMES
    save_rule(model, "first", Fitted(Confidence(0.0)))
    return model.eval()


@pytest.fixture(scope="module")
def examples() -> Examples:
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Examples(images, [*range(10)])


@pytest.fixture(scope="module")
def written(model: anytime.AnytimeModel, examples: Examples, tmp_path_factory: Any) -> tuple[Path, LivePage]:
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert ENGINE is not None
    return path, write_page(model, path, ENGINE, HOSTILE, examples, Accuracies([0.5, 0.6, 0.7], "Measured."))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Any, written: tuple[Path, LivePage]) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    page.set_default_timeout(60_000)
    page.seen, page.wrong = [], []
    page.on("request", lambda request: page.seen.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto(written[0].as_uri())
    page.evaluate("live.then(() => {})")
    yield page
    assert page.wrong == []
    assert [url for url in page.seen if not url.startswith(("blob:", "data:"))] == [written[0].as_uri()]


def _expected(model: anytime.AnytimeModel, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(image).softmax(2)[:, 0]


def test_probabilities_of_every_step_are_the_models(page: Any, model: Any, examples: Examples, written: Any) -> None:
    script = "live.then(async p => { const all = []; for (const { picture } of p.examples) all.push((await p.choose(picture))"
    answers = torch.tensor(page.evaluate(script + ".probabilities); return all; })"))
    expected = torch.stack([_expected(model, image[None]) for image in examples.images.float().div(255)])
    assert answers.shape == expected.shape == (10, 3, 10)
    assert (answers - expected).abs().max() <= 1e-5
    assert written[1].difference <= 1e-5
    assert expected.amax() > 0.3  # no answers that are equal whatever is computed


def test_words_and_dots_follow_the_bars_of_a_new_picture(page: Any) -> None:
    page.emulate_media(reduced_motion="no-preference")
    script = """live.then(async p => {
        const seen = [], present = p.present;
        p.answer = () => ({ step: 3, late: 0, probabilities: p.shown.probabilities[2] });
        p.present = function (...given) {
            present.apply(this, given);
            const done = document.querySelectorAll("#steps .done").length, sure = document.getElementById("sure").textContent;
            seen.push([given[0], done, sure === percent(Math.max(...p.shown.probabilities[done - 1]))]);
        };
        await p.choose(p.examples[1].picture, 1, "second");
        await new Promise(done => setTimeout(done, 1200));
        delete p.answer;
        delete p.present;
        return seen;
    })"""
    assert page.evaluate(script) == [[1, 1, True], [2, 2, True], [3, 3, True]]
    page.emulate_media(reduced_motion="reduce")


def test_the_page_has_the_colours_that_its_address_asks_for(page: Any) -> None:
    colours = set()
    for asked in ("dark", "light"):
        page.evaluate("asked => location.replace(`#${asked}`)", asked)
        page.wait_for_function("asked => document.documentElement.style.colorScheme === asked", arg=asked)
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    page.evaluate("location.replace('#')")


def test_names_are_text_and_nothing_leaves_the_page(page: Any) -> None:
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("#bars .name").first.inner_text() == HOSTILE
    assert page.locator("#bars .name").nth(1).inner_text() == "class 1"
    assert page.locator("img").count() == 0
    assert page.title().startswith(HOSTILE)
    refused = "fetch('https://example.com').then(() => 'sent', () => 'refused')"
    assert page.evaluate(refused) == "refused"
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_slider_shows_the_answer_that_was_ready(page: Any) -> None:
    script = """live.then(p => {
        p.network.profile = [[2, 3, 2], [4, 5, 6], [1, 2, 7]].map(([p50, p90, reached]) => ({ p50, p90, reached }));
        p.deadlines = shortestDeadlines(p.network.profile);
        Object.assign(p.shown, { milliseconds: [2, 4.5, 1], ratio: 1 });
        p.combine();
        p.show();
    })"""
    page.evaluate(script)
    assert page.evaluate("live.then(p => p.deadlines)") == [3, 7, 8]
    for deadline, said, accuracy in (
        (2.9, "the first step does not fit", "none"),
        (3.0, "step 1 of 3, ready after 2.0 ms", "50.00 %"),
        (7.1, "step 2 of 3, ready after 6.5 ms", "60.00 %"),
        (8.4, "step 2 of 3, ready after 6.5 ms", "70.00 %"),  # of this picture the second step took longer than the median
        (8.6, "step 3 of 3, ready after 7.5 ms", "70.00 %"),
    ):
        script = """d => {
            const slider = document.getElementById("deadline");
            Object.assign(slider, { step: "any", value: d });
            slider.dispatchEvent(new Event("input"));
        }"""
        page.evaluate(script, deadline)
        assert page.locator("#when").inner_text() == said
        assert page.locator("#share").inner_text() == accuracy
        answer = {"none": "before the first answer", "50.00 %": "answer 1", "60.00 %": "answer 2"}
        assert page.locator("#of").inner_text() == f"({answer.get(accuracy, 'answer 3')})"
    page.select_option("#rule", label="first")
    assert page.locator("#when").inner_text() == "step 1 of 3, ready after 2.0 ms; the rule stopped there"
    assert page.locator("#of").inner_text() == "(answer 3, without the rule)"
    page.select_option("#rule", label="off")


def test_deadlines_are_kept_as_in_the_runtime(page: Any) -> None:
    draws, cases, expected = np.random.default_rng(0), [], []
    for _ in range(200):
        p50 = draws.uniform(1, 4, 5)
        p90, took = p50 * draws.uniform(1, 1.5, 5), p50 * draws.uniform(0.5, 2.5, 5)
        ratio, deadline = float(draws.uniform(0.5, 2)), float(draws.uniform(0, 40))
        profile = [{"p50": a, "p90": b, "reached": 0} for a, b in zip(p50.tolist(), p90.tolist(), strict=True)]
        cases.append([profile, ratio, took.tolist(), deadline])
        expected.append(_kept(p50, p90, ratio, took, deadline))
    kept = page.evaluate("cases => cases.map(c => keeping(...c)).map(k => [k.step, k.late > 0])", cases)
    assert [tuple(each) for each in kept] == expected
    assert {step for step, _ in expected} == {*range(6)}
    assert any(late for _, late in expected)


def _kept(p50: Any, p90: Any, ratio: float, took: Any, deadline: float) -> tuple[int, bool]:
    """The step whose answer is there, and whether the next came too late, by the run-time's own plan."""
    rows = tuple(Latency(30, float(a), float(b), float(b), float(b), float(b)) for a, b in zip(p50, p90, strict=True))
    profile = Profile("", (1, 1, 1), {}, {1: BatchProfile(rows, rows)}, (0,) * 5, (0,) * 5)
    now = 0.0
    plan = Plan(profile, "p90", lambda: now)
    plan.drift.ratio, plan.drift.slowdown = ratio, max(1.0, ratio - 0.1)
    for step in range(5):
        if not plan.fits(step, 1, deadline):
            return step, False
        now += float(took[step])
        plan.drift.notice(rows[step].p50, float(took[step]))
        if now > deadline:
            return step, True
    return 5, False


COMBINERS: list[Combiner] = [
    *(
        Last(),
        Caching(),
        Product(),
        Product((1.0, 2.0, 3.0)),
        Mixture((1.0, 2.0, 4.0)),
        Temperature((2.0, 1.0, 0.5), Caching()),
    ),
    Geometric(((1.0,), (0.5, 1.0), (0.1, 0.2, 0.7)), ((1.0,) * 10, (0.5,) * 10, (2.0,) * 10)),
]
RULES: list[Rule] = [
    *(Confidence(0.5), Confidence((0.3, 0.9, 0.0)), Confidence(float("inf")), Margin(0.2), Entropy(1.5), Patience(2)),
    *(SelectionLatency(0.3, 2), ConfidenceBands((((0.2, 0.4), (0.9, float("inf"))), (), ()))),
    *(Confidence(0.6) | Patience(2), Margin(0.1) & Patience(2)),
]


def test_rules_and_combiners_are_those_of_the_library(page: Any) -> None:
    logits = 2 * torch.randn(3, 60, 10, generator=torch.Generator().manual_seed(2))
    pairs = [(combine, Confidence(0.5)) for combine in COMBINERS] + [(Last(), rule) for rule in RULES]
    facts = [{"combine": combine.to_dict(), "stop": rule.to_dict()} for combine, rule in pairs]
    made = page.evaluate(
        "([logits, pairs]) => pairs.map(pair => logits.map(z => combined(z, pair, 3)))",
        [logits.transpose(0, 1).tolist(), facts],
    )
    trace = anytime.Trace(
        logits, torch.zeros(60, dtype=torch.int64), torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]), None, NAMES
    )
    for (combine, rule), answers in zip(pairs, made, strict=True):
        probabilities = combine(logits)
        own = torch.tensor([answer["probabilities"] for answer in answers]).transpose(0, 1)
        assert (own - probabilities).abs().max() <= 1e-5, combine
        stopped = torch.tensor([answer["stopped"] or 3 for answer in answers]) - 1
        assert torch.equal(stopped, rule.stops(trace, probabilities)), rule


@pytest.mark.parametrize(("ratio", "stretched"), [(1.0, False), (1.15, False), (1.0, True)])
def test_pictures_are_prepared_as_in_python(page: Any, ratio: float, stretched: bool) -> None:
    sizes = [(97, 41, 3, (32, 32)), (20, 31, 1, (28, 24)), (32, 32, 3, (32, 32)), (700, 40, 1, (16, 20))]
    script = """([w, h, c, s, ratio, stretched]) => {
        const rgba = Array.from({ length: 4 * w * h }, (_, i) => (i % 4 === 3 ? 255 : (i * (i % 97) + 13) % 256));
        return Array.from(middleView(opaque(rgba, w, h, c), [c, ...s], ratio, stretched).data);
    }"""
    for width, height, channels, size in sizes:
        places = np.arange(4 * width * height)
        values = ((places * (places % 97) + 13) % 256).astype(np.uint8).reshape(height, width, 4)[..., :3]
        view = middle_view(to_channels(Image.fromarray(values), channels), size, ratio, stretched)
        made = np.array(page.evaluate(script, [width, height, channels, size, ratio, stretched]))
        assert np.abs(made - np.asarray(view, dtype=int).ravel()).max() <= (int(PIL.__version__.split(".")[0]) < 13)


def test_a_photo_is_chosen_or_dropped(page: Any, model: Any, tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_image

    photo = tmp_path / "flower.png"
    Image.fromarray(load_sample_image("flower.jpg")).save(photo)
    expected = _expected(model, model.prepare(Image.open(photo)))
    for _ in range(2):  # the same file can be chosen again
        page.evaluate("document.getElementById('caption').textContent = ''")
        page.set_input_files("#file", photo)
        page.wait_for_function("() => document.getElementById('caption').textContent === 'flower.png'")
    answers = torch.tensor(page.evaluate("live.then(p => p.shown.probabilities)"))
    assert (answers - expected).abs().max() <= 1e-5

    small = tmp_path / "small.png"
    Image.open(photo).resize((64, 48)).save(small)
    _drop(page, "small.png", small.read_bytes())
    page.wait_for_function("() => document.getElementById('caption').textContent === 'small.png'")
    answers = torch.tensor(page.evaluate("live.then(p => p.shown.probabilities)"))
    assert (answers - _expected(model, model.prepare(Image.open(small)))).abs().max() <= 1e-5
    _drop(page, "notes.txt", b"no picture")
    page.wait_for_selector("#problem")
    said = "“notes.txt” is no picture that this browser can read: choose a PNG, JPEG or WebP file."
    assert page.locator("#problem").inner_text() == said


def _drop(page: Any, name: str, data: bytes) -> None:
    made = page.evaluate_handle(
        "([name, data]) => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(data)], name)); return t; }",
        [name, [*data]],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": made})


def test_keys_reach_everything(page: Any) -> None:
    page.focus("#examples input:first-child")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.getElementById('caption').textContent === 'Test image: class 1'")
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["file", "camera", "rule", "play", "deadline"]
    page.keyboard.press("Home")
    said = page.locator("#deadline").get_attribute("aria-valuetext")
    assert said == "0.0 ms: no answer yet"
    page.keyboard.press("End")
    assert "step 3 of 3" in page.locator("#deadline").get_attribute("aria-valuetext")
    page.wait_for_function("() => document.getElementById('spoken').textContent.includes('step 3 of 3')")


def test_the_camera_answers_by_the_deadline_or_says_why_not(page: Any) -> None:
    page.click("#camera")
    page.wait_for_function("() => /Camera: ([2-9]|\\d\\d+) frames/.test(document.getElementById('caption').textContent)")
    assert page.locator("#camera").inner_text() == "Stop the camera"
    page.click("#camera")
    assert page.locator("#camera").inner_text() == "Use the camera"
    page.wait_for_function("() => document.getElementById('caption').textContent === \"The camera's last picture\"")
    page.wait_for_function("() => document.querySelectorAll('#rows tr').length === 3")  # all steps, whatever the deadline was
    for error, said in (
        ("NotAllowedError", "The camera was refused: allow it for this page in the browser's address bar, or choose a photo."),
        ("NotFoundError", "There is no camera here: choose a photo."),
        ("NotReadableError", "The camera is in use by another program: close that one, or choose a photo."),
    ):
        page.evaluate("name => navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name))", error)
        page.click("#camera")
        page.wait_for_function("text => document.getElementById('problem').textContent === text", arg=said)


def test_a_browser_without_simd_is_told(browser: Any, written: tuple[Path, LivePage]) -> None:
    page = browser.new_page()
    page.add_init_script("WebAssembly.validate = () => false")
    page.goto(written[0].as_uri())
    said = page.locator("#problem").inner_text()
    assert said.startswith("This browser has no WebAssembly with SIMD")
    assert said.endswith("Chrome, Edge or Safari.")
    page.close()
