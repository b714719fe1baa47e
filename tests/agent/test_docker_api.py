"""Docker's answers to what is asked of it while somebody else is at the same."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from docker.errors import APIError, NotFound

from node_agent.engines.docker_api import remove_container


def answer(status: int, message: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    kind = NotFound if status == 404 else APIError
    return kind(message, response, message)


class Removing:
    """A Docker with one container, which it removes for somebody else, or can't."""

    def __init__(self, refusal: APIError) -> None:
        self.refusal = refusal
        self.there = True

    def remove_container(self, container: str, **_: Any) -> None:
        raise self.refusal

    def wait(self, container: str, timeout: float, condition: str) -> None:
        self.there = condition != "removed"
        raise answer(404, f"No such container: {container}")


def test_one_that_is_being_removed_is_waited_for() -> None:
    api = Removing(answer(409, "removal of container 1 is already in progress"))
    remove_container(api, "1")
    assert not api.there


def test_one_that_is_gone_is_removed() -> None:
    api = Removing(answer(404, "No such container: 1"))
    remove_container(api, "1")
    assert api.there


@pytest.mark.parametrize("status", [409, 500])
def test_another_refusal_is_one(status: int) -> None:
    with pytest.raises(APIError, match="device or resource busy"):
        remove_container(Removing(answer(status, "device or resource busy")), "1")
