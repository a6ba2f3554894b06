"""Annotations and node settings: every key, every form, every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropod.config import (
    PREFIX,
    Activation,
    ExecProbes,
    NodeSettings,
    RestoreFailure,
    Settings,
    StopAsleep,
    parse_duration,
)
from zeropod.errors import AnnotationError, Code, InvalidArgument

S = 1_000_000_000


def parse(container: str = "web", **annotations: str) -> Settings:
    return Settings.from_annotations(
        {PREFIX + key.replace("_", "-"): value for key, value in annotations.items()},
        container_name=container,
    )


def test_defaults_are_those_of_the_specification() -> None:
    settings = parse()
    assert settings.scales
    assert settings.ports is None
    assert settings.scaledown_duration_ns == 60 * S
    assert settings.connect_timeout_ns == 5 * S
    assert settings.proxy_timeout_ns == 0
    assert settings.probe_buffer_size == 1024
    assert not settings.disable_checkpointing
    assert not settings.disable_probe_detection
    assert settings.restore_failure is RestoreFailure.RESTART
    assert settings.stop_asleep is StopAsleep.RESTORE
    assert settings.activation is Activation.AUTO
    assert settings.exec_probes is ExecProbes.WAKE


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("10s", 10 * S),
        ("1m30s", 90 * S),
        ("1.5h", 5400 * S),
        ("300ms", 300_000_000),
        (".5s", S // 2),
        ("10us", 10_000),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_duration_forms(text: str, expected_ns: int) -> None:
    assert parse(scaledown_duration=text).scaledown_duration_ns == expected_ns


@pytest.mark.parametrize("text", ["", "10", "-1s", "1 s", "s", "1d", "10s!", "ten", "1e3s", "9e9h"])
@pytest.mark.parametrize(
    "key", ["scaledown-duration", "min-awake", "connect-timeout", "proxy-timeout"]
)
def test_bad_duration_names_key_value_and_form(key: str, text: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        Settings.from_annotations({PREFIX + key: text})
    assert caught.value.code is Code.INVALID_ARGUMENT
    message = str(caught.value)
    assert PREFIX + key in message
    assert repr(text) in message
    assert "such as 10s" in message


def test_min_awake() -> None:
    assert parse().min_awake_ns == 0
    assert parse(min_awake="1m30s").min_awake_ns == 90 * S
    assert parse(min_awake="0").min_awake_ns == 0


def test_zero_duration_disables_scaling() -> None:
    assert not parse(scaledown_duration="0").scales


def test_container_names_narrow() -> None:
    assert parse("web", container_names="web, api").scales
    assert not parse("db", container_names="web,api").scales
    assert parse("db", container_names="").scales


def test_ports_map() -> None:
    assert parse("web", ports_map="web=80,81;other=8080").ports == (80, 81)
    assert parse("other", ports_map="web=80,81;other=8080/tcp").ports == (8080,)
    assert parse("third", ports_map="web=80").ports is None
    dns = parse("dns", ports_map="dns=53/udp,53")
    assert (dns.ports, dns.udp_ports) == ((53,), (53,))
    assert dns.pod_udp and parse("web", ports_map="dns=53/udp").pod_udp
    assert not parse("web", ports_map="web=80").pod_udp


@pytest.mark.parametrize("way", list(Activation))
def test_the_first_connection_is_handed_over_as_is_said(way: Activation) -> None:
    assert parse(activation=way.value).activation is way


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ports-map", "80"),
        ("ports-map", "web=0"),
        ("ports-map", "web=65536"),
        ("ports-map", "web=0000080"),
        ("ports-map", "web=80;web=81"),
        ("ports-map", "web=80/sctp"),
        ("ports-map", "web="),
        ("ports-map", "Web!=80"),
        ("container-names", "web,,api"),
        ("container-names", "Web"),
        ("probe-buffer-size", "0"),
        ("probe-buffer-size", "65537"),
        ("probe-buffer-size", "1k"),
        ("probe-buffer-size", "²"),
        ("disable-checkpointing", "yes"),
        ("disable-probe-detection", ""),
        ("restore-failure", "ignore"),
        ("stop-asleep", "kill"),
        ("activation", "proxy"),
        ("exec-probes", "true"),
        ("ignore-sources", "10.0.0.0/33"),
        ("ignore-sources", "10.0.0.1/8"),
        ("ignore-sources", "localhost"),
        ("ignore-sources", ",".join(f"10.0.{number}.0/24" for number in range(257))),
    ],
)
def test_malformed_values_are_refused(key: str, value: str) -> None:
    with pytest.raises(AnnotationError, match="expected") as caught:
        Settings.from_annotations({PREFIX + key: value}, container_name="web")
    assert (caught.value.key, caught.value.value) == (PREFIX + key, value)


def test_networks_whose_packets_do_not_count() -> None:
    mapped = b"\0" * 10 + b"\xff\xff"
    given = parse(ignore_sources="10.1.0.0/16, fd00::/8,192.0.2.7,")
    assert given.ignore_sources == (
        (mapped + bytes([10, 1, 0, 0]), 112),
        (b"\xfd" + bytes(15), 8),
        (mapped + bytes([192, 0, 2, 7]), 128),
    )
    assert parse(ignore_sources="0.0.0.0/0").ignore_sources == ((mapped + bytes(4), 96),)


def test_malformed_value_for_another_container_is_refused_too() -> None:
    with pytest.raises(AnnotationError):
        parse("web", ports_map="other=x")


@pytest.mark.parametrize("way", list(ExecProbes))
def test_exec_probes_do_as_is_said(way: ExecProbes) -> None:
    assert parse(exec_probes=way.value).exec_probes is way


def test_a_pre_dump_is_asked_for() -> None:
    assert parse(pre_dump="true").pre_dump and not parse().pre_dump


def test_what_has_no_effect_is_listed() -> None:
    assert parse(migrate="web", live_migrate="db").unsupported == (
        PREFIX + "live-migrate",
        PREFIX + "migrate",
    )


def test_foreign_annotations_are_left_alone() -> None:
    assert Settings.from_annotations({"example.com/ports-map": "???"}) == Settings()


@given(st.text(max_size=40))
def test_any_text_is_a_duration_or_an_annotation_error(text: str) -> None:
    try:
        assert parse_duration("key", text) >= 0
    except AnnotationError as error:
        assert repr(text) in str(error)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True),
        st.lists(st.integers(1, 65535), min_size=1, max_size=4),
        min_size=1,
    )
)
def test_ports_map_round_trip(ports: dict[str, list[int]]) -> None:
    text = ";".join(f"{name}={','.join(map(str, numbers))}" for name, numbers in ports.items())
    for name, numbers in ports.items():
        assert parse(name, ports_map=text).ports == tuple(numbers)


def test_node_settings_defaults_and_file(tmp_path: Path) -> None:
    path = tmp_path / "shim.json"
    assert NodeSettings.load(path) == NodeSettings()
    path.write_text('{"probeBinaryName": "k3s", "trackerIgnoreLocalhost": false}')
    assert NodeSettings.load(path) == NodeSettings("k3s", False)


@pytest.mark.parametrize("text", ["{", "[]", '{"probe": 1}', '{"trackerIgnoreLocalhost": "no"}'])
def test_node_settings_refuse_what_they_do_not_understand(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shim.json"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=str(path)):
        NodeSettings.load(path)
