/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The other filter, of `k8snet watch`: not one flow, but of all flows of the watched pods what tells how they fare.
 * Handshakes, resets, DNS and ICMP errors at every device; drops, refusals and retransmissions of anything. The test of
 * the TCP flags comes first: data of a connection that stands pays for it and for nothing else. In a trace `watching`
 * is a constant false, and the verifier cuts all of this off.
 */
#ifndef K8SNET_WATCH_H
#define K8SNET_WATCH_H

#include "filter.h"

#define DNS_PORT 53
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Set by the loader before load. `peers` then holds the addresses of the watched pods. */
const volatile bool watching = false;

/* Of 2^sample_shift connections one is reported, and of that one everything; user space changes it as it goes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sampling SEC(".maps");

/*
 * Drops, refusals: of packets that open nothing. A flood of datagrams to a full socket would be one event each, and a
 * thousand a second say no more than a hundred. Guesses; a window is 2^27 ns = 134 ms.
 */
#define HELD_WINDOW 27
#define HELD_ABOVE 64

struct window {
	__u64 number;
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct window);
} windows SEC(".maps");

volatile __u64 held = 0; /* events that were not sent for that reason */

static __always_inline bool is_dns_port(__be16 sport, __be16 dport)
{
	return sport == bpf_htons(DNS_PORT) || dport == bpf_htons(DNS_PORT);
}

/* May the packet of this protocol, with its header at `l4`, be one that tells? Every packet of the node pays for this. */
static __always_inline bool transport_may_tell(__u8 protocol, __u64 l4)
{
	if (likely(protocol == IPPROTO_TCP)) {
		VIEW(struct tcphdr, tcp, l4);
		return unlikely(tcp->flags & (TCP_SYN | TCP_RST)) || is_dns_port(tcp->source, tcp->dest);
	}
	if (protocol == IPPROTO_UDP) {
		VIEW(struct udphdr, udp, l4);
		return is_dns_port(udp->source, udp->dest);
	}
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
		VIEW(struct icmphdr, icmp, l4);
		return is_icmp_error(protocol, icmp->type);
	}
	return is_extension(protocol); /* watch_match() will look behind it */
}

/* The same for an IP header of either family at `at`. */
static __always_inline bool inner_may_tell(__u64 at)
{
	VIEW(struct iphdr, ip, at);

	if (ip->version_ihl >> 4 == 4)
		return transport_may_tell(ip->protocol, at + (ip->version_ihl & 0xf) * 4);
	VIEW(struct ipv6hdr, ip6, at);
	return transport_may_tell(ip6->nexthdr, at + sizeof(*ip6));
}

/* The same for a packet that may carry another one. Out of line for being rare: most traffic is TCP. */
static __noinline bool wrapped_may_tell(__u8 protocol, __u64 l4)
{
	if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6)
		return inner_may_tell(l4);
	if (protocol == IPPROTO_UDP) {
		VIEW(struct udphdr, udp, l4);
		__be16 dport = udp->dest;

		if (dport == bpf_htons(GENEVE_PORT))
			return true; /* options of any length: watch_match() will walk them */
		if (is_tunnel_port(dport))
			return inner_may_tell(l4 + 8 + 8 + 14);
	}
	return transport_may_tell(protocol, l4);
}

static __always_inline bool watch_may_match(const struct sk_buff *skb, __u64 at)
{
	__be16 version = skb->protocol;
	__u8 protocol;
	__u64 l4;

	if (likely(version == bpf_htons(ETH_P_IP))) {
		VIEW(struct iphdr, ip, at);
		protocol = ip->protocol;
		l4 = at + (ip->version_ihl & 0xf) * 4;
	} else if (version == bpf_htons(ETH_P_IPV6)) {
		VIEW(struct ipv6hdr, ip, at);
		protocol = ip->nexthdr;
		l4 = at + sizeof(*ip);
	} else {
		return false;
	}
	if (likely(protocol == IPPROTO_TCP))
		return transport_may_tell(IPPROTO_TCP, l4);
	return wrapped_may_tell(protocol, l4);
}

static __always_inline bool is_watched(const struct tuple *t)
{
	return bpf_map_lookup_elem(&peers, t->saddr) || bpf_map_lookup_elem(&peers, t->daddr);
}

/* Behind NAT the pod's address may be in no header. */
static __always_inline bool conntrack_is_watched(struct match *m, const struct sk_buff *skb)
{
	const struct nf_conn *ct = conntrack_of(skb);

	if (!ct)
		return false;
	__builtin_memset(&m->orig, 0, 2 * sizeof(struct tuple));
	conntrack_orig(&m->orig, ct);
	conntrack_reply(&m->reply, ct);
	return m->orig.family && (is_watched(&m->orig) || is_watched(&m->reply));
}

static __always_inline bool tells(const struct header *h, enum encap encap)
{
	if (encap == ENCAP_ICMP_ERROR)
		return true;
	if (h->later_fragment)
		return false;
	if (h->tuple.protocol == IPPROTO_TCP && h->tcp_flags & (TCP_SYN | TCP_RST))
		return true;
	if (h->tuple.protocol != IPPROTO_TCP && h->tuple.protocol != IPPROTO_UDP)
		return false;
	return h->payload_len && (h->tuple.sport == DNS_PORT || h->tuple.dport == DNS_PORT);
}

/*
 * A number that all packets of one connection's beginning (or of one query) have, whatever NAT does to them: the client's
 * initial sequence number, DNS's transaction id. 0: none. tracer/k8snet/watch/table.py has the same.
 */
static __always_inline __u32 number_of(const struct header *h, enum encap encap)
{
	if (h->tuple.protocol == IPPROTO_UDP && (h->tuple.sport == DNS_PORT || h->tuple.dport == DNS_PORT))
		return h->seq >> 16;
	if (h->tuple.protocol != IPPROTO_TCP)
		return 0;
	if (h->tcp_flags & TCP_ACK)
		return h->tcp_flags & (TCP_SYN | TCP_RST) ? h->ack - 1 : 0;
	return h->tcp_flags & TCP_SYN || encap == ENCAP_ICMP_ERROR ? h->seq : 0;
}

static __always_inline bool is_kept(const struct header *h, enum encap encap)
{
	__u32 zero = 0, number = number_of(h, encap), *shift = bpf_map_lookup_elem(&sampling, &zero);

	/* Knuth's multiplicative hash: its upper bits depend on all of the number. */
	return !number || !shift || !*shift || !(number * 2654435761U >> (32 - (*shift & 31)));
}

static __always_inline bool is_held(void)
{
	__u32 zero = 0;
	struct window *window = bpf_map_lookup_elem(&windows, &zero);
	__u64 number = bpf_ktime_get_ns() >> HELD_WINDOW;

	if (!window)
		return false;
	if (window->number != number) {
		window->number = number;
		window->count = 0;
	}
	if (++window->count <= HELD_ABOVE)
		return false;
	__sync_fetch_and_add(&held, 1);
	return true;
}

/* Which packets matter to a probe. */
enum matters {
	ONLY_TELLING,
	ALSO_DATA, /* a bare acknowledgement that dies takes nothing with it, and many die when connections end */
	ANYTHING,
};

/* Decides, and leaves in `m` what the event needs, as match() does. */
static __noinline bool watch_match(struct match *m, const struct sk_buff *skb, __u64 at, enum matters matters)
{
	__u64 end = (__u64)skb->head + skb->tail;
	__u32 room = end > at ? end - at : 0;
	const struct header *h = &m->first;
	enum encap encap = ENCAP_NONE;
	bool telling;
	__u32 skip;

	m->encap = ENCAP_NONE;
	if (!parse(&m->first, at, room))
		return false;
	skip = inner_offset(&m->first, at, &encap);
	if (skip && skip < room && parse(&m->inner, at + skip, room - skip)) {
		m->encap = encap;
		h = &m->inner;
	}
	telling = tells(h, m->encap);
	if (!telling && matters == ONLY_TELLING)
		return false;
	if (!telling && matters == ALSO_DATA && h->tuple.protocol == IPPROTO_TCP && !h->payload_len)
		return false;
	if (!is_kept(h, m->encap))
		return false;
	if (!is_watched(&h->tuple) && !conntrack_is_watched(m, skb))
		return false;
	return telling || !is_held();
}

static __always_inline bool is_ip(const struct sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

#endif
