// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * What sockets say: TCP states, retransmissions, resets, a full receive buffer, data read by the application. The filter
 * looks at the socket's addresses, and the event shows them as the socket does: saddr is local, daddr remote (a
 * state change on connect() may still have sport 0). Where the kernel hands over an skb, the packet is its header.
 */
#include "emit.h"

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, const struct sock *sk, const int oldstate, const int newstate)
{
	struct event *e = event_for_socket(PROBE_INET_SOCK_SET_STATE, &sk->__sk_common, sk->sk_protocol);

	if (!e)
		return 0;
	e->code = oldstate << 8 | newstate;
	submit(e);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb, const struct sock *sk, const struct sk_buff *skb)
{
	struct event *e = event_for_socket(PROBE_TCP_RETRANSMIT_SKB, &sk->__sk_common, IPPROTO_TCP);

	if (!e)
		return 0;
	/* The headers are built below TCP, in a clone: what is known here is in TCP's control block. */
	e->seq = BPF_CORE_READ((const struct tcp_skb_cb *)skb->cb, seq);
	e->skb = (__u64)skb;
	e->len = skb->len;
	e->code = sk->__sk_common.skc_state;
	submit(e);
	return 0;
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(tcp_retransmit_synack, const struct sock *sk, const struct request_sock *req)
{
	struct event *e = event_for_socket(PROBE_TCP_RETRANSMIT_SYNACK, &req->__req_common, IPPROTO_TCP);

	if (e)
		submit(e);
	return 0;
}

/* With an skb the event is about the packet that was refused; a socket alone is one that was closed hard. */
SEC("tp_btf/tcp_send_reset")
int tcp_send_reset(__u64 *ctx)
{
	const struct sock *sk = (const struct sock *)ctx[0];
	const struct sk_buff *skb = (const struct sk_buff *)ctx[1];
	struct event *e = NULL;

	if (skb)
		e = event_for_skb(PROBE_TCP_SEND_RESET, skb, network_header(skb));
	else if (sk)
		e = event_for_socket(PROBE_TCP_SEND_RESET, &sk->__sk_common, IPPROTO_TCP);
	if (!e)
		return 0;
	if (tcp_send_reset_args >= 3)
		e->code = ctx[2];
	if (!e->netns && sk)
		e->netns = netns_of_sock(sk);
	submit(e);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_receive_reset, struct sock *sk)
{
	struct event *e = event_for_socket(PROBE_TCP_RECEIVE_RESET, &sk->__sk_common, IPPROTO_TCP);

	if (!e)
		return 0;
	e->code = sk->__sk_common.skc_state;
	submit(e);
	return 0;
}

/* On 5.10 and 6.1 there is no skb, and a server's UDP socket does not know who sent: then there is nothing to match. */
SEC("tp_btf/udp_fail_queue_rcv_skb")
int udp_fail_queue_rcv_skb(__u64 *ctx)
{
	struct event *e = NULL;

	if (udp_fail_queue_rcv_skb_args >= 3) {
		const struct sk_buff *skb = (const struct sk_buff *)ctx[2];

		e = event_for_skb(PROBE_UDP_FAIL_QUEUE_RCV_SKB, skb, network_header(skb));
	} else {
		const struct sock *sk = (const struct sock *)ctx[1];

		e = event_for_socket(PROBE_UDP_FAIL_QUEUE_RCV_SKB, &sk->__sk_common, IPPROTO_UDP);
	}
	if (!e)
		return 0;
	e->code = ctx[0];
	submit(e);
	return 0;
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(skb_copy_datagram_iovec, const struct sk_buff *skb, int len)
{
	struct event *e = event_for_skb(PROBE_SKB_COPY_DATAGRAM_IOVEC, skb, network_header(skb));

	if (!e)
		return 0;
	e->code = len;
	submit(e);
	return 0;
}
