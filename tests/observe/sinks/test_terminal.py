import io

import pytest
from rich.console import Console

from konvoi.observe.events import CheckpointSaved, RunEnded, Sampled, Warned
from konvoi.observe.progress import Progress
from konvoi.observe.sinks.terminal import LiveLine, PlainLines, line, terminal
from tests.observe.made_up import BEGAN, one_of_each, realistic_run, run_started, step_done


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _plain(events):
    stream = io.StringIO()
    sink = PlainLines(stream)
    for event in events:
        sink(event)
    sink.close()
    return stream.getvalue()


def _live(events, **options):
    stream = Terminal()
    sink = LiveLine(Console(file=stream, width=100, highlight=False, **{"force_terminal": True, **options}))
    for event in events:
        sink(event)
    sink.close()
    return stream.getvalue()


def test_plain_lines_tell_the_whole_run():
    spread = "min 0.1000 · p10 0.2000 · median 0.5000 · p90 0.8000 · max inf · std 0.2500"
    assert _plain(one_of_each()).splitlines()[3:] == [
        "fleet    local: 2 workers on cpu",
        "steps    1,500",
        "derived  1. width = 64 × depth = 384 (nanochat's aspect ratio)",
        "         2. heads = width / 64 = 6",
        "         3. tokens = 20 × parameters = 24.6 M (Hoffmann et al. 2022, §3)",
        "ready after 2.0 s: 1.2 M parameters",
        "step 0: def q<\N{REPLACEMENT CHARACTER}>",
        "",
        "step 1/1,500  loss 2.0000  81.9 k tokens/s  data 0.5%  others 5.0%  lr 1.00e-03",
        "step 1: valid loss 5.5000 · accuracy 0.1000 (best)",
        f"step 1: over 7 clients: loss {spread}; accuracy {spread}",
        "warning: worker 1: worker 1 is slow [red]",
        "error: worker 1 on alpha died at step 1: signal SIGKILL",
        "restarted from step 1, restart 1 of 3",
        "the agreed state of round 3 is here: 1.0 MB in 500 ms",
        "round 5: of 10 clients 8 counted, 1 refused as not finite",
        "finished at step 1 after 9.0 s: all [bold]done",
    ]


def test_plain_lines_come_at_most_each_five_seconds_and_at_the_first_and_the_last_step():
    told = _plain([run_started(num_steps=120), *(step_done(n, BEGAN + n / 10) for n in range(1, 121))])
    assert [text.split("/")[0] for text in told.splitlines() if text.startswith("step ")] == [
        "step 1",
        "step 51",
        "step 101",
        "step 120",
    ]


def test_plain_lines_never_keep_a_warning_back():
    warned = [Warned(time=BEGAN + n / 100, message=f"number {n}") for n in range(20)]
    assert [f"warning: number {n}" for n in range(20)] == _plain(warned).splitlines()


def test_plain_checkpoints_keep_to_the_same_pace():
    saved = [
        CheckpointSaved(time=BEGAN + n, step=n, path="", size_bytes=1, blocked_s=0.0, seconds=1.0) for n in range(10)
    ]
    assert len(_plain(saved).splitlines()) == 2


def test_an_estimate_counts_evaluations_too():
    told = _plain([run_started(num_steps=101), step_done(1, BEGAN), step_done(51, BEGAN + 6), step_done(2, BEGAN + 50)])
    assert "ETA 5m00s" in told.splitlines()[-2]  # 50 steps to go, 6 s a step on the wall although a step takes 0.2


def test_the_terminal_decides_between_a_live_line_and_plain_ones(monkeypatch):
    monkeypatch.delenv("TERM", raising=False)
    assert isinstance(terminal(io.StringIO()), PlainLines)
    assert isinstance(terminal(Terminal()), LiveLine)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(terminal(Terminal()), PlainLines)


def test_a_forced_colour_makes_no_live_line_in_a_pipe(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(terminal(io.StringIO()), PlainLines)


def test_the_default_stream_is_standard_error(capsys):
    terminal()(Warned(message="here"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: here\n")


def test_a_live_run_keeps_its_news_above_the_line():
    told = _live(realistic_run(200))
    for news in ("runs/stdlib-gpt", "resumed from step 80", "valid loss", "died at step 133", "finished at step 200"):
        assert news in told
    assert told.count("1. width = 64") == 2  # once a launch, not once a restart


def test_a_message_is_text_and_no_markup():
    told = _live(one_of_each())
    assert "slow [red]" in told
    assert "all [bold]done" in told


def test_a_sample_cannot_steer_the_terminal():
    sampled = Sampled(step=1, prompt="def ", text="\x1b]0;owned\x07\x1b[2J\r\x9b31m")
    for told in (_plain([sampled]), _live([sampled], force_terminal=False)):
        assert not set(told) & set("\x1b\x07\r\x9b")


def test_warnings_are_yellow_deaths_red_and_without_colour_neither(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33mwarning: " in _live(one_of_each(), color_system="standard")
    assert "\x1b[31merror: " in _live(one_of_each(), color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    told = _live(one_of_each(), color_system="standard")
    assert not any(colour in told for colour in ("\x1b[31m", "\x1b[33m", "\x1b[36m"))


def test_the_cursor_is_back_after_a_run_that_was_interrupted():
    events = [event for event in one_of_each() if not isinstance(event, RunEnded)]
    assert _live(events).endswith("\x1b[?25h") or "\x1b[?25h" in _live(events).rsplit("\x1b[?25l", 1)[1]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 140])
def test_the_line_fits_and_drops_the_least_important_first(width):
    progress = Progress()
    for event in realistic_run(200)[:40]:
        progress = progress.after(event)
    stream = io.StringIO()
    Console(file=stream, width=width).print(line(progress, BEGAN + 20, width))
    (told,) = stream.getvalue().splitlines()
    assert len(told) <= width
    assert ("loss" in told) >= (width >= 40)
    assert ("others" in told) == (width >= 100)
