import json
import re
from html.parser import HTMLParser

import pytest

from konvoi.observe.events import Agreed, Evaluated, Sampled, Warned, WorkerDied, to_json
from konvoi.observe.report import write_report
from tests.observe.made_up import BEGAN, one_of_each, realistic_run, run_started, step_done

VOID = {"meta", "rect", "circle", "path", "br"}


class _Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _report(folder, events, **records):
    folder.mkdir(exist_ok=True)
    (folder / "events.jsonl").write_text("".join(to_json(event) + "\n" for event in events))
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    return write_report(folder).read_text(encoding="utf-8")


def _checked(html):
    parser = _Balance()
    parser.feed(html)
    assert parser.open == []
    return parser.tags


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return _report(tmp_path_factory.mktemp("runs") / "stdlib-gpt", realistic_run(1500))


def test_the_headline_has_the_figures(html):
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("<h2>")[0]))
    for figure in ("9.291 → 1.998", "80.9 k", "24.6 M tokens", "5m46s", "1,500", "1,230,000", "finished", "stdlib-gpt"):
        assert figure in plain, figure


def test_every_section_is_there(html):
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "Loss",
        "Pace and gradients",
        "Where the time went",
        "What it writes",
        "What happened",
        "Evaluations",
        "How it was run",
    ]


def test_interruptions_and_their_cost_are_told(html):
    for told in ("worker 1 on alpha died at step 1,000: signal SIGKILL", "resumed from step 600", "steps done again"):
        assert told in html


def test_the_page_is_whole_by_itself(html):
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<script|<img|src=", html)
    assert "<svg" in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert len(html) < 300_000
    _checked(html)


def test_whatever_others_wrote_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"><img src=x>"
    events = [
        run_started(
            job={"model": evil, evil: {evil: [evil]}, "unit": evil}, plan={evil: evil}, fleet=evil, derived=(evil,)
        ),
        step_done(1, BEGAN + 1),
        Evaluated(time=BEGAN, step=1, split=evil, values={"loss": 1.0, evil: 2.0}, seconds=1.0),
        Sampled(step=1, prompt=evil, text=evil),
        WorkerDied(worker=1, host=evil, reason=evil, step=1),
        Warned(message=evil),
    ]
    html = _report(tmp_path / "a<b>&", events)
    assert not {"script", "img", "b>&"} & _checked(html)
    assert html.count("&lt;script&gt;") >= 10


def test_records_in_the_folder_go_before_what_the_events_say(tmp_path):
    html = _report(tmp_path, one_of_each(), plan={"fsdp": 7}, job={"model": "from job.json", "unit": "pages"})
    assert "from job.json" in html
    assert "<dt>fsdp</dt><dd>7</dd>" in html
    assert "pages per second" in html


@pytest.mark.parametrize("count", range(len(one_of_each()) + 1))
def test_a_run_that_stopped_anywhere_has_a_report(tmp_path, count):
    _checked(_report(tmp_path, one_of_each()[:count]))


def test_a_folder_without_any_record_has_a_report(tmp_path):
    html = write_report(tmp_path).read_text()
    assert tmp_path.name in html
    assert "no end recorded" in html


def test_a_run_of_losses_that_are_not_finite_has_a_report(tmp_path):
    html = _report(tmp_path, [step_done(n, float(n), loss=float("nan"), grad_norm=float("inf")) for n in range(1, 9)])
    _checked(html)


def test_a_broken_record_is_left_out(tmp_path):
    (tmp_path / "plan.json").write_text('{"fsdp"')
    (tmp_path / "job.json").write_text("[1]")
    assert "How it was run" in write_report(tmp_path).read_text()


def test_a_second_report_replaces_the_first_and_leaves_no_draft(tmp_path):
    _report(tmp_path, one_of_each()[:4])
    assert "finished" in _report(tmp_path, one_of_each())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "report.html"]


def test_whose_work_was_counted_is_told_agreement_by_agreement(tmp_path):
    rounds = [
        Agreed(time=BEGAN + n, round=n, counted={"ada": 4, **({"bob": 4} if n % 2 else {})}, sent_bytes=0)
        for n in range(1, 5)
    ]
    html = _report(tmp_path / "run", [run_started(), *rounds])
    assert html.count('title="agreement 2: counted"') == 1
    assert html.count('title="agreement 2: not counted"') == 1
    _checked(html)
    many = [Agreed(time=BEGAN + n, round=n, counted={"ada": 4}, sent_bytes=0) for n in range(1, 1001)]
    html = _report(tmp_path / "long", [run_started(), *many])
    assert html.count('title="agreement ') == 112
    assert 'title="agreement 1 to 9: 9 of 9"' in html
