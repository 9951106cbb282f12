// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Tier 2 once more, for functions that cannot be had by fentry: those of a module without type information (5.10), and
 * all of them on machines without trampolines. Leaves the notes that netfilter.bpf.c leaves. A kretprobe is not told the
 * arguments, so the entry leaves the skb under the place on the stack that the function was called from.
 */
#include "emit.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64); /* stack pointer of the caller */
	__type(value, __u64); /* skb */
} calls SEC(".maps");

static __always_inline void called(struct pt_regs *regs, __u64 skb)
{
	__u64 caller = PT_REGS_SP(regs) + RETURN_ADDRESS;

	bpf_map_update_elem(&calls, &caller, &skb, BPF_ANY);
}

/* The skb that the function was called for; 0 when nobody was there. */
static __always_inline __u64 returned(struct pt_regs *regs)
{
	__u64 caller = PT_REGS_SP(regs), *found = bpf_map_lookup_elem(&calls, &caller), skb = found ? *found : 0;

	bpf_map_delete_elem(&calls, &caller);
	return skb;
}

SEC("kprobe/nf_hook_slow")
int nf_hook_slow_kprobe(struct pt_regs *regs)
{
	const struct sk_buff *skb = (const struct sk_buff *)PT_REGS_PARM1(regs);
	const struct nf_hook_state *state = (const struct nf_hook_state *)PT_REGS_PARM2(regs);
	__u64 key = (__u64)skb, at = (__u64)BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header);
	__u8 pf = BPF_CORE_READ(state, pf);
	struct deciding note = {};

	/* Without the rest of the filter, which reads an skb that the verifier knows: a few packets more get a note. */
	if ((pf != AF_INET && pf != AF_INET6) || !(watching ? inner_may_tell(at) : inner_may_match(at)))
		return 0;
	note.hook = read_hook_of(state);
	if (bpf_map_update_elem(&deciding, &key, &note, BPF_ANY))
		__sync_fetch_and_add(&lost[PROBE_NF_HOOK_SLOW], 1);
	else
		called(regs, key);
	return 0;
}

SEC("kretprobe/nf_hook_slow")
int nf_hook_slow_kretprobe(struct pt_regs *regs)
{
	__u64 skb = returned(regs);

	if (skb)
		bpf_map_delete_elem(&deciding, &skb);
	return 0;
}

/* The type information that would tell the order of the arguments is what is missing: the skb is the one with a note. */
static __always_inline void table_called(struct pt_regs *regs)
{
	__u64 first = PT_REGS_PARM1(regs), second = PT_REGS_PARM2(regs);
	bool skb_first = bpf_map_lookup_elem(&deciding, &first);
	const struct xt_table *table = (const struct xt_table *)(skb_first ? PT_REGS_PARM3(regs) : first);
	__u64 skb = skb_first ? first : second;

	note_table(skb, (const char *)table + bpf_core_field_offset(table->name));
	called(regs, skb);
}

static __always_inline void table_returned(struct pt_regs *regs)
{
	__u64 skb = returned(regs);

	if (skb && (__u32)PT_REGS_RC(regs) != NF_DROP)
		note_table(skb, NULL);
}

SEC("kprobe/ipt_do_table")
int ipt_do_table_kprobe(struct pt_regs *regs)
{
	table_called(regs);
	return 0;
}

SEC("kretprobe/ipt_do_table")
int ipt_do_table_kretprobe(struct pt_regs *regs)
{
	table_returned(regs);
	return 0;
}

SEC("kprobe/ip6t_do_table")
int ip6t_do_table_kprobe(struct pt_regs *regs)
{
	table_called(regs);
	return 0;
}

SEC("kretprobe/ip6t_do_table")
int ip6t_do_table_kretprobe(struct pt_regs *regs)
{
	table_returned(regs);
	return 0;
}

SEC("kprobe/nft_do_chain")
int nft_do_chain_kprobe(struct pt_regs *regs)
{
	const struct nft_pktinfo *pkt = (const struct nft_pktinfo *)PT_REGS_PARM1(regs);
	const struct nft_chain *chain = (const struct nft_chain *)PT_REGS_PARM2(regs);
	__u64 skb = (__u64)BPF_CORE_READ(pkt, skb);

	note_table(skb, BPF_CORE_READ(chain, table, name));
	called(regs, skb);
	return 0;
}

SEC("kretprobe/nft_do_chain")
int nft_do_chain_kretprobe(struct pt_regs *regs)
{
	table_returned(regs);
	return 0;
}
