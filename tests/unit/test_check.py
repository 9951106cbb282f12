"""`k8snet check`: from what was found to the verdict, the price of what is missing, and the exit code's meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k8snet.cli.check import document, text
from k8snet.event import ProbeId
from k8snet.kernel.abilities import Abilities, Fact, Tracing, _capabilities
from k8snet.kernel.loader import ProbeStatus
from k8snet.probes import ESSENTIAL, PROBES

ROOT = Fact("root", True, "uid 0", "nothing can be traced", "sudo k8snet check", required=True)


def found(*missing: ProbeId, facts: tuple[Fact, ...] = (ROOT,)) -> Abilities:
    """A machine where everything can be had except these probes."""
    probes = tuple(ProbeStatus(p, p.id not in missing, "no such thing" * (p.id in missing)) for p in PROBES)
    return Abilities("6.1.0-test", facts, probes)


def test_everything_of_tier_1_is_whole() -> None:
    assert found().tracing is Tracing.WHOLE


def test_tier_2_is_never_needed() -> None:
    without = found(*(probe.id for probe in PROBES if probe.tier == 2))
    assert without.tracing is Tracing.WHOLE
    assert "tier 1 17 of 17, tier 2 0 of 5" in text(without)


def test_a_missing_probe_of_tier_1_is_partial_and_its_price_is_told() -> None:
    without = found(ProbeId.ICMP_SEND)
    assert without.tracing is Tracing.PARTIAL
    assert "icmp_send: no such thing\n  lost: a REJECT is told by the ICMP packet on its way back" in text(without)


@pytest.mark.parametrize("probe", sorted(ESSENTIAL), ids=lambda probe: probe.name.lower())
def test_without_an_essential_probe_nothing_can_be_traced(probe: ProbeId) -> None:
    assert found(probe).tracing is Tracing.IMPOSSIBLE


def test_without_a_required_fact_nothing_can_be_traced_and_the_cure_is_told() -> None:
    denied = found(facts=(replace(ROOT, ok=False, detail="uid 1000"),))
    assert denied.tracing is Tracing.IMPOSSIBLE
    assert "root: uid 1000\n  lost: nothing can be traced\n  fix:  sudo k8snet check" in text(denied)


def test_a_fact_that_is_not_required_does_not_forbid_tracing() -> None:
    assert found(facts=(ROOT, Fact("rule naming, nft", False, "none", "the rule"))).tracing is Tracing.WHOLE


def test_probes_missing_for_one_reason_are_told_together() -> None:
    lines = text(found(ProbeId.IPT_DO_TABLE, ProbeId.NFT_DO_CHAIN)).splitlines()
    assert "ipt_do_table, nft_do_chain: no such thing" in lines
    assert lines.count("  lost: the table of a drop is known only when its rule is named") == 1


def test_every_probe_says_what_it_adds_and_what_is_lost_without_it() -> None:
    for probe in PROBES:
        assert probe.about
        assert probe.loss
        assert probe.needs


def test_a_name_from_the_kernel_cannot_inject_terminal_codes() -> None:
    assert "\x1b" not in text(replace(found(), kernel="6.1\x1b[31m"))


def test_all_capabilities() -> None:
    [fact] = _capabilities("Name:\tk8snet\nCapEff:\t000001ffffffffff\n")
    assert (fact.ok, fact.detail) == (True, "NET_ADMIN NET_RAW SYS_PTRACE SYS_ADMIN PERFMON BPF")


def test_sys_admin_is_enough_to_load_and_attach() -> None:
    """Kernels before 5.8 have nothing else."""
    facts = _capabilities(f"CapEff:\t{1 << 12 | 1 << 13 | 1 << 19 | 1 << 21:016x}\n")
    assert [(fact.name, fact.ok, fact.detail) for fact in facts] == [
        ("capabilities", True, "NET_ADMIN NET_RAW SYS_PTRACE SYS_ADMIN")
    ]


def test_without_net_raw_something_can_be_traced_and_its_price_is_told() -> None:
    facts = _capabilities(f"CapEff:\t{0x1FFFFFFFFFF & ~(1 << 13):016x}\n")
    assert [fact.name for fact in facts if not fact.ok and not fact.required] == ["capability NET_RAW"]


def test_no_capability_at_all_is_told_one_by_one() -> None:
    facts = _capabilities("CapEff:\t0000000000000000\n")
    assert [fact.name for fact in facts if fact.required] == ["capability PERFMON", "capability BPF"]
    assert len(facts) == 6
    assert not any(fact.ok for fact in facts)


def test_the_document_names_itself_and_says_why_and_what_is_lost() -> None:
    written = document(found(ProbeId.ICMP_SEND))
    assert (written["apiVersion"], written["kind"], written["tracing"]) == (
        "k8snet.io/v1alpha1",
        "CheckReport",
        "partial",
    )
    [entry] = [probe for probe in written["probes"] if probe["name"] == "icmp_send"]
    assert entry == {
        "name": "icmp_send",
        "tier": 1,
        "ok": False,
        "default": True,
        "needs": "tracepoint icmp_send",
        "adds": "the packet that an ICMP error refuses: REJECT, no route, too big",
        "why": "no such thing",
        "loss": "a REJECT is told by the ICMP packet on its way back",
    }
