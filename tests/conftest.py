"""What every test can count on: no network, no home folder, one thread, fixed seeds."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

# Before any library reads them: a home of our own, no network, one thread.
_HOME = Path(tempfile.mkdtemp(prefix="interp-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
DEAD_PROXY = "http://127.0.0.1:9"  # the discard port: a child process that asks for the web fails
os.environ.update(
    HOME=str(_HOME),
    INTERP_HOME=str(_HOME / "interp"),
    XDG_CACHE_HOME=str(_HOME / ".cache"),
    XDG_CONFIG_HOME=str(_HOME / ".config"),
    XDG_DATA_HOME=str(_HOME / ".local/share"),
    HF_HOME=str(_HOME / ".cache/huggingface"),
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    WANDB_MODE="disabled",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    GOMP_SPINCOUNT="0",
    JUPYTER_PLATFORM_DIRS="1",
    http_proxy=DEAD_PROXY,
    https_proxy=DEAD_PROXY,
    HTTP_PROXY=DEAD_PROXY,
    HTTPS_PROXY=DEAD_PROXY,
    no_proxy="127.0.0.1,localhost,::1",
    NO_PROXY="127.0.0.1,localhost,::1",
)
for _name in ("HF_TOKEN", "NDIF_API_KEY", "INTERP_TOKEN"):
    os.environ.pop(_name, None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile(
    "interp", deadline=None, derandomize=True, database=None, max_examples=60, print_blob=False
)
settings.load_profile("interp")

NO_DATA = (
    "INTERP_TEST_DATA is not set: it names the folder with real models and data that this test "
    "measures (stories260K, adder, ...)"
)
NO_BROWSER = (
    "no Chromium was found on PATH (chromium, chromium-browser, google-chrome); `make test` "
    "installs one where it may"
)
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")

_attempts: list[str] = []


def is_loopback(host: object) -> bool:
    """Whether a host stays on this machine (an empty one binds to it)."""
    text = host.decode() if isinstance(host, bytes) else str(host)
    return host is None or text == "" or text.startswith(LOOPBACK) or text == "::"


def _no_network(event: str, args: tuple[object, ...]) -> None:
    """Refuse every connection and name look-up that leaves the machine, and remember it."""
    if event == "socket.connect" or event == "socket.sendto":
        address = args[1]
        host = address[0] if isinstance(address, tuple) and address else None  # AF_UNIX: a path
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if not is_loopback(host):
        _attempts.append(f"{event} {host!r}")
        raise ConnectionRefusedError(f"tests have no network: {event} to {host!r} was refused")


sys.addaudithook(_no_network)


@pytest.fixture(autouse=True)
def _stays_on_this_machine():
    """A test that tries to leave the machine fails, also where a library swallows the refusal."""
    del _attempts[:]
    yield
    tried = list(_attempts)
    del _attempts[:]
    assert not tried, f"this test tried to reach the network: {tried}"


@pytest.fixture
def network_attempts() -> list[str]:
    """The refused attempts so far; a test that provokes one clears the list itself."""
    return _attempts


@pytest.fixture(autouse=True)
def _seeds():
    """Fixed seeds; torch is seeded only where the test has already imported it."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder named by ``INTERP_TEST_DATA``; skips with a written reason without it."""
    folder = os.environ.get("INTERP_TEST_DATA")
    if not folder:
        pytest.skip(NO_DATA)
    path = Path(folder).expanduser().resolve()
    assert path.is_dir(), f"INTERP_TEST_DATA names {path}, which is no folder"
    return path


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """The path of a Chromium. Where CI=true its absence is a failure, elsewhere a skip."""
    path = find_browser()
    if path is None:
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            pytest.fail(f"CI=true and {NO_BROWSER}")
        pytest.skip(NO_BROWSER)
    return path


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold the markers to their word: a browser for ``browser``, a device for ``gpu``."""
    if item.get_closest_marker("browser") and find_browser() is None:
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            pytest.fail(f"CI=true and {NO_BROWSER}")
        pytest.skip(NO_BROWSER)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("this machine has no CUDA device that torch can use")


@pytest.fixture
def store_root(tmp_path, monkeypatch) -> Path:
    """An empty store of this test's own, which INTERP_HOME names too."""
    root = tmp_path / "store"
    monkeypatch.setenv("INTERP_HOME", str(root))
    return root
