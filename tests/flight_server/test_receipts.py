"""Receipts of a stream: in order, bounded, and a failure ends it."""

import threading

import pytest

from duckmesh.errors import Cancelled, Conflict, ErrorCode
from flight_server.receipts import ReceiptWriter
from grpc_transport.calls import Gone


class Sent(list):
    def write(self, message):
        self.append(message)


def failed(error):
    return b"failed " + error.code.encode()


def test_answers_are_sent_in_the_order_of_their_batches():
    sent, first_may_end = Sent(), threading.Event()

    def slow():
        assert first_may_end.wait(5)
        return b"0"

    with ReceiptWriter(sent, window=8, on_failure=failed) as receipts:
        receipts.put(slow)
        for number in range(1, 8):
            receipts.put(lambda number=number: str(number).encode())
        assert sent == []
        first_may_end.set()
        receipts.finish()
    assert sent == [str(number).encode() for number in range(8)]


def test_the_window_holds_the_sender_back():
    may_end, put_all = threading.Event(), threading.Event()

    def wait():
        assert may_end.wait(5)
        return b"x"

    with ReceiptWriter(Sent(), window=2, on_failure=failed) as receipts:

        def send():
            for _ in range(4):
                receipts.put(wait)
            put_all.set()

        thread = threading.Thread(target=send)
        thread.start()
        assert not put_all.wait(0.2), "one in work and two in the window are three"
        may_end.set()
        assert put_all.wait(5)
        thread.join(5)
        receipts.finish()


def test_a_failed_batch_is_answered_and_ends_the_stream():
    sent = Sent()

    def conflict():
        raise Conflict(ErrorCode.IDEMPOTENCY_CONFLICT, "another payload")

    def fail_and_more():
        with ReceiptWriter(sent, window=8, on_failure=failed) as receipts:
            receipts.put(lambda: b"0")
            receipts.put(conflict)
            receipts.put(lambda: b"2")
            receipts.finish()

    with pytest.raises(Conflict):
        fail_and_more()
    assert sent == [b"0", b"failed IDEMPOTENCY_CONFLICT"]


def test_a_reader_that_breaks_still_answers_what_is_durable():
    sent = Sent()

    def break_off():
        with ReceiptWriter(sent, window=8, on_failure=failed) as receipts:
            receipts.put(lambda: b"0")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert sent == [b"0"]


def test_a_sender_that_left_is_a_cancellation():
    class Left:
        def write(self, _message):
            raise Gone

    def answer():
        with ReceiptWriter(Left(), window=8, on_failure=failed) as receipts:
            receipts.put(lambda: b"0")
            receipts.finish()

    with pytest.raises(Cancelled):
        answer()
