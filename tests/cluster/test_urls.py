"""A url that is wrong: it is refused before anything is connected, and its password is not told."""

from typing import Any

import pytest

from asyncrevoke.cluster import open_log


@pytest.mark.parametrize("scheme", ["redis", "valkey", "postgresql"])
@pytest.mark.parametrize("special", "/?#")
def test_password_that_is_not_quoted_is_not_told(scheme: str, special: str) -> None:
    """The message says what to do."""
    with pytest.raises(ValueError, match="quote special characters in the password") as caught:
        open_log(f"{scheme}://web:secret{special}more@host:1/0")
    error: Any = caught.value
    while error is not None:
        assert "secret" not in str(error)
        error = None if error.__suppress_context__ else error.__context__


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://:secret@host:1/0", "redis://host:1/0"),
        ("redis:secret@host", "redis://host"),
        ("valkey://host", "redis://host"),
        ("redis://[::1]:1/0?password=secret", "redis://[::1]:1/0"),
        ("unix://web:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("postgresql://web:secret@one:1,two:2/shop?password=secret", "postgresql://one:1,two:2/shop"),
    ],
)
def test_name_of_a_log_has_no_password(url: str, name: str) -> None:
    """Whatever the form of the url."""
    assert open_log(url).name == name


def test_unknown_option_is_named() -> None:
    """A member would end by it otherwise, as by an error of ours."""
    with pytest.raises(ValueError, match=r"redis://host has an option that redis-py does not know: .*'pasword'"):
        open_log("redis://host?pasword=x")
