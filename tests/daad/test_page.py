"""The page of a run: it says what was measured, safely, and shows it."""

from pathlib import Path
from typing import Any

from daad.config import Config
from daad.page import picture_lists, write_report
from daad.report import draw_figures
from tests.helpers.made_findings import judged, make_findings

METRICS: dict[str, Any] = {
    "variant": "daad+",
    "category": "bottle",
    "epoch": 1000,
    "scaling": "test",
    "even_light": False,
    "kind": "defect",
    "image_auroc": 0.97531,
    "image_auroc_interval": [0.91, 0.99],
    "image_auroc_eq7": 0.91357,
    "image_auroc_brightness": 0.45397,
    "pixel_auroc": None,
    "counts": {"good": 20, "anomalous": 63, "masks": 61},
    "verdict": None,
    "baselines": {"PCA 50": 0.9543},
    "defects": {"broken_large": {"count": 20, "image_auroc": 0.98765, "flagged": 0.85}},
}


def page_of(run: Path, metrics: dict[str, Any]) -> str:
    write_report(run, metrics, Config(variant="daad+").resolve())
    return (run / "report.html").read_text(encoding="utf-8")


def test_page_says_what_was_measured(tmp_path) -> None:
    page = page_of(tmp_path, METRICS)
    assert "<h1>DAAD+ on bottle</h1>" in page
    assert "20 good and 63 anomalous pictures; the defect is marked in 61" in page
    assert "<b>0.975</b>image AUROC (bootstrap interval 0.910 to 0.990)" in page
    assert "<tr><td>the paper&#39;s Eq. 7</td><td>0.914</td></tr>" in page.replace("'", "&#39;")
    assert "<tr><td>PCA 50, no network</td><td>0.954</td></tr>" in page
    assert "<b>\N{EN DASH}</b>pixel AUROC" in page
    row = "<td>broken_large</td><td>20</td><td>85.0 %</td><td>0.988</td>"
    assert row in page
    assert "<dt>division</dt><dd>8, 8, 1</dd>" in page
    assert "<dt>lr</dt><dd>0.0002</dd>" in page
    assert "oracle" not in page


def test_page_says_where_light_was_made_even(tmp_path) -> None:
    write_report(tmp_path, METRICS, Config())
    assert "as bright as" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    write_report(tmp_path, METRICS | {"even_light": True}, Config())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "as bright as the training pictures" in page


def test_page_without_masks_speaks_of_none(tmp_path) -> None:
    classes = {"3": {"count": 20, "image_auroc": 0.98765}}
    counts = {"good": 20, "anomalous": 63, "masks": 0}
    page = page_of(tmp_path, METRICS | {"kind": "class", "counts": counts, "defects": classes})
    assert "20 good and 63 anomalous pictures." in page
    assert "<th>class</th><th>pictures</th><th>found</th><th>image AUROC</th></tr>" in page
    assert "<tr><td>3</td><td>20</td><td>\N{EN DASH}</td><td>0.988</td></tr>" in page
    assert "defect" not in page
    assert "pixel AUROC" not in page


def test_page_labels_the_oracle(tmp_path) -> None:
    oracle = {"oracle_image_auroc_eq7": 0.99123, "oracle_epoch": 640, "oracle_note": ""}
    page = page_of(tmp_path, METRICS | oracle)
    assert "oracle: Eq. 7 at epoch 640" in page
    assert "<td>0.991</td>" in page
    assert "chosen on the test set" in page


def test_page_says_how_to_go_on(tmp_path) -> None:
    verdict = {
        **{"words": "By 41.", "recall": 0.9, "false_alarms_found": 0.0, "threshold": 2.0},
        **{"false_alarms": 0.02, "false_alarms_asked": 0.02},
    }
    page = page_of(tmp_path / "a run", METRICS | {"verdict": verdict})
    assert f"predict --run &#39;{tmp_path / 'a run'}&#39; --pictures FOLDER" in page


def test_page_escapes_names(tmp_path) -> None:
    bad = '<script>alert("x")</script>&{0}'
    defects = {bad: {"count": 1, "image_auroc": 0.5}}
    page = page_of(tmp_path, METRICS | {"category": bad, "defects": defects})
    assert "<script" not in page
    escaped = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;{0}"
    assert f"<td>{escaped}</td>" in page
    assert f"<title>DAAD+ on {escaped}</title>" in page


def test_page_holds_the_figures_there_are(tmp_path) -> None:
    draw_figures(tmp_path / "figures", make_findings({"good": 2, "hole": 2}))
    page = page_of(tmp_path, METRICS)
    for name in ("scores", "roc"):
        assert f'alt="{name}"' in page
    assert page.count("data:image/png;base64,") == 2
    assert 'src="figures' not in page  # one file, that can be sent
    assert "<h2>Training</h2>" not in page


def test_page_shows_typical_pictures_in_rows_of_words_and_pictures(tmp_path) -> None:
    found = make_findings({"good": 3, "hole": 4})
    write_report(tmp_path, METRICS, Config(), found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="rebuilt"') == 2 + 3
    assert page.count("<figcaption>reconstruction</figcaption>") == 5
    assert page.count("<figcaption>true defect</figcaption>") == 3
    assert "Most suspicious" not in page  # without verdicts


def test_page_lists_what_is_most_suspicious_and_what_went_wrong(tmp_path) -> None:
    found = judged(make_findings({"good": 9, "hole": 9}), false_alarms=0.4)
    found.raw.evened_maps[9:14] += 1  # five holes are seen
    found.raw.evened_maps[14:] = found.reference.mean  # and four are not
    lists = picture_lists(found)
    suspicious, alarms, misses = lists.values()
    scores = found.scores.tolist()
    threshold = found.threshold.value
    assert [one.score for one in suspicious] == sorted(scores, reverse=True)[:5]
    assert {one.defect for one in suspicious} == {"hole"}
    assert [one.score for one in alarms] == sorted(
        (score for score in scores[:9] if score > threshold), reverse=True
    )[:5]
    assert {one.verdict for one in alarms} == {"anomalous"}
    assert [one.score for one in misses] == sorted(
        score for score in scores[9:] if score <= threshold
    )[:5]
    assert alarms
    assert misses
    write_report(tmp_path, METRICS, Config(), found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="shown"') == len(suspicious) + len(alarms) + len(misses)
    assert "With your own pictures" not in page
    for one in (*suspicious, *alarms, *misses):
        assert one.image in page
        assert one.image.startswith("data:image/jpeg;base64,")
