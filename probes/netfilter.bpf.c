// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Tier 2: which hook and which table were deciding when an skb was dropped. Emits nothing itself; leaves a note under
 * the skb's address that kfree_skb picks up. Only packets of the flow get a note, so the tables need no filter: they
 * write into a note that is there. The kernel frees after the table has returned NF_DROP (iptables; nft on 5.10) or
 * inside of it (nft since), so a table's name is taken back only when it has not dropped.
 */
#include "emit.h"

SEC("fentry/nf_hook_slow")
int BPF_PROG(nf_hook_slow, struct sk_buff *skb, struct nf_hook_state *state)
{
	struct deciding note = {};
	struct work *work;
	__u64 key = (__u64)skb, at = network_header(skb);

	/* A bridge's hooks have numbers of their own and run the inet hooks inside. */
	if (state->pf != AF_INET && state->pf != AF_INET6)
		return 0;
	if (!(watching ? watch_may_match(skb, at) : may_match(skb, at)))
		return 0;
	work = work_of(PROBE_NF_HOOK_SLOW);
	if (!work || !(watching ? watch_match(&work->match, skb, at, ONLY_TELLING) : match(&work->match, skb, at)))
		return 0;
	note.hook = hook_of(state);
	if (bpf_map_update_elem(&deciding, &key, &note, BPF_ANY))
		__sync_fetch_and_add(&lost[PROBE_NF_HOOK_SLOW], 1);
	return 0;
}

SEC("fexit/nf_hook_slow")
int BPF_PROG(nf_hook_slow_exit, struct sk_buff *skb, struct nf_hook_state *state)
{
	__u64 key = (__u64)skb;

	if (state->pf == AF_INET || state->pf == AF_INET6)
		bpf_map_delete_elem(&deciding, &key);
	return 0;
}

/* Volatile, or the compiler loads once from a computed offset into ctx, which the verifier does not allow. */
static __always_inline __u64 argument(const __u64 *ctx, int i)
{
	return *(volatile const __u64 *)&ctx[i];
}

static __always_inline void table_begins(const __u64 *ctx)
{
	__u64 first = argument(ctx, 0), second = argument(ctx, 1), third = argument(ctx, 2);
	const struct xt_table *table = (const struct xt_table *)(ipt_table_first ? first : third);

	note_table(ipt_table_first ? second : first, (const char *)table + bpf_core_field_offset(table->name));
}

static __always_inline void table_ends(const __u64 *ctx)
{
	__u64 first = argument(ctx, 0), second = argument(ctx, 1);

	if ((__u32)argument(ctx, 3) != NF_DROP)
		note_table(ipt_table_first ? second : first, NULL);
}

SEC("fentry/ipt_do_table")
int ipt_do_table(__u64 *ctx)
{
	table_begins(ctx);
	return 0;
}

SEC("fexit/ipt_do_table")
int ipt_do_table_exit(__u64 *ctx)
{
	table_ends(ctx);
	return 0;
}

SEC("fentry/ip6t_do_table")
int ip6t_do_table(__u64 *ctx)
{
	table_begins(ctx);
	return 0;
}

SEC("fexit/ip6t_do_table")
int ip6t_do_table_exit(__u64 *ctx)
{
	table_ends(ctx);
	return 0;
}

SEC("fentry/nft_do_chain")
int BPF_PROG(nft_do_chain, struct nft_pktinfo *pkt, const struct nft_chain *chain)
{
	note_table((__u64)BPF_CORE_READ(pkt, skb), BPF_CORE_READ(chain, table, name));
	return 0;
}

SEC("fexit/nft_do_chain")
int BPF_PROG(nft_do_chain_exit, struct nft_pktinfo *pkt, void *priv, unsigned int verdict)
{
	if (verdict != NF_DROP)
		note_table((__u64)BPF_CORE_READ(pkt, skb), NULL);
	return 0;
}
