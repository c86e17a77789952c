"""Movies: titles of IMDb's files and how their ratings move. Without files, a fictional pair is written first."""

from __future__ import annotations

import gzip
import http.client
import io
import os
import re
import sys
import tempfile
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engine.domain import DeclarationError, Domain, Maker, Report, Stream, View, count, distinct, last

MIN_VOTES = 1_000
FICTIONAL_TITLES = 6_000
FICTIONAL_SEED = 18_951_228
_BASICS, _RATINGS = "title.basics.tsv.gz", "title.ratings.tsv.gz"
# How IMDb writes "not known". The longest line of its files has some 900 characters.
NULL, LINE_CHARACTERS = r"\N", 100_000
_TCONST, _COUNT = re.compile(r"tt[0-9]{1,15}"), re.compile(r"[0-9]{1,15}")
_RATING = re.compile(r"[0-9](\.[0-9]{1,2})?|10(\.0{1,2})?")
_YEAR, _MINUTES = re.compile(r"[0-9]{4}|\\N"), re.compile(r"[0-9]{1,9}|\\N")
_GENRES: tuple[str, ...] = (
    "Action",
    "Adventure",
    "Animation",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Family",
    "Fantasy",
    "History",
)
_GENRES += ("Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Sport", "Thriller", "War", "Western")
_NOUNS: tuple[str, ...] = (
    "Harbour",
    "Winter",
    "Lantern",
    "Orchard",
    "Signal",
    "Mirror",
    "River",
    "Clockmaker",
    "Garden",
    "Railway",
)
_NOUNS += ("Letter", "Island", "Summer", "Horizon", "Shadow", "Violin", "Desert", "Station", "Promise", "Tide")
_WORDS: tuple[str, ...] = (
    "Silent",
    "Broken",
    "Last",
    "Golden",
    "Hidden",
    "Burning",
    "Distant",
    "Paper",
    "Crimson",
    "Forgotten",
)
_WORDS += ("Electric", "Midnight", "Northern", "Stolen", "Quiet", "Endless", "Wooden", "Second", "Salt", "Glass")


class Title(NamedTuple):
    """A movie of both files; rating in tenths."""

    tconst: str
    name: str
    year: int
    minutes: int | None
    genres: tuple[str, ...]
    tenths: int
    votes: int


def read_titles(basics: str, ratings: str) -> list[Title]:
    """Join IMDb's two files (path or URL, gzipped or not) on tconst; keep movies of a year with at least 1,000 votes.

    Rows that are shifted, cut off or no numbers where numbers belong are left out; one line says how many.

    Raises:
        DeclarationError: a file cannot be read or is none of IMDb's.
    """
    read: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    rated: dict[str, tuple[int, int]] = {}
    for fields in _rows("IMDB_RATINGS", ratings, ("tconst", "averageRating", "numVotes"), read):
        tconst, rating, votes = fields or ("", "", "")
        if not (_TCONST.fullmatch(tconst) and _RATING.fullmatch(rating) and _COUNT.fullmatch(votes)):
            odd["IMDB_RATINGS"] += 1
        elif int(votes) >= MIN_VOTES:
            rated[tconst] = round(float(rating) * 10), int(votes)
    titles = []
    columns = ("tconst", "titleType", "primaryTitle", "startYear", "runtimeMinutes", "genres")
    for fields in _rows("IMDB_BASICS", basics, columns, read):
        tconst, kind, name, year, minutes, genres = fields or [""] * len(columns)
        movie = kind == "movie"
        numbers = _YEAR.fullmatch(year) and _MINUTES.fullmatch(minutes)
        if not _TCONST.fullmatch(tconst) or (movie and not numbers):
            odd["IMDB_BASICS"] += 1
        elif movie and year != NULL and tconst in rated:
            length = None if minutes == NULL else int(minutes)
            kinds = () if genres == NULL else tuple(genres.split(","))
            titles.append(Title(tconst, name, int(year), length, kinds, *rated[tconst]))
    if odd:
        counts = ", ".join(f"{odd[option]} of {read[option]} of {option}" for option in sorted(odd))
        print(f"producer: rows left out, shifted, cut off or no numbers: {counts}", file=sys.stderr, flush=True)
    return titles


def _open_url(url: str) -> Any:
    direct = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")  # no proxy can see our loopback
    proxies = (urllib.request.ProxyHandler({}),) if direct else ()
    return urllib.request.build_opener(*proxies).open(url, timeout=60)


def _rows(option: str, place: str, columns: tuple[str, ...], read: Counter[str]) -> Iterator[list[str] | None]:
    """Yield the fields of each row, None where a row is shifted or cut off, and count the rows."""
    try:
        opened = _open_url(place) if "://" in place else Path(place).open("rb")  # noqa: SIM115
        with opened as file:
            plain = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            lines = io.TextIOWrapper(plain, "utf-8-sig", newline="\n")
            names = _line(lines).rstrip("\r\n").split("\t")
            missing = [name for name in columns if name not in names]
            if missing:
                raise _NotImdb(f"no column {missing[0]}")
            places = [names.index(name) for name in columns]
            while line := _line(lines):
                read[option] += 1
                fields = line.rstrip("\r\n").split("\t")
                # IMDb ends every line; where the end is missing, the last field may be half of itself.
                whole = line.endswith("\n") and len(fields) == len(names)
                yield [fields[place] for place in places] if whole else None
    except (OSError, EOFError, ValueError, zlib.error, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DeclarationError(f"{option}={place!r}: allowed is the path or URL of IMDb's file: {reason}") from None


def _line(lines: io.TextIOWrapper) -> str:
    line = lines.readline(LINE_CHARACTERS + 1)
    if len(line) > LINE_CHARACTERS:
        raise _NotImdb(f"a line of more than {LINE_CHARACTERS} characters")
    return line


class _NotImdb(ValueError):
    """Whatever the file is, it is none of IMDb's."""


def write_fictional_pair(folder: Path) -> tuple[str, str]:
    """Write two files of IMDb's format about films that do not exist, unless they are there; return their paths."""
    basics, ratings = folder / _BASICS, folder / _RATINGS
    if basics.exists() and ratings.exists():
        return str(basics), str(ratings)
    rng = Random(FICTIONAL_SEED)
    about = ["tconst\ttitleType\tprimaryTitle\toriginalTitle\tisAdult\tstartYear\tendYear\truntimeMinutes\tgenres"]
    rated = ["tconst\taverageRating\tnumVotes"]
    for number in range(1, FICTIONAL_TITLES + 1):
        kind = rng.choices(("movie", "short", "tvSeries", "tvEpisode"), (75, 10, 8, 7))[0]
        name = f"The {rng.choice(_WORDS)} {rng.choice(_NOUNS)}" + (
            f" {rng.randint(2, 4)}" if rng.random() < 0.1 else ""
        )
        year = str(min(2025, 2026 - int(rng.expovariate(0.05)))) if rng.random() < 0.98 else r"\N"
        minutes = str(rng.randint(62, 190)) if rng.random() < 0.95 else r"\N"
        genres = ",".join(sorted(rng.sample(_GENRES, rng.randint(1, 3)))) if rng.random() < 0.97 else r"\N"
        about.append(f"tt{number:07d}\t{kind}\t{name}\t{name}\t0\t{year}\t\\N\t{minutes}\t{genres}")
        if rng.random() < 0.97:
            rating = min(9.8, max(1.2, rng.gauss(6.3, 1.1)))
            rated.append(f"tt{number:07d}\t{rating:.1f}\t{int(10 ** rng.uniform(2.4, 6.2))}")
    folder.mkdir(parents=True, exist_ok=True)
    for path, lines in ((basics, about), (ratings, rated)):
        staged = path.with_suffix(f".{os.getpid()}")
        staged.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))
        staged.replace(path)
    return str(basics), str(ratings)


def generate_titles(rng: Random, options: Mapping[str, str]) -> Maker:
    """Tell each title once, in a random order.

    Then tell popular ones again, with more votes and now and then a new rating.
    """
    basics, ratings = options["imdb_basics"], options["imdb_ratings"]
    if bool(basics) != bool(ratings):
        raise DeclarationError(f"IMDB_BASICS={basics!r}, IMDB_RATINGS={ratings!r}: allowed are both or none")
    if not basics:
        user = getattr(os, "getuid", lambda: 0)()
        folder = Path(tempfile.gettempdir()) / f"highwater-imdb-{user}-{FICTIONAL_SEED}-{FICTIONAL_TITLES}"
        basics, ratings = write_fictional_pair(folder)
    titles = read_titles(basics, ratings)
    if not titles:
        raise DeclarationError(
            f"IMDB_BASICS={basics!r}: no movie with a start year and {MIN_VOTES} votes in both files"
        )
    untold = list(range(len(titles)))
    rng.shuffle(untold)

    def make(_now_ms: int) -> dict[str, Any]:
        if untold:
            place = untold.pop()
        else:
            place = int(rng.random() * rng.random() * len(titles))
            old = titles[place]
            moved = rng.choice((-1, 1)) if rng.random() < 0.1 else 0
            titles[place] = old._replace(
                votes=old.votes + 1 + int(rng.expovariate(0.05)), tenths=min(100, max(10, old.tenths + moved))
            )
        title = titles[place]
        return {
            "tconst": title.tconst,
            "primaryTitle": title.name,
            "startYear": title.year,
            "runtimeMinutes": title.minutes,
            "genres": list(title.genres),
            "averageRating": title.tenths / 10,
            "numVotes": title.votes,
        }

    return make


TITLES = Stream(
    topic="imdb-movies",
    columns={
        "tconst": "STRING",
        "primaryTitle": "STRING",
        "startYear": "INT",
        "runtimeMinutes": "INT",
        "genres": "ARRAY<STRING>",
        "averageRating": "DECIMAL(3,1)",
        "numVotes": "BIGINT",
    },
    key="tconst",
    unique=("tconst", "averageRating", "numVotes"),
    required=("primaryTitle", "startYear"),
    rules={
        "rating_in_range": "averageRating >= 0 AND averageRating <= 10",
        "votes_not_negative": "numVotes >= 0",
        "year_plausible": "startYear >= 1870 AND startYear <= 2100",
    },
    generator=generate_titles,
    options={"imdb_basics": "", "imdb_ratings": ""},
)

# A Bayesian mean: few votes stay near the mean of all, m votes count as much as the prior.
_CONSTANTS = {"global_mean_rating": "6.5", "min_votes_prior": "3000"}


def _weighted(votes: str, rating: str) -> str:
    v, r = f"CAST({votes} AS DOUBLE)", f"CAST({rating} AS DOUBLE)"
    m, c = "{min_votes_prior}", "{global_mean_rating}"
    return f"{v} / ({v} + {m}) * {r} + {m} / ({v} + {m}) * {c}"


VIEWS = (
    View(
        "movie_scores",
        (TITLES,),
        by=("tconst",),
        measures={"latest": last("primaryTitle", "startYear", "averageRating", "numVotes"), "updates": count()},
        show={"weighted_score": _weighted("latest.numVotes", "latest.averageRating")},
        constants=_CONSTANTS,
    ),
    View(
        "genre_counts",
        (TITLES,),
        by=("genre",),
        explode=("genres", "genre"),
        measures={"movies": distinct("tconst"), "updates": count()},
    ),
)

_NEWEST = f"""
WITH numbered AS (
    SELECT tconst, primaryTitle, startYear, genres, averageRating, numVotes,
           row_number() OVER (PARTITION BY tconst ORDER BY event_time DESC, numVotes DESC, averageRating DESC) AS age
    FROM imdb_movies
), newest AS (
    SELECT *, {_weighted("numVotes", "averageRating")} AS weighted_score FROM numbered WHERE age = 1
)"""

REPORTS = (
    Report(
        "genre_ranking",
        by=("genre",),
        sql=f"""{_NEWEST}, told AS (
    SELECT tconst, primaryTitle, weighted_score, explode(array_distinct(genres)) AS genre FROM newest
), by_genre AS (
    SELECT tconst, primaryTitle, weighted_score, genre FROM told
    UNION ALL
    SELECT tconst, primaryTitle, weighted_score, '(unknown)' FROM newest n
    WHERE NOT EXISTS (SELECT 1 FROM told t WHERE t.tconst = n.tconst)
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY genre ORDER BY weighted_score DESC, tconst) AS place FROM by_genre
)
SELECT genre, count(*) AS movies, avg(weighted_score) AS mean_weighted_score,
       max(CASE WHEN place = 1 THEN primaryTitle END) AS best_title, max(weighted_score) AS best_score
FROM ranked GROUP BY genre
""",
        checks={
            "scores_in_range": "SELECT count(*) = 0, max(best_score) AS largest FROM report WHERE best_score < 0 OR best_score > 10"
        },
        constants=_CONSTANTS,
    ),
    Report(
        "top_movies",
        by=("tconst", "startYear"),
        sql=f"""{_NEWEST}
SELECT row_number() OVER (ORDER BY weighted_score DESC, tconst) AS place, tconst, primaryTitle, startYear,
       averageRating, numVotes, weighted_score
FROM newest ORDER BY weighted_score DESC, tconst LIMIT 100
""",
        checks={"at_most_100": "SELECT count(*) <= 100, count(*) AS movies FROM report"},
        constants=_CONSTANTS,
    ),
)

MOVIES = Domain(name="movies", streams=(TITLES,), views=VIEWS, reports=REPORTS, title="IMDb titles")
