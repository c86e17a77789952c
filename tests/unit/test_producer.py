"""The producer without Kafka: what it mixes, how it paces, what it counts, what it writes to files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import producer
from domains import DOMAINS
from engine.domain import DeclarationError, Stream, each
from engine.produce.messages import RECENT, Message, mix
from engine.produce.sends import FileSink, Tally, serve_metrics
from engine.produce.validate import EventRefused, checker
from engine.runtime.settings import Settings, SettingsError

ROOT = Path(__file__).resolve().parents[2]
START_MS = 1_767_225_600_000
HOUR_MS = 3_600_000
STREAMS = list(DOMAINS[0].streams)


def mixed(count: int, streams: list[Stream] = STREAMS, **shares: float) -> list[Message]:
    messages = mix(streams, Settings(**shares), Random(1), lambda number: START_MS)  # type: ignore[arg-type]
    return list(islice(messages, count))


def event_ms(message: Message) -> int:
    text = message.event["timestamp"].replace("Z", "+00:00")
    return round(producer.start_time(text).timestamp() * 1000)


def run_cli(*flags: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "producer.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, env=environ, timeout=60)


def test_topics_are_mixed_by_weight() -> None:
    counts = Counter(message.stream.topic for message in mixed(20_000))
    total = sum(stream.weight for stream in STREAMS)
    for stream in STREAMS:
        assert counts[stream.topic] / 20_000 == pytest.approx(stream.weight / total, abs=0.01)


def test_shares_come_out_as_asked() -> None:
    messages = mixed(20_000, duplicate_share=0.1, late_share=0.2, broken_share=0.05, future_share=0.02)
    checks = {stream.topic: checker(stream) for stream in STREAMS}
    seen: set[bytes] = set()
    kinds: Counter[str] = Counter()
    for message in messages:
        offset_ms = event_ms(message) - START_MS
        if message.value in seen and message.value:
            kinds["duplicate"] += 1
            continue
        seen.add(message.value)
        try:
            checks[message.stream.topic](message.value)
            good = json.loads(message.value) == message.event
        except (EventRefused, ValueError):
            good = False
        kinds["late" if offset_ms < 0 else "future" if offset_ms > 0 else "good" if good else "broken"] += 1
        assert -3 * 24 * HOUR_MS <= offset_ms <= 0 or HOUR_MS <= offset_ms <= 24 * HOUR_MS
    for kind, share in (("duplicate", 0.1), ("late", 0.2), ("broken", 0.05), ("future", 0.02)):
        assert kinds[kind] / 20_000 == pytest.approx(share, abs=0.012), kind


def test_a_duplicate_has_the_bytes_and_the_key_of_a_recent_good_event() -> None:
    where: dict[bytes, tuple[int, bytes]] = {}
    repeats = 0
    for number, message in enumerate(mixed(5_000, duplicate_share=0.2)):
        if message.value in where:
            earlier, key = where[message.value]
            assert key == message.key
            assert number - earlier <= 2 * RECENT + 1
            repeats += 1
        else:
            where[message.value] = (number, message.key)
    assert 800 < repeats < 1_200


def test_a_duplicate_is_never_farther_back_than_the_window() -> None:
    stream = Stream(
        "tiny",
        {"id": "BIGINT"},
        "id",
        ("id",),
        duplicate_window=3,
        generator=each(lambda rng, now_ms: {"id": rng.getrandbits(60)}),
    )
    last: dict[bytes, int] = {}
    good = 0
    for message in mixed(2_000, [stream], duplicate_share=0.3):
        if message.value in last:
            assert good - last[message.value] <= 3
        else:
            good += 1
            last[message.value] = good


def test_a_broken_event_keeps_the_key_of_the_good_one() -> None:
    for message in mixed(500, broken_share=1.0):
        assert message.key == message.event[message.stream.key].encode()


def test_a_generator_that_breaks_its_own_schema_is_stopped() -> None:
    stream = Stream(
        "bad",
        {"id": "STRING", "price": "DECIMAL(5,2)"},
        "id",
        ("id",),
        generator=each(lambda rng, now_ms: {"id": "a", "price": 1.005}),
    )
    with pytest.raises(EventRefused, match=r"topic 'bad': price DECIMAL\(5,2\) cannot hold"):
        mixed(1, [stream])


@pytest.mark.parametrize(
    ("sql_type", "good", "bad"),
    [
        (
            "DECIMAL(5,2)",
            ["0", "-999.99", "10.5", "1e2", "10.500", "null"],
            ["1000", "10.005", '"10"', "1e-3", "true", "{}"],
        ),
        ("DECIMAL(3,3)", ["0.123", "-0.999", "0"], ["1", "0.1234"]),
        ("DECIMAL(4,0)", ["9999", "-1", "1.0"], ["10000", "0.5"]),
        ("BIGINT", ["0", "-9223372036854775808", "9223372036854775807"], ["9223372036854775808", "1.5", '"3"', "true"]),
        ("INT", ["2147483647", "-2147483648"], ["2147483648", "-2147483649"]),
        ("STRING", ['""', '"x"', '"\\u0000"'], ["1", "true", "[]"]),
        ("DOUBLE", ["1", "1.5", "-1e300"], ['"1"', "1e400", "false"]),
        ("BOOLEAN", ["true", "false"], ["0", '"true"']),
        ("ARRAY<STRING>", ["[]", '["a"]'], ["[1]", "[null]", '"a"']),
        (
            "TIMESTAMP",
            [
                '"2026-01-31T23:59:59Z"',
                '"2026-01-31 23:59:59.123456789"',
                '"2026-01-31t00:00:00+0700"',
                "1767225600000",
            ],
            [
                '"2026-01-31"',
                '"2026-04-31T00:00:00Z"',
                '"2026-01-31T23:59:60Z"',
                '"2026-01-31T00:00:00.1234567891Z"',
                '"now"',
                "1.5",
                '"9999-12-31T23:59:59-05:00"',
                '"2026-01-31T00:00:00+24:00"',
                "true",
                "253402300800000",
            ],
        ),
    ],
)
def test_the_check_accepts_only_what_decode_md_calls_good(sql_type: str, good: list[str], bad: list[str]) -> None:
    check = checker(Stream("t", {"id": "STRING", "v": sql_type}, "id", ("id",)))
    for text in good:
        check(f'{{"id":"a","v":{text}}}'.encode())
    for text in bad:
        with pytest.raises(EventRefused):
            check(f'{{"id":"a","v":{text}}}'.encode())


class Clock:
    """Tells a time that moves only while somebody sleeps, or sends."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __bool__(self) -> bool:  # a stop signal that never comes
        return False


def paced(monkeypatch: pytest.MonkeyPatch, rate: float, count: int, slow: float = 0.0) -> list[float]:
    moments: list[float] = []
    clock = Clock()
    monkeypatch.setattr(producer, "time", clock)

    def send(message: Any) -> None:
        moments.append(clock.now)
        clock.sleep(slow if len(moments) == count // 2 else 0.0001)

    endless: Any = iter(int, 1)
    producer.run(endless, send, Tally(()), clock, rate, count)  # type: ignore[arg-type]
    return moments


def test_the_rate_is_kept_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = paced(monkeypatch, rate=500, count=251)
    assert moments[-1] - moments[0] == pytest.approx(0.5, abs=0.01)
    per_slice = Counter(int((moment - moments[0]) / 0.1) for moment in moments)
    assert max(per_slice.values()) <= 52


def test_a_stall_is_not_caught_up_in_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = paced(monkeypatch, rate=100, count=40, slow=0.5)
    assert moments[-1] - moments[0] > 0.8


def test_full_speed_has_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paced(monkeypatch, rate=0, count=10_000)[-1] < 1


def acknowledge(tally: Tally, topic: str, milliseconds_ago: int) -> None:
    tally.ack(SimpleNamespace(topic=topic, timestamp=time.time() * 1000 - milliseconds_ago))


def test_only_acknowledged_events_are_counted_and_failures_name_topic_and_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = Tally(["a", "b"])
    for topic in ("a", "a", "a", "b", "b"):
        tally.handed[topic] += 1
    acknowledge(tally, "a", 3)
    acknowledge(tally, "b", 3)
    assert (tally.unfinished, tally.any_failed) == (3, False)
    tally.fail("a", b"k1", TimeoutError("too late"))
    tally.fail("a", b"k1", TimeoutError("too late"))
    assert (tally.unfinished, tally.any_failed) == (1, True)
    tally.give_up()
    assert tally.failed == {"a": 2, "b": 1}
    assert "FAILED: a 2 events of 1 keys, b 1 events" in tally.summary()
    assert "2 events acknowledged" in tally.summary()
    said = capsys.readouterr().err
    assert said == "producer: failed so far: a 1 events of 1 keys; last: too late\n"


def test_metrics_and_health_answer() -> None:
    import socket

    tally = Tally(["a"])
    tally.handed["a"] += 2
    acknowledge(tally, "a", 30)
    acknowledge(tally, "a", 700)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve_metrics(tally, "127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    assert 'messages_sent_total{topic="a"} 2.0' in lines
    assert 'messages_failed_total{topic="a"} 0.0' in lines
    assert 'send_latency_seconds_bucket{le="0.05"} 1.0' in lines
    assert "send_latency_seconds_count 2.0" in lines
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        assert (answer.status, json.load(answer)["status"]) == (200, "ok")


def test_a_busy_metrics_port_is_said_and_does_not_stop_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        serve_metrics(Tally(["a"]), "127.0.0.1", busy.getsockname()[1])
    assert "set PRODUCER_METRICS_PORT" in capsys.readouterr().err


def test_csv_opens_in_a_spreadsheet_with_its_text_intact_and_no_formula(tmp_path: Path) -> None:
    stream = Stream("t", {"id": "STRING", "n": "BIGINT", "tags": "ARRAY<STRING>"}, "id", ("id",))
    sink = FileSink("csv", str(tmp_path / "out.csv"), [stream])
    for text in ("=1+1", "+1", "-1", "@x", "\tx", "\rx", 'Đà "Nẵng", ok'):
        sink.write("t", b"{}", {"id": text, "n": -5, "tags": ["ă"]})
    sink.close()
    written = (tmp_path / "out.csv").read_bytes()
    assert written.startswith(b"\xef\xbb\xbftopic,id,n,tags\r\n")
    rows = list(csv.DictReader(io.StringIO(written.decode("utf-8-sig"), newline="")))
    assert [row["id"] for row in rows] == ["'=1+1", "+1", "-1", "'@x", "'\tx", "'\rx", 'Đà "Nẵng", ok']
    assert {(row["n"], row["tags"]) for row in rows} == {("-5", '["ă"]')}


@pytest.mark.parametrize("count", [1, 50])
def test_json_is_one_unescaped_array_and_jsonl_a_line_each(tmp_path: Path, count: int) -> None:
    flags = ("--count", str(count), "--seed", "3", "--start", "2026-01-01T00:00:00Z", "--rate", "1000")
    array = run_cli("--to", "json", "--out", str(tmp_path / "out.json"), *flags)
    assert (array.returncode, array.stdout) == (0, b"")
    lines = run_cli("--to", "jsonl", *flags)
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    rows = json.loads(text)
    assert rows == [json.loads(line) for line in lines.stdout.splitlines()]
    assert len(rows) == count
    assert "\\u" not in text
    assert rows[0]["timestamp"] == "2026-01-01T00:00:00.000Z"
    assert rows[-1]["timestamp"] == f"2026-01-01T00:00:00.{count - 1:03d}Z"
    assert f"{count} events acknowledged".encode() in lines.stderr
    assert b"seed 3" in lines.stderr


BASICS = r"""tconst titleType primaryTitle originalTitle isAdult startYear endYear runtimeMinutes genres
tt0000001 movie Amélie's_"Best"_Day Amélie 0 2001 \N 122 Comedy,Romance
tt0000002 movie Untold_Length Untold_Length 0 1999 \N \N \N
tt0000003 short Too_Short Too_Short 0 2001 \N 9 Short
tt0000004 movie No_Year No_Year 0 \N \N 90 Drama
tt0000005 movie Hardly_Seen Hardly_Seen 0 2010 \N 90 Drama
tt0000006 movie Never_Rated Never_Rated 0 2010 \N 90 Drama
tt0000007 tvSeries "Unclosed "Unclosed 0 2010 2012 45 Drama
tt0000008 movie "Unclosed "Unclosed 1 2024 \N 71 Drama,Sci-Fi,War
"""
RATINGS = """tconst averageRating numVotes
tt0000001 8.3 812345
tt0000002 10.0 1000
tt0000003 7.1 5000
tt0000004 6.1 5000
tt0000005 6.1 999
tt0000007 6.1 5000
tt0000008 5.0 31337
"""


def test_imdb_s_own_files_take_the_path_of_the_fictional_pair(tmp_path: Path) -> None:
    """Tab-separated, gzipped, \\N for null, quotes that mean nothing.

    Told are movies with a year and 1,000 votes, each once first.
    """
    options = []
    for name, text in (("basics", BASICS), ("ratings", RATINGS)):
        rows = text.replace(" ", "\t").replace("_", " ")
        (tmp_path / f"title.{name}.tsv.gz").write_bytes(gzip.compress(rows.encode()))
        options += ["--option", f"IMDB_{name.upper()}={tmp_path}/title.{name}.tsv.gz"]
    out = tmp_path / "titles.jsonl"
    done = run_cli("--domain", "movies", "--to", "jsonl", "--out", str(out), "--count", "9", "--seed", "1", *options)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    wanted = [
        ("tt0000001", 'Amélie\'s "Best" Day', 2001, 122, ["Comedy", "Romance"], 8.3, 812_345),
        ("tt0000002", "Untold Length", 1999, None, [], 10.0, 1_000),
        ("tt0000008", '"Unclosed', 2024, 71, ["Drama", "Sci-Fi", "War"], 5.0, 31_337),
    ]
    assert sorted(tuple(event.values())[1:] for event in events[:3]) == wanted
    assert list(events[0]) == ["topic", *next(d for d in DOMAINS if d.name == "movies").streams[0].columns]
    votes = {row[0]: row[-1] for row in wanted}
    for event in events[3:]:  # told again, with more votes each time
        assert event["numVotes"] > votes[event["tconst"]]
        votes[event["tconst"]] = event["numVotes"]
    # Half a pair, a file that is not there, and one that is not IMDb's are told in one line.
    for wrong, said in (
        (options[:2], "allowed are both or none"),
        ([*options[:3], f"IMDB_RATINGS={tmp_path}/none.gz"], "allowed is the path or URL of IMDb's file"),
        ([*options[:3], f"IMDB_RATINGS={tmp_path}/title.basics.tsv.gz"], "no column averageRating"),
    ):
        refused = run_cli("--domain", "movies", "--to", "jsonl", "--count", "1", *wrong)
        assert refused.returncode == 2 and said in refused.stderr.decode().splitlines()[-1]


def imdb(tmp_path: Path, basics: bytes, ratings: bytes) -> subprocess.CompletedProcess[bytes]:
    """Each title of a pair of files once, as JSON lines."""
    options = []
    for name, content in (("basics", basics), ("ratings", ratings)):
        (tmp_path / f"title.{name}.tsv").write_bytes(content)
        options += ["--option", f"IMDB_{name.upper()}={tmp_path}/title.{name}.tsv"]
    return run_cli("--domain", "movies", "--to", "jsonl", "--count", "3", "--seed", "1", *options)


def tabbed(text: str) -> bytes:
    return text.replace(" ", "\t").replace("_", " ").encode()


ODD_BASICS = r"""tt0000001 movie Minutes_Are_No_Number Minutes 0 2001 \N Drama Comedy
tt0000001 movie Year_Is_None Year 0 19xx \N 90 Drama
tt0000001 movie Shifted 0 2001 \N 90 Drama
tt0000001 movie One_More One_More 0 2001 \N 90 Drama Comedy
movie tt0000001 Swapped Swapped 0 2001 \N 90 Drama

tt0000001 movie Cut_Off_With_All_Its_Columns Cut 0 2001 \N 90 Dra"""
ODD_RATINGS = """tt0000001 9.x 5000
tt0000001 11.0 5000
tt0000001 9.1 many
tt0000001 9.1
tt0000001 9.9 81"""


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_odd_rows_of_imdb_are_left_out_and_counted_in_one_line(pack: Any, tmp_path: Path) -> None:
    """Whether the files are gzipped or not, with the line ends of Windows and a byte-order mark or without."""
    for mark, end in ((b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")):
        basics, ratings = (
            mark + tabbed(text).replace(b"\n", end) for text in (BASICS + ODD_BASICS, RATINGS + ODD_RATINGS)
        )
        done = imdb(tmp_path, pack(basics), pack(ratings))
        assert done.returncode == 0, done.stderr
        told = [line for line in done.stderr.decode().splitlines() if "left out" in line]
        assert len(told) == 1 and "7 of 15 of IMDB_BASICS, 5 of 12 of IMDB_RATINGS" in told[0]
        titles = {
            row["tconst"]: (row["primaryTitle"], row["numVotes"]) for row in map(json.loads, done.stdout.splitlines())
        }
        assert titles["tt0000001"] == ('Amélie\'s "Best" Day', 812_345) and len(titles) == 3


_GZIPPED = gzip.compress(tabbed(BASICS) * 50)


@pytest.mark.parametrize(
    ("basics", "reason"),
    [
        (b"", "no column tconst"),
        (b"<!doctype html>\n<title>IMDb</title>\n", "no column tconst"),
        (bytes(range(256)), "can't decode"),
        (BASICS.encode("utf-16"), "can't decode"),
        (_GZIPPED[:-40], "ended before"),
        (_GZIPPED[:40] + b"\xff" * 40 + _GZIPPED[80:], "Error"),
        (gzip.compress(tabbed(BASICS))[:-8] + b"\0" * 8, "CRC"),
        (tabbed(BASICS) + b"tt0000001\tmovie\t" + b"x" * 200_000 + b"\n", "more than 100000 characters"),
        (gzip.compress(b"\0" * 1_000_000), "more than 100000 characters"),
    ],
)
def test_a_file_that_is_none_of_imdb_s_or_is_damaged_is_one_line_and_exit_2(
    basics: bytes, reason: str, tmp_path: Path
) -> None:
    done = imdb(tmp_path, basics, tabbed(RATINGS))
    assert (done.returncode, done.stdout) == (2, b"")
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("producer: ")]
    assert len(lines) == 1 and lines[0].startswith("error: IMDB_BASICS=") and reason in lines[0]


def test_an_array_of_nothing_is_still_an_array(tmp_path: Path) -> None:
    FileSink("json", str(tmp_path / "out.json"), STREAMS).close()
    assert json.loads((tmp_path / "out.json").read_text()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "fast"], "error: --rate='fast': allowed is a number"),
        (["--domain", "nosuch"], "error: DOMAIN='nosuch': unknown domain; allowed: learning"),
        (["--late", "0.6", "--broken", "0.6"], "allowed is a sum of at most 1"),
        (["--to", "csv", "--broken", "0.1"], "error: --broken=0.1: allowed is 0 with --to csv"),
        (["--to", "jsonl", "--out", "/nowhere/x.jsonl"], "/nowhere/x.jsonl"),
    ],
)
def test_an_operator_s_mistake_is_one_line_and_exit_2(flags: list[str], message: str) -> None:
    done = run_cli(*flags)
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("producer: ")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert message in lines[0]


def test_a_wrong_variable_is_named_by_its_variable() -> None:
    done = run_cli("--to", "jsonl", DUPLICATE_SHARE="2")
    assert (done.returncode, done.stderr) == (2, b"error: DUPLICATE_SHARE='2': allowed is a number from 0 to 1\n")


def test_main_raises_what_the_command_line_prints() -> None:
    with pytest.raises(SettingsError):
        producer.main(["--rate", "x"])
    with pytest.raises(DeclarationError):
        producer.main(["--domain", "x"])
