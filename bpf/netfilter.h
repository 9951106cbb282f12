/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Which netfilter hook and table are deciding on an skb at this moment. The functions of tier 2 write it, the drop reads
 * it: a drop happens inside nf_hook_slow, so the entry lives from its fentry to its fexit.
 */
#ifndef K8SNET_NETFILTER_H
#define K8SNET_NETFILTER_H

#include "compat.h"

/* Tier 2 is loaded. Constant, so that without it the drop does not even look. */
const volatile bool tier2 = false;

struct deciding {
	__u8 hook;
	char table[16];
};

/* LRU, because an fexit that never comes (the program was detached) must not leave entries for ever. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64); /* skb */
	__type(value, struct deciding);
} deciding SEC(".maps");

enum { NF_DROP = 0 };

/* `name` of the table that decides now; NULL: none does. */
static __always_inline void note_table(__u64 skb, const char *name)
{
	struct deciding *note = bpf_map_lookup_elem(&deciding, &skb);

	if (!note)
		return;
	if (name)
		bpf_probe_read_kernel_str(note->table, sizeof(note->table), name);
	else
		note->table[0] = 0;
}

#endif
