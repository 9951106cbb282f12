/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The kernel's types as far as we read them, kept by hand: nothing here has the kernel's layout, every offset is
 * relocated at load time against the running kernel's BTF. Where kernels disagree, see compat.h. What surprises: a
 * bit-field that is read directly compiles and returns a wrong value; use BPF_CORE_READ_BITFIELD. The exceptions,
 * whose layout is the kernel's or the wire's and must stay it, stand outside of the pragma.
 */
#ifndef K8SNET_VMLINUX_H
#define K8SNET_VMLINUX_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef signed short __s16;
typedef unsigned short __u16;
typedef signed int __s32;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

/* UAPI: linux/bpf.h, linux/in.h, linux/if_ether.h, linux/socket.h, linux/netfilter.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_RB_NO_WAKEUP = 1 };
enum {
	IPPROTO_HOPOPTS = 0,
	IPPROTO_ICMP = 1,
	IPPROTO_IPIP = 4,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_IPV6 = 41,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_DSTOPTS = 60,
	IPPROTO_SCTP = 132,
};
enum { AF_INET = 2, AF_INET6 = 10 };
enum { ETH_P_IP = 0x0800, ETH_P_IPV6 = 0x86dd, ETH_P_TEB = 0x6558 };

/* UAPI, opaque. Defined, because libbpf compares a kfunc's parameters with the kernel's, and a mere name is another kind. */
struct bpf_dynptr {
	__u64 opaque[2];
};
struct __sk_buff {
	__u32 len;
};

/* Whole, in the kernel's own layout, so that one read takes all of it; the same on 5.10 and 6.18. */
struct nf_conntrack_tuple {
	struct {
		__u8 u3[16];
		__be16 u;
		__u16 l3num;
	} src;
	struct {
		__u8 u3[16];
		__be16 u;
		__u8 protonum;
		__u8 dir;
	} dst;
};

/* What a kprobe's program is given: UAPI asm/ptrace.h of each machine. */
struct pt_regs {
	unsigned long r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
	unsigned long orig_rax, rip, cs, eflags, rsp, ss;
};

struct user_pt_regs {
	__u64 regs[31];
	__u64 sp, pc, pstate;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct net_device {
	char name[16];
	int ifindex;
	possible_net_t nd_net;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

struct request_sock {
	struct sock_common __req_common;
};

struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	char cb[48];
	unsigned long _nfct;
	unsigned int len;
	__u8 cloned : 1;
	__u8 pkt_type : 3;
	__u8 nf_trace : 1;
	int skb_iif;
	__u32 mark;
	__be16 protocol;
	__u16 network_header;
	unsigned int tail;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
};

struct skb_shared_info {
	unsigned short gso_size;
	unsigned short gso_segs;
};

struct fib_nh_common {
	struct net_device *nhc_dev;
};

struct flowi_common {
	int flowic_oif;
	int flowic_iif;
	__u8 flowic_proto;
};

struct flowi4 {
	struct flowi_common __fl_common;
	__be32 saddr;
	__be32 daddr;
};

struct neigh_table {
	int family;
};

struct neighbour {
	struct neigh_table *tbl;
	__u8 nud_state;
	struct net_device *dev;
	__u8 primary_key[0];
};

struct nf_hook_state {
	unsigned int hook; /* unsigned int on 5.10, u8 on 6.1 and later: see hook_of() in compat.h */
	__u8 pf;
};

struct nft_table {
	char *name;
};

struct nft_chain {
	struct nft_table *table;
};

struct nft_pktinfo {
	struct sk_buff *skb;
};

struct xt_table {
	const char name[32];
};

struct nf_conntrack_zone {
	__u16 id;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct nf_conn {
	struct nf_conntrack_zone zone;
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
};

enum skb_drop_reason { SKB_NOT_DROPPED_YET = 0 };

#pragma clang attribute pop

/* On the wire (RFC 791, 8200, 9293, 768, 792). No relocation: the layout is the wire's. */
struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__be32 version_flow;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff;
	__u8 flags;
	__be16 window;
};

struct udphdr {
	__be16 source;
	__be16 dest;
	__be16 len;
	__u16 check;
};

struct icmphdr {
	__u8 type;
	__u8 code;
	__u16 check;
	__be16 id;
	__be16 sequence;
};

#endif
