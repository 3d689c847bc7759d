"""What a task prints reaches the kernel line by line, and nothing else does."""

from __future__ import annotations

from labkit.cluster.channels import MAX_LINES, Inbox, Note, capture_prints, post
from labkit.cluster.lab import Lab


def test_lines_arrive_whole_in_order_and_before_the_result(lab: Lab) -> None:
    def talk(address: str) -> None:
        with capture_prints(address, "[rank 3]"):
            print("one")
            print("tw", end="")
            print("o\nthree")
            print("no newline", end="")

    inbox = Inbox(lab.client)
    lab.client.submit(talk, inbox.address, pure=False).result()
    assert inbox.printed() == ["[rank 3] one", "[rank 3] two", "[rank 3] three", "[rank 3] no newline"]
    assert inbox.printed() == []


def test_each_inbox_receives_what_is_addressed_to_it(lab: Lab) -> None:
    def talk(address: str, word: str) -> None:
        with capture_prints(address, ">"):
            print(word)

    first, second = Inbox(lab.client), Inbox(lab.client)
    words = [(first.address, "a"), (second.address, "b"), (first.address, "c")]
    lab.client.gather([lab.client.submit(talk, *word, pure=False) for word in words])
    assert sorted(first.printed()) == ["> a", "> c"]
    assert second.printed() == ["> b"]


def test_only_the_task_inside_the_block_is_captured(lab: Lab) -> None:
    def talk(address: str) -> str:
        import contextlib
        import io
        import sys
        import threading

        with capture_prints(address, ">"):
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

    inbox = Inbox(lab.client)
    assert lab.client.submit(talk, inbox.address, pure=False).result() == "kept\n"
    assert inbox.printed() == ["> heard"]


def test_a_failure_does_not_lose_what_was_printed_before(lab: Lab) -> None:
    def fail(address: str) -> None:
        with capture_prints(address, ">"):
            print("last words", end="")
            raise ValueError

    inbox = Inbox(lab.client)
    assert isinstance(lab.client.submit(fail, inbox.address, pure=False).exception(), ValueError)
    assert inbox.printed() == ["> last words"]


def test_printing_without_end_is_cut_off_with_a_word(lab: Lab) -> None:
    def flood(address: str) -> None:
        with capture_prints(address, ">"):
            for number in range(MAX_LINES + 500):
                print(number)

    inbox = Inbox(lab.client)
    lab.client.submit(flood, inbox.address, pure=False).result()
    *lines, last = inbox.printed()
    assert lines == [f"> {number}" for number in range(MAX_LINES)]
    assert "not shown" in last


def test_a_closed_inbox_receives_nothing_and_keeps_nothing(lab: Lab) -> None:
    def talk(address: str) -> None:
        with capture_prints(address, ">"):
            print("too late")

    inbox = Inbox(lab.client)
    inbox.close()
    lab.client.submit(talk, inbox.address, pure=False).result()
    assert inbox.printed() == []
    assert inbox.address not in inbox._channel.inboxes


def test_messages_go_to_the_receiver_in_order_and_lines_wait(lab: Lab) -> None:
    def talk(address: str) -> None:
        from distributed import get_worker

        with capture_prints(address, ">"):
            for number in range(100):
                post(get_worker(), address, number=number)
                print(number)

    notes: list[Note] = []
    inbox = Inbox(lab.client, notes.append)
    lab.client.submit(talk, inbox.address, pure=False).result()
    assert [note["number"] for note in notes] == list(range(100))
    assert inbox.printed() == [f"> {number}" for number in range(100)]


def test_a_forgotten_inbox_is_gone(lab: Lab) -> None:
    inbox = Inbox(lab.client)
    channel, address = inbox._channel, inbox.address
    assert address in channel.inboxes
    del inbox
    assert address not in channel.inboxes
