/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * What differs between kernels, each difference behind one accessor; programs call it and know nothing. Existence of
 * fields and types is asked of the running kernel's BTF by CO-RE; what CO-RE cannot ask (how many arguments a
 * tracepoint has, at which position) the loader asks and writes into the constants below before loading.
 */
#ifndef K8SNET_COMPAT_H
#define K8SNET_COMPAT_H

#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Headers define and do not merely declare: all of probes/ is compiled as one unit (Makefile), each header once. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The kernel has bpf_rdonly_cast (kernel commit a35b9af4ec2c, 6.2) and the types we cast to. */
const volatile bool typed_views = false;
/* Arguments after the first (6.1 has 3 of kfree_skb with the reason, 6.12 4 with rx_sk). 0: not known, so not read. */
const volatile __u32 kfree_skb_args = 0;
const volatile __u32 tcp_send_reset_args = 0;
const volatile __u32 udp_fail_queue_rcv_skb_args = 0;
/* ipt_do_table and ip6t_do_table(skb, state, table) until 5.10, (priv = table, skb, state) on 6.1. */
const volatile bool ipt_table_first = true;

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

/* Programs at tracepoints may call bpf_dynptr_from_skb (6.12; kernels from 6.4 have it and refuse): the loader tries. */
const volatile bool skb_dynptrs = false;

extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;

/*
 * VIEW(struct iphdr, ip, at) declares `ip`, through which the bytes at `at` are read. Where the kernel lets us, these are
 * plain loads that yield 0 on a fault; else one bpf_probe_read_kernel into a local. The verifier knows which, so
 * nothing of the other is left in the program. 10 to 15 ns of a non-matching program's 30 were the helper call.
 */
#define VIEW(type, name, at)                                                                                     \
	type name##_copy;                                                                                        \
	const type *name = &name##_copy;                                                                         \
	if (typed_views)                                                                                         \
		name = bpf_rdonly_cast((const void *)(at), bpf_core_type_id_kernel(type));                       \
	else                                                                                                     \
		bpf_probe_read_kernel(&name##_copy, sizeof(type), (const void *)(at))

/*
 * The same pointer without the verifier's trust in it. For each pointer that is loaded through a trusted one, 6.18 looks
 * for "TYPE__safe_trusted" and the like by walking the whole BTF: a third of the time to load all programs.
 */
#define UNTRUSTED(type, pointer)                                                                                 \
	((const type *)(typed_views ? bpf_rdonly_cast((pointer), bpf_core_type_id_kernel(type)) : (pointer)))

/* `_nfct` depends on CONFIG_NF_CONNTRACK. */
static __always_inline unsigned long nfct_of(const struct sk_buff *skb)
{
	return bpf_core_field_exists(skb->_nfct) ? skb->_nfct : 0;
}

/* `nf_trace` depends on CONFIG_NETFILTER_XT_TARGET_TRACE or CONFIG_NF_TABLES. */
static __always_inline __u8 nf_trace_of(const struct sk_buff *skb)
{
	return bpf_core_field_exists(skb->nf_trace) ? BPF_CORE_READ_BITFIELD(skb, nf_trace) : 0;
}

/* `unsigned int` on 5.10, `u8` on 6.1 and later: a typed load is narrowed by libbpf, a probe read would take `pf` along. */
static __always_inline __u8 hook_of(const struct nf_hook_state *state)
{
	return state->hook;
}

/* The same where the verifier does not know what `state` points to. */
static __always_inline __u8 read_hook_of(const struct nf_hook_state *state)
{
	__u32 wide = 0;
	__u8 hook = 0;

	if (bpf_core_field_size(state->hook) == sizeof(hook)) {
		bpf_core_read(&hook, sizeof(hook), &state->hook);
		return hook;
	}
	bpf_core_read(&wide, sizeof(wide), &state->hook);
	return wide;
}

/* What a call has put on the stack when the function begins. */
#if defined(__TARGET_ARCH_x86)
#define RETURN_ADDRESS 8
#else
#define RETURN_ADDRESS 0
#endif

static __always_inline __u32 netns_of_sock(const struct sock *sk)
{
	return UNTRUSTED(struct sock, sk)->__sk_common.skc_net.net->ns.inum;
}

#endif
