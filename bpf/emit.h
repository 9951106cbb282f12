/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * From a match to a record in the ring buffer. `event_for_skb` fills what every skb has, `event_for_socket` what every
 * socket has; the program adds its own and submits. Nothing is zeroed or filled before the filter has said yes. User
 * space is never woken: it drains every few milliseconds, a wakeup per event would cost it 25 us each.
 */
#ifndef K8SNET_EMIT_H
#define K8SNET_EMIT_H

#include "netfilter.h"
#include "watch.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* the loader sets its own */
} events SEC(".maps");

/* Events that found the ring full, by probe. Adding atomically is dear, losing is rare. */
volatile __u64 lost[PROBE_MAX] = {};

/* Without an anchor the record's type would not be in the object's BTF, where tests/unit/test_layout.py looks it up. */
const struct event *event_anchor __attribute__((unused));
const enum probe_id *probe_id_anchor __attribute__((unused));

static __always_inline struct event *new_event(struct work *work, enum probe_id probe)
{
	struct event *e = &work->event;

	__builtin_memset(e, 0, sizeof(*e));
	work->payload_size = 0;
	e->ktime_ns = bpf_ktime_get_ns();
	e->cpu = bpf_get_smp_processor_id();
	e->probe = probe;
	e->ct_info = CT_INFO_NONE;
	e->hook = HOOK_NONE;
	return e;
}

static __always_inline void submit(struct event *e)
{
	const struct work *work = (const void *)e - __builtin_offsetof(struct work, event);
	__u32 payload = work->payload_size;

	barrier_var(payload);
	if (payload > PAYLOAD_MAX) /* never; the verifier wants to be told */
		return;
	if (bpf_ringbuf_output(&events, e, sizeof(*e) + payload, BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&lost[e->probe % PROBE_MAX], 1);
}

static __always_inline void fill_device(struct event *e, const struct net_device *dev)
{
	e->ifindex = dev->ifindex;
	e->netns = dev->nd_net.net->ns.inum;
	((__u64 *)e->ifname)[0] = *(const __u64 *)dev->name;
	((__u64 *)e->ifname)[1] = *(const __u64 *)(dev->name + 8);
}

static __always_inline void fill_packet(struct event *e, const struct match *m)
{
	const struct header *h = &m->first;

	if (m->encap) {
		h = &m->inner;
		e->outer = m->first.tuple;
	}
	e->encap = m->encap;
	e->packet = h->tuple;
	e->seq = h->seq;
	e->ack = h->ack;
	e->ip_id = h->ip_id;
	e->frag_off = h->frag_off;
	e->payload_len = h->payload_len;
	e->ttl = h->ttl;
	e->tcp_flags = h->tcp_flags;
	/* Of an ICMP error its own type and code count, not those of an echo request that it may quote. */
	e->icmp_type = m->encap == ENCAP_ICMP_ERROR ? m->first.icmp_type : h->icmp_type;
	e->icmp_code = m->encap == ENCAP_ICMP_ERROR ? m->first.icmp_code : h->icmp_code;
}

static __always_inline void fill_conntrack(struct event *e, struct match *m, const struct sk_buff *skb)
{
	const struct nf_conn *ct = conntrack_of(skb);
	unsigned long nfct = nfct_of(skb);

	if (nfct)
		e->ct_info = nfct & NFCT_INFO_MASK;
	if (!ct)
		return;
	__builtin_memset(&m->orig, 0, 2 * sizeof(struct tuple));
	conntrack_orig(&m->orig, ct);
	conntrack_reply(&m->reply, ct);
	e->ct_orig = m->orig;
	e->ct_reply = m->reply;
	e->ct_status = conntrack_status(ct);
	e->ct_zone = conntrack_zone(ct);
	/* The outer packet of a tunnel has an entry of its own, which says nothing about this flow. */
	if (!watching && m->orig.family && !m->encap)
		learn(&m->orig, &m->reply);
}

static __always_inline void fill_gso(struct event *e, const struct skb_shared_info *shared)
{
	if (typed_views) {
		const struct skb_shared_info *typed = UNTRUSTED(struct skb_shared_info, shared);

		e->gso_size = typed->gso_size;
		e->gso_segs = typed->gso_segs;
	} else {
		e->gso_size = BPF_CORE_READ(shared, gso_size);
		e->gso_segs = BPF_CORE_READ(shared, gso_segs);
	}
}

static __always_inline void fill_skb(struct event *e, const struct sk_buff *trusted)
{
	const struct sk_buff *skb = UNTRUSTED(struct sk_buff, trusted);
	const struct net_device *dev = skb->dev;
	const struct sock *sk = skb->sk;

	e->skb = (__u64)skb;
	e->len = skb->len;
	e->skb_mark = skb->mark;
	e->skb_iif = skb->skb_iif;
	e->pkt_type = BPF_CORE_READ_BITFIELD(skb, pkt_type);
	e->cloned = BPF_CORE_READ_BITFIELD(skb, cloned);
	e->nf_trace = nf_trace_of(skb);
	if (dev)
		fill_device(e, dev);
	else if (sk)
		e->netns = netns_of_sock(sk);
	fill_gso(e, (const struct skb_shared_info *)(skb->head + skb->end));
}

/* To a watch: what a probe tells of the end of a packet matters, whatever the packet is. */
static __always_inline enum matters what_matters(enum probe_id probe)
{
	if (probe == PROBE_KFREE_SKB)
		return ALSO_DATA;
	return probe == PROBE_ICMP_SEND || probe == PROBE_TCP_SEND_RESET ? ANYTHING : ONLY_TELLING;
}

/* The transport payload of what matched: bytes from skb->data, which may be beyond the IP header already. */
static __always_inline __u64 payload_at(const struct match *m, __u64 at)
{
	enum encap encap = ENCAP_NONE;

	if (m->encap)
		return at + inner_offset(&m->first, at, &encap) + m->inner.data;
	return at + m->first.data;
}

/*
 * A DNS message, or its beginning. Mostly it lies in the skb's linear part; a query that was written in pieces does not,
 * nor does one of sendfile, and then only a dynptr reaches it (measured: 12 of 157 bytes of a query sent with MSG_MORE).
 */
static __noinline void copy_payload(struct work *work, const struct sk_buff *skb, __u64 at)
{
	__u64 begin = payload_at(&work->match, at), end = (__u64)skb->head + skb->tail, data = (__u64)skb->data;
	__u32 size = work->event.payload_len, linear = end > begin ? end - begin : 0;
	struct bpf_dynptr view;

	if (size > PAYLOAD_MAX)
		size = PAYLOAD_MAX;
	if (size > linear && skb_dynptrs && begin >= data) {
		if (!bpf_dynptr_from_skb((struct __sk_buff *)skb, 0, &view) &&
		    !bpf_dynptr_read(work->payload, size, &view, begin - data, 0)) {
			work->payload_size = size;
			return;
		}
	}
	if (size > linear)
		size = linear;
	/* It is no more than that already; 6.1's verifier does not follow a copy, so here is the one register it looks at. */
	barrier_var(size);
	if (size > PAYLOAD_MAX)
		return;
	if (!bpf_probe_read_kernel(work->payload, size, (const void *)begin))
		work->payload_size = size;
}

static __always_inline bool carries_dns(const struct event *e)
{
	if (e->packet.protocol != IPPROTO_UDP && e->packet.protocol != IPPROTO_TCP)
		return false;
	/* Behind DNAT the server may have another port (5353 on OpenShift). */
	return e->packet.dport == DNS_PORT || e->packet.sport == DNS_PORT || e->ct_orig.dport == DNS_PORT;
}

/* Out of line, so that what a packet of others runs through fits into a few cache lines. */
static __noinline struct event *matched_event(enum probe_id probe, const struct sk_buff *skb, __u64 at)
{
	struct work *work = work_of(probe);
	struct event *e;

	if (!work || !(watching ? watch_match(&work->match, skb, at, what_matters(probe)) : match(&work->match, skb, at)))
		return NULL;
	e = new_event(work, probe);
	fill_skb(e, skb);
	fill_packet(e, &work->match);
	fill_conntrack(e, &work->match, skb);
	/* Tier 2 hands over an skb that the verifier does not trust, and its events are about something else. */
	if (probe < PROBE_NF_HOOK_SLOW && e->encap != ENCAP_ICMP_ERROR && e->payload_len && carries_dns(e))
		copy_payload(work, skb, at);
	return e;
}

/* The event of an skb whose IP header is at `at`; NULL when it is not ours. */
static __always_inline struct event *event_for_skb(enum probe_id probe, const struct sk_buff *skb, __u64 at)
{
	bool may;

	if (!watching)
		may = may_match(skb, at);
	else if (what_matters(probe) != ONLY_TELLING)
		may = is_ip(skb);
	else
		may = watch_may_match(skb, at);

	return may ? matched_event(probe, skb, at) : NULL;
}

/* Where the IP header is once the network layer has set it; on the ingress tracepoints it is skb->data instead. */
static __always_inline __u64 network_header(const struct sk_buff *skb)
{
	return (__u64)skb->head + skb->network_header;
}

/* The socket's own view: saddr and sport are local, daddr and dport remote. */
static __always_inline void socket_tuple(struct tuple *t, const struct sock_common *sk, __u8 protocol)
{
	__builtin_memset(t, 0, sizeof(*t));
	t->family = sk->skc_family;
	t->protocol = protocol;
	t->sport = sk->skc_num;
	t->dport = bpf_ntohs(sk->skc_dport);
	if (t->family == AF_INET6) {
		const __u64 *local = (const __u64 *)sk->skc_v6_rcv_saddr.in6_u.u6_addr8;
		const __u64 *remote = (const __u64 *)sk->skc_v6_daddr.in6_u.u6_addr8;

		((__u64 *)t->saddr)[0] = local[0];
		((__u64 *)t->saddr)[1] = local[1];
		((__u64 *)t->daddr)[0] = remote[0];
		((__u64 *)t->daddr)[1] = remote[1];
		/* ::ffff:a.b.c.d is IPv4 on the wire (RFC 4291, 2.5.5.2); a dual-stack server's sockets all look so. */
		if (remote[0] || (__u32)remote[1] != bpf_htonl(0xffff))
			return;
		t->family = AF_INET;
		__builtin_memset(t->saddr, 0, 32);
	}
	*(__u32 *)t->saddr = sk->skc_rcv_saddr;
	*(__u32 *)t->daddr = sk->skc_daddr;
}

/* The event of a socket; NULL when it is not ours. */
static __always_inline struct event *event_for_socket(enum probe_id probe, const struct sock_common *sk, __u8 protocol)
{
	struct work *work = work_of(probe);
	struct event *e;
	struct tuple *t;

	if (!work)
		return NULL;
	t = &work->match.orig;
	socket_tuple(t, sk, protocol);
	if (watching) {
		if (!is_watched(t))
			return NULL;
	} else if (!(protocol_matches(t) && ports_match(t) && addresses_match(t)) && !is_learned(t)) {
		return NULL;
	}
	e = new_event(work, probe);
	e->packet = *t;
	e->netns = UNTRUSTED(struct sock_common, sk)->skc_net.net->ns.inum;
	return e;
}

/* The event of something that is neither, for `packet` as far as it is known; NULL never but in theory. */
static __always_inline struct event *event_for(enum probe_id probe, const struct tuple *packet)
{
	struct work *work = work_of(probe);
	struct event *e;

	if (!work)
		return NULL;
	e = new_event(work, probe);
	if (packet)
		e->packet = *packet;
	return e;
}

#endif
