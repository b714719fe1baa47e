"""What a log line holds, and what it never holds."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
import structlog

from reconciler.logs import bound, configure_logging
from reconciler.ports import Secret

VALUE = "hunter2-and-more"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_when_nobody_looks() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    structlog.get_logger("reconciler.x").info("pass_finished", actions=3, name="é")
    [line] = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "pass_finished", "level": "info", "logger": "reconciler.x",
        "actions": 3, "name": "é",
    }  # fmt: skip


def test_a_terminal_gets_words() -> None:
    stream = Terminal()
    configure_logging(stream=stream)
    structlog.get_logger().warning("pass_finished", password=VALUE)
    assert "pass_finished" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
    assert VALUE not in stream.getvalue()


def test_the_level_is_kept_to() -> None:
    stream = io.StringIO()
    configure_logging("warning", stream=stream)
    structlog.get_logger().info("no")
    logging.getLogger("lib").info("no")
    structlog.get_logger().error("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_lines_of_libraries_take_the_same_road() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    with bound(correlation_id="c1", revision="ab"):
        logging.getLogger("lib").warning("fetching https://u:%s@h/x", VALUE)
    [line] = lines(stream)
    assert line["event"] == "fetching https://***@h/x"
    assert (line["correlation_id"], line["revision"]) == ("c1", "ab")


@pytest.mark.parametrize(("level", "expect"), [("info", ["late"]), ("debug", ["ran", "late"])])
def test_a_timer_that_ran_is_no_news(level: str, expect: list[str]) -> None:
    stream = io.StringIO()
    configure_logging(level=level, stream=stream)
    library = logging.getLogger("apscheduler.executors.default")
    library.info("ran")
    library.warning("late")
    assert [line["event"] for line in lines(stream)] == expect


def test_a_tick_left_out_on_a_busy_host_is_no_news() -> None:
    """The loop's heartbeat tells when it hangs; a line for each tick would bury what matters."""
    stream = io.StringIO()
    configure_logging(stream=stream)
    scheduler = logging.getLogger("apscheduler.scheduler")
    scheduler.warning("Execution of job skipped: maximum number of running instances reached (1)")
    scheduler.error("Error running job")
    assert [line["event"] for line in lines(stream)] == ["Error running job"]


def test_bound_fields_end_with_their_block() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    log = structlog.get_logger()
    with bound(org_id="acme", project_id="p"), bound(app_instance_id="acme/p/hello"):
        log.info("inside")
    log.info("outside")
    inside, outside = lines(stream)
    assert (inside["org_id"], inside["project_id"]) == ("acme", "p")
    assert inside["app_instance_id"] == "acme/p/hello"
    assert "org_id" not in outside


@pytest.mark.parametrize(
    "fields",
    [
        {"x": Secret(VALUE)},
        {"x": [{"deep": (Secret(VALUE),)}]},
        {"api_token": VALUE},
        {"Authorization": f"Bearer {VALUE}"},
        {"headers": {"authorization": VALUE}},
        {"db_password": VALUE},
        {"clientSecret": VALUE},
        {"private_key": VALUE.encode()},
        {"x": f"clone of https://u:{VALUE}@example.com/s failed"},
        {"x": f"sent Authorization: Bearer {VALUE}"},
        {"x": f"-----BEGIN PRIVATE KEY-----\n{VALUE}\n-----END PRIVATE KEY-----"},
    ],
)
@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_no_secret_is_in_a_line(
    fields: dict[str, Any], stream_type: type[io.StringIO]
) -> None:
    stream = stream_type()
    configure_logging(stream=stream)
    structlog.get_logger().info("event", **fields)
    assert "event" in stream.getvalue()
    assert VALUE not in stream.getvalue()


@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_a_traceback_shows_no_locals_and_no_credential(stream_type: type[io.StringIO]) -> None:
    stream = stream_type()
    configure_logging(stream=stream)
    local = "h2-local" + VALUE
    try:
        raise ValueError(f"cannot reach https://u:{VALUE}@example.com")
    except ValueError:
        structlog.get_logger().exception("failed", size=len(local))
    assert "ValueError: cannot reach https://***@example.com" in stream.getvalue()
    assert VALUE not in stream.getvalue()


def test_counts_are_shown() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    structlog.get_logger().info("event", tokens_issued=3, token_ttl_s=1.5, secret=None)
    [line] = lines(stream)
    assert (line["tokens_issued"], line["token_ttl_s"], line["secret"]) == (3, 1.5, None)
