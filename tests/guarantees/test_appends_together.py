"""Small batches of a stream that come in one piece: accepted together, answered one by one."""

import json
from contextlib import closing

import pytest

from flight_server.quick_stream import BATCH_MAX_BYTES
from tests.bus_worlds import until
from tests.guarantees import test_quick_appends as quick
from tests.guarantees.test_append_ends import SlowReader
from tests.guarantees.test_quick_appends import LOOSE, STRICT, counted, numbers_of, row, rows_of
from tests.wire import batch_message, stream_opening

service, uri, quickly, connection = quick.service, quick.uri, quick.quickly, quick.connection


def sent_together(uri, batches, schema=STRICT):
    """The answers to a first batch, and to those that come in one piece behind it."""
    before = counted("OK")
    with closing(SlowReader(uri, stream_opening(schema, "t"))) as reader:
        reader.send(batch_message(row(0, schema=schema)))
        # Before it is answered no other is taken.
        until(lambda: counted("OK") == before + 1)
        reader.send_together(batches)
        return reader.answers()


def keyed(number, key):
    metadata = json.dumps({"idempotency_key": key}).encode()
    return batch_message(row(number), metadata=metadata)


def acceptances(quickly):
    """How many batches each acceptance is of."""
    found = []
    for each in quickly:
        if found and found[-1][0] is each:
            found[-1][1] += 1
        else:
            found.append([each, 1])
    return [count for _, count in found]


def test_they_share_an_acceptance_and_have_each_a_token(uri, connection, quickly):
    answers = sent_together(uri, [batch_message(row(n)) for n in range(1, 21)])
    assert numbers_of(answers) == list(range(21))
    tokens = [answer["visibility_token"] for answer in answers]
    assert tokens == list(range(tokens[0], tokens[0] + 21))
    assert [answer["row_count"] for answer in answers] == [1] * 21
    assert acceptances(quickly) == [1, 20]
    assert rows_of(connection) == list(range(21))


def test_no_more_than_a_window_of_them(uri, connection, quickly, service):
    window = service.opened[-1][0]._appends.window
    many = 2 * window + 5
    answers = sent_together(uri, [batch_message(row(n)) for n in range(1, many)])
    assert numbers_of(answers) == list(range(many))
    assert max(acceptances(quickly)) <= window
    assert rows_of(connection) == list(range(many))


def test_no_more_of_them_than_a_batch_may_have_bytes(uri, connection, quickly):
    long = "x" * (BATCH_MAX_BYTES // 5)
    answers = sent_together(uri, [batch_message(row(n, long)) for n in range(1, 11)])
    assert numbers_of(answers) == list(range(11))
    assert max(acceptances(quickly)) == 4
    assert rows_of(connection) == list(range(11))


@pytest.mark.parametrize("at", [1, 4, 6])
def test_those_before_a_bad_one_stand_and_none_behind_it(uri, connection, at):
    ok, invalid = counted("OK"), counted("INVALID_PAYLOAD")
    numbers = [None if n == at else n for n in range(1, 7)]
    answers = sent_together(uri, [batch_message(row(n, schema=LOOSE)) for n in numbers], LOOSE)
    assert numbers_of(answers) == list(range(at + 1))
    assert answers[at]["error"]["error_code"] == "INVALID_PAYLOAD"
    assert rows_of(connection) == list(range(at))
    assert (counted("OK"), counted("INVALID_PAYLOAD")) == (ok + at, invalid + 1)


def test_one_that_has_no_rows_is_passed_over(uri, connection, quickly):
    nothing = b""
    batches = [batch_message(row(1)), nothing, batch_message(row(2)), nothing]
    answers = sent_together(uri, batches)
    assert numbers_of(answers) == [0, 1, 2]
    assert rows_of(connection) == [0, 1, 2]


def test_one_with_a_key_stands_for_itself(uri, connection, quickly):
    batches = [batch_message(row(1)), batch_message(row(2)), keyed(3, "k"), batch_message(row(4))]
    answers = sent_together(uri, batches)
    assert numbers_of(answers) == list(range(5))
    assert acceptances(quickly) == [1, 2, 1, 1]
    assert rows_of(connection) == list(range(5))
    # The key has its rows: with others it ends the stream, and takes nobody before it along. What
    # came behind it was under way already, perhaps, and has no answer.
    again = sent_together(uri, [batch_message(row(5)), keyed(6, "k"), batch_message(row(7))])
    assert numbers_of(again) == [0, 1, 2]
    assert again[2]["error"]["error_code"] == "IDEMPOTENCY_CONFLICT"
    assert [n for n in rows_of(connection) if n != 7] == [0, 0, 1, 2, 3, 4, 5]


def test_one_with_its_key_and_rows_again_is_a_duplicate_among_them(uri, connection, quickly):
    first = sent_together(uri, [keyed(1, "k")])
    again = sent_together(uri, [batch_message(row(2)), keyed(1, "k"), batch_message(row(3))])
    assert [answer["duplicate"] for answer in again] == [False, False, True, False]
    assert again[2]["visibility_token"] == first[1]["visibility_token"]
    assert sorted(rows_of(connection)) == [0, 0, 1, 2, 3]
