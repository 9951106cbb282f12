/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The one record that goes from the kernel to Python. `Event` in tracer/k8snet/event.py has the same
 * fields under the same names; tests/unit/test_layout.py compares the two through the object's BTF.
 * Integers are in host order; addresses and nothing else are kept as they are on the wire. What a
 * probe does not know is zero, except where the comment says otherwise.
 */
#ifndef K8SNET_EVENT_H
#define K8SNET_EVENT_H

/* Numbers are part of the recording format: append, never renumber. Same order as tracer/k8snet/event.py. */
enum probe_id {
	PROBE_NET_DEV_QUEUE = 1,
	PROBE_NETIF_RECEIVE_SKB = 2,
	PROBE_KFREE_SKB = 3,
	PROBE_CONSUME_SKB = 4,
	PROBE_NET_DEV_XMIT = 5,
	PROBE_FIB_TABLE_LOOKUP = 6,
	PROBE_NEIGH_EVENT_SEND_DONE = 7,
	PROBE_NEIGH_TIMER_HANDLER = 8,
	PROBE_NEIGH_UPDATE = 9,
	PROBE_INET_SOCK_SET_STATE = 10,
	PROBE_TCP_RETRANSMIT_SKB = 11,
	PROBE_TCP_RETRANSMIT_SYNACK = 12,
	PROBE_TCP_SEND_RESET = 13,
	PROBE_TCP_RECEIVE_RESET = 14,
	PROBE_ICMP_SEND = 15,
	PROBE_UDP_FAIL_QUEUE_RCV_SKB = 16,
	PROBE_SKB_COPY_DATAGRAM_IOVEC = 17,
	/* Tier 2 emits nothing itself: it adds hook and table to the drop. The numbers count losses and errors. */
	PROBE_NF_HOOK_SLOW = 32,
	PROBE_IPT_DO_TABLE = 33,
	PROBE_NFT_DO_CHAIN = 34,
	PROBE_NF_CT_RESOLVE_CLASH = 35, /* conntrack tuples and status are those of the winner */
	PROBE_IP6T_DO_TABLE = 36,
	PROBE_MAX = 64,
};

/* How the header in `packet` was found. */
enum encap {
	ENCAP_NONE = 0,
	ENCAP_VXLAN = 1,
	ENCAP_GENEVE = 2,
	ENCAP_IPIP = 3,
	ENCAP_ICMP_ERROR = 4, /* `packet` is the header that the ICMP error quotes; `outer` is the error's own */
};

/* A record is `struct event`, and behind it for a packet of port 53 the DNS message or its beginning: the header, the
 * longest question there can be, and over TCP the length before them (12 + 255 + 4 + 2 bytes), a little more than that. */
#define PAYLOAD_MAX 288
#define DNS_PORT 53

#define CT_INFO_NONE 0xff /* the skb carries no conntrack entry */
#define HOOK_NONE 0xff    /* netfilter hook not known (no tier 2) */

/* Conntrack's five-tuple. An IPv4 address takes the first four bytes, the rest is zero.
 * ICMP echo: sport is the echo id, dport is 0, in both directions. */
struct tuple {
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 sport;
	__u16 dport;
	__u8 protocol; /* IPPROTO_* */
	__u8 family;   /* AF_INET, AF_INET6; 0: no tuple */
	__u16 pad;
};

struct event {
	__u64 ktime_ns; /* CLOCK_MONOTONIC */
	__u64 skb;	/* address: a hint, never an identity (addresses are reused within microseconds) */
	__u64 location; /* kfree_skb: the instruction that dropped the skb */
	__u32 cpu;
	__u32 netns; /* ns.inum of the device's netns, else of the socket's; 0 when neither is known */
	__u32 ifindex;
	__u32 skb_iif;	/* ifindex it came in by, in the netns where it came in */
	__u32 len;	/* skb->len at this hook, bytes */
	__u32 skb_mark;
	__u32 reason;	/* enum skb_drop_reason of the running kernel; 0 where it has none */
	__s32 code;	/* the probe's own number: return code, errno, nud state, (old << 8 | new) TCP state */
	__u32 seq;	/* TCP sequence; ICMP echo sequence; UDP: the first four payload bytes, big-endian */
	__u32 ack;
	__u32 ct_status; /* enum ip_conntrack_status bits */
	__u16 ip_id;
	__u16 frag_off;	/* as in the IPv4 header: flags in the top three bits, offset in 8-byte units */
	__u16 payload_len; /* transport payload, bytes, of this skb (a GSO skb carries many segments) */
	__u16 gso_size;
	__u16 gso_segs;
	__u16 ct_zone;
	__u8 ct_info;  /* enum ip_conntrack_info; CT_INFO_NONE without an entry */
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type; /* SCTP: of the first chunk */
	__u8 icmp_code;
	__u8 pkt_type; /* PACKET_HOST, PACKET_OTHERHOST, ... */
	__u8 hook;     /* enum nf_inet_hooks; HOOK_NONE when not known */
	__u8 nf_trace; /* 1: the skb is marked for rule tracing */
	__u8 cloned;
	__u8 probe;    /* enum probe_id */
	__u8 encap;    /* enum encap */
	__u8 pad[5];
	struct tuple packet;
	struct tuple outer;
	struct tuple ct_orig;
	struct tuple ct_reply;
	char ifname[16];
	char table[16]; /* tier 2: the table that was deciding when the skb was dropped */
};

#endif
