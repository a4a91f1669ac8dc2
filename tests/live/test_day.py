"""The running day without sockets: counts after a loss of the store, and cursors."""

import gc
import json
from collections.abc import Iterator

import pytest

from app.domain.calendar import Calendar, Clock
from app.live.clients import DashboardClient
from app.live.day import NO_CURSOR, Cursor, Delta, LiveDay, diff_after_loss
from app.live.messages import MESSAGE_NAMES_MAX, Message, sse_chunks
from app.settings import Settings


@pytest.fixture
def clock() -> Clock:
    return Clock(Calendar(Settings().timezone), lambda: 1_777_636_800.0)


@pytest.mark.fails_on_mutant(
    "a client keeps events that no longer exist",
    "app/live/day.py",
    'resets = [self._reset("/")] if is_other_day and not events else',
    "resets =",
)
def test_a_client_that_resumes_after_a_loss_of_the_store_gets_the_remaining_counts(clock: Clock) -> None:
    day = LiveDay(clock)
    day.merge(day.day, {"a": 5, "b": 6, "c": 7})
    day.take_deltas()
    before = day.head.event_id
    day.replace(clock.slot(), {"a": 2, "c": 7}, day.counts(), 0)
    day.take_deltas()
    assert day.parse_cursor(before).change == -1

    def missed(*events: str) -> list[object]:
        messages, end = day.catch_up_plain(day.parse_cursor(before), events)
        assert end == day.head
        fields = [json.loads(message.data) for message in messages]
        return [(data["eventName"], data["count"]) if "eventName" in data else data["day"] for data in fields]

    assert missed() == ["2026-05-01", ("a", 2), ("c", 7)]
    assert missed("b", "c", "d") == [("b", 0), ("c", 7), ("d", 0)]
    day = LiveDay(clock)  # of a node that has started since
    day.merge(day.day, {"c": 8})
    day.take_deltas()
    assert missed() == ["2026-05-01", ("c", 8)]
    assert day.parse_cursor(day.head.event_id).change == day.head.change
    assert day.parse_cursor(NO_CURSOR.event_id) == NO_CURSOR


@pytest.mark.parametrize(
    ("shown", "read", "before", "lost", "after"),
    [
        # The store lost two hits of "a" and all of "b".
        ({"a": 5, "b": 1}, {"a": 3}, {"a": 5, "b": 1}, {"a", "b"}, {"a": 3, "b": 0}),
        # A hit came while the store was read.
        ({"a": 6}, {"a": 5}, {"a": 5}, set(), {"a": 6}),
        # The same, but the store had lost data before: what it had is right, the hit comes with the next read.
        ({"a": 6, "new": 1}, {"a": 4}, {"a": 5}, {"a"}, {"a": 4, "new": 1}),
        # Another node counted more.
        ({"a": 5}, {"a": 7, "b": 2}, {"a": 5}, set(), {"a": 7, "b": 2}),
        # The day began during the read, so nothing is shown of what was.
        ({}, {}, {"a": 5}, set(), {}),
    ],
)
def test_counts_after_a_loss_are_those_of_the_store_where_it_had_fewer_than_before(
    shown: dict[str, int], read: dict[str, int], before: dict[str, int], lost: set[str], after: dict[str, int]
) -> None:
    assert diff_after_loss(shown, read, before) == (lost, after)


@pytest.mark.fails_on_mutant(
    "the new id with the first update of several",
    "app/live/messages.py",
    "[begin] * (len(part) - 1)",
    "[end] * (len(part) - 1)",
)
@pytest.mark.parametrize("updates", [99, 100, 250])
def test_only_the_last_event_of_a_stream_has_the_new_id(updates: int) -> None:
    messages = iter([Message("update", {"n": i}, "/") for i in range(updates)])
    text = b"".join(chunk.body for chunk in sse_chunks(messages, "begin", "end")).decode()
    ids = [line for line in text.splitlines() if line.startswith("id: ")]
    assert len(ids) == updates
    assert set(ids[:-1]) <= {"id: begin"}
    assert ids[-1] == ("id: begin" if updates == 100 else "id: end")  # or with the next comment


@pytest.mark.fails_on_mutant(
    "each stream encodes the changes", "app/live/day.py", "        @cache\n        def chunks", "        def chunks"
)
@pytest.mark.fails_on_mutant(
    "a stream gets events that did not change",
    "app/live/day.py",
    "for event in events if index.get(event) in changed_set())",
    "for event in events if event in index)",
)
def test_changes_are_encoded_once_for_all_streams_of_the_same_events(clock: Clock) -> None:
    day = LiveDay(clock)
    day.merge(day.day, {"a": 1, "b": 1, "quiet": 7})
    day.take_deltas()
    day.merge(day.day, {"a": 2, "b": 3})
    (delta,) = day.take_deltas()
    assert delta.chunks
    every, some = delta.chunks((), True), delta.chunks(("b", "quiet", "never"), True)
    (of_all,), (of_some,) = every, some
    assert delta.chunks((), True) is every
    assert delta.chunks(("b", "quiet", "never"), True) is some
    assert of_all.framed is of_all.framed
    assert [json.loads(line[6:]) for line in of_all.body.decode().splitlines() if line.startswith("data: ")] == [
        {"eventName": "a", "count": 2},
        {"eventName": "b", "count": 3},
    ]
    text = f'id: {delta.end.event_id}\nevent: update\ndata: {{"eventName":"b","count":3}}\n\n'
    assert (of_some.body, of_some.framed) == (text.encode(), f"{len(text):x}\r\n{text}\r\n".encode())
    assert delta.chunks(("quiet",), True) == []


@pytest.mark.fails_on_mutant(
    "each dashboard that joins encodes the changes",
    "app/live/day.py",
    "        self._caught_up = cursor, self._version, messages\n",
    "",
)
@pytest.mark.fails_on_mutant(
    "a dashboard gets the changes of another one",
    "app/live/day.py",
    "(begin, version) == (cursor,",
    "(cursor, version) == (cursor,",
)
def test_dashboards_that_join_share_the_snapshot_and_the_changes_since(clock: Clock) -> None:
    day = LiveDay(clock)

    def count(number: int) -> Cursor:
        day.merge(day.day, {"a": number})
        day.take_deltas()
        return day.head

    def missing(cursor: Cursor) -> Message:
        messages, _ = day.catch_up_dashboard(cursor)
        (message,) = messages
        return message

    begin = count(1)
    snapshot = missing(NO_CURSOR)
    assert missing(NO_CURSOR) is snapshot
    middle = count(2)
    assert json.loads(missing(NO_CURSOR).data)["counts"] == [2]
    changes = missing(begin)
    assert missing(begin) is changes
    assert json.loads(changes.data) == {"seq": 2, "changes": [[0, 2]], "names": [], "since": 2}
    count(3)
    for cursor, since in ((begin, 2), (middle, 3)):
        assert json.loads(missing(cursor).data) == {"seq": 3, "changes": [[0, 3]], "names": [], "since": since}


@pytest.mark.fails_on_mutant(
    "old messages are kept", "app/live/messages.py", "        self._encoded = None\n", "        pass\n"
)
@pytest.mark.parametrize(
    "kind",
    [
        "updates",
        "changes",
        pytest.param(
            "snapshot",
            marks=pytest.mark.fails_on_mutant(
                "an old snapshot is kept",
                "app/live/day.py",
                "        messages.release()\n        messages = snapshot",
                "        messages = snapshot",
            ),
        ),
    ],
)
def test_clients_that_do_not_read_keep_no_messages(clock: Clock, kind: str) -> None:
    day, unread, in_memory = LiveDay(clock), [], []

    def messages(delta: Delta) -> Iterator[Message]:
        if kind == "snapshot":
            return day.catch_up_dashboard(NO_CURSOR)[0]
        return iter(delta.updates if kind == "updates" else delta.changes)

    for count in range(1, 11):
        day.merge(day.day, {f"event {i}": count for i in range(5000)})
        (delta,) = day.take_deltas()
        list(messages(delta))  # a client that reads
        unread.append(messages(delta))
        next(unread[-1])
        in_memory.append(sum(type(found) is Message for found in gc.get_objects()))
    assert in_memory[-1] < 2 * in_memory[0]
    for rest in unread:
        *_, last = rest
        assert "10" in last.data  # the latest count


class Page:
    """A connection of a dashboard that takes `room` more messages, and the counts of one event in them, in order."""

    engine_id, is_direct = "", True

    def __init__(self, day: LiveDay, index: int, room: int) -> None:
        self.client, self.day, self.index, self.room = DashboardClient(self), day, index, room
        self.counts: list[int] = []
        self.client.join(day)

    def try_send(self, message: Message) -> bool:
        self.room -= 1
        data = json.loads(message.data)
        if self.room >= 0 and message.event == "snapshot":
            self.counts += data["counts"][self.index - data["offset"] :][:1] if self.index >= data["offset"] else []
        elif self.room >= 0:
            self.counts += [count for index, count in data.get("changes", []) if index == self.index]
        return self.room >= 0

    def request_direct(self) -> None:
        pass

    async def abort(self) -> None:
        pass

    def deliver(self, deltas: list[Delta], room: int) -> list[int]:
        self.room = room
        self.client.deliver(self.day, deltas)
        return self.counts


# A day whose snapshot and whose changes need three messages, and its last event.
MANY = [f"event {i}" for i in range(2 * MESSAGE_NAMES_MAX + 1)]
LAST = len(MANY) - 1


@pytest.mark.fails_on_mutant(
    "older counts for a client that has newer ones",
    "app/live/day.py",
    "(begin, version) == (cursor, self._version)",
    "(begin, version[0]) == (cursor, self.head)",
)
def test_counts_do_not_go_back_for_a_client_that_is_behind(clock: Clock) -> None:
    day = LiveDay(clock)
    day.merge(day.day, dict.fromkeys(MANY, 1))
    day.take_deltas()
    pages = [Page(day, LAST, 0) for _ in range(2)]
    for page in pages:
        assert page.deliver([], room=9) == [1]
    day.merge(day.day, dict.fromkeys(MANY, 2))
    deltas = day.take_deltas()
    for page in pages:
        assert page.deliver(deltas, room=1) == [1]
    day.merge(day.day, {MANY[LAST]: 3})
    deltas = day.take_deltas()
    assert pages[0].deliver(deltas, room=9) == [1, 3, 3]
    day.merge(day.day, {MANY[LAST]: 4})
    assert pages[1].deliver(deltas, room=9) == [1, 4, 4]


@pytest.mark.fails_on_mutant(
    "a snapshot that is older than the changes before it",
    "app/live/day.py",
    "        if version == self._version:",
    "        if version[0] == self.head:",
)
def test_counts_do_not_go_back_when_a_client_asks_for_a_snapshot(clock: Clock) -> None:
    day = LiveDay(clock)
    day.merge(day.day, dict.fromkeys(MANY, 1))
    day.take_deltas()
    behind = Page(day, LAST, 0)
    assert behind.deliver([], room=9) == [1]
    day.merge(day.day, {MANY[LAST]: 2})
    deltas = day.take_deltas()
    assert Page(day, LAST, 0).deliver(deltas, room=9) == [2]
    day.merge(day.day, {MANY[LAST]: 3})
    assert behind.deliver([], room=9) == [1, 3]
    behind.client.resync()
    assert behind.deliver([], room=9) == [1, 3, 3]


def test_a_message_is_encoded_once_for_all_clients() -> None:
    message = Message("changes", {"seq": 1, "text": "é" * 100}, "/live")
    assert message.packet == '2/live,["changes",{"seq":1,"text":"' + "é" * 100 + '"}]'
    payload = f"4{message.packet}".encode()
    assert message.frame == bytes([0x81, 126]) + len(payload).to_bytes(2, "big") + payload
    assert message.frame is message.frame
