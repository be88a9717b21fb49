"""What is shown on a terminal."""

from gptlab.system.terminal import harmless


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    assert harmless("a\x1b[2J\0\x07b\x9b\n") == "a\ufffd[2J\ufffd\ufffdb\ufffd\n"
    assert harmless("\t\r\n\u00fc\U0001f600") == "\t\r\n\u00fc\U0001f600"
