"""Asking the hub: once, shortly, and on one line if there is none. No test here needs a network."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import logging as hf_logging

import aimc
from aimc.models import hub
from aimc.models.hub import hub_answers, quiet_libraries, require_reachable


class Session:
    """A hub's client that counts what it is asked."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self.answer, self.n_requests = answer, 0

    def head(self, url: str, timeout: float) -> None:
        self.n_requests += 1
        assert url.startswith("https://") and timeout == hub.NETWORK_TIMEOUT_S
        self.answer()


def no_network() -> None:
    raise ConnectionError("no route to host")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Session:
    session = Session(no_network)
    monkeypatch.setattr(hub, "get_session", lambda: session)
    return session


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Session:
    session = Session(lambda: None)
    monkeypatch.setattr(hub, "get_session", lambda: session)
    return session


def downloaded(cache: Path, revision: str = "main") -> None:
    """The hub's cache, as if the config of `someone/model` had been downloaded."""
    root = cache / "models--someone--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text("abc")
    (root / "snapshots" / "abc").mkdir(parents=True)
    (root / "snapshots" / "abc" / "config.json").write_text("{}")


def test_a_hub_that_answers(online: Session) -> None:
    assert hub_answers("someone/model") and require_reachable("someone/model")
    assert online.n_requests == 2


def test_a_hub_that_does_not_is_asked_once(offline: Session) -> None:
    assert not hub_answers("someone/model")
    assert offline.n_requests == 1


def test_a_name_service_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "NETWORK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(hub, "get_session", lambda: Session(lambda: time.sleep(3)))
    start = time.perf_counter()
    assert not hub_answers("someone/model")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name", ["/no/such/folder", "../nowhere", "./here", "a/b/c", ""])
def test_paths_are_not_asked_for(name: str, online: Session) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        hub_answers(name)
    assert online.n_requests == 0


def test_a_folder_needs_no_hub(offline: Session, tmp_path: Path) -> None:
    assert not require_reachable(tmp_path)
    assert offline.n_requests == 0


def test_a_downloaded_model_needs_no_hub(offline: Session, tmp_path: Path) -> None:
    downloaded(tmp_path)
    assert not require_reachable("someone/model", cache_dir=tmp_path)
    for other in ({"revision": "v2"}, {"subfolder": "part"}):
        with pytest.raises(FileNotFoundError, match="not downloaded before"):
            require_reachable("someone/model", cache_dir=tmp_path, **other)


@pytest.mark.parametrize("name", ["someone/model", "some--one"])
def test_neither_network_nor_copy(name: str, offline: Session, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{name}: no model there .*the hub does not answer"):
        require_reachable(name, cache_dir=tmp_path)


def test_loading_without_a_network_says_one_line(
    offline: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        aimc.from_pretrained("someone/model", cache_dir=tmp_path)
    assert len(str(caught.value).splitlines()) == 1 and offline.n_requests == 1
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_a_network_that_goes_away_says_one_line(
    online: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The hub answered, and what its client says between that and the error is kept back."""

    def fails(*args: object, **kwargs: object) -> str:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        hf_logging.get_logger("transformers.utils.hub").warning("Could not locate the file.")
        raise OSError("We couldn't connect.\nCheck your internet connection.")

    monkeypatch.setattr("aimc.models.checkpoint.cached_file", fails)
    with pytest.raises(FileNotFoundError, match=r"no config.json: We couldn't connect\.\);") as caught:
        aimc.from_pretrained("someone/model", cache_dir=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_libraries_speak_again_afterwards() -> None:
    client = logging.getLogger(hub.CLIENT_LOGGER)
    before = hf_logging.get_verbosity(), client.level
    with pytest.raises(KeyError), quiet_libraries():
        assert (hf_logging.get_verbosity(), client.level) == (logging.ERROR, logging.ERROR)
        raise KeyError
    assert (hf_logging.get_verbosity(), client.level) == before
