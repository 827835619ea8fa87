"""The report: well-formed, self-contained, escaped, and it says what the run says."""

import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest

from ziggurat.train.report import RunReport, Sample, SavedCheckpoint, render_report, write_report

VOID = {"meta", "input", "col", "br"}
EVIL = "</pre><script>alert(1)</script>&amp;\"'"


class Page(HTMLParser):
    """Parses a page, failing on a tag that is not closed in order; collects text and tags."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))

    def count(self, tag, **attrs):
        wanted = {name.rstrip("_"): value for name, value in attrs.items()}
        return sum(t == tag and wanted.items() <= a.items() for t, a in self.tags)


def rows(steps=300, eval_every=50):
    for step in range(steps):
        yield {
            "step": step, "time_unix_s": 1.0, "loss": 5.0 - step / 100, "learning_rate": 1e-3,
            "grad_norm": 1.0, "tokens_per_s": 1000.0, "host_rss_bytes": 2.0**30, "accuracy": 0.5,
        }  # fmt: skip
        if eval_every and step % eval_every == eval_every - 1:
            yield {"step": step, "eval_loss": 5.5 - step / 100}


@pytest.fixture
def run():
    return RunReport(
        name="tiny",
        device="8 x TPU v5p",
        steps=300,
        total_steps=400,
        tokens=1_228_800,
        parameters=12_345_678,
        started="2026-11-22 20:00 UTC",
        metrics=list(rows()),
        median_tokens_per_s=41_234.5,
        mfu=0.4312,
        ledger_s={"data": 10, "step": 70.0, "unaccounted": 20.0},
        peak_host_bytes=3 * 2**30,
        peak_device_bytes=40 * 2**30,
        skipped_steps=3,
        resumes=(120, 200),
        config=[
            ("optimizer.lr", "3e-4", "command line"),
            ("model.layers", "12", "default"),
            ("data.path", '"' + "x/" * 400 + '"', "recipes/tiny.toml"),
        ],
        samples=[Sample(prompt="def f(", continuation="x):\n    return x", step=300)],
        checkpoints=[
            SavedCheckpoint(step=300, path="ckpt/step_300", size_bytes=2**20, note="last")
        ],
        environment={"jax": "0.10.2"},
    )


def test_it_says_what_the_run_says(run):
    page = Page(render_report(run))
    for text in (
        "tiny", "8 x TPU v5p", "12,345,678", "300 of 400", "1,228,800", "41,234", "43.12%",
        "0:01:40", "3 GiB", "40 GiB", "2 (at step 120, 200)", "final loss 2.0100",
        "final evaluation loss 2.5100", "lowest evaluation loss 2.5100 (step 299)",
        "skipped steps 3", "1 MiB", "ckpt/step_300", "last", "jax 0.10.2", "1 more metric accuracy",
    ):  # fmt: skip
        assert text in page.words, text
    assert "def f(" in page.text
    assert "x):\n    return x" in page.text


def test_charts_hold_the_curves(run):
    html = render_report(run)
    page = Page(html)
    assert page.count("svg", role="img") == 6
    assert "train, step 299: 2.01" in html
    assert "evaluation, step 49: 5.01" in html
    assert html.count("resumed at step 120") == 6
    assert "host process" in page.words
    assert "fullest device" not in page.words  # not among the metrics


def test_ledger_adds_up_with_unaccounted_last(run):
    html = render_report(run)
    shares = re.findall(r'<i class="k(\d)" style="width: ([\d.]+)%" title="(\w+)', html)
    assert [(name, share) for _, share, name in shares] == [
        ("step", "70.0"), ("data", "10.0"), ("unaccounted", "20.0"),
    ]  # fmt: skip
    assert shares[-1][0] == "0"
    assert sum(float(share) for _, share, _ in shares) == 100


def test_changed_values_are_marked(run):
    page = Page(render_report(run))
    assert page.count("tr", class_="changed") == 2
    assert page.count("tr", class_="default") == 1
    assert "only the 2 of 3 values that were set" in page.words


def test_self_contained(run):
    hostile = dataclasses.replace(
        run, environment={"home": "https://example.org/x.js"}, name="https://example.org"
    )
    html = render_report(hostile)
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "base", "form", "a")
        assert not {"src", "href", "xlink:href", "srcset", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert "//" not in " ".join(filter(None, attributes.values()))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "default-src 'none'" in html


def test_everything_is_escaped(run):
    evil = dataclasses.replace(
        run,
        name=EVIL,
        device=EVIL,
        status=EVIL,
        started=EVIL,
        metrics=[{"step": 0, "loss": 1.0, EVIL: 2.0}],
        ledger_s={EVIL: 1.0},
        config=[(EVIL, EVIL, EVIL)],
        samples=[Sample(prompt=EVIL, continuation=EVIL)],
        checkpoints=[SavedCheckpoint(step=1, path=EVIL, note=EVIL)],
        environment={EVIL: EVIL},
    )
    html = render_report(evil)
    assert "<script" not in html
    page = Page(html)
    assert page.words.count(EVIL) >= 12


def test_control_characters_and_surrogates_survive_as_text(run, tmp_path):
    odd = "a\x00b\x07c\x1b[31m\rd\ud83de\x85f\tg\nh"
    path = write_report(
        tmp_path / "new" / "report.html",
        dataclasses.replace(run, samples=[Sample(prompt="\nfirst", continuation=odd)]),
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert "a␀b␇c␛[31m␍d\ufffde\ufffdf\tg\nh" in page.text
    assert "\nfirst" in page.text


def test_a_run_of_one_step_on_an_unknown_device():
    run = RunReport(
        name="one", device="cpu", steps=1, total_steps=1, tokens=1, parameters=1,
        metrics=[{"step": 0, "loss": 2.5}], status="stopped: out of disk",
    )  # fmt: skip
    page = Page(render_report(run))
    assert page.count("svg", role="img") == 1
    assert "MFU peak unknown on this device" in page.words
    assert "final evaluation loss none" in page.words
    assert "stopped: out of disk" in page.words
    assert "Configuration" not in page.words
    assert "Wall time by phase" not in page.words


def test_no_metrics_and_nan():
    run = RunReport(name="x", device="cpu", steps=0, total_steps=9, tokens=0, parameters=0)
    assert "No metrics were recorded" in Page(render_report(run)).words
    bad = dataclasses.replace(
        run, metrics=[{"step": 0, "loss": math.nan}, {"step": 1, "eval_loss": math.inf}]
    )
    words = Page(render_report(bad)).words
    assert "final loss nan" in words
    assert "lowest evaluation loss none" in words


def test_mfu_is_the_median_of_the_metric_when_not_given():
    metrics = [{"step": step, "mfu": mfu} for step, mfu in enumerate((0.1, 0.42, 0.43))]
    metrics.append({"step": 2, "eval_loss": 1.0})  # the last row need not have it
    run = RunReport(
        name="x", device="1 x TPU v5p", steps=3, total_steps=3, tokens=0, parameters=0,
        metrics=metrics,
    )  # fmt: skip
    assert "MFU 42.00%" in Page(render_report(run)).words
    assert "MFU 50.00%" in Page(render_report(dataclasses.replace(run, mfu=0.5))).words


def test_rewrite_replaces(run, tmp_path):
    path = write_report(tmp_path / "report.html", run)
    write_report(path, dataclasses.replace(run, name="second"))
    assert "second" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
