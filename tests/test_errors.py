"""What is said of errors."""

import pytest

from pbp_search.errors import InputError, said


@pytest.mark.parametrize("error", [RuntimeError, InputError])
@pytest.mark.parametrize(
    ("secret", "shown"), [("me:hunter2", "me:***"), ("hunter2", "***"), ("me:hun/ter2", "me:***"), ("me:***", "me:***")]
)
def test_secrets_in_urls_are_not_said(error: type[Exception], secret: str, shown: str) -> None:
    told = said(error(f"API request to http://{secret}@127.0.0.1:9/api failed, and again http://{secret}@host"))
    assert told.endswith(f"API request to http://{shown}@127.0.0.1:9/api failed, and again http://{shown}@host")


def test_what_holds_no_secret_is_said_as_it_is() -> None:
    assert said(ValueError("me@home: http://host/a")) == "ValueError: me@home: http://host/a"
