// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Address resolution (ARP, neighbour discovery) of the flow's own addresses: asked, answered, given up. The event has
 * no packet on the wire: `packet.daddr` is the address that is being resolved, `code` the nud state. A next hop that is
 * not itself a party of the flow (a gateway) is not reported here; its failure is a kfree_skb with NEIGH_FAILED.
 */
#include "emit.h"

static __always_inline int trace_neighbour(enum probe_id probe, const struct neighbour *trusted)
{
	const struct neighbour *n = UNTRUSTED(struct neighbour, trusted);
	const __u8 *key = (const __u8 *)n + bpf_core_field_offset(n->primary_key);
	int family = n->tbl->family;
	struct tuple t __attribute__((aligned(8))) = {};
	struct event *e;

	if (family == AF_INET)
		bpf_probe_read_kernel(t.daddr, 4, key);
	else if (family == AF_INET6)
		bpf_probe_read_kernel(t.daddr, 16, key);
	else
		return 0;
	t.family = family;
	if (!is_client(t.daddr, family) && (any_peer || !is_peer(t.daddr)))
		return 0;
	e = event_for(probe, &t);
	if (!e)
		return 0;
	e->code = n->nud_state;
	fill_device(e, n->dev);
	submit(e);
	return 0;
}

SEC("tp_btf/neigh_event_send_done")
int BPF_PROG(neigh_event_send_done, struct neighbour *n)
{
	return trace_neighbour(PROBE_NEIGH_EVENT_SEND_DONE, n);
}

SEC("tp_btf/neigh_timer_handler")
int BPF_PROG(neigh_timer_handler, struct neighbour *n)
{
	return trace_neighbour(PROBE_NEIGH_TIMER_HANDLER, n);
}

SEC("tp_btf/neigh_update")
int BPF_PROG(neigh_update, struct neighbour *n)
{
	return trace_neighbour(PROBE_NEIGH_UPDATE, n);
}
