/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * From an outer header to the inner one: VXLAN, Geneve, IP in IP, and what an ICMP error quotes. One level only.
 * The ports are the ones that Kubernetes networks use; a fragment that is not the first carries no inner header.
 */
#ifndef K8SNET_TUNNEL_H
#define K8SNET_TUNNEL_H

#include "packet.h"

#define VXLAN_PORT 4789	      /* RFC 7348: Calico, Cilium's and Antrea's own */
#define VXLAN_LINUX_PORT 8472 /* the kernel's default before the RFC: flannel, Cilium */
#define GENEVE_PORT 6081      /* RFC 8926: Antrea, OVN */

static __always_inline bool is_tunnel_port(__be16 dport)
{
	return dport == bpf_htons(VXLAN_LINUX_PORT) || dport == bpf_htons(VXLAN_PORT) || dport == bpf_htons(GENEVE_PORT);
}

/* Where the inner IP header is: bytes from the transport header; 0 when there is none. */
static __always_inline __u32 geneve_inner(__u64 geneve)
{
	__u8 fixed[4];
	__u16 type;
	__u32 skip;

	bpf_probe_read_kernel(fixed, sizeof(fixed), (void *)geneve);
	type = fixed[2] << 8 | fixed[3];
	skip = 8 + 8 + (fixed[0] & 0x3f) * 4;
	if (type == ETH_P_TEB)
		return skip + 14;
	return type == ETH_P_IP || type == ETH_P_IPV6 ? skip : 0;
}

/* The distance from the outer IP header to the inner one, and how it is wrapped; 0 when nothing is. */
static __always_inline __u32 inner_offset(const struct header *outer, __u64 at, enum encap *encap)
{
	__u32 inner;

	if (outer->later_fragment)
		return 0;
	switch (outer->tuple.protocol) {
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
		*encap = ENCAP_IPIP;
		return outer->l4;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		*encap = ENCAP_ICMP_ERROR;
		return outer->icmp_error ? outer->l4 + 8 : 0;
	case IPPROTO_UDP:
		if (outer->tuple.dport == VXLAN_PORT || outer->tuple.dport == VXLAN_LINUX_PORT) {
			*encap = ENCAP_VXLAN;
			return outer->l4 + 8 + 8 + 14; /* UDP, VXLAN, Ethernet */
		}
		if (outer->tuple.dport == GENEVE_PORT) {
			*encap = ENCAP_GENEVE;
			inner = geneve_inner(at + outer->l4 + 8);
			return inner ? outer->l4 + inner : 0;
		}
	}
	return 0;
}

#endif
