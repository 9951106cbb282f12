/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * What conntrack knows of an skb: both tuples, the status, the zone. `_nfct` is a pointer to struct nf_conn with the
 * three-bit enum ip_conntrack_info in its lowest bits. It is there in the netns that tracks, between the
 * PREROUTING/OUTPUT hook and the next veth or tunnel, and 0 elsewhere.
 */
#ifndef K8SNET_CONNTRACK_H
#define K8SNET_CONNTRACK_H

#include "compat.h"
#include "event.h"

#define NFCT_INFO_MASK 7UL

/* Type id of struct nf_conn, from the loader; 0: no cast. CO-RE finds two (nf_conn___init, for kfuncs) and refuses. */
const volatile __u32 nf_conn_type = 0;

static __always_inline const struct nf_conn *conntrack_of(const struct sk_buff *skb)
{
	return (const struct nf_conn *)(nfct_of(skb) & ~NFCT_INFO_MASK);
}

/* The tuple at `from` in the event's form; `t` must be zero. */
static __always_inline void conntrack_tuple(struct tuple *t, const struct nf_conntrack_tuple *from)
{
	struct nf_conntrack_tuple raw __attribute__((aligned(8)));

	bpf_probe_read_kernel(&raw, sizeof(raw), from);
	if (raw.src.l3num != AF_INET && raw.src.l3num != AF_INET6)
		return; /* conntrack is made for these two; anything else is a torn or recycled entry */
	__builtin_memcpy(t->saddr, raw.src.u3, 16);
	__builtin_memcpy(t->daddr, raw.dst.u3, 16);
	t->sport = bpf_ntohs(raw.src.u);
	t->dport = bpf_ntohs(raw.dst.u);
	t->protocol = raw.dst.protonum;
	t->family = raw.src.l3num;
	/* ICMP: src.u is the echo id, dst.u holds type and code, which are no port. */
	if (t->protocol == IPPROTO_ICMP || t->protocol == IPPROTO_ICMPV6)
		t->dport = 0;
}

/* Literal indices: only those are relocated. */
static __always_inline void conntrack_orig(struct tuple *t, const struct nf_conn *ct)
{
	conntrack_tuple(t, &ct->tuplehash[0].tuple);
}

static __always_inline void conntrack_reply(struct tuple *t, const struct nf_conn *ct)
{
	conntrack_tuple(t, &ct->tuplehash[1].tuple);
}

#endif
