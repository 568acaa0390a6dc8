"""Without a network, weights on the Hub end in one line within five seconds, and the cache still serves."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest
from helpers import vit_ipu, write_config
from huggingface_hub import constants

from vit_ipu.errors import CheckpointError
from vit_ipu.weights.fetch import locate
from vit_ipu.weights.network import _first_hop, can_reach


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def closed_port():
    """Returns a port of this machine on which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def hanging_lookup(monkeypatch):
    """Makes the lookup of names hang, as without a name server, until the test has ended."""
    ended = threading.Event()

    def hang(*arguments, **options):
        ended.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield
    ended.set()


def test_a_server_that_listens_is_reached():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert can_reach(f"http://127.0.0.1:{server.getsockname()[1]}/path")


def test_a_closed_port_and_an_unknown_name_are_not_reached(closed_port):
    assert not can_reach(f"http://127.0.0.1:{closed_port}")
    assert not can_reach("https://nowhere.invalid", seconds=2.0)
    assert not can_reach(f"https://{'x' * 70}.invalid", seconds=2.0)


def test_a_lookup_that_hangs_is_not_waited_for(hanging_lookup):
    start = time.monotonic()
    assert not can_reach("https://huggingface.co", seconds=0.2)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("huggingface.co", 443)),
        ({"https_proxy": "http://proxy:3128"}, ("proxy", 3128)),
        ({"https_proxy": "proxy:3128"}, ("proxy", 3128)),
        ({"all_proxy": "socks5://proxy"}, ("proxy", 1080)),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "huggingface.co"}, ("huggingface.co", 443)),
        ({"https_proxy": "http://proxy:none"}, None),
    ],
)
def test_a_proxy_is_asked_in_place_of_the_server(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _first_hop("https://huggingface.co/api") == expected


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


MESSAGE = (
    "cannot reach the Hugging Face Hub for config.json of hf-hub:owner/name, and the cache .* lacks it: check the "
)


def assert_refused_in_time():
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=f"^{MESSAGE}network, or give a file or folder of weights$"):
        locate("hf-hub:owner/name")
    assert time.monotonic() - start < 5  # huggingface_hub alone retries for 30 seconds


def test_without_a_network_the_hub_is_given_up_within_five_seconds(monkeypatch, empty_cache, closed_port):
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert_refused_in_time()


def test_the_hub_is_given_up_within_five_seconds_if_the_lookup_of_names_hangs(empty_cache, hanging_lookup):
    assert_refused_in_time()


def test_a_command_without_a_network_prints_one_line(monkeypatch, capsys, empty_folder, empty_cache, closed_port):
    write_config(empty_folder)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    options = ["--device", "cpu", "--output", "run", "--set", "model.init=hf-hub:owner/name"]
    code, _, err = vit_ipu(monkeypatch, capsys, "train", "tiny.yaml", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert re.match(f"vit-ipu: model.init: {MESSAGE}", err)
    assert not (empty_folder / "run").exists()
