// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Tier 2: both parties of a clash at the moment when conntrack decides about it. The packet is the loser's, as always;
 * the conntrack tuples and the status of this event are the *winner's*, the entry that stands in the table already.
 */
#include "emit.h"

SEC("fentry/nf_ct_resolve_clash")
int BPF_PROG(nf_ct_resolve_clash, struct sk_buff *skb, struct nf_conntrack_tuple_hash *h)
{
	struct event *e = event_for_skb(PROBE_NF_CT_RESOLVE_CLASH, skb, network_header(skb));
	struct work *work = work_of(PROBE_NF_CT_RESOLVE_CLASH);
	const struct nf_conn *winner = NULL;
	__u64 at = (__u64)h;
	__u8 dir;

	if (!e || !work)
		return 0;
	bpf_probe_read_kernel(&dir, sizeof(dir), &h->tuple.dst.dir);
	at -= dir ? bpf_core_field_offset(winner->tuplehash[1]) : bpf_core_field_offset(winner->tuplehash[0]);
	winner = nf_conn_type ? bpf_rdonly_cast((const void *)at, nf_conn_type) : (const void *)at;
	__builtin_memset(&work->match.orig, 0, 2 * sizeof(struct tuple));
	conntrack_orig(&work->match.orig, winner);
	conntrack_reply(&work->match.reply, winner);
	e->ct_orig = work->match.orig;
	e->ct_reply = work->match.reply;
	e->ct_status = conntrack_status(winner);
	submit(e);
	return 0;
}
