/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * One IP header and the transport header behind it, taken apart: from an address in kernel memory to `struct header`.
 * Nothing here knows an skb, a filter or an event. Bytes beyond `room` belong to nobody (bpf_probe_read_kernel would
 * read them all the same), so what is not wholly inside is left zero.
 */
#ifndef K8SNET_PACKET_H
#define K8SNET_PACKET_H

#include "compat.h"
#include "event.h"

#define MAX_EXTENSIONS 4 /* a guess: each kind once */
#define IP_OFFSET 0x1fff /* RFC 791: the fragment offset without the flags */

struct header {
	struct tuple tuple; /* the event's form; ports are zero in a later fragment */
	__u32 seq;
	__u32 ack;
	__u16 ip_id;
	__u16 frag_off;
	__u16 payload_len;
	__u16 l4; /* where the transport header begins, from the IP header's first byte */
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	bool later_fragment; /* carries no transport header */
	bool icmp_error;     /* quotes the header it is about, 8 bytes after l4 */
	__u16 data;	     /* UDP, TCP: where the payload begins, from the IP header's first byte */
} __attribute__((aligned(8))); /* so that tuples are copied by words */

static __always_inline bool is_icmp_error(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == 3 || type == 4 || type == 5 || type == 11 || type == 12; /* RFC 792, 1812 */
	return protocol == IPPROTO_ICMPV6 && type >= 1 && type <= 4;			/* RFC 4443 */
}

static __always_inline bool is_icmp_echo(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == 8 || type == 0;
	return type == 128 || type == 129;
}

/* What of a transport header is read; an ICMP error quotes eight bytes of it (RFC 792), so a part may be missing. */
union transport {
	struct tcphdr tcp;
	struct {
		struct udphdr udp;
		__be32 payload;
	};
	struct icmphdr icmp;
	__u64 words[2];
};

/* The transport header of `h`, whose protocol is set and whose payload_len still has this header in it. */
static __always_inline void parse_transport(struct header *h, __u64 at, __u32 room)
{
	__u8 protocol = h->tuple.protocol;
	__u32 header_length = 8;
	union transport l4;

	if (room < 8)
		return;
	l4.words[1] = 0;
	bpf_probe_read_kernel(&l4, room < sizeof(l4) ? 8 : sizeof(l4), (void *)at);
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
		h->icmp_type = l4.icmp.type;
		h->icmp_code = l4.icmp.code;
		h->icmp_error = is_icmp_error(protocol, l4.icmp.type);
		if (is_icmp_echo(protocol, l4.icmp.type)) {
			h->tuple.sport = bpf_ntohs(l4.icmp.id);
			h->seq = bpf_ntohs(l4.icmp.sequence);
		}
	} else if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP) {
		h->tuple.sport = bpf_ntohs(l4.udp.source);
		h->tuple.dport = bpf_ntohs(l4.udp.dest);
		if (protocol == IPPROTO_TCP) {
			h->seq = bpf_ntohl(l4.tcp.seq);
			h->ack = bpf_ntohl(l4.tcp.ack_seq);
			h->tcp_flags = l4.tcp.flags;
			header_length = (l4.tcp.doff >> 4) * 4;
		} else if (protocol == IPPROTO_SCTP) {
			__u8 chunk = 0;

			header_length = 12;
			if (room > 12)
				bpf_probe_read_kernel(&chunk, sizeof(chunk), (void *)(at + 12));
			h->icmp_type = chunk;
		} else if (h->payload_len >= 12 && room >= 12) {
			h->seq = bpf_ntohl(l4.payload);
		}
	} else {
		return;
	}
	h->data = h->l4 + header_length;
	h->payload_len = h->payload_len > header_length ? h->payload_len - header_length : 0;
}

/* An IPv4 header; its length, 0 when that cannot be. */
static __always_inline __u32 parse_ipv4(struct header *h, const struct iphdr *ip)
{
	__u32 ihl = (ip->version_ihl & 0xf) * 4, length = bpf_ntohs(ip->tot_len);

	if (ihl < sizeof(*ip))
		return 0;
	*(__be32 *)h->tuple.saddr = ip->saddr;
	*(__be32 *)h->tuple.daddr = ip->daddr;
	h->tuple.protocol = ip->protocol;
	h->tuple.family = AF_INET;
	h->ip_id = bpf_ntohs(ip->id);
	h->frag_off = bpf_ntohs(ip->frag_off);
	h->ttl = ip->ttl;
	h->payload_len = length > ihl ? length - ihl : 0;
	return ihl;
}

/* The extension headers of RFC 8200, section 4, without those of IPsec. */
static __always_inline bool is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_FRAGMENT ||
	       protocol == IPPROTO_DSTOPTS;
}

/* The extension header at `at`, which ends the walk when it is a later fragment's; its length. */
static __always_inline __u32 parse_extension(struct header *h, __u64 at)
{
	struct {
		__u8 next, words; /* of 8 bytes, after the first */
		__be16 offset;
		__be16 id[2];
	} extension;
	__u32 length = 8;

	bpf_probe_read_kernel(&extension, sizeof(extension), (void *)at);
	if (h->tuple.protocol == IPPROTO_FRAGMENT) {
		__u16 offset = bpf_ntohs(extension.offset);

		/* As the IPv4 header has it: the offset in the lower bits, "more fragments" in bit 13. */
		h->frag_off = offset >> 3 | (offset & 1) << 13;
		h->ip_id = bpf_ntohs(extension.id[1]);
	} else {
		length += extension.words * 8;
	}
	h->tuple.protocol = extension.next;
	h->payload_len = h->payload_len > length ? h->payload_len - length : 0;
	return length;
}

/* The IPv6 header at `at` with its extension headers; their length, 0 when that cannot be. */
static __always_inline __u32 parse_ipv6(struct header *h, __u64 at, __u32 room)
{
	VIEW(struct ipv6hdr, ip, at);
	__u32 size = sizeof(*ip);

	if ((ip->version_flow & 0xf0) != 0x60)
		return 0;
	for (int i = 0; i < 2; i++) {
		((__u64 *)h->tuple.saddr)[i] = ((const __u64 *)ip->saddr)[i];
		((__u64 *)h->tuple.daddr)[i] = ((const __u64 *)ip->daddr)[i];
	}
	h->tuple.protocol = ip->nexthdr;
	h->tuple.family = AF_INET6;
	h->ttl = ip->hop_limit;
	h->payload_len = bpf_ntohs(ip->payload_len);
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (!is_extension(h->tuple.protocol) || h->frag_off & IP_OFFSET)
			break;
		if (room < size + 8)
			return 0;
		size += parse_extension(h, at + size);
	}
	return size;
}

/* The header at `at`, of which `room` bytes may be read; false when it is no IP header. */
static __noinline bool parse(struct header *h, __u64 at, __u32 room)
{
	VIEW(struct iphdr, ip, at);
	__u32 size;

	__builtin_memset(h, 0, sizeof(*h));
	if (room < sizeof(*ip))
		return false;
	size = ip->version_ihl >> 4 == 4 ? parse_ipv4(h, ip) : parse_ipv6(h, at, room);
	if (!size || room < size)
		return false;
	h->l4 = size;
	h->later_fragment = h->frag_off & IP_OFFSET;
	if (!h->later_fragment)
		parse_transport(h, at + size, room - size);
	return true;
}

#endif
