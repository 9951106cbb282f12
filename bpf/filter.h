/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Is this skb one of the flow that is traced? Two steps. `may_match` runs for every packet of the node: it compares
 * addresses with constants and calls nothing (the verifier throws away what the constants make unreachable). Only when
 * an address of the client is found anywhere, `match` takes the packet apart and decides: on the outer header, else on
 * the inner one, else on conntrack's original tuple, else on a reply tuple that an earlier SNAT taught us.
 */
#ifndef K8SNET_FILTER_H
#define K8SNET_FILTER_H

#include "conntrack.h"
#include "tunnel.h"

#define MAX_CLIENTS 4
#define MAX_PORTS 8

/* Set by the loader before load; addresses as on the wire, ports in host order. */
const volatile __u32 client4_count = 0;
const volatile __u32 client6_count = 0;
const volatile __u32 client4[MAX_CLIENTS] = {};
const volatile __u64 client6[MAX_CLIENTS][2] = {};
const volatile bool any_peer = false;
const volatile __u8 protocol4 = 0; /* IPPROTO_*, 0: any. Two, because ICMP has one for each family. */
const volatile __u8 protocol6 = 0;
const volatile __u32 port_count = 0; /* 0: any port */
const volatile __u16 ports[MAX_PORTS] = {};

/* Key: an address as in struct tuple. Read only after the other address turned out to be a client's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(key_size, 16);
	__uint(value_size, 1);
} peers SEC(".maps");

/* Tuples of packets that no longer show the client's address, or a server's that was asked for; see learn(). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tuple);
	__type(value, __u8);
} learned SEC(".maps");

/* Until there is something in `learned` nobody pays for looking, and without SNAT only who has a client's address. */
volatile bool snat_seen = false;
volatile bool dnat_seen = false;

struct match {
	struct header first; /* the header the skb begins with */
	struct header inner; /* set when encap is */
	struct tuple orig __attribute__((aligned(8))); /* conntrack's, set by the event's filling */
	struct tuple reply __attribute__((aligned(8)));
	enum encap encap;
};

/*
 * Where a probe works; one slot for each, because one may interrupt another on the same CPU (itself it does not: the
 * kernel refuses, or has softirqs off). Not on the stack, where the verifier follows each value through each branch: that
 * took 4 s to load instead of 0.1 s. Nor in the ring buffer, where 6.1's verifier loses track of a record that a
 * function returned.
 */
struct work {
	struct match match;
	struct event event;
	__u8 payload[PAYLOAD_MAX]; /* right behind the event, so that both go out as one record */
	__u32 payload_size;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PROBE_MAX);
	__type(key, __u32);
	__type(value, struct work);
} scratch SEC(".maps");

static __always_inline bool is_client4_at(__u32 i, __u32 saddr, __u32 daddr)
{
	__u32 client = client4[i];

	return unlikely(saddr == client || daddr == client);
}

/* No loop: each constant is read once, and the verifier cuts off what the count makes unreachable. */
static __always_inline bool has_client4(__u32 saddr, __u32 daddr)
{
	__u32 count = client4_count;

	if (count < 1)
		return false;
	if (is_client4_at(0, saddr, daddr))
		return true;
	if (count < 2)
		return false;
	if (is_client4_at(1, saddr, daddr))
		return true;
	if (count < 3)
		return false;
	if (is_client4_at(2, saddr, daddr))
		return true;
	return count >= 4 && is_client4_at(3, saddr, daddr);
}

static __always_inline bool is_client6_at(__u32 i, __u64 high, __u64 low)
{
	return unlikely(high == client6[i][0] && low == client6[i][1]);
}

static __always_inline bool is_client6(const __u64 *addr)
{
	__u64 high = addr[0], low = addr[1];
	__u32 count = client6_count;

	if (count < 1)
		return false;
	if (is_client6_at(0, high, low))
		return true;
	if (count < 2)
		return false;
	if (is_client6_at(1, high, low))
		return true;
	if (count < 3)
		return false;
	if (is_client6_at(2, high, low))
		return true;
	return count >= 4 && is_client6_at(3, high, low);
}

static __always_inline bool header_may_match4(__u64 at)
{
	VIEW(struct iphdr, ip, at);

	return has_client4(ip->saddr, ip->daddr);
}

static __always_inline bool header_may_match6(__u64 at)
{
	VIEW(struct ipv6hdr, ip, at);

	return is_client6((const __u64 *)ip->saddr) || is_client6((const __u64 *)ip->daddr);
}

/* Is a client's address in the IP header at `at`, of either family? */
static __always_inline bool inner_may_match(__u64 at)
{
	VIEW(struct iphdr, ip, at);

	if (ip->version_ihl >> 4 == 4)
		return has_client4(ip->saddr, ip->daddr);
	return client6_count && header_may_match6(at);
}

/* The same for the header inside a tunnel, `l4` being the UDP header. Out of line, as the next one, for being rare. */
static __noinline bool tunnel_may_match(__be16 dport, __u64 l4)
{
	if (dport == bpf_htons(GENEVE_PORT))
		return true; /* options of any length: match() will walk them */
	return inner_may_match(l4 + 8 + 8 + 14);
}

/* The same for a protocol that is neither TCP nor UDP. */
static __noinline bool other_may_match(__u8 protocol, __u64 l4)
{
	if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6)
		return inner_may_match(l4);
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
		VIEW(struct icmphdr, icmp, l4);

		return is_icmp_error(protocol, icmp->type) && inner_may_match(l4 + 8);
	}
	return is_extension(protocol); /* match() will look behind it */
}

/* `protocol` and its header at `l4`: is there an inner header with a client's address? */
static __always_inline bool wrapped_may_match(__u8 protocol, __u64 l4)
{
	if (protocol == IPPROTO_UDP) {
		VIEW(struct udphdr, udp, l4);
		__be16 dport = udp->dest;

		return unlikely(is_tunnel_port(dport)) && tunnel_may_match(dport, l4);
	}
	return protocol != IPPROTO_TCP && other_may_match(protocol, l4);
}

static __always_inline bool conntrack_may_match(const struct sk_buff *skb, bool v4)
{
	const struct nf_conn *ct = conntrack_of(skb);
	const __u64 *source; /* the original tuple begins with its source address */
	__u64 copy[2];

	if (!ct)
		return false;
	source = (const __u64 *)&ct->tuplehash[0].tuple;
	if (!nf_conn_type) {
		bpf_probe_read_kernel(copy, sizeof(copy), source);
		source = copy;
	}
	return v4 ? has_client4(source[0], source[0]) : is_client6(source);
}

static __always_inline bool may_match4(const struct sk_buff *skb, __u64 at)
{
	VIEW(struct iphdr, ip, at);

	if (has_client4(ip->saddr, ip->daddr))
		return true;
	if (wrapped_may_match(ip->protocol, at + (ip->version_ihl & 0xf) * 4))
		return true;
	return (client4_count && conntrack_may_match(skb, true)) || snat_seen;
}

static __always_inline bool may_match6(const struct sk_buff *skb, __u64 at)
{
	VIEW(struct ipv6hdr, ip, at);

	if (client6_count && (is_client6((const __u64 *)ip->saddr) || is_client6((const __u64 *)ip->daddr)))
		return true;
	if (wrapped_may_match(ip->nexthdr, at + sizeof(*ip)))
		return true;
	return (client6_count && conntrack_may_match(skb, false)) || snat_seen;
}

/* The part that every packet of the node pays for. `at`: its IP header. */
static __always_inline bool may_match(const struct sk_buff *skb, __u64 at)
{
	__be16 protocol = skb->protocol;

	if (likely(protocol == bpf_htons(ETH_P_IP)))
		return unlikely(may_match4(skb, at));
	return protocol == bpf_htons(ETH_P_IPV6) && may_match6(skb, at);
}

static __always_inline bool is_client(const __u8 *addr, __u8 family)
{
	if (family == AF_INET)
		return has_client4(*(const __u32 *)addr, *(const __u32 *)addr);
	return is_client6((const __u64 *)addr);
}

static __always_inline bool is_peer(const __u8 *addr)
{
	return any_peer || bpf_map_lookup_elem(&peers, addr);
}

static __always_inline bool ports_match(const struct tuple *t)
{
	if (!port_count)
		return true;
	if (t->protocol == IPPROTO_ICMP || t->protocol == IPPROTO_ICMPV6)
		return false; /* the echo id is not a port */
	for (__u32 i = 0; i < MAX_PORTS; i++) {
		if (i >= port_count)
			return false;
		if (t->sport == ports[i] || t->dport == ports[i])
			return true;
	}
	return false;
}

static __always_inline bool protocol_matches(const struct tuple *t)
{
	__u8 wanted = t->family == AF_INET ? protocol4 : protocol6;

	return !wanted || wanted == t->protocol;
}

/* One address is a client's and the other a peer's; between two clients (hairpin) always. */
static __noinline bool addresses_match(const struct tuple *t)
{
	bool from = is_client(t->saddr, t->family), to = is_client(t->daddr, t->family);

	if (!from && !to)
		return false;
	return (from && to) || is_peer(from ? t->daddr : t->saddr);
}

static __noinline bool header_matches(const struct header *h)
{
	return protocol_matches(&h->tuple) && (h->later_fragment || ports_match(&h->tuple)) && addresses_match(&h->tuple);
}

/* conntrack knows the direction: the client is who opened the connection. */
static __always_inline bool conntrack_matches(struct match *m, const struct sk_buff *skb)
{
	const struct nf_conn *ct = conntrack_of(skb);

	if (!ct)
		return false;
	__builtin_memset(&m->orig, 0, sizeof(m->orig));
	conntrack_orig(&m->orig, ct);
	return m->orig.family && protocol_matches(&m->orig) && ports_match(&m->orig) &&
	       is_client(m->orig.saddr, m->orig.family) && is_peer(m->orig.daddr);
}

static __always_inline bool is_learned(const struct tuple *t)
{
	return (snat_seen || dnat_seen) && bpf_map_lookup_elem(&learned, t);
}

/* Decides, and leaves in `m` what the event needs. `at`: the IP header. */
static __noinline bool match(struct match *m, const struct sk_buff *skb, __u64 at)
{
	__u64 end = (__u64)skb->head + skb->tail;
	__u32 room = end > at ? end - at : 0;
	enum encap encap = ENCAP_NONE;
	bool wrapped = false;
	__u32 skip;

	m->encap = ENCAP_NONE;
	if (!parse(&m->first, at, room))
		return false;
	/* An ICMP error belongs to the flow it quotes, whoever sent it. */
	if (!m->first.icmp_error && header_matches(&m->first))
		return true;
	skip = inner_offset(&m->first, at, &encap);
	if (skip && skip < room)
		wrapped = parse(&m->inner, at + skip, room - skip);
	if (wrapped && (header_matches(&m->inner) || is_learned(&m->inner.tuple))) {
		m->encap = encap;
		return true;
	}
	if (m->first.icmp_error && header_matches(&m->first))
		return true;
	return conntrack_matches(m, skb) || is_learned(&m->first.tuple);
}

static __always_inline struct work *work_of(enum probe_id probe)
{
	__u32 slot = probe;

	return bpf_map_lookup_elem(&scratch, &slot);
}

/*
 * After SNAT the client's address is gone, after DNAT the server may be one that nobody has asked for, and in the next
 * netns (behind a veth) so is `_nfct`. The reply tuple is what the packets look like there: keep it and its reverse.
 * Called for matching packets only.
 */
static __noinline void learn(const struct tuple *orig, const struct tuple *reply)
{
	struct tuple key __attribute__((aligned(8))) = *reply;
	__u8 one = 1;
	bool same_client = *(const __u64 *)reply->daddr == *(const __u64 *)orig->saddr &&
			   *(const __u64 *)(reply->daddr + 8) == *(const __u64 *)(orig->saddr + 8);

	if (same_client && is_peer(reply->saddr) && ports_match(reply))
		return;
	if (bpf_map_lookup_elem(&learned, &key))
		return;
	bpf_map_update_elem(&learned, &key, &one, BPF_ANY);
	__builtin_memcpy(key.saddr, reply->daddr, 16);
	__builtin_memcpy(key.daddr, reply->saddr, 16);
	if (key.protocol != IPPROTO_ICMP && key.protocol != IPPROTO_ICMPV6) {
		key.sport = reply->dport;
		key.dport = reply->sport;
	}
	bpf_map_update_elem(&learned, &key, &one, BPF_ANY);
	if (same_client)
		dnat_seen = true;
	else
		snat_seen = true;
}

#endif
