"""Movies: titles of IMDb's files and how their ratings move. Without files, a fictional pair is written first."""

from __future__ import annotations

import csv
import gzip
import io
import os
import tempfile
import urllib.request
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
    """Join IMDb's two files (path or URL) on tconst; keep movies with a start year and at least 1,000 votes.

    Raises:
        DeclarationError: a file cannot be read or is none of IMDb's.
    """
    rated = {
        row["tconst"]: (round(float(row["averageRating"]) * 10), int(row["numVotes"]))
        for row in _rows("IMDB_RATINGS", ratings, ("tconst", "averageRating", "numVotes"))
        if int(row["numVotes"]) >= MIN_VOTES
    }
    columns = ("tconst", "titleType", "primaryTitle", "startYear", "runtimeMinutes", "genres")
    return [
        Title(
            row["tconst"],
            row["primaryTitle"],
            int(row["startYear"]),
            None if row["runtimeMinutes"] == r"\N" else int(row["runtimeMinutes"]),
            () if row["genres"] == r"\N" else tuple(row["genres"].split(",")),
            *rated[row["tconst"]],
        )
        for row in _rows("IMDB_BASICS", basics, columns)
        if row["titleType"] == "movie" and row["startYear"] != r"\N" and row["tconst"] in rated
    ]


def _open_url(url: str) -> Any:
    direct = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")  # no proxy can see our loopback
    proxies = (urllib.request.ProxyHandler({}),) if direct else ()
    return urllib.request.build_opener(*proxies).open(url, timeout=60)


def _rows(option: str, place: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        opened = _open_url(place) if "://" in place else Path(place).open("rb")  # noqa: SIM115
        with opened as packed, gzip.open(packed) as plain:
            rows = csv.DictReader(io.TextIOWrapper(plain, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise DeclarationError(f"{option}={place!r}: no column {missing[0]}; allowed is IMDb's file, gzipped")
            yield from rows
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DeclarationError(
            f"{option}={place!r}: allowed is the path or URL of IMDb's gzipped file: {error}"
        ) from None


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
    """Tell each title once, in a random order; then popular ones again, with more votes and now and then a new rating."""
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
