"""The page about all subjects."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from talker.measure.overview import Folders, write_overview

TABLE = """subject\tstate\trule\treason\tlog\tverdict
ann\tdone\t\t\t\tgood
b <b>\tfailed\tcheck\ttalker check: error: too dark\tlogs/b <b>/check.log\t
old_one\tdone\t\t\t\t
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page of a finished, a failed and an unmeasured subject."""
    monkeypatch.chdir(tmp_path)
    results, frames = Path("results"), Path("data/ann/ori_imgs")
    (results / "ann/novel").mkdir(parents=True)
    frames.mkdir(parents=True)
    (frames / "0.jpg").touch()
    for name in ("report.html", "val.mp4", "novel/good morning.mp4"):
        (results / "ann" / name).touch()
    held_out = {"mouth_correlation": 0.71234, "mouth_std_ratio": 0.8, "psnr": None}
    verdict = {"grade": "good", "reasons": ["The mouth follows the speech."]}
    content = {"verdict": verdict, "held_out": held_out}
    (results / "ann/metrics.json").write_text(json.dumps(content), encoding="utf-8")
    Path("benchmarks/ann/novel").mkdir(parents=True)
    Path("benchmarks/ann/train.tsv").write_text("s\th:m:s\n90\t-\n", encoding="utf-8")
    Path("benchmarks/ann/novel/render.tsv").write_text("s\th:m:s\n30\t-\n", encoding="utf-8")
    table = results / "batch.tsv"
    table.write_text(TABLE, encoding="utf-8")
    folders = Folders(Path("data"), results, Path("benchmarks"))
    write_overview(results / "index.html", table, folders)
    return (results / "index.html").read_text(encoding="utf-8")


def test_a_subject_has_its_verdict_numbers_and_links(page: str) -> None:
    assert '<span class="grade good">good</span>' in page
    assert "The mouth follows the speech." in page
    assert 'src="../data/ann/ori_imgs/0.jpg"' in page
    for text in (">0.7<", ">0.8<", ">2.0<", "3 subjects", "1 good"):
        assert text in page, text
    for link in ("ann/report.html", "ann/val.mp4", "ann/novel/good%20morning.mp4"):
        assert f'href="{link}"' in page


def test_numbers_of_too_few_frames_are_not_shown(page: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    file = results / "ann/metrics.json"
    file.write_text(file.read_text().replace('"good"', '"too short to tell"'))
    folders = Folders(tmp_path / "data", results, tmp_path / "benchmarks")
    write_overview(results / "index.html", results / "batch.tsv", folders)
    short = (results / "index.html").read_text(encoding="utf-8")
    for text in (">0.7<", ">0.8<"):
        assert text in page
        assert text not in short


def test_a_failure_has_its_reason_and_log(page: str) -> None:
    assert "check: talker check: error: too dark" in page
    assert 'href="../logs/b%20%3Cb%3E/check.log"' in page
    assert "<b>b &lt;b&gt;</b>" in page
    assert "no verdict" in page


def test_a_long_name_can_wrap_after_an_underscore(page: str) -> None:
    assert "<b>old_<wbr>one</b>" in page


def test_every_linked_file_exists_and_nothing_is_external(page: str) -> None:
    for link in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert ":" not in link
        assert "check.log" in link or Path("results", link.replace("%20", " ")).exists()


CLICK = """<script>
const column = document.querySelectorAll("th.number button")[0];
column.click();
document.title = [...document.querySelectorAll("td.subject")].map((cell) => cell.innerText).join();
</script></body>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_a_click_on_a_column_sorts_by_number(page: str, tmp_path: Path) -> None:
    row = '<td class="number" data-label="mouth" data-value="{}">'
    page = page.replace(row.format(""), row.format(0.8), 1)
    assert row.format(0.8) in page
    file = tmp_path / "clicked.html"
    file.write_text(page.replace("</body>", CLICK), encoding="utf-8")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    dom = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, check=True)
    assert "<title>ann,b &lt;b&gt;,old_one</title>" in dom.stdout
