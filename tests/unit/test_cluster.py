"""The decisions of a cluster, without servers: the choice, the lag, positions, addresses, arguments."""

from __future__ import annotations

import collections
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooling import PoolManager, PostgresCluster, from_url
from pooling.cluster.addresses import places_of
from pooling.cluster.choosing import (
    FLOOR,
    LEAST_SHARE,
    RAMP,
    Average,
    choose,
    covers,
    find_primary,
    obstacle,
    share,
)
from pooling.cluster.history import History
from pooling.cluster.position import Position, end_of_record

NEVER = float("-inf")
PAGE, SEGMENT = 8192, 16 << 20


@dataclass(eq=False)
class Fake:
    """A server as `choosing` sees it; also one that takes a certain time for each read."""

    role: str = "standby"
    down: str | None = None
    suspect: bool = False
    checked: bool = True
    timeline: int | None = 1
    lsn: int = 0
    lag: float = 0.0
    back_at: float = NEVER
    price: float = 1.0
    passes: int = 0
    took: Average = field(default_factory=Average)

    def cost(self, now: float) -> float:
        return self.price

    def passed(self) -> None:
        self.passes += 1


# -- the choice -------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.integers(0, 1 << 30))
def test_the_dearest_of_several_is_never_chosen(prices: list[float], seed: int) -> None:
    servers = [Fake(price=price) for price in prices]
    chosen = choose(servers, 0.0, random.Random(seed).random)
    assert chosen in servers
    dearer = [one for one in servers if one.price > chosen.price]
    others = [one for one in servers if one is not chosen]
    assert not others or any(one.price >= chosen.price for one in others)
    passed = [one for one in servers if one.passes]
    assert len(passed) == (len(servers) > 1) and chosen not in passed  # two different ones were drawn
    assert all(one in dearer or one.price == chosen.price for one in passed)


@given(st.integers(2, 6), st.integers(0, 1 << 30))
def test_every_pair_is_drawn_equally_often(number: int, seed: int) -> None:
    """With equal costs, each server gets its share."""
    servers, draw = [Fake() for _ in range(number)], random.Random(seed).random
    found = collections.Counter(id(choose(servers, 0.0, draw)) for _ in range(300 * number))
    assert all(150 < found[id(server)] < 480 for server in servers)


def test_the_cheaper_of_two_is_always_chosen() -> None:
    cheap, dear = Fake(price=1.0), Fake(price=1.1)
    draw = random.Random(1).random
    assert {id(choose([dear, cheap], 0.0, draw)) for _ in range(50)} == {id(cheap)}
    assert (cheap.passes, dear.passes) == (0, 50)


@given(st.floats(0, 2 * RAMP), st.integers(0, 1 << 30))
def test_a_server_that_came_back_gets_its_share_little_by_little(since: float, seed: int) -> None:
    old, new = Fake(price=2.0), Fake(price=1.0, back_at=100.0)
    draw = random.Random(seed).random
    found = sum(choose([old, new], 100.0 + since, draw) is new for _ in range(400)) / 400
    expected = share(new, 100.0 + since)
    assert expected == pytest.approx(min(1.0, max(LEAST_SHARE, since / RAMP)))
    assert abs(found - expected) < 0.13


def test_a_server_that_came_back_is_used_if_it_is_alone() -> None:
    new, newer = Fake(back_at=100.0), Fake(back_at=100.0)
    assert choose([new], 100.0, lambda: 0.99) is new
    assert choose([new, newer], 100.0, lambda: 0.99) in (new, newer)


def simulate(times: list[float], reads: int, threads: int = 4) -> collections.Counter[int]:
    """Read from servers that take these times, by threads without pauses; return how often from each."""
    draw, now = random.Random(7).random, 0.0
    servers = [Fake() for _ in times]
    busy: list[tuple[float, float, int]] = []  # end, begin, server
    found: collections.Counter[int] = collections.Counter()
    for _ in range(reads):
        if len(busy) == threads:
            busy.sort()
            now, began, place = busy.pop(0)
            servers[place].took.note(now - began, now)
        for place, server in enumerate(servers):
            in_use = sum(one == place for _, _, one in busy)
            server.price = (in_use + 1) * server.took.get(now)
        before = [server.passes for server in servers]
        place = servers.index(choose(servers, now, draw))
        for server, was in zip(servers, before):
            if server.passes > was:
                server.took.fade()
        found[place] += 1
        busy.append((now + times[place], now, place))
    return found


def test_a_slow_server_gets_few_reads_and_equal_ones_get_equally_many() -> None:
    found = simulate([0.001, 0.001, 0.01], 6000)
    assert found[2] < 0.05 * 6000 and found[2] > 0  # some, which tell when it is fast again
    assert abs(found[0] - found[1]) < 0.15 * 6000


def test_a_server_that_became_fast_again_is_found_out() -> None:
    slow, fast = Average(), Average()
    for number in range(100):
        slow.note(0.1, number * 0.01)
        fast.note(0.001, number * 0.01)
    passes = 0
    while slow.get(1.0) > fast.get(1.0) and passes < 1000:
        slow.fade()
        passes += 1
    assert 100 < passes < 400
    slow.note(0.001, 1.0)
    assert slow.get(1.0) < 0.003  # one read is enough to tell


@given(st.lists(st.tuples(st.floats(0.001, 10), st.floats(0.0, 5)), min_size=1, max_size=30), st.floats(0, 100))
def test_an_average_lies_between_what_it_is_of(durations: list[tuple[float, float]], later: float) -> None:
    average, now = Average(), 0.0
    for took, pause in durations:
        now += pause
        average.note(took, now)
    least, most = min(took for took, _ in durations), max(took for took, _ in durations)
    assert least * 0.999 <= average.get(now) <= most * 1.001
    assert FLOOR <= average.get(now + later) <= average.get(now)


def test_an_average_follows_within_seconds() -> None:
    average = Average()
    average.note(0.1, 0.0)
    assert average.get(0.0) == pytest.approx(0.1)
    average.note(0.2, 2.0)
    assert average.get(2.0) == pytest.approx(0.15)  # the older one counts half
    assert average.get(12.0) == pytest.approx(0.075)
    assert Average().get(5.0) == FLOOR


# -- which servers ----------------------------------------------------------------------------


@given(st.floats(0, 20), st.floats(0.1, 20))
def test_a_replica_is_left_out_beyond_max_lag(lag: float, most: float) -> None:
    assert (obstacle(Fake(lag=lag), most, 1) is None) == (lag <= most)


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (Fake(), None),
        (Fake(down="refused"), "down: refused"),
        (Fake(role="primary"), "primary"),
        (Fake(role="unknown"), "unknown"),
        (Fake(suspect=True), "a connection was lost"),
        (Fake(checked=False), "not compared with the primary yet"),
        (Fake(timeline=1), None),
        (Fake(timeline=None), None),
        (Fake(lag=10.0), None),
        (Fake(lag=10.1), "10.1 s behind"),
    ],
)
def test_why_a_server_gets_no_reads(server: Fake, why: str | None) -> None:
    assert obstacle(server, 10.0, 1) == why


def test_a_replica_of_a_former_primary_gets_no_reads() -> None:
    assert obstacle(Fake(timeline=1), 10.0, 2) == "follows a former primary (timeline 1, not 2)"
    assert obstacle(Fake(timeline=3), 10.0, 2) is None  # the primary was asked before it


positions = st.builds(Position, st.integers(0, 4), st.integers(0, 100))


@given(st.none() | st.integers(1, 4), st.integers(0, 100), positions, st.integers(0, 4))
def test_a_replica_covers_a_position_only_if_that_is_certain(
    own: int | None, lsn: int, wanted: Position, timeline: int
) -> None:
    found = covers(Fake(timeline=own, lsn=lsn), wanted, timeline)
    needed = wanted.timeline or timeline
    if lsn < wanted.lsn:
        assert not found
    elif own is None:
        assert found == (needed <= 1 and timeline <= 1)  # there has never been a failover
    else:
        assert found == (own >= needed)


@pytest.mark.parametrize(
    ("own", "wanted", "timeline", "found"),
    [
        (None, 1, 1, True), (None, 0, 1, True), (None, 1, 2, False), (None, 2, 1, False), (None, 0, 2, False),
        (1, 1, 2, True), (1, 2, 2, False), (1, 0, 2, False), (2, 0, 2, True), (3, 2, 2, True),
    ],
)  # fmt: skip
def test_a_replica_covers_positions_of_its_own_history(
    own: int | None, wanted: int, timeline: int, found: bool
) -> None:  # fmt: skip
    assert covers(Fake(timeline=own, lsn=5), Position(wanted, 5), timeline) == found


roles = st.sampled_from(["primary", "standby", "unknown"])
any_server = st.builds(
    Fake, role=roles, down=st.sampled_from([None, "x"]), timeline=st.none() | st.integers(1, 3)
)


@given(st.lists(any_server, min_size=1, max_size=5), st.integers(0, 5))
def test_the_primary_is_the_one_promoted_last(servers: list[Fake], place: int) -> None:
    present = servers[place] if place < len(servers) else None
    found = find_primary(servers, present)
    up = [server for server in servers if server.role == "primary" and not server.down]
    if up:
        newest = max(server.timeline or 0 for server in up)
        assert found in up and (found.timeline or 0) == newest  # type: ignore[union-attr]
        if present in up and (present.timeline or 0) == newest:  # type: ignore[union-attr]
            assert found is present
    elif present is None or present.role == "standby":
        assert found is None
    else:
        assert found is present  # it may come back


def test_of_two_primaries_the_one_promoted_last_is_it() -> None:
    old, new, same = (Fake(role="primary", timeline=timeline) for timeline in (1, 2, 2))
    assert find_primary([old, new], old) is new
    assert find_primary([old, new], new) is new
    assert find_primary([old, new, same], same) is same
    assert find_primary([old, new, same], None) is new
    new.down = same.down = "refused"
    assert find_primary([old, new, same], new) is old
    old.down = "refused"
    assert find_primary([old, new, same], new) is new


# -- lag --------------------------------------------------------------------------------------


def test_a_replica_with_everything_is_not_behind_however_long_ago_that_was_written() -> None:
    history = History(60.0)
    history.note(0.0, 100)
    history.note(1000.0, 100)
    assert history.lag(100, 1000.0, age=1000.0) == 0.0
    assert history.lag(150, 1000.0, age=1000.0) == 0.0


def test_a_replica_is_behind_since_the_primary_went_on() -> None:
    history = History(60.0)
    for second, lsn in enumerate([100, 100, 100, 200, 300]):
        history.note(float(second), lsn)
    assert history.lag(100, 5.0, None) == 3.0  # at 2 it had everything
    assert history.lag(250, 5.0, None) == 2.0
    assert history.lag(300, 5.0, None) == 0.0


def test_before_the_first_position_the_servers_tell() -> None:
    history = History(60.0)
    assert history.lag(1, 5.0, 7.0) == 0.0  # the primary was never asked
    history.note(4.0, 100)
    assert history.lag(1, 5.0, 7.0) == 7.0
    assert history.lag(1, 5.0, 0.1) == 1.0
    assert history.lag(1, 5.0, None) == float("inf")
    history.clear()
    assert history.lag(1, 5.0, 7.0) == 0.0 and not history


@given(
    st.lists(st.tuples(st.floats(0.1, 3), st.integers(0, 50)), min_size=1, max_size=60), st.integers(0, 1000),
    st.floats(0, 50),
)  # fmt: skip
def test_lag_is_never_less_than_the_truth(steps: list[tuple[float, int]], place: int, pause: float) -> None:
    """Whatever was forgotten of the history: the replica misses nothing that was written before now - lag."""
    history, now, lsn, written = History(5.0), 0.0, 0, []
    for seconds, more in steps:
        now, lsn = now + seconds, lsn + more
        history.note(now, lsn)
        written.append((now, lsn))
    replayed = written[place % len(written)][1]
    lag = history.lag(replayed, now + pause, age=float("inf"))
    assert all(position <= replayed for at, position in written if at <= now + pause - lag)


# -- positions --------------------------------------------------------------------------------


@given(st.integers(0, 1 << 31), st.integers(0, (1 << 64) - 1))
def test_a_token_means_its_position(timeline: int, lsn: int) -> None:
    position = Position(timeline, lsn)
    assert Position.parse(position.token) == position
    assert Position.parse(position.token.partition(":")[2]) == Position(0, lsn)


def test_a_token_looks_like_an_lsn_of_postgresql() -> None:
    assert Position(3, 0x2_016B_3748).token == "3:2/16B3748"


@pytest.mark.parametrize("wrong", ["", "1", "1:", "0/", "0/123456789", "x:0/1", "0/1 ", " 0/1", "1:0/1;", "-1:0/1"])
def test_another_text_is_no_token(wrong: str) -> None:
    with pytest.raises(ValueError, match="after must be a token"):
        Position.parse(wrong)


def test_another_value_is_no_token() -> None:
    with pytest.raises(TypeError, match="after must be a token"):
        Position.parse(7)


@given(st.integers(0, 1 << 20))
def test_where_a_record_ends(page: int) -> None:
    start = page * PAGE
    header = 40 if start % SEGMENT == 0 else 24
    assert end_of_record(start + header, PAGE, SEGMENT) == start  # nothing is on this page yet
    for offset in (0, 8, 32, 48, 8184):
        assert end_of_record(start + offset, PAGE, SEGMENT) == start + offset
    other = 24 if header == 40 else 40
    assert end_of_record(start + other, PAGE, SEGMENT) == start + other


# -- addresses and arguments ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primary", "replicas", "labels"),
    [
        ("postgresql://a/db", [], ["a"]),
        ("postgresql://a,b,c/db", [], ["a", "b", "c"]),
        ("postgresql://a:1,b:2/db", [], ["a:1", "b:2"]),
        ("postgresql://a,a:6000/db", [], ["a:5432", "a:6000"]),
        ("host=a,b port=5432 dbname=db", ["host=c"], ["a", "b", "c"]),
        ("host=a,b port=7000", [], ["a:7000", "b:7000"]),
        ("postgres://a/db", ["postgresql://b/db", "postgresql://c,d/db"], ["a", "b", "c", "d"]),
        ("postgresql://a/db", {"near": "postgresql://b/db", "far": "postgresql://c:1/db"}, ["a", "near", "far"]),
        ("hostaddr=10.0.0.1,10.0.0.2 dbname=db", [], ["10.0.0.1", "10.0.0.2"]),
        ("dbname=db", [], ["local"]),
    ],
)
def test_servers_of_addresses(primary: str, replicas: object, labels: list[str]) -> None:
    assert [place.label for place in places_of(primary, replicas)] == labels  # type: ignore[arg-type]


def test_each_server_keeps_the_other_parameters_and_is_connected_to_whatever_its_role() -> None:
    url = "postgresql://app:secret@a:1,b/db?target_session_attrs=read-write&load_balance_hosts=random&sslmode=require"
    one, other = places_of(url, [])
    for place, host in ((one, "a"), (other, "b")):
        parts = dict(part.split("=") for part in place.conninfo.split())
        assert parts.pop("port", "5432") == ("1" if host == "a" else "5432")
        assert parts == {
            "user": "app", "password": "secret", "dbname": "db", "host": host, "sslmode": "require",
            "target_session_attrs": "any",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("primary", "replicas", "error", "match"),
    [
        ("postgresql://a,a/db", [], ValueError, "server a:5432 is given twice"),
        ("postgresql://a/db", ["postgresql://a:5432/db"], ValueError, "given twice"),
        ("host=a,b,c port=1,2", [], ValueError, "3 hosts, but 2 values of port"),
        ("postgresql://a/db", {"x": "postgresql://b,c/db"}, ValueError, "'x' names 2 hosts"),
        ("postgresql://a/db", {"a": "postgresql://b/db"}, ValueError, "'a' is given twice"),
        ("postgresql://a/db", {"": "postgresql://b/db"}, TypeError, "non-empty string"),
        ("postgresql://a/db", "postgresql://b/db", TypeError, "replicas must be several addresses"),
        ("postgresql://a/db", 3, TypeError, "replicas must be several addresses"),
        ("postgresql://a/db", [3], TypeError, "replicas must be given as text"),
        (3, [], TypeError, "primary must be given as text"),
        ("postgresql://app:secret@a/db?nonsense=1", [], ValueError, "primary: "),
    ],
)
def test_bad_addresses(primary: object, replicas: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        places_of(primary, replicas)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"max_lag": 0}, ValueError, "max_lag must be above 0"),
        ({"max_lag": "1"}, TypeError, "max_lag must be a number"),
        ({"max_lag": True}, TypeError, "max_lag must be a number"),
        ({"primary_reads": -1}, ValueError, "primary_reads must be"),
        ({"primary_reads": 1.5}, ValueError, "primary_reads must be"),
        ({"primary_reads": "half"}, TypeError, "primary_reads must be"),
        ({"name": ""}, TypeError, "name must be a non-empty string"),
        ({"clock": None}, TypeError, "clock is no argument"),
        ({"max_size": 0}, ValueError, "max_size"),
        ({"max_sise": 1}, TypeError, "max_sise"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        PostgresCluster("postgresql://a,b/db", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "number"), [(0.5, 5), (1.0, 10), (0.01, 1), (3, 3), (25, 25), (None, None), (0, None)]
)
def test_the_budget_for_reads_on_the_primary(given: float | None, number: int | None) -> None:
    found = PostgresCluster("postgresql://a,b/db", max_size=10, primary_reads=given).stats()["primary_reads"]
    assert (None if found is None else found["max_size"]) == number


@pytest.mark.parametrize(
    ("query", "lag", "reads"),
    [
        ("", 10.0, 5), ("?max_lag=2.5", 2.5, 5), ("?primary_reads=3&max_lag=1&sslmode=require", 1.0, 3),
        ("?sslmode=require&primary_reads=0.2", 10.0, 2), ("?primary_reads=none", 10.0, None),
    ],
)  # fmt: skip
def test_a_cluster_by_url(query: str, lag: float, reads: int | None) -> None:
    manager = PoolManager()
    manager.create_pool("orders", f"postgresql+cluster://app:secret@a,b/db{query}", max_size=10)
    found = manager["orders"]
    assert isinstance(found, PostgresCluster) and found.name == "orders" and set(found.servers) == {"a", "b"}
    assert found.standing.max_lag == lag and found.settings.max_size == 10
    permits = found.stats()["primary_reads"]
    assert (permits and permits["max_size"]) == reads
    assert isinstance(from_url("postgresql+cluster://a,b/db?max_size=3"), PostgresCluster)


@pytest.mark.parametrize("query", ["max_lag=x", "max_lag=0", "primary_reads=half", "primary_reads=1.5", "max_lags=1"])
def test_a_wrong_url_of_a_cluster(query: str) -> None:
    with pytest.raises(ValueError, match=query.partition("=")[0]) as caught:
        from_url(f"postgresql+cluster://app:secret@a,b/db?{query}")
    assert "secret" not in str(caught.value)


def test_what_it_shows_before_its_first_use() -> None:
    cluster = PostgresCluster("postgresql://app:secret@a,b/db", name="orders", max_size=4)
    assert repr(cluster) == "<PostgresCluster 'orders': a: unknown, b: unknown>"
    assert [pool.name for pool in cluster.servers.values()] == ["orders.a", "orders.b"]
    stats = cluster.stats()
    assert (stats["max_size"], stats["size"], stats["primary"], stats["down"]) == (8, 0, "a", None)
    assert set(stats["servers"]) == {"a", "b"}
    assert "secret" not in str(stats) + repr(cluster)
