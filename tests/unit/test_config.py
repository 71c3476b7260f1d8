"""Configuration: what is accepted, and that each refusal names the key, the value and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.config import Config, load_config, parse_address, parse_config
from edged.errors import ConfigError

MINIMAL: dict[str, Any] = {"node": {"name": "a"}}


def test_defaults_are_enough(tmp_path: Path) -> None:
    config = parse_config(MINIMAL, base=tmp_path)
    assert config.gateway.bind == "127.0.0.1:8080"
    assert config.control.bind.startswith("127.0.0.1:"), "the control API is loopback by default"
    assert config.data_dir == (tmp_path / "data").resolve()


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "models").mkdir()
    path = tmp_path / "etc" / "node.toml"
    path.write_text('[node]\nname = "b"\ndata_dir = "../state"\n[mounts]\nm = "../models"\n')
    config = load_config(path)
    assert config.data_dir == (tmp_path / "state").resolve()
    assert config.path(config.mounts["m"]) == (tmp_path / "models").resolve()


def test_config_is_frozen(tmp_path: Path) -> None:
    config = parse_config(MINIMAL, base=tmp_path)
    with pytest.raises(AttributeError):
        config.node.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({}, "node"),
        ({"node": {}}, "name"),
        ({"node": {"name": "a", "nmae": 1}}, "nmae"),
        ({"node": {"name": "UPPER/../x"}}, "node.name"),
        ({"node": {"name": "a", "region": "Spaces here"}}, "node.region"),
        ({"node": {"name": "a", "log_level": "loud"}}, "node.log_level"),
        (MINIMAL | {"gatway": {}}, "gatway"),
        (MINIMAL | {"gateway": {"bind": "8080"}}, "gateway.bind"),
        (MINIMAL | {"gateway": {"bind": "127.0.0.1:http"}}, "gateway.bind"),
        (MINIMAL | {"gateway": {"bind": "127.0.0.1:65536"}}, "gateway.bind"),
        (MINIMAL | {"gateway": {"header_bytes_max": 5}}, "gateway.header_bytes_max"),
        (MINIMAL | {"gateway": {"invocations_max": 0}}, "gateway.invocations_max"),
        (MINIMAL | {"gateway": {"drain_timeout_s": "soon"}}, "gateway.drain_timeout_s"),
        (MINIMAL | {"control": {"bind": ":8081"}}, "control.bind"),
        (MINIMAL | {"gossip": {"seeds": ["127.0.0.1:1", "nowhere"]}}, "gossip.seeds"),
        (MINIMAL | {"gossip": {"advertise": "nowhere"}}, "gossip.advertise"),
        (MINIMAL | {"gossip": {"preset": "mars"}}, "gossip.preset"),
        (MINIMAL | {"runtime": {"target": "aarch64-unknown-linux-gnu"}}, "runtime.target"),
        (MINIMAL | {"store": {"zstd_level": 22}}, "store.zstd_level"),
        (MINIMAL | {"mounts": {"models": "not-here"}}, "mounts.models = 'not-here'"),
        (MINIMAL | {"base": "/"}, "base"),
    ],
)
def test_refusals_name_the_key(data: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, base=tmp_path)
    assert named in str(caught.value)


def test_unusual_triples_never_reach_the_engine(tmp_path: Path) -> None:
    """FACTS: wasmtime aborts the process for most targets, so the list is closed."""
    accepted = [
        target
        for target in ("native", "pulley64", "riscv64gc-unknown-linux-gnu", "i686", "pulley32", "")
        if _accepts(MINIMAL | {"runtime": {"target": target}}, tmp_path)
    ]
    assert accepted == ["native", "pulley64"]


def _accepts(data: dict[str, Any], base: Path) -> Config | None:
    try:
        return parse_config(data, base=base)
    except ConfigError:
        return None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[node\n", "not TOML"),
        (b"\xff\xfe", "cannot be read"),
        (b"[node]\nname = 'a'\nname = 'b'\n", "not TOML"),
    ],
)
def test_unreadable_files(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_config(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("node-1.example:65535", ("node-1.example", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, key="x") == address


@pytest.mark.parametrize(
    "text", ["", ":", ":1", "host:", "host:-1", "host:٣", "host: 1", "host:65536"]
)
def test_bad_addresses_name_key_and_fix(text: str) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.bind = .*write host:port"):
        parse_address(text, key="gateway.bind")


def test_gossip_on_every_address_needs_one_that_peers_can_dial() -> None:
    document = {"node": {"name": "a"}, "gossip": {"bind": "0.0.0.0:7946"}}
    with pytest.raises(ConfigError, match=r"gossip\.advertise"):
        parse_config(document, base=Path())
    document["gossip"]["advertise"] = "127.0.0.1:7946"
    assert parse_config(document, base=Path()).gossip.advertise == "127.0.0.1:7946"
