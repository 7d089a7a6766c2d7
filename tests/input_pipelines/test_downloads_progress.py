"""What is shown while files come: a bar on a terminal, plain lines elsewhere."""

import io

from mlperf_jax.input_pipelines.downloads import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_come_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with progress.make(stream) as shown:
        shown.begin(1_000_000, 100_000)
        for _ in range(5):
            now[0] += 4
            shown.add(80_000)
        shown.say("a line")
    assert stream.getvalue().splitlines() == [
        "340 kB of 1 MB · 20 kB/s · 0:00:33 left",
        "a line",
    ]


def test_plain_lines_without_a_total(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with progress.make(stream) as shown:
        shown.begin(None, 0)
        now[0] = 10
        shown.add(5_000)
        now[0] = 20
        shown.add(-5_000)
    assert stream.getvalue() == "5 kB · 500 bytes/s\n0 bytes · 0 bytes/s\n"


def test_a_terminal_sees_a_bar_and_lines_above_it():
    stream = Terminal()
    with progress.make(stream) as shown:
        shown.begin(2_000_000, 500_000)
        shown.add(500_000)
        shown.say("[not markup]")
    out = stream.getvalue()
    assert "[not markup]" in out and "1.0/2.0 MB" in out


def test_durations():
    assert [progress.duration(s) for s in (-1, 59.9, 7985)] == ["0:00:00", "0:00:59", "2:13:05"]
