"""What the command writes shows everything that is in it."""

from konvoi import talk


def test_nothing_that_is_said_moves_the_cursor_or_turns_text_around(capsys):
    talk.out("a\tb\nc\x1b[2K")
    talk.lines(["a\nb", "\u202ec"])
    talk.line("first\n  found: \x9b\u200b")
    said = capsys.readouterr()
    assert said.out == "a\tb\nc\\x1b[2K\na\\nb\n\\u202ec\n"
    assert said.err == "first\n  found: \\x9b\\u200b\n"


def test_what_a_model_wrote_is_written_as_it_is(capsys):
    talk.written("שלום\u200f\n")
    assert capsys.readouterr().out == "שלום\u200f\n"
