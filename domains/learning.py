"""E-learning: what students of an online school do, in five topics keyed by user."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from engine.domain import Domain, Report, Stream, View, avg, count, distinct, each, last, max_of, sum_of

_EVENT = {"event_id": "STRING", "user_id": "STRING", "event_type": "STRING", "timestamp": "TIMESTAMP"}


USERS = 5_000
COURSES = 60

_SUBJECTS = (
    "Toán cao cấp",
    "Lập trình Python",
    "Tiếng Anh giao tiếp",
    "Cơ sở dữ liệu",
    "Vật lý đại cương",
    "Kinh tế vi mô",
    "Thiết kế đồ họa",
    "Phân tích dữ liệu",
    "Lịch sử Việt Nam",
    "Kỹ năng thuyết trình",
    "Hóa học hữu cơ",
    "Tiếng Nhật sơ cấp",
    "Mạng máy tính",
    "Kế toán doanh nghiệp",
    "Học máy ứng dụng",
)
_LEVELS = ("cho người mới bắt đầu", "từ cơ bản đến nâng cao", "và luyện đề", "qua dự án thực tế")
_SCHOOLS = ("Trường THPT", "Trường Đại học", "Trường Cao đẳng", "Trường THPT Chuyên")


def _pick(weights: dict[Any, float], size: int = 1024) -> tuple[Any, ...]:
    """Names, each about as often as it weighs: `pool[int(rng.random() * len(pool))]` is a weighted choice."""
    total = sum(weights.values())
    return tuple(name for name, weight in weights.items() for _ in range(max(1, round(size * weight / total))))


AUTH_TYPES = _pick({"login": 55, "logout": 35, "login_failed": 8, "password_reset": 2})
ASSESSMENT_TYPES = _pick({"started": 40, "submitted": 33, "graded": 27})
VIDEO_TYPES = _pick({"heartbeat": 55, "play": 18, "pause": 12, "seek": 9, "completed": 6})
COURSE_TYPES = _pick({"viewed": 75, "enrolled": 12, "completed": 5, "rated": 6, "dropped": 2})
PROFILE_TYPES = _pick({"updated": 70, "created": 30})
DEVICES = _pick({"mobile": 60, "web": 32, "tablet": 8})
RATINGS = _pick({5: 45, 4: 30, 3: 14, 2: 6, 1: 5})
PLAYBACK_RATES = _pick({1.0: 70, 1.25: 12, 1.5: 10, 2.0: 5, 0.75: 3})


@dataclass(frozen=True)
class _User:
    user_id: str
    full_name: str
    email: str
    province: str
    school: str
    birth_year: int


@dataclass(frozen=True)
class _Course:
    course_id: str
    title: str
    price_vnd: int


@functools.cache
def _school_world() -> tuple[tuple[_User, ...], tuple[_Course, ...]]:
    """Everybody and everything an event may name, as pools: popular courses and busy users occur more often."""
    from faker import Faker  # slow to import, and only the producer needs it

    faker = Faker("vi_VN")
    faker.seed_instance(20_200_101)
    rng = Random(20_200_101)
    text = functools.partial(unicodedata.normalize, "NFC")
    provinces = sorted({text(faker.administrative_unit()) for _ in range(500)})
    users = []
    for number in range(USERS):
        family, middle, given = faker.last_name(), faker.last_name(), faker.first_name()
        latin = unicodedata.normalize("NFD", given.lower().replace("đ", "d")).encode("ascii", "ignore").decode()
        province = rng.choice(provinces)
        users.append(
            _User(
                f"U{number:05d}",
                text(f"{family} {middle} {given}"),
                f"{latin}.{number:05d}@example.com",
                province,
                text(f"{rng.choice(_SCHOOLS)} {province}"),
                rng.randint(1970, 2010),
            )
        )
    courses = [
        _Course(
            f"C{number:03d}",
            text(f"{_SUBJECTS[number % len(_SUBJECTS)]} {_LEVELS[number // len(_SUBJECTS)]}"),
            rng.choice((0, 199_000, 299_000, 499_000, 799_000, 1_290_000)),
        )
        for number in range(COURSES)
    ]
    rng.shuffle(users)
    return (
        _pick({user: 1 / (rank + 50) for rank, user in enumerate(users)}, 20_000),
        _pick({course: 1 / (rank + 1) for rank, course in enumerate(courses)}, 4_096),
    )


@functools.lru_cache(maxsize=64)
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def _one(rng: Random, pool: tuple[Any, ...]) -> Any:
    return pool[int(rng.random() * len(pool))]


def _event(rng: Random, now_ms: int, user: _User, event_type: str) -> dict[str, Any]:
    return {
        "event_id": f"{rng.getrandbits(128):032x}",
        "user_id": user.user_id,
        "event_type": event_type,
        "timestamp": f"{_iso_second(now_ms // 1000)}{now_ms % 1000:03d}Z",
    }


def generate_auth(rng: Random, now_ms: int) -> dict[str, Any]:
    """One event of `auth_topic`."""
    user = _one(rng, _school_world()[0])
    event = _event(rng, now_ms, user, _one(rng, AUTH_TYPES))
    event["device"] = _one(rng, DEVICES)
    event["province"] = user.province
    event["session_id"] = f"{rng.getrandbits(64):016x}"
    return event


def generate_assessment(rng: Random, now_ms: int) -> dict[str, Any]:
    """One event of `assessment_topic`; only a graded one has a score, and a started one no duration."""
    users, courses = _school_world()
    course = _one(rng, courses)
    event_type = _one(rng, ASSESSMENT_TYPES)
    event = _event(rng, now_ms, _one(rng, users), event_type)
    event["course_id"] = course.course_id
    event["assessment_id"] = f"{course.course_id}-A{int(rng.random() * 8) + 1}"
    event["attempt"] = int(rng.random() * rng.random() * 4) + 1
    # The better of two draws: most students pass.
    event["score"] = int(max(rng.random(), rng.random()) * 10_001) / 100 if event_type == "graded" else None
    event["duration_seconds"] = None if event_type == "started" else 60 + int(rng.random() * 5_340)
    return event


def generate_video(rng: Random, now_ms: int) -> dict[str, Any]:
    """One event of `video_topic`."""
    users, courses = _school_world()
    course = _one(rng, courses)
    event_type = _one(rng, VIDEO_TYPES)
    event = _event(rng, now_ms, _one(rng, users), event_type)
    position = int(rng.random() * 1_800)
    event["course_id"] = course.course_id
    event["video_id"] = f"{course.course_id}-V{int(rng.random() * 24) + 1:02d}"
    event["position_seconds"] = position
    event["watched_seconds"] = 30 if event_type == "heartbeat" else min(position, int(rng.random() * 120))
    event["playback_rate"] = _one(rng, PLAYBACK_RATES)
    return event


def generate_course(rng: Random, now_ms: int) -> dict[str, Any]:
    """One event of `course_topic`; only a rated one has a rating."""
    users, courses = _school_world()
    course = _one(rng, courses)
    event_type = _one(rng, COURSE_TYPES)
    event = _event(rng, now_ms, _one(rng, users), event_type)
    event["course_id"] = course.course_id
    event["course_title"] = course.title
    event["rating"] = _one(rng, RATINGS) if event_type == "rated" else None
    event["price_vnd"] = course.price_vnd
    return event


def generate_profile(rng: Random, now_ms: int) -> dict[str, Any]:
    """One event of `profile_topic`."""
    user = _one(rng, _school_world()[0])
    event = _event(rng, now_ms, user, _one(rng, PROFILE_TYPES))
    event["full_name"] = user.full_name
    event["email"] = user.email
    event["province"] = user.province
    event["school"] = user.school
    event["birth_year"] = user.birth_year
    return event


def _stream(
    topic: str, event_types: tuple[str, ...], columns: dict[str, str], rules: dict[str, str], **more: object
) -> Stream:
    known = ", ".join(f"'{name}'" for name in event_types)
    return Stream(
        topic=topic,
        columns={**_EVENT, **columns},
        key="user_id",
        time="timestamp",
        unique=("event_id",),
        required=("event_type",),
        rules={"known_event_type": f"event_type IN ({known})", **rules},
        **more,  # type: ignore[arg-type]
    )


AUTH = _stream(
    "auth_topic",
    ("login", "logout", "login_failed", "password_reset"),
    {"device": "STRING", "province": "STRING", "session_id": "STRING"},
    {"known_device": "device IN ('mobile', 'web', 'tablet')"},
    generator=each(generate_auth),
    weight=25,
)
ASSESSMENT = _stream(
    "assessment_topic",
    ("started", "submitted", "graded"),
    {
        "course_id": "STRING",
        "assessment_id": "STRING",
        "attempt": "INT",
        "score": "DECIMAL(5,2)",
        "duration_seconds": "BIGINT",
    },
    {
        "course_given": "course_id IS NOT NULL AND course_id <> ''",
        "score_in_range": "score IS NULL OR (score >= 0 AND score <= 100)",
        "score_only_when_graded": "score IS NULL OR event_type = 'graded'",
        "duration_not_negative": "duration_seconds IS NULL OR duration_seconds >= 0",
    },
    generator=each(generate_assessment),
    weight=12,
)
VIDEO = _stream(
    "video_topic",
    ("play", "pause", "seek", "heartbeat", "completed"),
    {
        "course_id": "STRING",
        "video_id": "STRING",
        "position_seconds": "BIGINT",
        "watched_seconds": "BIGINT",
        "playback_rate": "DECIMAL(3,2)",
    },
    {
        "course_given": "course_id IS NOT NULL AND course_id <> ''",
        "watched_not_negative": "watched_seconds IS NULL OR watched_seconds >= 0",
    },
    generator=each(generate_video),
    weight=45,
)
COURSE = _stream(
    "course_topic",
    ("viewed", "enrolled", "completed", "rated", "dropped"),
    {"course_id": "STRING", "course_title": "STRING", "rating": "INT", "price_vnd": "BIGINT"},
    {
        "course_given": "course_id IS NOT NULL AND course_id <> ''",
        "rating_in_range": "rating IS NULL OR (rating >= 1 AND rating <= 5)",
        "price_not_negative": "price_vnd IS NULL OR price_vnd >= 0",
    },
    generator=each(generate_course),
    weight=15,
)
PROFILE = _stream(
    "profile_topic",
    ("created", "updated"),
    {"full_name": "STRING", "email": "STRING", "province": "STRING", "school": "STRING", "birth_year": "INT"},
    {"birth_year_plausible": "birth_year IS NULL OR (birth_year >= 1900 AND birth_year <= 2100)"},
    generator=each(generate_profile),
    weight=3,
)
STREAMS = (AUTH, ASSESSMENT, VIDEO, COURSE, PROFILE)

VIEWS = (
    View(
        "student_submissions",
        (ASSESSMENT,),
        by=("user_id", "course_id"),
        every="1 day",
        measures={
            "submissions": count("event_type = 'submitted'"),
            "graded": count("event_type = 'graded'"),
            "avg_score": avg("score"),
            "max_score": max_of("score"),
            "last_score": last("score"),
            "total_duration_seconds": sum_of("duration_seconds"),
        },
    ),
    View(
        "daily_logins",
        (AUTH,),
        by=("device",),
        every="1 day",
        measures={
            "logins": count("event_type = 'login'"),
            "failed": count("event_type = 'login_failed'"),
            "distinct_users": distinct("user_id"),
        },
    ),
    View(
        "course_minutes",
        (VIDEO,),
        by=("course_id",),
        every="1 minute",
        measures={
            "plays": count("event_type = 'play'"),
            "watched_seconds": sum_of("watched_seconds"),
            "distinct_viewers": distinct("user_id"),
        },
    ),
    View("activity_minutes", STREAMS, by=("topic", "event_type"), every="1 minute", measures={"events": count()}),
    View(
        "course_popularity",
        (COURSE,),
        by=("course_id",),
        every="1 day",
        measures={
            "views": count("event_type = 'viewed'"),
            "enrolments": count("event_type = 'enrolled'"),
            "completions": count("event_type = 'completed'"),
            "avg_rating": avg("rating"),
            "revenue_vnd": sum_of("price_vnd", "event_type = 'enrolled'"),
            "last_title": last("course_title"),
        },
    ),
)

_PERFORMANCE = """
WITH activity AS (
    SELECT user_id, course_id, 0 AS videos, CAST(0 AS BIGINT) AS watched, 1 AS submitted,
           CAST(NULL AS DECIMAL(5,2)) AS score
    FROM assessment_topic WHERE event_type = 'submitted'
    UNION ALL
    SELECT user_id, course_id, 0, CAST(0 AS BIGINT), 0, score FROM assessment_topic WHERE event_type = 'graded'
    UNION ALL
    SELECT user_id, course_id, CASE WHEN event_type = 'completed' THEN 1 ELSE 0 END, coalesce(watched_seconds, 0), 0,
           CAST(NULL AS DECIMAL(5,2))
    FROM video_topic
), per_course AS (
    SELECT user_id, course_id, CAST(sum(videos) AS BIGINT) AS videos_completed,
           CAST(sum(watched) AS BIGINT) AS watched_seconds, CAST(sum(submitted) AS BIGINT) AS submissions,
           CAST(sum(score) AS DOUBLE) / nullif(count(score), 0) AS avg_score
    FROM activity GROUP BY user_id, course_id
), per_user AS (
    SELECT user_id, count(*) AS logins FROM auth_topic WHERE event_type = 'login' GROUP BY user_id
)
SELECT c.user_id, c.course_id, coalesce(u.logins, 0) AS logins, CAST(c.watched_seconds AS DOUBLE) / 60 AS watch_minutes,
       c.videos_completed, c.submissions, c.avg_score,
       CASE WHEN c.submissions >= 2 AND c.watched_seconds >= 1200 THEN 'high'
            WHEN c.submissions >= 1 OR c.watched_seconds >= 300 THEN 'medium'
            ELSE 'low' END AS band
FROM per_course c LEFT JOIN per_user u ON c.user_id = u.user_id
"""

REPORTS = (
    Report(
        "engagement_performance",
        by=("user_id", "course_id", "band"),
        sql=_PERFORMANCE,
        checks={
            "scores_in_range": (
                "SELECT coalesce(min(avg_score), 0) >= 0 AND coalesce(max(avg_score), 0) <= 100, "
                "min(avg_score) AS smallest, max(avg_score) AS largest FROM report"
            )
        },
    ),
    Report(
        "engagement_bands",
        by=("band",),
        sql="""
            SELECT band, count(DISTINCT user_id) AS students, avg(avg_score) AS mean_score
            FROM engagement_performance GROUP BY band
        """,
    ),
)

LEARNING = Domain(name="learning", streams=STREAMS, views=VIEWS, reports=REPORTS, title="E-learning platform")
