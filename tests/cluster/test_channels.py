"""What a task prints reaches the kernel line by line, and nothing else does."""

from __future__ import annotations

from labkit.cluster.channels import MAX_LINES, Echo, echo
from labkit.cluster.lab import Lab


def test_lines_arrive_whole_in_order_and_before_the_result(lab: Lab) -> None:
    def talk(topic: str) -> None:
        with echo(topic, "[rank 3]"):
            print("one")
            print("tw", end="")
            print("o\nthree")
            print("no newline", end="")

    ear = Echo(lab.client)
    lab.client.submit(talk, ear.topic, pure=False).result()
    assert ear.drain() == ["[rank 3] one", "[rank 3] two", "[rank 3] three", "[rank 3] no newline"]
    assert ear.drain() == []


def test_each_listener_hears_its_own_topic(lab: Lab) -> None:
    def talk(topic: str, word: str) -> None:
        with echo(topic, ">"):
            print(word)

    first, second = Echo(lab.client), Echo(lab.client)
    words = [(first.topic, "a"), (second.topic, "b"), (first.topic, "c")]
    lab.client.gather([lab.client.submit(talk, *word, pure=False) for word in words])
    assert sorted(first.drain()) == ["> a", "> c"]
    assert second.drain() == ["> b"]


def test_only_the_task_inside_the_block_is_captured(lab: Lab) -> None:
    def talk(topic: str) -> str:
        import contextlib
        import io
        import sys
        import threading

        with echo(topic, ">"):
            inner = io.StringIO()
            with contextlib.redirect_stdout(inner):  # the task's own redirection wins
                print("kept")
            other = threading.Thread(target=print, args=("another thread",))
            other.start()
            other.join()
            print("heard")
        print("after")
        sys.stdout.flush()
        return inner.getvalue()

    ear = Echo(lab.client)
    assert lab.client.submit(talk, ear.topic, pure=False).result() == "kept\n"
    assert ear.drain() == ["> heard"]


def test_a_failure_does_not_lose_what_was_printed_before(lab: Lab) -> None:
    def fail(topic: str) -> None:
        with echo(topic, ">"):
            print("last words", end="")
            raise ValueError

    ear = Echo(lab.client)
    assert isinstance(lab.client.submit(fail, ear.topic, pure=False).exception(), ValueError)
    assert ear.drain() == ["> last words"]


def test_printing_without_end_is_cut_off_with_a_word(lab: Lab) -> None:
    def flood(topic: str) -> None:
        with echo(topic, ">"):
            for number in range(MAX_LINES + 500):
                print(number)

    ear = Echo(lab.client)
    lab.client.submit(flood, ear.topic, pure=False).result()
    *lines, last = ear.drain()
    assert lines == [f"> {number}" for number in range(MAX_LINES)]
    assert "not shown" in last


def test_a_closed_listener_hears_nothing_and_keeps_nothing(lab: Lab) -> None:
    def talk(topic: str) -> None:
        with echo(topic, ">"):
            print("too late")

    ear = Echo(lab.client)
    ear.close()
    lab.client.submit(talk, ear.topic, pure=False).result()
    assert ear.drain() == []
    assert ear.topic not in ear._channel.lines
