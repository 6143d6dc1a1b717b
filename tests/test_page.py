"""The page opens from disk, runs only its own script, asks no network, and shows what a model wrote as text."""

import base64
import csv
import gzip
import io
import json
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.report import samples as samples_module
from evalkit.report.analysis import analyse
from evalkit.report.build import build
from evalkit.report.drawing import Drawing
from evalkit.report.figures import all_drawings
from evalkit.report.inline import inline_svg
from evalkit.report.load import load_runs
from evalkit.report.page import json_in_html
from evalkit.report.samples import collect_samples
from evalkit.types import Prediction
from tests.report_runs import holds_to, training, write_run

K = 1024
NASTY = "<script>window.hacked = 1</script> </script><img src=x onerror='window.hacked = 2'> {{ 7 * 7 }} & \u2028 é 中"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def reply(prediction: Prediction) -> str:
    return NASTY if prediction.sample_id == "00003" else str(prediction.output)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for recipe, hold, arm in (("plain", 8 * K, "plain <b>arm</b>"), ("yarn", 64 * K, "yarn")):
        write_run(
            root / recipe, arm=arm, accuracy=holds_to(hold), samples=120, lengths=("8k", "32k"), subsets=("qa1", "qa2"),
            training=training(recipe), reply=reply,
        )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def html(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plots")
    build([results], out)
    return out / "report.html"


def test_nothing_that_a_model_wrote_stands_in_the_page_as_markup(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    assert "window.hacked" not in text
    assert "<b>arm</b>" not in text
    assert "plain &lt;b&gt;arm&lt;/b&gt;" in text
    assert text.count("<script") == text.count("</script>")


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1]
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)
    assert " style=" not in text
    assert " onclick=" not in text


def test_slices_hold_question_reply_scores_and_positions(results: Path) -> None:
    found = collect_samples(analyse(load_runs([results])))
    cell = next(c for c in found.index["cells"] if (c["subset"], c["length"]) == ("qa2", "32k"))
    content = json.loads(gzip.decompress(base64.b64decode(found.slices[cell["slices"][0]])))
    assert cell["count"] == len(content["samples"]) == 120
    assert content["samples"][3][:4] == ["00003", "qa2-00003", "Where is Mary?", "hallway"]
    text, error, finish, prompt_tokens, output_tokens, positions, needed, scores, folder = content["runs"]["0"][3]
    assert text == NASTY
    assert (error, finish, prompt_tokens, output_tokens) == (None, "stop", 32 * K - 20, 5)
    assert len(positions) == 2
    assert needed == [1]
    assert scores == [0.0, 0.0]
    assert folder == 0


def test_a_large_report_shows_the_first_samples_of_each_cell_and_says_so(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "MAX_PREDICTIONS", 400)
    found = collect_samples(analyse(load_runs([results])))
    assert {cell["count"] for cell in found.index["cells"]} == {50}
    assert "50 samples of each cell, 200 of 480" in found.notes[0]


def with_a_control(folder: Path) -> Path:
    for arm, config in (("plain", {}), ("yarn", {}), ("plain", {"control": "no-context"})):
        write_run(
            folder / f"{arm} {config.get('control', '')}".strip(), arm=arm, accuracy=holds_to(8 * K), samples=20,
            lengths=("8k",), subsets=("qa1",), config=config, fingerprint={"data.control": config.get("control")},
        )  # fmt: skip
    return folder


def test_a_control_takes_no_place_from_the_samples_of_others(tmp_path: Path) -> None:
    found = collect_samples(analyse(load_runs([with_a_control(tmp_path / "runs")])))
    content = json.loads(gzip.decompress(base64.b64decode(found.slices[0])))
    answered = {int(run): sum(row is not None for row in rows) for run, rows in content["runs"].items()}
    assert answered == {0: 20, 1: 20, 2: 20}
    assert not found.notes


def test_the_command_that_shows_a_whole_prompt_names_the_folder_for_a_shell(tmp_path: Path) -> None:
    runs = collect_samples(analyse(load_runs([with_a_control(tmp_path / "my runs")]))).index["runs"]
    assert [shlex.split(" ".join(run["folders"])) for run in runs if run["name"] == "yarn"] == [
        [f"{tmp_path}/my runs/yarn"]
    ]


def lines_in(svg: str) -> list[dict[str, str]]:
    found = re.findall(r'<g ((?:data-\w+="[^"]*" ?)+)>\s*<path d="([^"]*)"', svg)
    parts = [dict(re.findall(r'data-(\w+)="([^"]*)"', text)) | {"path": path} for text, path in found]
    return [one for one in parts if one["part"] == "line"]


@pytest.fixture(scope="module")
def inlined(results: Path) -> dict[str, tuple[Drawing, str]]:
    analysis = analyse(load_runs([results]))
    found = {}
    for drawing in all_drawings(analysis):
        if drawing.name.startswith("curve"):
            svg = io.BytesIO()
            drawing.figure().savefig(svg, format="svg")
            found[drawing.name] = drawing, inline_svg(svg.getvalue(), drawing.name).decode()
    return found


@pytest.fixture(scope="module")
def page_figures(html: Path) -> dict[str, str]:
    shown = re.findall(r'<figure id="figure-([^"]*)".*?base64,([^"]*)"', html.read_text(encoding="utf-8"), re.DOTALL)
    return {name: base64.b64decode(svg).decode() for name, svg in shown}


def test_every_line_of_a_figure_has_a_row_of_numbers_for_each_of_its_points(
    inlined: dict[str, tuple[Drawing, str]],
) -> None:
    arms = ["plain <b>arm</b>", "yarn"]
    assert set(inlined) == {"curve-babilong", "curve-babilong-subsets"}
    for drawing, svg in inlined.values():
        lines = lines_in(svg)
        assert {(one["panel"], arms[int(one["arm"])]) for one in lines} == {
            (r["panel"], r["arm"]) for r in drawing.points
        }
        for one in lines:
            own = [r for r in drawing.points if (r["panel"], r["arm"]) == (one["panel"], arms[int(one["arm"])])]
            heights = [float(y) for _, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", one["path"])]
            values = [r.get("score", r.get("difference from plain <b>arm</b>")) for r in own]
            assert [r["length"] for r in own] == ["8k", "32k"]
            assert (heights[0] - heights[1]) * (values[1] - values[0]) >= 0  # up in the figure is less in SVG
            assert len(heights) == len(own) == 2


def test_an_inlined_figure_has_no_style_and_refers_to_nothing_but_its_own_parts(
    inlined: dict[str, tuple[Drawing, str]],
) -> None:
    for name, (_, svg) in inlined.items():
        assert "style" not in svg
        assert "<metadata" not in svg
        ids = re.findall(r' id="([^"]*)"', svg)
        assert len(ids) == len(set(ids))
        assert all(one.startswith(f"{name}.") for one in ids)
        assert set(re.findall(r'(?:href="|url\()#([^")]*)', svg)) <= set(ids)


def test_in_the_dark_a_heat_map_keeps_its_colours_and_only_its_paper_is_dark(page_figures: dict[str, str]) -> None:
    for name, svg in page_figures.items():
        assert ("prefers-color-scheme: dark" in svg) == name.startswith(("heatmap", "depth"))
        assert ('data-part="line"' in svg) == name.startswith("curve")


def test_the_numbers_and_the_pdf_of_each_figure_are_in_the_page(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    files = {
        name: base64.b64decode(content)
        for name, content in re.findall(r'download="([^"]*)" href="data:[^"]*base64,([^"]*)"', text)
    }
    assert len(files) == 2 * text.count("<figure ")
    assert files["curve-babilong.pdf"] == (html.parent / "curve-babilong.pdf").read_bytes()
    rows = list(csv.DictReader(io.StringIO(files["curve-babilong.csv"].decode())))
    with (html.parent / "curves.csv").open(newline="") as file:
        curves = [r for r in csv.DictReader(file) if (r["scorer"], r["subset"]) == ("official", "avg")]
    shown = [(r["arm"], r["length"], r["score"], r["ci_low"], r["n"]) for r in rows if r["panel"] == "score"]
    assert shown == [(r["arm"], r["length"], r["score"], r["ci_low"], r["n"]) for r in curves]


def test_json_cannot_end_its_element() -> None:
    assert json_in_html({"a": "</script><!--"}) == '{"a":"\\u003c/script\\u003e\\u003c!--"}'
    assert json.loads(json_in_html({"a": NASTY})) == {"a": NASTY}


@pytest.fixture
def page(opened: Any, html: Path) -> Any:
    """The page as it is when it is opened, whatever the test before did to it."""
    opened.goto("about:blank")
    opened.goto(html.as_uri())
    return opened


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the page")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=BROWSER,
            args=list(FLAGS),
            viewport={"width": 1366, "height": 900},
        )
        page = context.new_page()
        page.complaints, page.requests = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        yield page
        context.close()


@pytest.mark.browser
def test_a_column_sorts_and_a_third_click_restores(page: Any) -> None:
    table = page.locator("#table-scores-babilong-official")
    cells = lambda: table.locator("tbody tr td:nth-child(6)").all_inner_texts()  # noqa: E731
    table.locator("thead button").first.hover()  # tables are laid out when they come near
    before = cells()
    table.locator("thead button", has_text="32K").click()
    numbers = [float(text.split()[0]) for text in cells() if text and text[0].isdigit()]
    assert numbers == sorted(numbers, reverse=True)
    assert table.locator("th[aria-sort=descending]").count() == 1
    table.locator("thead button", has_text="32K").click()
    numbers = [float(text.split()[0]) for text in cells() if text and text[0].isdigit()]
    assert numbers == sorted(numbers)
    table.locator("thead button", has_text="32K").click()
    assert cells() == before


@pytest.mark.browser
def test_a_filter_hides_other_rows(page: Any) -> None:
    table = page.locator("#table-scores-babilong-official")
    table.locator("input").fill("qa2 yarn")
    assert table.locator("tbody tr:visible").count() == 1
    table.locator("input").fill("")
    assert table.locator("tbody tr:visible").count() > 5


def listed(page: Any, text: str | re.Pattern[str]) -> None:
    page.locator("#status", has_text=text).wait_for()


def at_32k(page: Any) -> None:
    page.locator("#cell-length").select_option("32k")
    listed(page, "120 of 120 samples of qa1 at 32K")


def tick(page: Any, *arms: str) -> None:
    page.locator("#no-runs").evaluate("button => button.click()")  # the list of runs may be closed
    for arm in arms:
        page.locator("#run-list label", has_text=arm).locator("input").evaluate("box => box.click()")


@pytest.mark.browser
def test_a_score_leads_to_its_samples_and_a_sample_opens_by_keyboard(page: Any) -> None:
    table = page.locator("#table-scores-babilong-official")
    for arm in ("yarn", "plain"):
        table.locator("tbody tr", has_text=arm).filter(has_text="qa2").locator("td:nth-child(6) a").click()
        page.wait_for_url(lambda url: "arm=" not in url)
        listed(page, "120 of 120 samples of qa2 at 32K")
        assert arm in page.locator("#chosen").inner_text()
    assert page.locator("#list thead th").all_inner_texts() == [
        "Sample",
        "Question",
        "Target",
        "plain <b>arm</b>",
        "yarn",
    ]
    page.locator("#list button", has_text="00003").focus()
    page.keyboard.press("Enter")
    shown = page.locator("#sample")
    assert NASTY.split("\u2028")[0].strip() in shown.inner_text()
    assert "needed" in shown.inner_text()
    assert "finish reason: stop" in shown.inner_text()
    assert page.evaluate("document.activeElement.id") == "sample"
    assert page.evaluate("window.hacked") is None
    shown.locator("button", has_text="Next sample").click()
    assert "sample 00004" in shown.inner_text()


@pytest.mark.browser
def test_a_click_anywhere_in_a_row_opens_its_sample_beside_the_list_and_keys_go_on(page: Any) -> None:
    shown = page.locator("#sample")
    at_32k(page)
    page.locator("#list tbody tr").nth(48).locator("td").nth(3).click()
    assert "sample 00048" in shown.inner_text()
    edges = "['.wide', '#sample'].map((e) => document.querySelector(`#browser ${e}`).getBoundingClientRect())"
    found, beside = page.evaluate(f"{edges}.map(({{left, right, top, bottom}}) => ({{left, right, top, bottom}}))")
    assert found["right"] <= beside["left"]
    assert found["top"] < beside["bottom"] <= page.viewport_size["height"]
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert "sample 00050" in shown.inner_text()
    assert page.locator("#page").inner_text() == "51 to 100"
    assert page.locator("#list tr.open").inner_text().startswith("00050")
    page.keyboard.press("k")
    assert "sample 00049" in shown.inner_text()
    page.keyboard.press("Escape")
    assert shown.is_hidden()
    assert page.evaluate("document.activeElement.textContent") == "00049"


@pytest.mark.browser
def test_samples_can_be_searched_and_paged(page: Any) -> None:
    at_32k(page)
    assert page.locator("#list tbody tr").count() == 50
    page.locator("#on").click()
    assert page.locator("#page").inner_text() == "51 to 100"
    page.locator("#words").fill("window.hacked")
    listed(page, re.compile("^1 of 120"))
    page.locator("#words").fill("")
    listed(page, re.compile("^120 of 120"))


@pytest.mark.browser
def test_the_list_has_a_column_of_replies_for_each_run_and_finds_where_they_differ(page: Any) -> None:
    at_32k(page)
    page.locator("#which").select_option("differ")
    listed(page, re.compile(r"^(?!120)\d+ of 120"))
    pairs = page.locator("#list tbody tr").evaluate_all("rows => rows.map(r => [3, 4].map(i => r.cells[i].innerText))")
    assert pairs
    for a, b in pairs:
        assert {a.split()[0], b.split()[0]} == {"0", "100"}
        assert "Mary is in the" in b
    page.locator("#which").select_option("all")
    tick(page, "yarn")
    listed(page, re.compile("^120 of 120"))
    assert page.locator("#list thead th").count() == 4
    assert page.locator("#chosen").inner_text() == "yarn"
    tick(page)
    listed(page, "No run is chosen.")
    tick(page, "plain", "yarn")


@pytest.mark.browser
def test_the_address_brings_back_what_was_shown(page: Any, html: Path) -> None:
    tick(page, "yarn")
    page.locator("#scorer").select_option("corrected")
    page.locator("#which").select_option("wrong")
    page.locator("#words").fill("Mary ?&%")
    listed(page, re.compile("^0 of 120"))
    page.locator("#words").fill("Mary")
    listed(page, re.compile("^[1-9]"))
    page.locator("#list tbody tr").first.click()
    heading, address = page.locator("#sample h3").inner_text(), page.url
    other = page.context.new_page()
    other.goto(address)
    other.locator("#sample h3").wait_for()
    assert other.locator("#sample h3").inner_text() == heading
    values = other.evaluate("['scorer', 'which', 'words'].map((id) => document.getElementById(id).value)")
    assert values == ["corrected", "wrong", "Mary"]
    assert other.locator("#chosen").inner_text() == "yarn"
    other.close()
    page.locator("#scorer").select_option("official")
    page.locator("#which").select_option("all")
    page.locator("#words").fill("")
    tick(page, "plain", "yarn")


@pytest.mark.browser
@pytest.mark.parametrize(
    "fragment", ["%", "samples?%", "samples?task=%E0%A4%A", "samples?task=no&subset=such", "samples?", "samples////"]
)
def test_an_address_that_means_nothing_is_passed_over(page: Any, html: Path, fragment: str) -> None:
    other = page.context.new_page()
    errors: list[str] = []
    other.on("pageerror", lambda error: errors.append(str(error)))
    other.goto(f"{html.as_uri()}#{fragment}")
    other.evaluate(f"location.hash = {fragment + '%'!r}")
    other.locator("#samples").scroll_into_view_if_needed()
    listed(other, "120 of 120 samples of qa1 at 8K")
    other.close()
    assert errors == []


@pytest.mark.browser
def test_beside_a_run_stands_one_that_was_asked_the_same_questions(page: Any, tmp_path: Path) -> None:
    build([with_a_control(tmp_path / "runs")], tmp_path / "plots")
    other = page.context.new_page()
    other.goto((tmp_path / "plots" / "report.html").as_uri())
    chosen = other.locator("#chosen").inner_text()
    other.locator("#samples").scroll_into_view_if_needed()
    listed(other, "20 of 20 samples of qa1 at 8K")
    other.close()
    assert chosen == "plain and yarn"


@pytest.mark.browser
def test_beside_a_run_stands_one_of_the_same_training_seed(page: Any, tmp_path: Path) -> None:
    for arm, seeds in (("plain", (0, 1, 2)), ("yarn", (1, 3)), ("zero-shot", (None,))):
        for seed in seeds:
            write_run(
                tmp_path / "runs" / f"seed-{seed}" / arm, arm=arm, accuracy=holds_to(8 * K), samples=4, lengths=("8k",),
                subsets=("qa1",), training=None if seed is None else training("plain", seed=seed),
            )  # fmt: skip
    build([tmp_path / "runs"], tmp_path / "plots")
    other = page.context.new_page()
    address = (tmp_path / "plots" / "report.html").as_uri()
    for asked in ("", "#samples?task=babilong&subset=qa1&length=8k&arm=yarn"):
        other.goto("about:blank")
        other.goto(address + asked)
        assert other.locator("#chosen").inner_text() == "plain (seed-1/plain) and yarn (seed-1/yarn)"
    other.goto("about:blank")
    other.goto(f"{address}#samples?task=babilong&subset=qa1&length=8k&arm=zero-shot")
    assert other.locator("#chosen").inner_text() == "zero-shot and yarn (seed-3/yarn)"
    other.close()


@pytest.mark.browser
def test_the_page_of_many_arms_opens_and_scrolls_and_its_pictures_fit(page: Any, tmp_path: Path) -> None:
    for i in range(58):
        write_run(
            tmp_path / "runs" / str(i), arm=f"organisation-{i % 6}/Model-{i}B-128k-instruct", samples=4,
            lengths=("4k", "16k"), subsets=[f"qa{k}" for k in range(1, (21, 6, 16, 6)[i % 4])],
            accuracy=holds_to(2 * K * (1 + i)),
        )  # fmt: skip
    build([tmp_path / "runs"], tmp_path / "plots")
    other = page.context.new_page()
    began = time.monotonic()
    other.goto((tmp_path / "plots" / "report.html").as_uri())
    opened = time.monotonic()
    column = other.locator("#figures").bounding_box()["width"]
    for figure in other.locator("figure").all():
        figure.scroll_into_view_if_needed()
        picture = figure.locator("img, svg").first
        assert picture.bounding_box()["width"] <= column
        own = picture.evaluate("image => image.decode ? image.decode().then(() => image.naturalWidth) : 0")
        assert own <= column, "what is larger is shown too small to be read"
    other.evaluate("scrollTo(0, document.body.scrollHeight)")
    other.locator("#origin").wait_for()
    assert other.evaluate("scrollY") > 1000
    print(f"58 arms: opened in {opened - began:.1f} s, scrolled to the end in {time.monotonic() - opened:.1f} s")
    other.close()


@pytest.mark.browser
def test_a_line_shows_its_values_under_the_pointer(page: Any) -> None:
    page.locator("#figures").evaluate("section => section.scrollIntoView()")
    line = page.locator('#figure-curve-babilong [data-part="line"]').first
    line.wait_for(state="attached")
    place = line.evaluate(r"""line => {
        const [, x, y] = line.querySelector(':scope > path').getAttribute('d').match(/M ([-\d.]+) ([-\d.]+)/);
        const { x: left, y: top } = new DOMPoint(x, y).matrixTransform(line.ownerSVGElement.getScreenCTM());
        return [left, top];
    }""")
    tip = page.locator("#figure-curve-babilong .tip")
    assert tip.is_hidden()
    page.mouse.move(*place)
    assert re.fullmatch(r"plain <b>arm</b>, avg at 8K: score \d+\.\d \[\d+\.\d, \d+\.\d\], n = 240", tip.inner_text())
    page.mouse.move(0, 0)
    assert tip.is_hidden()


@pytest.mark.browser
def test_a_click_on_a_name_hides_its_arm_in_all_figures_and_a_key_shows_it_again(page: Any) -> None:
    page.locator("#figure-curve-babilong-subsets").scroll_into_view_if_needed()
    page.locator("#figure-curve-babilong-subsets svg").wait_for()
    lines = page.locator('figure [data-part="line"][data-arm="1"]')
    visible = lambda: lines.evaluate_all("all => all.map(line => getComputedStyle(line).visibility)")  # noqa: E731
    assert visible() == ["visible"] * 4  # score, difference, two subsets
    page.locator('#figure-curve-babilong-subsets [data-part="name"][data-arm="1"]').click()
    assert visible() == ["hidden"] * 4
    name = page.locator('#figure-curve-babilong [data-part="name"][data-arm="1"]').first
    assert name.get_attribute("aria-pressed") == "true"
    name.focus()
    page.keyboard.press("Enter")
    assert visible() == ["visible"] * 4


@pytest.mark.browser
def test_a_figure_is_downloaded_from_the_page_itself(page: Any) -> None:
    with page.expect_download() as download:
        page.locator("#figure-curve-babilong a", has_text="PDF").click()
    assert download.value.suggested_filename == "curve-babilong.pdf"
    assert Path(download.value.path()).read_bytes().startswith(b"%PDF")


@pytest.mark.browser
def test_the_page_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    region = page.locator("#table-scores-babilong-official .wide")
    left = lambda: region.locator("tbody td").first.bounding_box()["x"]  # noqa: E731
    before = left()
    region.evaluate("region => { region.scrollLeft = 100; }")
    assert region.evaluate("region => region.scrollLeft") == 100
    assert left() == before  # the first column stays
    page.set_viewport_size({"width": 1366, "height": 900})


@pytest.mark.browser
def test_dark_mode_and_print_change_the_colours(page: Any) -> None:
    back = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = back()
    page.emulate_media(color_scheme="dark")
    assert back() != light
    page.emulate_media(color_scheme="light", media="print")
    assert back() == "rgb(255, 255, 255)"
    assert page.locator("#samples").is_hidden()
    page.emulate_media(media="screen")


@pytest.mark.browser
def test_the_findings_begin_with_the_primary_comparisons_and_what_is_folded_is_not_printed(page: Any) -> None:
    first = page.locator("#findings li").first
    assert re.match(r"(Better than|Worse than|Equivalent to|Undecided against) plain", first.inner_text())
    each = page.locator("#findings details li").first
    page.emulate_media(media="print")
    assert each.is_hidden()
    assert page.locator("#origin dl").first.is_hidden()
    page.locator("#findings summary").first.click()
    assert each.is_visible()
    page.locator("#findings summary").first.click()
    page.emulate_media(media="screen")


@pytest.mark.browser
def test_every_control_has_a_name_and_every_image_a_description(page: Any) -> None:
    assert page.evaluate("[...document.querySelectorAll('input, select')].every(e => e.labels.length)")
    assert page.evaluate("[...document.querySelectorAll('button')].every(e => e.textContent.trim())")
    assert page.evaluate("[...document.images].every(i => i.alt.length > 40)")


@pytest.mark.browser
def test_nothing_left_the_file_and_nothing_complained(page: Any, html: Path) -> None:
    assert page.complaints == []
    assert {url.split("#")[0] for url in page.requests if not url.startswith("data:")} == {html.as_uri()}
