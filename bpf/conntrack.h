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

/* The skb's entry; where the kernel has the cast, as a pointer that can be read through. */
static __always_inline const struct nf_conn *conntrack_of(const struct sk_buff *skb)
{
	unsigned long ct = nfct_of(skb) & ~NFCT_INFO_MASK;

	if (!ct)
		return NULL;
	return nf_conn_type ? bpf_rdonly_cast((const void *)ct, nf_conn_type) : (const void *)ct;
}

/* By words of four bytes: the second address of a tuple is no better aligned. */
static __always_inline void copy_address(__u8 *to, const __u8 *from)
{
	for (int i = 0; i < 4; i++)
		((__u32 *)to)[i] = ((const __u32 *)from)[i];
}

/* The tuple at `from` in the event's form; `t` must be zero. */
static __always_inline void conntrack_tuple(struct tuple *t, const struct nf_conntrack_tuple *from)
{
	struct nf_conntrack_tuple copy;

	if (!nf_conn_type) {
		bpf_probe_read_kernel(&copy, sizeof(copy), from);
		from = &copy;
	}
	if (from->src.l3num != AF_INET && from->src.l3num != AF_INET6)
		return; /* conntrack is made for these two; anything else is a torn or recycled entry */
	copy_address(t->saddr, from->src.u3);
	copy_address(t->daddr, from->dst.u3);
	t->sport = bpf_ntohs(from->src.u);
	t->dport = bpf_ntohs(from->dst.u);
	t->protocol = from->dst.protonum;
	t->family = from->src.l3num;
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

static __always_inline __u32 conntrack_status(const struct nf_conn *ct)
{
	return nf_conn_type ? ct->status : BPF_CORE_READ(ct, status);
}

/* `zone` depends on CONFIG_NF_CONNTRACK_ZONES. */
static __always_inline __u16 conntrack_zone(const struct nf_conn *ct)
{
	if (!bpf_core_field_exists(ct->zone))
		return 0;
	return nf_conn_type ? ct->zone.id : BPF_CORE_READ(ct, zone.id);
}

#endif
