// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Where an skb ends. kfree_skb is the drop, with its reason and the instruction that dropped it (and, by tier 2, the hook
 * and table that were deciding); which drops are noise is for user space to say. consume_skb is the end of an skb that
 * nobody calls a drop: only a TCP SYN is reported, because an overflowing accept queue ends it so and in no other way.
 */
#include "emit.h"

SEC("tp_btf/kfree_skb")
int kfree_skb(__u64 *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx[0];
	struct event *e = event_for_skb(PROBE_KFREE_SKB, skb, network_header(skb));

	if (!e)
		return 0;
	e->location = ctx[1];
	if (bpf_core_type_exists(enum skb_drop_reason))
		e->reason = ctx[2];
	if (!e->netns && kfree_skb_args >= 4) {
		const struct sock *rx_sk = (const struct sock *)ctx[3];

		if (rx_sk)
			e->netns = netns_of_sock(rx_sk);
	}
	if (tier2) {
		__u64 key = (__u64)skb;
		const struct deciding *seen = bpf_map_lookup_elem(&deciding, &key);

		if (seen) {
			e->hook = seen->hook;
			__builtin_memcpy(e->table, seen->table, sizeof(e->table));
		}
	}
	submit(e);
	return 0;
}

SEC("tp_btf/consume_skb")
int BPF_PROG(consume_skb, struct sk_buff *skb)
{
	struct event *e = event_for_skb(PROBE_CONSUME_SKB, skb, network_header(skb));

	if (e && e->packet.protocol == IPPROTO_TCP && (e->tcp_flags & 0x12) == 0x02) /* SYN without ACK */
		submit(e);
	return 0;
}
